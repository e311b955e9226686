"""`headwater bench`: speed and memory of the native engine beside a peer and beside this machine's limits."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headwater import config, hub
from headwater.bench import build_peer, cases, limits, measure, peers, show, synthetic
from headwater.checkpoint.huggingface import config_dict
from headwater.commands.options import DTYPES, Json
from headwater.engine import native
from headwater.engine.core import PACKED_VERSION
from headwater.files import closest

PEERS = ("llama.cpp", "transformers")


def bench(
    model: Annotated[str | None, typer.Argument(help="A .gguf file, a model directory or a hub id.")] = None,
    synthetic_name: Annotated[
        str | None, typer.Option("--synthetic", help="Instead of MODEL: random weights in a released size's shape.")
    ] = None,
    weight_type: Annotated[
        str, typer.Option("--type", help=f"Type of --synthetic weights: {', '.join(synthetic.TYPES)}.")
    ] = "q4_0",
    pure: Annotated[bool, typer.Option(help="--synthetic: the embedding in the same type as the rest.")] = False,
    peer: Annotated[str | None, typer.Option(help=f"Engine to compare with: {', '.join(PEERS)}.")] = None,
    peer_binary: Annotated[
        Path | None, typer.Option(help=f"llama-bench. Default: ${peers.BINARY_VARIABLE}, --build-peer's, the PATH's.")
    ] = None,
    peer_args: Annotated[str, typer.Option(help="More options of llama-bench, e.g. '-lm none' (no mmap).")] = "",
    dtype: Annotated[str, typer.Option(help=f"Numbers of the transformers peer: {', '.join(DTYPES)}.")] = "bf16",
    threads: Annotated[int | None, typer.Option(help="Threads of both engines. Default: all processors.")] = None,
    rounds: Annotated[int, typer.Option(help="Pairs of runs per case.")] = 5,
    only: Annotated[str | None, typer.Option(help=f"Cases, by commas. Default: {', '.join(cases.DEFAULT)}.")] = None,
    neighbours: Annotated[int, typer.Option(help="Busy processes to measure beside.")] = 0,
    retries: Annotated[int, typer.Option(help="Further tries of a pair that others disturbed.")] = 2,
    packed: Annotated[bool, typer.Option(help="Run our engine on a packed file (made once, in the cache).")] = False,
    as_json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw speed against size and depth into this file.")] = None,
    result: Annotated[
        list[Path] | None, typer.Option(help="Earlier --json output to draw as well; several times.")
    ] = None,
    roofline: Annotated[bool, typer.Option(help="Only measure what this machine can do.")] = False,
    build: Annotated[str | None, typer.Option("--build-peer", help="Build this peer once: llama.cpp.")] = None,
) -> None:
    """Measure speed and memory, each run in a fresh process, in turn with a peer, beside this machine's limits."""
    console = show.wide_console()
    threads = native.default_threads() if threads is None else threads
    plan = measure.Plan(threads=threads, rounds=rounds, neighbours=neighbours, retries=retries)
    if build is not None:
        return _build(build, threads)
    if roofline:
        return _roofline(threads, as_json, console)
    earlier = [show.read_result(p) for p in result or []]
    if earlier and plot is None:
        raise ValueError("--result gives files to draw; say where with --plot FILE")
    if model is None and synthetic_name is None:
        return _draw_only(plot, earlier)
    path, name = _subject(model, synthetic_name, weight_type, pure, peer)
    work = limits.work_of(path)
    rival = _peer(peer, path, synthetic_name, peer_binary, shlex.split(peer_args), dtype)
    chosen = _cases(only, work.config.max_positions)
    engines = [peers.ours(_packed(path, threads) if packed else path), *rival]
    measured = _with_progress(engines, chosen, work, plan)
    answer = measure.report(measured, {"model": name, "peer_arguments": peer_args})
    if as_json:
        print(json.dumps(answer))
    else:
        show.table(answer, console)
    if plot is not None:
        show.plot(plot, [answer, *earlier])
    return None


def _draw_only(plot: Path | None, earlier: Sequence[dict[str, Any]]) -> None:
    if plot is None or not earlier:
        raise ValueError("give a MODEL, --synthetic NAME, --roofline, or --plot FILE with --result FILE")
    show.plot(plot, earlier)


def _subject(model: str | None, name: str | None, kind: str, pure: bool, peer: str | None) -> tuple[Path, str]:
    """The file or directory to run and what to call it."""
    if peer is not None and peer not in PEERS:
        raise ValueError(f"--peer is {peer!r}{closest(peer, list(PEERS))}; allowed: {', '.join(PEERS)}")
    if model is not None and name is not None:
        raise ValueError(f"give the model {model!r} or --synthetic {name}, not both")
    if name is not None:
        print(f"headwater: {name} with random weights; written once if it is not in the cache", file=sys.stderr)
        return synthetic.file_for(name, kind, pure=pure), f"{name} {kind}{' pure' if pure else ''}"
    assert model is not None
    path = hub.resolve(model)
    if path.suffix == ".hwp":
        raise ValueError(f"{path} is packed for this engine alone; give the .gguf file it came from, and --packed")
    return path, path.name


def _cases(only: str | None, context: int) -> list[cases.Case]:
    """Those named, or the default ones that fit the model's context."""
    if only is not None:
        return cases.chosen([c.strip() for c in only.split(",") if c.strip()], context)
    return [c for c in map(cases.named, cases.DEFAULT) if c.tokens + c.depth <= context]


def _packed(path: Path, threads: int) -> Path:
    """The packed form of `path` in the cache, in this version's layout and newer than its source."""
    target = build_peer.cache_dir() / f"{path.name}-v{PACKED_VERSION}.hwp"
    if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
        native.pack(path, target, threads=threads)
    return target


def _peer(
    peer: str | None, path: Path, name: str | None, binary: Path | None, arguments: Sequence[str], dtype: str
) -> list[peers.Contender]:
    """The peer that was asked for, or nobody."""
    if peer == "llama.cpp":
        return [peers.llama_cpp(path, binary, arguments)]
    if binary is not None or arguments:
        raise ValueError("--peer-binary and --peer-args are for --peer llama.cpp, which was not asked for")
    if peer is None:
        return []
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}{closest(dtype, list(DTYPES))}; allowed: {', '.join(DTYPES)}")
    if name is not None:
        return [peers.transformers({"config": config_dict(config.named(name))[0]}, DTYPES[dtype][0])]
    if not path.is_dir():
        raise ValueError(f"transformers reads model directories, {path} is a file; use --peer llama.cpp or a directory")
    return [peers.transformers({"model": str(path)}, DTYPES[dtype][0])]


def _with_progress(
    engines: Sequence[peers.Contender], chosen: Sequence[cases.Case], work: limits.Work, plan: measure.Plan
) -> measure.Measured:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("probing", total=plan.rounds * len(chosen))

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return measure.measure(engines, chosen, work, plan, step)


def _build(peer: str, threads: int) -> None:
    if peer != "llama.cpp":
        raise ValueError(f"--build-peer is {peer!r}; allowed: llama.cpp (transformers is installed with pip)")
    print(build_peer.build(threads, synthetic.write_tiny))


def _roofline(threads: int, as_json: bool, console: Console) -> None:
    found: dict[str, Any] = limits.roofline(sorted({1, threads, len(os.sched_getaffinity(0))}))
    if as_json:
        print(json.dumps(found))
    else:
        show.roofline(found, console)
