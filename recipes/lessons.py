"""What recipes that distil read: texts, their ids, and what a teacher expects after each, on disk and made once.

A kill at any point loses the piece in progress alone, and what is made after it is the same as without it. Not for
training (hybridize.py, nano.py).
"""

import argparse
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from headwater.chat import Chat
from headwater.data import capture as capturing
from headwater.data.sources import column, files_of, read_rows
from headwater.data.split import held_out
from headwater.data.teacher_store import Card, TeacherStore, Writer
from headwater.engine.engine import Engine
from headwater.files import atomic, read_json, write_json
from headwater.model import Lfm2
from headwater.ops.head_loss import Head
from headwater.tokenizer import Tokenizer

TOP_K = 32
GROUP = 4096
"""Tokens that the teacher reads at a time."""
ROWS = 256
"""Of logits that exist at a time."""


class OutOfTime(Exception):
    """The time of this call is over; the same call goes on later."""


class Deadline:
    """The end of a call's time. minutes None: there is none."""

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"--minutes is {minutes}; the time of a call must be above 0")
        self._end = float("inf") if minutes is None else time.monotonic() + 60.0 * minutes

    @property
    def left(self) -> float:
        """Seconds, at least a moment."""
        return max(1e-3, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Those of every recipe that makes hybrids."""
    p.add_argument("teacher", help="a model directory, a .gguf file or a hub id")
    p.add_argument("files", nargs="+", type=Path, help="files of 'text' or 'messages' (.jsonl, .gz, .zst), folders")
    p.add_argument("--out", type=Path, required=True, help="directory of the run")
    p.add_argument("--minutes", type=float, help="of this call; the same command goes on later (default: to the end)")
    p.add_argument("--rows", type=int, default=4, help="of a batch (default: %(default)s)")
    p.add_argument("--length", type=int, default=512, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)


def same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write OUT/settings.json. ValueError: it is there and says otherwise."""
    path = out / "settings.json"
    if path.exists() and (before := read_json(path)) != settings:
        other = [f"{k} {before.get(k)!r}, now {v!r}" for k, v in settings.items() if before.get(k) != v]
        raise ValueError(
            f"{out} holds a run with other settings ({'; '.join(other) or before}); cure: the same, or another --out"
        )
    write_json(path, settings)


def read_scored(files: Sequence[Path], most_bytes: int | None = None) -> dict[str, list[str]]:
    """The texts to be measured on, under the name of their file; of each the first `most_bytes` bytes or a little more.

    ValueError: a row without text, two files of one name.
    """
    texts: dict[str, list[str]] = {}
    for file in files_of(files):
        name = file.name.split(".")[0]
        if name in texts:
            raise ValueError(f"two files to be measured on are named {name!r}; cure: rename one")
        texts[name] = list(first(column(read_rows(file), "text"), most_bytes))
        if not any(texts[name]):
            raise ValueError(f"{file} holds no text to be measured on")
    return texts


def read_held(files: Sequence[Path], share: float, most_bytes: int | None = None) -> dict[str, list[str]]:
    """{"held-out": texts that `sequences` leaves out}. ValueError: there is none."""
    rows = (row for file in files_of(files) for row in _checked(file))
    texts = list(first((row["text"] for row in rows if "text" in row and _held(row, share)), most_bytes))
    if not texts:
        raise ValueError(f"none of the texts falls into the share {share} that is held out: give more text")
    return {"held-out": texts}


def first(texts: Iterable[str], most_bytes: int | None) -> Iterator[str]:
    """Texts from the start until they have `most_bytes` bytes; None: all."""
    size = 0
    for text in texts:
        if most_bytes is not None and size >= most_bytes:
            return
        size += len(text.encode())
        yield text


def _held(row: dict[str, Any], share: float) -> bool:
    return "messages" not in row and held_out(str(row.get("title", row.get("text"))), share)


def sequences(
    path: Path, files: Sequence[Path], tokenizer: Tokenizer, *, wanted: int, length: int, seed: int, share: float
) -> list[np.ndarray]:
    """Pieces of at most `length` ids, of at least `wanted` tokens where the texts have them, kept in `path`.

    Rows have a `text`, or `messages` that the tokenizer's chat template writes; they come in an order that `seed`
    shuffled, less the share that is held out. ValueError: a row with neither, no text to train on.
    """
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return np.split(kept["ids"], np.cumsum(kept["lengths"])[:-1])
    rows = [row for file in files_of(files) for row in _checked(file) if not _held(row, share)]
    random.Random(seed).shuffle(rows)
    pieces: list[np.ndarray] = []
    tokens = 0
    for ids in capturing.cut(_encoded(rows, tokenizer), length):
        pieces.append(np.asarray(ids, np.int32))
        tokens += len(ids)
        if tokens >= wanted:
            break
    if not pieces:
        raise ValueError(f"{len(rows)} texts to train on have no token to predict: give more text")
    with atomic(path) as part, part.open("wb") as f:
        np.savez(f, ids=np.concatenate(pieces), lengths=np.array([len(p) for p in pieces]))
    return pieces


def _checked(file: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(file):
        if "messages" not in row and not isinstance(row.get("text"), str):
            has = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
            raise ValueError(f"{file}: a row has neither 'text' nor 'messages' to read; it has {has or 'nothing'}")
        yield row


def _encoded(rows: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[list[int]]:
    chat: Chat | None = None
    end = list(tokenizer.eos_ids[:1])
    for row in rows:
        if "messages" not in row:
            yield tokenizer.encode(row["text"], bos=tokenizer.add_bos) + end
            continue
        if chat is None:
            chat = Chat.of(tokenizer)
        yield chat.render(row["messages"]).encode()[0]


def capture(
    directory: Path,
    card: Card,
    sequences: Sequence[np.ndarray],
    teacher: Lfm2 | Engine,
    *,
    autocast: torch.dtype | None,
    on_tokens: Callable[[int, int], None] = lambda done, made: None,
) -> None:
    """Run the teacher over the sequences that the store lacks; on_tokens(tokens there, those of them made now).

    teacher: on torch, or on the native engine, which on a CPU reads faster. autocast: of torch's products. Groups of
    sequences share a call, and are the same whenever it goes on. What on_tokens raises ends it, with all whole.
    """
    with Writer(directory, card) as writer:
        there, number, done, made = writer.sequences, 0, 0, 0
        for group in _groups(sequences):
            done += sum(map(len, group))
            if number + len(group) > there:
                for offset, taught in enumerate(_taught(teacher, group, card.top_k, autocast)):
                    if number + offset >= there:
                        writer.add(group[offset], *taught)
                        made += len(group[offset])
            number += len(group)
            on_tokens(done, made)


def _groups(sequences: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    first = tokens = 0
    for i, ids in enumerate(sequences):
        if i > first and tokens + len(ids) > GROUP:
            yield sequences[first:i]
            first, tokens = i, 0
        tokens += len(ids)
    if first < len(sequences):
        yield sequences[first:]


@torch.inference_mode()
def _taught(
    teacher: Lfm2 | Engine, group: Sequence[np.ndarray], k: int, autocast: torch.dtype | None
) -> list[tuple[np.ndarray, ...]]:
    """(ids, log-probabilities, mass) of each sequence of a group, which torch reads as documents of one row."""
    if isinstance(teacher, Engine):
        return [teacher.likeliest(ids.tolist(), k) for ids in group]
    sizes = [len(ids) for ids in group]
    row = torch.from_numpy(np.concatenate(group).astype(np.int64))[None].to(teacher.device)
    segments = torch.arange(len(group)).repeat_interleave(torch.tensor(sizes))[None].to(teacher.device)
    with torch.autocast(teacher.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        hidden, weight = teacher(row, segment_ids=segments, project=False)
    weight = weight.to(autocast or weight.dtype)
    picked, logprobs = [], []
    for some in hidden[0].to(weight.dtype).split(ROWS):
        logits = Head(some, weight).logits().float()
        top, ids = logits.topk(k, -1)
        picked.append(ids)
        first = top[:, :1]
        logprobs.append(top - first - logits.sub_(first).exp_().sum(-1, keepdim=True).log())
    cuts = np.cumsum(sizes)[:-1]
    ids_tk, logprobs_tk = (torch.cat(parts).cpu().numpy() for parts in (picked, logprobs))
    mass_t = np.exp(logprobs_tk.astype(np.float64)).sum(1)
    return list(zip(*(np.split(array, cuts) for array in (ids_tk, logprobs_tk, mass_t)), strict=True))


def columns(store: TeacherStore, start: int, stop: int) -> dict[str, torch.Tensor]:
    """What the teacher expects behind the tokens [start, stop), as the columns that objectives.distill reads."""
    t = store.range(start, stop)
    return {
        "teacher_ids": torch.from_numpy(t.ids), "teacher_logprobs": torch.from_numpy(t.logprobs),
        "teacher_mass": torch.from_numpy(t.mass),
    }  # fmt: skip


class Told:
    """What `capture` tells, as a line every `every` seconds with speed and time left. Raises OutOfTime when it is."""

    def __init__(self, title: str, total: int, console: Console, deadline: Deadline, *, every: float = 15.0) -> None:
        self._title, self._total, self._console, self._deadline, self._every = title, total, console, deadline, every
        self._begun = self._told = time.monotonic()

    def __call__(self, done: int, made: int) -> None:
        now = time.monotonic()
        if now - self._told >= self._every or (made and done >= self._total):
            self._told = now
            speed = made / max(now - self._begun, 1e-9)
            self._console.print(
                f"{self._title}  {done:,}/{self._total:,} tokens  {speed:,.0f} tokens/s  "
                f"{(self._total - done) / max(speed, 1e-9):,.0f} s left",
                highlight=False,
            )
        if self._deadline.over and done < self._total:
            raise OutOfTime
