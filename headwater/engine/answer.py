"""What an Engine keeps for a request beside its place in the scheduler, and what it counts."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headwater.completion import Writer
from headwater.records import field, record

if TYPE_CHECKING:
    import numpy as np

Mask = Callable[[Sequence[int]], "np.ndarray | None"]
"""Called with the answer's ids before each token: the allowed tokens as bits of uint32 words, or None for all."""


@record
class Answer:
    """What the engine keeps for a request beside its Job."""

    writer: Writer
    sampler: Any
    mask: Mask | None = None
    keys: list[bytes] = field(default_factory=list)
    stored: int = 0
    pooled: "np.ndarray | None" = None
    started: float = field(default_factory=time.perf_counter)
    prefilled: float = 0.0

    @property
    def alone(self) -> bool:
        """May it run on in the core without being looked at between tokens?"""
        p, written = self.writer.params, len(self.writer.completion.ids)
        watched = p.stop or p.logprobs is not None or p.think is not None or self.mask is not None
        return not watched and written >= p.min_tokens


@record
class Counters:
    """Since the start: requests done, cancelled or failed; tokens of prompts read, of answers written; runs;
    tokens of answers read again while nothing else ran."""

    done: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    decode_runs: int = 0
    prompt_runs: int = 0
    tokens_again: int = 0
