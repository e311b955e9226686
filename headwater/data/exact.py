"""Exact deduplication: texts whose normalised forms have the same 128-bit hash; the best-scored or first one stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater import optional
from headwater.data.corpus import Batch, Columns, Decision, Learnt, keepers
from headwater.data.steps import Text

_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Remove copies. The compared form has no ASCII white space and, with fold_case, lower case.

    score: the fact whose largest value chooses the copy to keep; '' or equal values: the first in order.
    """

    fold_case: bool = True
    score: str = ""
    name: ClassVar[str] = "exact"
    source: ClassVar[str] = "Lee et al. 2022, arXiv:2107.06499 (why); 128-bit XXH3 (how)"
    learns: ClassVar[bool] = False

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]:
        return {}

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]:
        digest = optional.load("xxhash", extra="data").xxh3_128_digest
        texts = (t.text.lower() if self.fold_case else t.text for t in batch.texts)
        joined = b"".join(digest(text.encode("utf-8", "surrogatepass").translate(None, _SPACE)) for text in texts)
        hashes = np.frombuffer(joined, dtype=np.uint64).reshape(len(batch.texts), 2)
        return {"hash": hashes} | scores(batch.texts, self.score)

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision:
        hashes = columns.load("hash")
        members = np.flatnonzero(alive)
        order = members[np.lexsort((hashes[members, 1], hashes[members, 0]))]
        changes = np.any(hashes[order[1:]] != hashes[order[:-1]], axis=1)
        groups = np.concatenate([np.zeros(1, np.int64), np.cumsum(changes)])[: len(order)]
        dropped, instead = keepers(groups, order, columns.load("score") if self.score else None)
        because = np.full(columns.num_documents, -1, dtype=np.int64)
        because[dropped] = instead(dropped)
        sizes = np.bincount(groups, minlength=1)
        return Decision(
            {"copy": dropped}, because, facts={"groups": int((sizes > 1).sum()), "largest_group": int(sizes.max())}
        )


def scores(texts: Sequence[Text], fact: str) -> dict[str, np.ndarray]:
    """The column of the fact that ranks texts; {} where none is named. A text without it scores lowest."""
    if not fact:
        return {}
    values = [t.facts.get(fact) for t in texts]
    return {"score": np.array([v if isinstance(v, int | float) else -np.inf for v in values], dtype=np.float64)}
