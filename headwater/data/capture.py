"""Run a teacher over texts into a TeacherStore: cut, run, keep the K likeliest. Which engine runs it is an argument."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from headwater.data.teacher_store import Writer
from headwater.tokenizer import Tokenizer

Teacher = Callable[[Sequence[int], int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Ids (T) and K -> (ids (T, K) most likely first, their log-probabilities, their exact mass (T))."""

_OTHERS = "{} was begun with other texts or another length ({}); cure: the same, more behind them, or another store"


def fingerprint(tokenizer: Tokenizer) -> str:
    """Hash of what each id stands for: equal where a teacher and a student may share a store."""
    digest = hashlib.sha256()
    for i in range(tokenizer.vocab_size):
        try:
            word = tokenizer.token_bytes(i)
        except ValueError:  # an id that is not in use
            word = b""
        digest.update(len(word).to_bytes(4, "little") + word)
    return digest.hexdigest()


def pieces(texts: Iterable[str], tokenizer: Tokenizer, *, length: int) -> Iterator[list[int]]:
    """Each text as ids with BOS (where the model expects it) and the end of text, cut by `cut`."""
    end = list(tokenizer.eos_ids[:1])
    return cut((tokenizer.encode(text, bos=tokenizer.add_bos) + end for text in texts), length)


def cut(documents: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Documents of ids in pieces of at most `length`; a rest of one token is left out: it has nothing to predict."""
    if length < 2:
        raise ValueError(f"length is {length}; a piece needs at least 2 tokens")
    for ids in documents:
        yield from (ids[at : at + length] for at in range(0, len(ids), length) if len(ids) - at > 1)


def by_logits(run: Callable[[Sequence[int]], np.ndarray], vocab_size: int) -> Teacher:
    """A teacher that gives all its logits: ids (T) -> float32 (T, V)."""

    def teacher(ids: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = run(ids)
        if logits.shape != (len(ids), vocab_size):
            raise ValueError(
                f"the teacher gave logits of shape {logits.shape} for {len(ids)} ids; "
                f"the store is for {vocab_size} words"
            )
        return truncate(logits, k)

    return teacher


def truncate(logits_tv: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids (T, K) most likely first, their log-probabilities, their exact mass (T)) of logits (T, V)."""
    parts = [
        _truncate(logits_tv[at : at + 128].astype(np.float32, copy=False), k) for at in range(0, len(logits_tv), 128)
    ]
    ids, logprobs, mass = (np.concatenate(p) for p in zip(*parts, strict=True))
    return ids, logprobs, mass


def _truncate(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    top = logits.max(axis=1, keepdims=True)
    partition = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64))
    ids = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    kept = np.take_along_axis(logits, ids, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    logprobs = np.take_along_axis(kept, order, axis=1) - partition
    return np.take_along_axis(ids, order, axis=1), logprobs.astype(np.float32), np.exp(logprobs).sum(axis=1)


def capture(
    writer: Writer,
    sequences: Iterable[Sequence[int]],
    teacher: Teacher,
    *,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> None:
    """Add every sequence that the store does not hold yet. on_tokens hears the length of each, also of those it holds.

    ValueError: `sequences` do not begin with those of the store, as far as the last of them tells.
    """
    there, last, number = writer.sequences, writer.last(), 0
    for number, ids in enumerate(sequences, 1):
        if number == there and last is not None and not np.array_equal(np.asarray(ids), last):
            raise ValueError(_OTHERS.format(writer.directory, f"its sequence {there} is another one"))
        if number > there:
            writer.add(np.asarray(ids), *teacher(ids, writer.card.top_k))
        on_tokens(len(ids))
    if number < there:
        raise ValueError(_OTHERS.format(writer.directory, f"it holds {there} sequences, these are {number}"))
