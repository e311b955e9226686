"""Texts that a language model writes itself, for a student to learn from: conversations and continuations.

Behind the mark that opens a user's turn a chat model writes the question, then its answer; a continuation begins with
the first words of a real text. Runs on the native engine; a stopped run goes on, the texts depend on the seed alone.

    headwater recipe teacher_texts MODEL --out DIR --conversations 2000 --continuations 2000 --beginnings TEXTS...
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headwater import Engine, SamplingParams
from headwater.chat import Chat
from headwater.data.sources import files_of, read_rows
from headwater.files import atomic, read_json, write_json

BATCH = 32
QUESTION = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=160)
ANSWER = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=360)
TEXT = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=300)
BEGINNING = 12
"""Words of a real text that a continuation begins with."""
MOST_TURNS = 3
"""Questions of a conversation: 1, 2, 3, 1, 2, 3, ..."""
CONTEXT = 2048


def question_prompt(chat: Chat, messages: Sequence[dict[str, str]]) -> list[int]:
    """`messages` and the opening of a user's turn: where a chat model goes on, it writes what a user would ask."""
    ids, _ = chat.render([*messages, {"role": "user", "content": ""}]).encode()
    ends = [i for i, token in enumerate(ids) if token in chat.tokenizer.eos_ids]
    if not ends:
        raise ValueError("this model's chat style closes a turn with no end token, so a user's turn cannot be written")
    return ids[: ends[-1]]


def conversations(engine: Engine, chat: Chat, numbers: Sequence[int], *, seed: int) -> list[list[dict[str, str]]]:
    """One conversation for each number; those that the model did not bring to an end keep the turns before."""
    said: dict[int, list[dict[str, str]]] = {n: [] for n in numbers}
    open_ = list(numbers)
    for turn in range(MOST_TURNS):
        open_ = [n for n in open_ if turn <= n % MOST_TURNS]
        asked = _write(engine, {n: question_prompt(chat, said[n]) for n in open_}, QUESTION, seed, 2 * turn)
        with_question = {n: [*said[n], {"role": "user", "content": text}] for n, text in asked.items()}
        prompts = {n: chat.render(m, add_generation_prompt=True).encode()[0] for n, m in with_question.items()}
        answered = _write(engine, prompts, ANSWER, seed, 2 * turn + 1)
        for n, text in answered.items():
            said[n] = [*with_question[n], {"role": "assistant", "content": text}]
        open_ = list(answered)
    return [said[n] for n in numbers if said[n]]


def _write(
    engine: Engine, prompts: dict[int, list[int]], params: SamplingParams, seed: int, turn: int
) -> dict[int, str]:
    """What the model wrote behind each prompt, of those texts that it ended itself and that are not empty."""
    each = [replace(params, seed=seed + 2 * MOST_TURNS * n + turn) for n in prompts]
    room = [len(ids) + params.max_tokens <= engine.context for ids in prompts.values()]
    kept = [(n, ids, p) for (n, ids), p, fits in zip(prompts.items(), each, room, strict=True) if fits]
    done = engine.generate([ids for _, ids, _ in kept], [p for _, _, p in kept])
    return {
        n: text
        for (n, _, _), answer in zip(kept, done, strict=True)
        if answer.finish_reason == "stop" and (text := answer.text.strip())
    }


def continuations(engine: Engine, beginnings: Sequence[str], numbers: Sequence[int], *, seed: int) -> list[str]:
    """One text for each number: its beginning and what the model makes of it."""
    each = [replace(TEXT, seed=seed + n) for n in numbers]
    answers = engine.generate(list(beginnings), each)
    return [begin + answer.text for begin, answer in zip(beginnings, answers, strict=True)]


def read_beginnings(paths: Sequence[str]) -> Iterator[str]:
    """The first words of every text that is long enough."""
    for file in files_of(paths):
        for row in read_rows(file):
            words = str(row.get("text", "")).split(None, BEGINNING)
            if len(words) > BEGINNING:
                yield " ".join(words[:BEGINNING])


def write(
    model: str,
    out: Path,
    *,
    conversing: int,
    continuing: int,
    beginnings: Sequence[str],
    seed: int = 0,
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, int]:
    """Write OUT/conversations-00000.jsonl ("messages") and OUT/continuations-00000.jsonl ("text"), BATCH tries a file.

    Files that are there are kept. Returns how many rows of each kind there are. ValueError: OUT belongs to other
    settings, or there are fewer beginnings than continuations.
    """
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    _same_model(out / ".settings.json", {"model": Path(model).name, "seed": seed, "beginnings": list(beginnings)})
    starts = list(itertools.islice(read_beginnings(beginnings), continuing))
    if len(starts) < continuing:
        raise ValueError(f"{continuing} continuations are asked for, the texts give {len(starts)} beginnings")
    engine = Engine.from_pretrained(model, max_sequences=BATCH, context=CONTEXT, threads=threads)
    chat = engine.chat_style

    def converse(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"messages": m} for m in conversations(engine, chat, numbers, seed=seed)]

    def go_on(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"text": t} for t in continuations(engine, [starts[n] for n in numbers], numbers, seed=seed)]

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
    counts = {}
    with Progress(*columns, console=console) as bar:
        for kind, count, make in (("conversations", conversing, converse), ("continuations", continuing, go_on)):
            counts[kind] = 0
            batches = [range(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
            for numbers in bar.track(batches, description=kind):
                path = out / f"{kind}-{numbers[0] // BATCH:05d}.jsonl"
                if not path.exists():
                    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in make(numbers))
                    with atomic(path) as f:
                        f.write_text("".join(lines), encoding="utf-8")
                counts[kind] += path.read_bytes().count(b"\n")
    return counts


def _same_model(path: Path, settings: dict[str, Any]) -> None:
    if path.exists() and (before := read_json(path)) != settings:
        raise ValueError(f"{path.parent} holds texts of {before}, these are {settings}; cure: another --out")
    write_json(path, settings)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, int]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater recipe teacher_texts", description="Texts that a model writes itself.")
    p.add_argument("model", help="a chat model: .gguf file, directory or hub id")
    p.add_argument("--out", type=Path, required=True, help="folder of the texts")
    p.add_argument("--conversations", type=int, default=2000, help="to begin (default: %(default)s)")
    p.add_argument("--continuations", type=int, default=0, help="to write (default: %(default)s)")
    p.add_argument("--beginnings", nargs="*", default=[], help="files or folders of texts for --continuations")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int)
    o = p.parse_args(arguments)
    return write(
        o.model, o.out, conversing=o.conversations, continuing=o.continuations, beginnings=o.beginnings, seed=o.seed,
        threads=o.threads, console=console,
    )  # fmt: skip


if __name__ == "__main__":
    print(main())
