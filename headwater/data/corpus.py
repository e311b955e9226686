"""Steps that must see all texts (deduplication, mixing): each text leaves a few numbers, and the numbers decide.

`prepare` learns from a sample, `columns` runs in the workers beside the per-text steps, `decide` runs once over the
columns of all texts, so no text is held or read again. The order of documents is that of the input units, so the
result is the same for any number of workers and shards. Not for steps that look at one text (steps.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headwater.data.steps import Text
from headwater.data.words import Words, words_of

Learnt = Mapping[str, np.ndarray]


class Batch:
    """Texts with what several steps need of them, worked out once."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts

    @cached_property
    def words(self) -> Words:
        return words_of([t.text for t in self.texts])


@dataclass
class Decision:
    """removed: reason -> documents that leave, ascending; because: for each document the one it was dropped for, or
    -1; copies: how often each document is kept (None: once); facts: numbers for the report, JSON values.
    """

    removed: dict[str, np.ndarray]
    because: np.ndarray | None = None
    copies: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Columns(Protocol):
    """The columns of all documents, in order."""

    @property
    def num_documents(self) -> int: ...

    @property
    def scratch(self) -> Path: ...

    def load(self, name: str) -> np.ndarray:
        """A column as one array in memory."""
        ...

    def mapped(self, name: str) -> np.ndarray:
        """A column as one read-only array on disk, for wide ones."""
        ...


class CorpusStep(Protocol):
    """`source` cites where the method comes from. `learns`: whether `prepare` looks at its sample (else it is empty). A
    column is (texts, ...): one row a text.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def learns(self) -> bool: ...

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]: ...

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]: ...

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision: ...


def keepers(
    groups: np.ndarray, members: np.ndarray, score: np.ndarray | None
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Of every group of `members` (groups[i] names the group of members[i]), the document to keep: the one with the
    best score, and among equals the first in order. Returns (documents that are not kept, ascending; function from
    such documents to the one kept in their place).
    """
    rank = np.zeros(len(members)) if score is None else -score[members]
    order = np.lexsort((members, rank, groups))
    sorted_groups = groups[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    heads = members[order][np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    dropped, kept = members[order][~first], heads[~first]
    ascending = np.argsort(dropped)
    dropped, kept = dropped[ascending], kept[ascending]
    return dropped, lambda documents: kept[np.searchsorted(dropped, documents)]
