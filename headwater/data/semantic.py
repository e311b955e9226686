"""Semantic deduplication: texts whose embeddings are almost parallel, compared within k-means clusters.

As in SemDeDup, a text leaves if an earlier (or better-scored) one of its cluster has a cosine >= threshold with it.
Approximate in three ways: pairs that fall into two clusters are missed; vectors are rounded to 8 bits (a cosine moves
by about 0.002); a cluster above `largest` texts is compared in windows of that many, sorted along its main direction.
Memory: dims bytes a document on disk, 10 bytes in memory, and one window of cosines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from headwater.data import embed
from headwater.data.corpus import Batch, Columns, Decision, Learnt
from headwater.data.exact import scores
from headwater.data.steps import Text

_ROUNDS = 8  # of k-means
_SCALE = 127.0
_ROWS = 256  # of a table of cosines, searched at once


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Remove texts of cosine >= threshold with a text that stays or left before them.

    encoder: see embed.ENCODERS; dims: of the static vectors (a model brings its own). cluster: texts a cluster is
    planned for. shortest: texts of fewer words are left alone.
    """

    threshold: float = 0.95
    encoder: str = "static"
    dims: int = 96
    cluster: int = 1000
    largest: int = 4096
    shortest: int = 8
    seed: int = 1
    score: str = ""
    name: ClassVar[str] = "semantic"
    source: ClassVar[str] = "SemDeDup: Abbas et al. 2023, arXiv:2303.09540"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a cosine to act on lies above 0 and up to 1")
        if self.dims < 2 or self.cluster < 2 or self.largest < 2:
            raise ValueError(f"dims {self.dims}, cluster {self.cluster}, largest {self.largest}: each is at least 2")

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]:
        """The word vectors and the centroids, from a sample of a corpus of about `expected` texts."""
        texts = [t.text for t in sample]
        learnt = embed.learn_static(texts, self.dims, self.seed) if self.encoder == "static" else {}
        vectors = self._vectors(Batch(sample), learnt)
        wanted = max(1, min(expected // self.cluster, len(sample) // 8, 4096))
        return {**learnt, "centroids": _kmeans(vectors, wanted, self.seed)}

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]:
        vectors = self._vectors(batch, learnt)
        cluster = np.argmax(vectors @ learnt["centroids"].T, axis=1).astype(np.int32)
        cluster[(batch.words.counts < self.shortest) | ~vectors.any(axis=1)] = -1
        rounded = np.round(vectors * _SCALE).astype(np.int8)
        return {"vector": rounded, "cluster": cluster} | scores(batch.texts, self.score)

    def _vectors(self, batch: Batch, learnt: Learnt) -> np.ndarray:
        if self.encoder == "static":
            return embed.static(batch.words, learnt)
        return embed.sentence_vectors(self.encoder, [t.text for t in batch.texts])

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision:
        vectors, cluster = columns.mapped("vector"), columns.load("cluster")
        rank = -columns.load("score") if self.score else np.zeros(columns.num_documents)
        members = np.flatnonzero(alive & (cluster >= 0))
        members = members[np.argsort(cluster[members], kind="stable")]
        bounds = np.flatnonzero(np.diff(cluster[members], prepend=-1, append=-1))
        because = np.full(columns.num_documents, -1, dtype=np.int64)
        nearest = np.zeros(40, dtype=np.int64)
        for start, stop in pairwise(bounds.tolist()):
            for some in self._windows(members[start:stop], vectors):
                window = some[np.lexsort((some, rank[some]))]
                unit = embed.unit(vectors[window].astype(np.float32))
                best, value = _nearest_before(unit @ unit.T)
                nearest += np.histogram(value[1:], bins=40, range=(0, 1))[0]
                gone = value >= self.threshold
                because[window[gone]] = window[best[gone]]
        dropped = np.flatnonzero(because >= 0)
        sizes = np.diff(bounds) if len(bounds) > 1 else np.zeros(1, np.int64)
        facts = {
            "clusters": len(sizes), "largest_cluster": int(sizes.max()),
            "cosine_with_nearest_earlier": nearest.tolist(),
        }  # fmt: skip
        return Decision({"same_meaning": dropped}, because, facts=facts)

    def _windows(self, members: np.ndarray, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """A cluster in pieces of at most `largest`, near vectors together."""
        if len(members) <= self.largest:
            yield members
            return
        some = members[np.linspace(0, len(members) - 1, self.largest).astype(np.int64)]
        sample = vectors[some].astype(np.float32)
        sample -= sample.mean(axis=0)
        axis = np.linalg.svd(sample.T @ sample)[0][:, 0]
        along = np.concatenate(
            [vectors[members[at : at + self.largest]].astype(np.float32) @ axis
             for at in range(0, len(members), self.largest)]
        )  # fmt: skip
        members = members[np.argsort(along, kind="stable")]
        yield from np.array_split(members, -(-len(members) // self.largest))


def _nearest_before(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a square table the column before its own with the largest value, and that value; 0 and -1 for
    the first row. Overwrites the table.
    """
    best, after = np.zeros(len(cosine), dtype=np.int64), np.triu(np.ones((_ROWS, _ROWS), dtype=bool))
    for start in range(0, len(cosine), _ROWS):
        part = cosine[start : start + _ROWS, : start + _ROWS]
        part[:, start:][after[: len(part), : len(part)]] = -1
        np.argmax(part, axis=1, out=best[start : start + len(part)])
    return best, cosine[np.arange(len(cosine)), best]


def _kmeans(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit centroids (count, dims) of unit vectors: spherical k-means from evenly drawn starts."""
    vectors = vectors[vectors.any(axis=1)]
    if not len(vectors):
        return np.zeros((1, vectors.shape[1]), dtype=np.float32)
    count = min(count, len(vectors))
    starts = np.random.default_rng(seed).permutation(len(vectors))[:count]
    centroids = vectors[np.sort(starts)]
    for _ in range(_ROUNDS if count > 1 else 1):
        nearest = np.argmax(vectors @ centroids.T, axis=1)
        order = np.argsort(nearest, kind="stable")
        filled, begins = np.unique(nearest[order], return_index=True)
        # An empty cluster keeps its centroid.
        centroids = centroids.copy()
        centroids[filled] = embed.unit(embed.segment_sums(vectors[order], begins))
    return centroids.astype(np.float32)
