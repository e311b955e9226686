"""`headwater load-test`: several users at a server, beside other servers on the same file with the same requests."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.bench import load, load_report, load_servers, show
from headwater.bench.load_servers import KINDS, Setting
from headwater.commands.options import Json, Threads
from headwater.engine import native
from headwater.files import atomic, closest, read_json, write_json
from headwater.hub import resolve

RANDOM = "random "
"""How the name of a file of random weights begins (bench.synthetic)."""


def load_test(
    model: Annotated[Path, typer.Argument(help="A .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; what it holds already is not run again.")],
    users: Annotated[str, typer.Option(help="Numbers of users, by commas.")] = "1,4,8,16",
    seconds: Annotated[float, typer.Option(help="Length of a piece.")] = 60.0,
    pieces: Annotated[int, typer.Option(help="Pieces of each server and number of users, in turns.")] = 1,
    server: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(KINDS)}, or NAME=PROGRAM; several times. Default: headwater.")
    ] = None,
    stop_after: Annotated[float | None, typer.Option(help="Begin no piece that would end after it.")] = None,
    ctx: Annotated[int, typer.Option(help="Tokens of one conversation.")] = 4096,
    slots: Annotated[int | None, typer.Option(help="Answers written at a time. Default: as many as users.")] = None,
    cache_mib: Annotated[int | None, typer.Option(help="MiB of our prefix cache. Default: what serve takes.")] = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Same seed, same conversations.")] = 0,
    as_json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the results into this file.")] = None,
) -> None:
    """Let users talk with a server over HTTP: tokens per second, waiting times, errors and memory, piece by piece.

    Each piece starts the server anew, warms it up, and is saved when it ends; run the same line again to go on.
    """
    began = time.monotonic()
    chosen = _servers(server or ["headwater"])
    crowds = _numbers(users)
    if seconds <= 0 or pieces < 1:
        raise ValueError(f"--seconds {seconds:g} and --pieces {pieces}; allowed: above 0, and 1 or more")
    if cache_mib is not None and cache_mib < 0:
        raise ValueError(f"--cache-mib is {cache_mib}; allowed: 0 (no prefix cache) and more")
    path = resolve(model)
    file = _File(path)
    plan: dict[str, Any] = {
        "model": path.name, "bytes": path.stat().st_size, "seconds": seconds, "context": ctx, "seed": seed,
        "slots": slots, "threads": threads or native.default_threads(), "history": file.history, "cache_mib": cache_mib,
        "api": "chat" if file.chat else "completions",
    }  # fmt: skip
    _same_plan(out, plan)
    left = [
        (turn, crowd, name, program)
        for turn in range(pieces)
        for crowd in crowds
        for name, program in chosen
        if not _piece_file(out, name, crowd, turn).exists()
    ]
    for turn, crowd, name, program in left:
        if stop_after is not None and time.monotonic() - began + seconds + 15 > stop_after:
            print("headwater: --stop-after is near; run the same line again to go on", file=sys.stderr)
            break
        setting = Setting(model=path, slots=slots or crowd, context=ctx, threads=plan["threads"], cache_mib=cache_mib)
        print(f"headwater: {name}, {crowd} users, {seconds:g} s", file=sys.stderr)
        piece = _piece(name, program, setting, file, users=crowd, seconds=seconds, seed=seed + turn)
        with atomic(_piece_file(out, name, crowd, turn)) as part:
            part.write_text(json.dumps(piece), encoding="utf-8")
    _tell(out, plan, as_json, plot)


class _File:
    """What the requests must know of the model: its tokenizer, whether it chats, whether its words can be repeated."""

    def __init__(self, path: Path) -> None:
        if path.suffix != ".gguf":
            raise ValueError(f"{path} is no .gguf file, which all servers read; write one with `headwater quantize`")
        tokenizer = native.tokenizer(path)
        if tokenizer is None:
            raise ValueError(f"{path} has no tokenizer; servers need one")
        name = str(native.GgufFile(path).metadata.get("general.name", ""))
        self.words = load.Words(lambda text: len(tokenizer.encode(text, bos=False)))
        self.chat = tokenizer.chat_template is not None
        self.history = "made up" if name.startswith(RANDOM) else "said"


def _piece(
    name: str, program: str | None, setting: Setting, file: _File, *, users: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Start, warm up, load, stop."""
    mix = load.Mix(context=setting.context)
    with load_servers.started(name, program, setting) as (url, pid):
        target = load.Target(url=url, model="model", chat=file.chat)
        warm = load.Mix(context=setting.context, first=(20, 0.1, 8, 40), answer=(8, 0.1, 4, 12), system=(8,))
        load.drive(target, file.words, warm, users=users, seconds=min(3.0, seconds), seed=-1)
        requests, memory = load.drive(
            target, file.words, mix, users=users, seconds=seconds, seed=seed, spelled_back=file.history == "said",
            watch=lambda: load_servers.memory(pid),
        )  # fmt: skip
    return {
        "server": name, "users": users, "seconds": seconds, "seed": seed, "memory": memory,
        "requests": [load.as_dict(r) for r in requests],
    }  # fmt: skip


def _servers(given: Sequence[str]) -> list[tuple[str, str | None]]:
    found = []
    for text in given:
        name, _, program = text.partition("=")
        if name not in KINDS:
            raise ValueError(f"--server is {name!r}{closest(name, list(KINDS))}; allowed: {', '.join(KINDS)}")
        found.append((name, program or None))
    return found


def _numbers(text: str) -> list[int]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isascii() and p.isdecimal() and 0 < int(p) <= 1000 for p in parts):
        raise ValueError(f"--users is {text!r}; allowed: numbers from 1 to 1000, by commas")
    return [int(p) for p in parts]


def _same_plan(out: Path, plan: dict[str, Any]) -> None:
    """ValueError where the folder holds pieces of another plan: they would be mixed."""
    path = out / "plan.json"
    if path.exists():
        known = read_json(path)
        other = [k for k in plan if known.get(k) != plan[k]]
        if other:
            was = ", ".join(f"{k} was {known.get(k)!r} and is {plan[k]!r}" for k in other)
            raise ValueError(f"{out} holds pieces of another plan: {was}; give another --out, or the same options")
    else:
        write_json(path, plan)


def _piece_file(out: Path, name: str, users: int, turn: int) -> Path:
    return out / f"{name}-{users}-{turn}.json"


def _tell(out: Path, plan: dict[str, Any], as_json: bool, plot: Path | None) -> None:
    done = [read_json(f) for f in sorted(out.glob("*-*-*.json"))]
    found = load_report.rows(done)
    result = load_report.finite({"about": plan, "rows": found})
    write_json(out / "result.json", result)
    title = f"{plan['model']}, {plan['threads']} threads, {plan['context']} tokens a conversation"
    if as_json:
        print(json.dumps(result))
    else:
        load_report.table(found, title, show.wide_console())
    if plot is not None:
        load_report.plot(plot, found, done, title)
