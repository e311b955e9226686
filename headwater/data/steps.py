"""What every step of the data pipeline speaks: a Text, a verdict on it, and the type of a step.

A step that looks at one text at a time is a frozen dataclass of options with a `name` and a `__call__` from a batch of
texts to one verdict each, in order; it holds no state between batches, so any number of workers and shards keep the
same set. Steps that must see all texts (deduplication) work in passes over the stored shards. Not for tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """One document. id: unique and stable in its corpus ("source/file:line"). facts: what steps learnt (language,
    votes, scores), JSON values only.
    """

    id: str
    text: str
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Removed:
    """Why a text leaves: a short fixed reason that is counted ("too_short"), and the detail of this one text."""

    reason: str
    detail: str = ""


Verdict = Text | Removed
"""The text that goes on (the same or a rewritten one), or why it does not."""


class Step(Protocol):
    """One text at a time, in batches. `source` cites where the rule comes from (paper, section), for the report. A step
    may have `count`: from its verdicts on a batch to named groups of counts, which the report adds up.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]: ...


def is_code(text: Text) -> bool:
    """Whether the source said that this is program text (facts {"kind": "code"}): rules for prose leave it alone."""
    return text.facts.get("kind") == "code"
