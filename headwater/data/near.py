"""Near-duplicates: C-MinHash signatures of word shingles, LSH bands, checked pairs, union-find.

A pair is joined if it shares a band (rows equal slots) and the 8-bit signatures say a Jaccard similarity of at least
`threshold`; documents that hang together through joined pairs are one group, of which one stays.
Approximate in three ways. A pair of similarity s shares no band with probability (1 - s**rows)**(slots // rows).
The estimate of s has a standard error of sqrt(s (1 - s) / slots). In a band shared by many, each document is compared
with the first and with its neighbour, not with all. Memory: 128 bytes a document on disk, 8 bytes a band in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.data.cminhash import signatures
from headwater.data.corpus import Batch, Columns, Decision, Learnt, keepers
from headwater.data.exact import scores
from headwater.data.steps import Text
from headwater.data.union import UnionFind
from headwater.data.words import mix

_CHUNK = 1 << 16  # pairs compared at once
_BANDS_AT_ONCE, _MARK_BITS = 5, 22
_BY_CHANCE = 1 / 256  # two unequal slots have equal low bytes


@dataclass(frozen=True, kw_only=True)
class Near:
    """Remove near-duplicates of Jaccard similarity >= threshold over shingles of `width` words.

    slots: length of the signature; rows: slots a band. shortest: texts of fewer words are left alone, since a word
    changed is too much of them. score: as in Exact.
    """

    threshold: float = 0.7
    width: int = 5
    slots: int = 128
    rows: int = 5
    shortest: int = 8
    seed: int = 1
    score: str = ""
    name: ClassVar[str] = "near"
    source: ClassVar[str] = "C-MinHash: Li & Li 2022, arXiv:2109.03337; LSH bands: Leskovec et al., MMDS ch. 3"
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a Jaccard similarity lies above 0 and up to 1")
        if self.width < 1 or self.rows < 1 or self.slots < self.rows:
            raise ValueError(f"width {self.width}, rows {self.rows}, slots {self.slots}: each >= 1 and slots >= rows")

    @property
    def bands(self) -> int:
        return self.slots // self.rows

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]:
        return {}

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]:
        slots = signatures(batch.words, self.width, self.slots, self.seed)
        bands = slots[:, : self.bands * self.rows].reshape(-1, self.bands, self.rows)
        keys = np.zeros(bands.shape[:2], dtype=np.uint64)
        for row in range(self.rows):
            keys = mix(keys + bands[:, :, row])
        keys[batch.words.counts < self.shortest] = 0  # 0: in no band
        signature = (slots >> np.uint64(56)).astype(np.uint8)
        return {"keys": keys, "signature": signature} | scores(batch.texts, self.score)

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision:
        signatures, keys = columns.mapped("signature"), columns.mapped("keys")
        joined = UnionFind(columns.num_documents)
        histogram = np.zeros(20, dtype=np.int64)
        for band in _by_column(keys):
            first, second = _pairs(band, alive)
            apart = joined.roots(first) != joined.roots(second)
            first, second = first[apart], second[apart]
            for start in range(0, len(first), _CHUNK):
                one, two = first[start : start + _CHUNK], second[start : start + _CHUNK]
                similarity = self._similarity(signatures, one, two)
                histogram += np.histogram(similarity, bins=20, range=(0, 1))[0]
                same = similarity >= self.threshold
                joined.join(one[same], two[same])
        members = np.flatnonzero(alive)
        dropped, instead = keepers(joined.roots(members), members, columns.load("score") if self.score else None)
        because = np.full(columns.num_documents, -1, dtype=np.int64)
        because[dropped] = instead(dropped)
        sizes = np.bincount(joined.roots(members), minlength=1)
        return Decision(
            {"near_duplicate": dropped},
            because,
            facts={
                "groups": int((sizes > 1).sum()), "largest_group": int(sizes.max()),
                "similarity_of_compared_pairs": histogram.tolist(),
            },
        )  # fmt: skip

    def _similarity(self, signatures: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        equal = (signatures[one] == signatures[two]).mean(axis=1)
        return np.maximum((equal - _BY_CHANCE) / (1 - _BY_CHANCE), 0)


def _by_column(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The columns of a wide array on disk, a few of them in memory at a time."""
    for start in range(0, rows.shape[1], _BANDS_AT_ONCE):
        yield from np.ascontiguousarray(rows[:, start : start + _BANDS_AT_ONCE].T)


def _shared(keys: np.ndarray) -> np.ndarray:
    """Places, ascending, of all keys that stand there twice or more, and of some others: faster than an argsort."""
    ordered = np.sort(keys)
    marks = np.zeros(1 << _MARK_BITS, dtype=bool)
    shift = np.uint64(64 - _MARK_BITS)
    marks[ordered[1:][ordered[1:] == ordered[:-1]] >> shift] = True
    return np.flatnonzero(marks[keys >> shift])


def _pairs(keys: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that share a key of one band: each with the first of its bucket, and with the one before it."""
    documents = np.flatnonzero(alive & (keys != 0))
    documents = documents[_shared(keys[documents])]
    order = documents[np.argsort(keys[documents], kind="stable")]
    sorted_keys = keys[order]
    same = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1]) + 1
    begins = np.ones(len(order), dtype=bool)
    begins[same] = False
    heads = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    far = same[heads[same] != same - 1]
    return np.concatenate([order[same - 1], order[heads[far]]]), np.concatenate([order[same], order[far]])
