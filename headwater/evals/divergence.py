"""How far a rounded model is from the model it was made of: KL divergence and the same most likely token.

A text is cut into chunks; in each, the second half is scored behind the first. Errors are standard errors over chunks,
since the tokens of one chunk are not independent. Not for how good a model is (bits_per_byte.py).
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Logits = Callable[[Sequence[int]], np.ndarray]
"""Ids of a chunk -> fp32 logits (tokens, vocabulary), or anything that differs from them by a constant per row."""


@dataclass(frozen=True)
class Divergence:
    """KL(reference || candidate) in nats a token and the share of tokens with the same first choice; +- one error."""

    kl: float
    kl_error: float
    same_top: float
    same_top_error: float
    tokens: int


def chunks_of(ids: Sequence[int], context: int, count: int, bos: int | None) -> list[list[int]]:
    """The first `count` chunks of `context` ids, each with BOS in place of its first id; ValueError: too short."""
    if context < 4 or count < 2:
        raise ValueError(f"{count} chunks of {context} tokens; allowed: at least 2 chunks of at least 4")
    if len(ids) < context * count:
        raise ValueError(
            f"the text has {len(ids)} tokens, {context * count} are needed for {count} chunks of {context}; "
            "give a longer text or fewer chunks"
        )
    rows = [list(ids[i * context : (i + 1) * context]) for i in range(count)]
    return rows if bos is None else [[bos, *row[1:]] for row in rows]


def scored(context: int) -> slice:
    """The positions of a chunk that count: those that predict a token of its second half."""
    return slice(context // 2, context - 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities of rows."""
    x = logits.astype(np.float32)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(
    reference: Logits,
    candidates: Sequence[Logits],
    chunks: Iterable[Sequence[int]],
    on_chunk: Callable[[int], None] = lambda _: None,
) -> list[Divergence]:
    """Each candidate's Divergence from the reference, read chunk by chunk. on_chunk: called with how many are done."""
    kl: list[list[float]] = [[] for _ in candidates]
    top: list[list[float]] = [[] for _ in candidates]
    tokens = 0
    for done, chunk in enumerate(chunks):
        rows = scored(len(chunk))
        p = log_softmax(reference(chunk)[rows])
        tokens += len(p)
        for i, candidate in enumerate(candidates):
            q = log_softmax(candidate(chunk)[rows])
            if q.shape != p.shape:
                raise ValueError(f"logits are {q.shape}, the reference's {p.shape}; are the two of one vocabulary?")
            kl[i].append(float((np.exp(p) * (p - q)).sum(-1).mean()))
            top[i].append(float((p.argmax(-1) == q.argmax(-1)).mean()))
        on_chunk(done + 1)

    def error(values: list[float]) -> float:
        return float(np.std(values, ddof=1)) / math.sqrt(len(values))

    return [
        Divergence(float(np.mean(k)), error(k), float(np.mean(t)), error(t), tokens)
        for k, t in zip(kl, top, strict=True)
    ]


class SavedLogits:
    """Log probabilities that llama-perplexity wrote with --save-all-logits, of the second half of each chunk.

    Called with the chunks in order; ValueError when the file is of other tokens. Values are 16 bits of a row's range.
    """

    _HEAD = 20

    def __init__(self, path: Path) -> None:
        self.path, self._next = path, 0
        head = path.open("rb").read(self._HEAD)
        if len(head) < self._HEAD or head[:8] != b"_logits_":
            raise ValueError(f"{path} holds no logits of llama-perplexity")
        self.context, self.vocabulary, self.count = struct.unpack("<iii", head[8:])
        self._ids = np.memmap(path, np.int32, "r", self._HEAD, (self.count, self.context))
        width = 2 * ((self.vocabulary + 1) // 2) + 4
        begin, rows = self._HEAD + self._ids.nbytes, self.context - 1 - self.context // 2
        if path.stat().st_size != begin + 2 * self.count * rows * width:
            raise ValueError(f"{path} is not {self.count} chunks of {self.context} tokens; was the run cut off?")
        self._rows = np.memmap(path, np.uint16, "r", begin, (self.count, rows, width))

    def __call__(self, chunk: Sequence[int]) -> np.ndarray:
        i, self._next = self._next, self._next + 1
        if i >= self.count or list(self._ids[i][1:]) != list(chunk[1:]):
            raise ValueError(
                f"{self.path}: chunk {i} is of other tokens; llama.cpp splits this text otherwise than we do"
            )
        rows = np.asarray(self._rows[i])
        head = np.ascontiguousarray(rows[:, :4]).view(np.float32)
        out = np.zeros((self.context, self.vocabulary), np.float32)
        out[scored(self.context)] = head[:, :1] * rows[:, 4 : 4 + self.vocabulary] + head[:, 1:]
        return out
