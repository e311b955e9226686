"""`headwater eval`: what rounding does to a model. `kl`: divergence from the unrounded model, beside llama.cpp's."""

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from headwater import hub
from headwater.commands.options import Json
from headwater.engine.engine import Engine
from headwater.evals import divergence as kl
from headwater.files import closest

KINDS = ("kl",)


def evaluate(
    kind: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(KINDS)}.", show_default=False)],
    models: Annotated[list[str], typer.Argument(help="Rounded models (.gguf, .hwp, directories).", show_default=False)],
    reference: Annotated[str, typer.Option(help="What they were made of, run in fp32: a directory or an f32 .gguf.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text the models never saw.")],
    chunks: Annotated[int, typer.Option(help="Chunks of the text.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens a chunk; its second half is scored.")] = 512,
    peer_binary: Annotated[
        Path | None, typer.Option(help="llama-perplexity, to measure llama.cpp on the same .gguf files as well.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads. Default: all processors.")] = None,
    as_json: Json = False,
) -> None:
    """KL divergence from the unrounded model and how often the most likely token is the same, with standard errors."""
    if kind not in KINDS:
        raise ValueError(f"no measure {kind!r}{closest(kind, list(KINDS))}; there are {', '.join(KINDS)}")
    if peer_binary is not None and not peer_binary.is_file():
        raise ValueError(f"--peer-binary {peer_binary} is no file; `headwater bench --build-peer llama.cpp` builds one")
    paths = [hub.resolve(m) for m in models]
    base = _engine(hub.resolve(reference), "F32", threads, context)
    tokenizer = base.tokenizer
    if tokenizer is None:
        raise ValueError(f"{reference} has no tokenizer, which the text needs")
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    rows = kl.chunks_of(tokenizer.encode(text.read_text(encoding="utf-8")), context, chunks, bos)
    names = [f"{p.name}, headwater" for p in paths]
    candidates: list[kl.Logits] = [_engine(p, "Q8_0", threads, context).logits for p in paths]
    with tempfile.TemporaryDirectory(prefix="headwater-kl-") as work:
        for i, path in enumerate(paths if peer_binary else []):
            names.append(f"{path.name}, llama.cpp")
            candidates.append(_llama_cpp(peer_binary, path, text, Path(work) / str(i), chunks, context, threads))
        found = _with_progress(base.logits, candidates, rows)
    answer = {name: dataclasses.asdict(d) for name, d in zip(names, found, strict=True)}
    if as_json:
        print(json.dumps({"reference": reference, "chunks": chunks, "context": context, "results": answer}))
    else:
        _show(answer)


def _engine(path: Path, weights: str, threads: int | None, context: int) -> Engine:
    return Engine.from_pretrained(path, threads=threads, context=context, max_sequences=1, weights=weights)


def _llama_cpp(
    binary: Path | None, model: Path, text: Path, out: Path, chunks: int, context: int, threads: int | None
) -> kl.SavedLogits:
    """Let llama-perplexity write its log probabilities; ValueError with its last words when it cannot."""
    command: list[Any] = [binary, "-m", model, "-f", text, "-c", context, "-b", context, "--chunks", chunks]
    command += ["--save-all-logits", out] + ([] if threads is None else ["-t", threads])
    done = subprocess.run(
        [str(c) for c in command],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-2:])
        raise ValueError(f"{binary} failed on {model.name} ({done.returncode}): {last}")
    return kl.SavedLogits(out)


def _with_progress(
    reference: kl.Logits, candidates: Sequence[kl.Logits], rows: Sequence[Sequence[int]]
) -> list[kl.Divergence]:
    columns = (TextColumn("chunks"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(rows))
        return kl.divergence(reference, candidates, rows, lambda done: bar.update(task, completed=done))


def _show(answer: dict[str, dict[str, float]]) -> None:
    table = Table("model, engine", "KL, nats a token", "same top token", "tokens")
    for name, d in answer.items():
        kl_text = f"{d['kl']:.5f} ± {d['kl_error']:.5f}"
        top_text = f"{100 * d['same_top']:.2f} ± {100 * d['same_top_error']:.2f} %"
        table.add_row(name, kl_text, top_text, f"{d['tokens']:,}")
    Console().print(table)
