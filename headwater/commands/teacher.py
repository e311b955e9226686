"""`headwater teacher capture` and `headwater teacher show`: a teacher's Top-K distributions for distillation."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from headwater import hub, optional
from headwater.commands import options as o
from headwater.commands.engines import weight_format
from headwater.data import capture as capturing
from headwater.data.sources import column, read_rows
from headwater.data.teacher_store import Card, TeacherStore, Writer
from headwater.files import closest
from headwater.tokenizer import Tokenizer

ACTIONS = ("capture", "show")
ENGINES = ("native", "torch", "transformers")


def teacher(
    action: Annotated[str, typer.Argument(help="capture or show.", show_default=False)],
    store: Annotated[Path, typer.Argument(help="Directory of the store.", show_default=False)],
    data: Annotated[list[Path] | None, typer.Argument(help="Texts: .jsonl, .json, .txt or .md files.")] = None,
    model: Annotated[str | None, typer.Option(help=f"The teacher. {o.MODEL_HELP}")] = None,
    engine: Annotated[str, typer.Option(help=f"Who runs it: {', '.join(ENGINES)}.")] = "native",
    top_k: Annotated[int, typer.Option(help="Ids kept of each token.")] = 32,
    length: Annotated[int, typer.Option(help="Longest piece of a text, in tokens.")] = 1024,
    field: Annotated[str, typer.Option(help="Field of a row that holds the text.")] = "text",
    student: Annotated[str | None, typer.Option(help="Refuse unless this model has the same tokenizer.")] = None,
    threads: o.Threads = None,
    as_json: o.Json = False,
) -> None:
    """Run a teacher over texts and keep what it expects; called again, it goes on where it was stopped."""
    if action not in ACTIONS:
        raise ValueError(f"no action {action!r}{closest(action, list(ACTIONS))}; there are {', '.join(ACTIONS)}")
    if action == "capture":
        if not data or model is None:
            raise ValueError("capture needs texts and a teacher: headwater teacher capture STORE TEXT... --model MODEL")
        if engine not in ENGINES:
            raise ValueError(f"--engine is {engine!r}{closest(engine, list(ENGINES))}; allowed: {', '.join(ENGINES)}")
        _capture(store, data, model, engine, top_k=top_k, length=length, field=field, student=student, threads=threads)
    elif data or model is not None:
        raise ValueError("show takes the directory of a store alone")
    _show(store, as_json)


def _capture(
    store: Path, data: Sequence[Path], model: str, engine: str, *, top_k: int, length: int, field: str,
    student: str | None, threads: int | None,
) -> None:  # fmt: skip
    for option, value, least in (("--top-k", top_k, 1), ("--length", length, 2)):
        if value < least:
            raise ValueError(f"{option} is {value}; allowed: {least} or more")
    tokenizer = Tokenizer.from_pretrained(model)
    mark = capturing.fingerprint(tokenizer)
    if student is not None and capturing.fingerprint(Tokenizer.from_pretrained(student)) != mark:
        raise ValueError(
            f"{student} and {model} have different tokenizers; Top-K ids of one mean nothing to the other: "
            "choose a teacher that shares the student's tokenizer"
        )
    run, words = _RUNNERS[engine](model, threads)
    sequences = list(capturing.pieces(_texts(data, field), tokenizer, length=length))
    total = sum(map(len, sequences))
    with Writer(store, Card(Path(model).name, mark, words, top_k)) as writer, _bar(total) as advance:
        capturing.capture(writer, sequences, run, on_tokens=advance)


def _texts(files: Sequence[Path], field: str) -> Iterator[str]:
    for file in files:
        yield from column(read_rows(file), field)


def _native(model: str, threads: int | None) -> tuple[capturing.Teacher, int]:
    from headwater import Engine

    path = hub.resolve(model)
    engine = Engine.from_pretrained(
        path, threads=threads, max_sequences=1, weights=weight_format(path, None), cache_bytes=0, logits_at_once=128
    )
    return engine.likeliest, engine.config.vocab_size


def _torch(model: str, threads: int | None) -> tuple[capturing.Teacher, int]:
    torch = optional.load("torch", extra="train")
    if threads:
        torch.set_num_threads(threads)
    loaded = o.load_model(model, None)
    return _by_torch(torch, loaded, loaded.config.vocab_size), loaded.config.vocab_size


def _transformers(model: str, threads: int | None) -> tuple[capturing.Teacher, int]:
    torch = optional.load("torch", extra="train")
    if threads:
        torch.set_num_threads(threads)
    loaded = optional.load("transformers", extra="dev").AutoModelForCausalLM.from_pretrained(hub.resolve(model)).eval()
    return _by_torch(torch, lambda ids: loaded(ids).logits, loaded.config.vocab_size), loaded.config.vocab_size


_RUNNERS = {"native": _native, "torch": _torch, "transformers": _transformers}


def _by_torch(torch: Any, forward: Any, words: int) -> capturing.Teacher:
    def run(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            return forward(torch.tensor([list(ids)]))[0].float().numpy()

    return capturing.by_logits(run, words)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Progress in tokens, with speed and time left, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    count = TextColumn("capture {task.completed:,.0f} of {task.total:,.0f} tokens, {task.fields[speed]:,.0f}/s")
    columns = (count, BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, speed=0.0)

        def advance(tokens: int) -> None:
            bar.advance(task, tokens)
            bar.update(task, speed=bar.tasks[0].speed or 0.0)

        yield advance


def _show(directory: Path, as_json: bool) -> None:
    store = TeacherStore(directory)
    facts = {
        "teacher": store.card.teacher, "tokenizer": store.card.tokenizer, "vocab_size": store.card.vocab_size,
        "top_k": store.card.top_k, "sequences": len(store), "tokens": store.tokens,
        "bytes_per_token": round(store.bytes / max(store.tokens, 1), 2),
    }  # fmt: skip
    print(json.dumps(facts) if as_json else "\n".join(f"{name:<16}{value}" for name, value in facts.items()))
