"""What is measured: cases by name (`prefill_512`, `decode_128@4096`, `first_token`, `memory`) and their rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.files import closest

_LONG = 1024
"""Tokens from which one repetition without a warm-up is enough: the start is a small part of such a run."""
_FORM = re.compile(r"(?:(prefill)_([1-9]\d{0,5})|(decode)_([1-9]\d{0,5})(?:@([1-9]\d{0,5}))?)")


@dataclass(frozen=True)
class Case:
    """One thing to run. prefill: a prompt of `tokens`; decode: `tokens` answers one by one behind `depth` tokens;
    first_token: from the start of the process to the first answer to a prompt of `tokens`; memory: a prompt of
    `depth`, then `tokens` answers, for the peak alone."""

    name: str
    kind: Literal["prefill", "decode", "first_token", "memory"]
    tokens: int
    depth: int = 0

    @property
    def long(self) -> bool:
        """No warm-up, one repetition."""
        return self.kind == "memory" or self.tokens + self.depth > _LONG

    @property
    def repetitions(self) -> int:
        return 1 if self.long else 2


FIRST_TOKEN = Case("first_token", "first_token", 2)
MEMORY = Case("memory", "memory", 128, 512)
DEFAULT = (
    "prefill_512", "prefill_1024", "prefill_4096", "decode_128", "decode_128@1024", "decode_128@4096",
    "first_token", "memory",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A measured quantity of a case: its unit, how many of it a printed unit holds, and whether more is better."""

    unit: str
    scale: float = 1.0
    more_is_better: bool = True


SPEED = Row("tok/s")
ROWS = {
    "first_token": Row("s", more_is_better=False),
    "load": Row("s", more_is_better=False),
    "peak_memory": Row("MB", 1e6, more_is_better=False),
    "peak_anonymous": Row("MB", 1e6, more_is_better=False),
}
"""Rows that are not tokens per second; every other row is named after its case."""


def row(name: str) -> Row:
    """What the row called `name` is counted in."""
    return ROWS.get(name, SPEED)


def rows_of(case: Case) -> tuple[str, ...]:
    """The rows a case gives."""
    if case.kind == "first_token":
        return ("first_token", "load")
    if case.kind == "memory":
        return ("peak_memory", "peak_anonymous")
    return (case.name,)


def named(name: str) -> Case:
    """The case of that name; ValueError says what a name looks like."""
    for case in (FIRST_TOKEN, MEMORY):
        if case.name == name:
            return case
    m = _FORM.fullmatch(name)
    if m is None:
        raise ValueError(
            f"no case {name!r}{closest(name, list(DEFAULT))}; allowed: prefill_TOKENS, decode_TOKENS, "
            "decode_TOKENS@DEPTH, first_token, memory"
        )
    if m[1]:
        return Case(name, "prefill", int(m[2]))
    return Case(name, "decode", int(m[4]), int(m[5] or 0))


def chosen(names: Sequence[str], most: int) -> list[Case]:
    """The cases of `names` in order; ValueError when one is unknown, stands twice or needs more than `most` tokens."""
    cases = [named(n) for n in names]
    for i, case in enumerate(cases):
        if case in cases[:i]:
            raise ValueError(f"the case {case.name!r} stands twice in --only")
        if case.tokens + case.depth > most:
            raise ValueError(f"{case.name} needs {case.tokens + case.depth} tokens; the model's context is {most}")
    if not cases:
        raise ValueError(f"--only names no case; allowed: {', '.join(DEFAULT)}")
    return cases
