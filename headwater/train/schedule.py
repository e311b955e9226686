"""Learning-rate schedules: pure functions of the step, from 0 to 1, that multiply each parameter group's peak rate.

`schedule(step)` takes the number of updates already done. No state, so resuming needs nothing.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine down to `final` at step `steps` - 1 (Loshchilov &
    Hutter 2017).
    """

    steps: int
    warmup: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        _check(self.steps, self.warmup, 0, self.final)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return _cosine(_done(step, self.warmup, self.steps), self.final)


@dataclass(frozen=True, kw_only=True)
class WSD:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): flat at 1, then 1 - sqrt down to `final` over the last
    `decay` steps.

    The flat part can be lengthened or branched off after the fact: a long pre-training run with an annealed
    mid-training tail.
    """

    steps: int
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, self.warmup, self.decay, self.final)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if step < self.steps - self.decay:
            return 1.0
        return 1.0 - (1.0 - self.final) * math.sqrt(_done(step, self.steps - self.decay - 1, self.steps))


def _done(step: int, start: int, steps: int) -> float:
    """Share of the way from `start` to the last step, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / max(1, steps - 1 - start)))


def _cosine(done: float, final: float) -> float:
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def _check(steps: int, warmup: int, decay: int, final: float) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; a schedule needs at least 1 step")
    for name, value in (("warmup", warmup), ("decay", decay)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it counts steps and cannot be negative")
    if warmup + decay > steps:
        raise ValueError(
            f"warmup {warmup} + decay {decay} steps exceed the {steps} steps of the run; shorten one of them"
        )
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final is {final}; it is a share of the peak learning rate, from 0 to 1")
