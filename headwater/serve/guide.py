"""Which tokens an answer may go on with: grammar, tokens that are barred, no end while it reasons. Knows no HTTP.

An AnswerMask is a Mask of engine.engine: called with the ids of the answer so far, it gives the allowed tokens as bits.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np


class Grammar(Protocol):
    """A grammar on its way through an answer (grammar.GrammarMask)."""

    def take(self, token: int) -> None:
        """The next token of the answer."""

    def allowed(self) -> np.ndarray:
        """The tokens that may come next as bits of uint32 words."""


def bits(vocabulary: int, without: Iterable[int] = ()) -> np.ndarray:
    """uint32 words with a bit for each token but those `without`."""
    words = np.zeros((vocabulary + 31) // 32 * 32, np.uint8)
    words[:vocabulary] = 1
    words[list(without)] = 0
    return np.packbits(words, bitorder="little").view(np.uint32)


def _with(words: np.ndarray, token: int) -> np.ndarray:
    """The words with one more token."""
    found = np.zeros(max(len(words), token // 32 + 1), np.uint32)
    found[: len(words)] = words
    found[token // 32] |= np.uint32(1 << token % 32)
    return found


class AnswerMask:
    """close: the closing tag of reasoning that the prompt has opened; until it came the grammar waits. opening: the
    prompt has not, but this token, as the first of the answer, does.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        barred: Sequence[int],
        ends: Sequence[int],
        grammar: Grammar | None,
        close: bytes | None,
        opening: int | None = None,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._grammar, self._close, self._token_bytes = grammar, close, token_bytes
        self._base = bits(vocabulary, barred) if barred else None
        self._reasoning = bits(vocabulary, [*barred, *ends])
        self._seen, self._tail, self._opening = 0, b"", opening
        self.thinking = close is not None and opening is None

    def __call__(self, ids: Sequence[int]) -> np.ndarray | None:
        for token in ids[self._seen :]:
            self._take(token)
        self._seen = len(ids)
        if self.thinking:
            return self._reasoning
        if self._grammar is None:
            return self._base
        allowed = self._grammar.allowed()
        if self._base is not None:
            allowed = allowed & self._base[: len(allowed)]
        return allowed if self._opening is None else _with(allowed, self._opening)

    def _take(self, token: int) -> None:
        opening, self._opening = self._opening, None
        if opening == token:
            self.thinking = True
        elif self.thinking:
            assert self._close is not None
            self._tail += self._token_bytes(token)
            self.thinking = self._close not in self._tail
            self._tail = self._tail[-len(self._close) :]
        elif self._grammar is not None:
            self._grammar.take(token)
