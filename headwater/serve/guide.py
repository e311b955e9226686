"""What the next token of an answer may be: a grammar, a budget for reasoning, biases. Works on logits, knows no HTTP.

A Guide is asked for a change of the logits before every pick and told every token that was picked.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Guide(Protocol):
    """Changes the logits of one answer. fault: why it could not go on, after which only an end is allowed."""

    @property
    def fault(self) -> str | None: ...

    def shape(self, logits: np.ndarray) -> None:
        """Change fp32 logits (vocabulary,) in place; -inf forbids. At least one stays finite."""

    def took(self, token: int) -> None:
        """The token that was picked."""


class GuidedSampler:
    """A sampler of the core under a guide, used in its place."""

    def __init__(self, sampler: Any, guide: Guide) -> None:
        self._sampler, self._guide = sampler, guide

    def saw(self, tokens: list[int]) -> None:
        self._sampler.saw(tokens)

    def pick(self, core: Any, row: int) -> tuple[int, float, list[tuple[int, float]]]:
        logits = np.array(core.logits(row + 1)[row], np.float32)
        self._guide.shape(logits)
        picked = self._sampler.pick_from(logits)
        self._guide.took(picked[0])
        return picked


class Bias:
    """OpenAI's logit_bias: added to the logits of some tokens."""

    fault: str | None = None

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._add = np.fromiter(bias.values(), np.float32, len(bias))

    def shape(self, logits: np.ndarray) -> None:
        logits[self._ids] += self._add

    def took(self, token: int) -> None:
        pass


class Ban:
    """Tokens that must not come."""

    fault: str | None = None

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.asarray(ids, np.int64)

    def shape(self, logits: np.ndarray) -> None:
        logits[self._ids] = -np.inf

    def took(self, token: int) -> None:
        pass


class Penalties:
    """OpenAI's frequency_penalty and presence_penalty, on the tokens of the answer so far."""

    fault: str | None = None

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = frequency, presence
        self._counts: dict[int, int] = {}

    def shape(self, logits: np.ndarray) -> None:
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[ids] -= self._frequency * counts + self._presence

    def took(self, token: int) -> None:
        self._counts[token] = self._counts.get(token, 0) + 1


class Together:
    """Several guides, one after another; the strictest comes last."""

    def __init__(self, guides: Sequence[Guide]) -> None:
        self._guides = guides

    @property
    def fault(self) -> str | None:
        return next((g.fault for g in self._guides if g.fault), None)

    def shape(self, logits: np.ndarray) -> None:
        for guide in self._guides:
            guide.shape(logits)

    def took(self, token: int) -> None:
        for guide in self._guides:
            guide.took(token)


class ThinkingBudget:
    """Ends reasoning that the prompt has opened after `budget` tokens: the closing tag is then forced, token by token.

    While reasoning runs, `inner` (the grammar of the answer) waits, and the answer cannot end.
    """

    def __init__(self, budget: int | None, close: Sequence[int], ends: Sequence[int], inner: Guide | None) -> None:
        if not close:
            raise ValueError("the tokenizer writes no closing tag of reasoning")
        self._left, self._close = budget, list(close)
        self._ends = np.asarray(ends, np.int64)
        self._inner = inner
        self._tail: list[int] = []
        self._forced: list[int] = []
        self.thinking = True

    @property
    def fault(self) -> str | None:
        return self._inner.fault if self._inner is not None else None

    def shape(self, logits: np.ndarray) -> None:
        if not self.thinking:
            if self._inner is not None:
                self._inner.shape(logits)
            return
        if not self._forced and self._left is not None and self._left <= 0:
            self._forced = self._rest_of_tag()
        if self._forced:
            kept = max(float(logits[self._forced[0]]), 0.0)
            logits[:] = -np.inf
            logits[self._forced[0]] = kept if np.isfinite(kept) else 0.0
        else:
            logits[self._ends] = -np.inf

    def took(self, token: int) -> None:
        if not self.thinking:
            if self._inner is not None:
                self._inner.took(token)
            return
        if self._forced:
            self._forced = self._forced[1:]
        elif self._left is not None:
            self._left -= 1
        self._tail = [*self._tail, token][-len(self._close) :]
        if self._tail == self._close:
            self.thinking = False

    def _rest_of_tag(self) -> list[int]:
        """What is missing of the closing tag, part of which the model may have begun."""
        for n in range(min(len(self._tail), len(self._close) - 1), 0, -1):
            if self._tail[-n:] == self._close[:n]:
                return self._close[n:]
        return list(self._close)
