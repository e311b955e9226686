"""Semantic deduplication: texts whose embeddings are almost parallel, compared within k-means clusters.

As in SemDeDup, a text leaves if an earlier (or better-scored) one has a cosine >= threshold with it; a pair is looked
at if one lies in a cluster that is among the nearest `probes` of the other. Approximate in three ways: pairs further
apart are missed; vectors are rounded to 8 bits (a cosine moves by about 0.002); above `largest` texts a cluster is
compared in windows of that many, sorted along its main direction. A text is left unjudged where the vectors say little:
of too few words, mostly of words that the sample had not, program text, languages that were not asked for.
Memory: dims bytes a document on disk, 28 bytes in memory, and one window of cosines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from headwater.data import embed
from headwater.data.corpus import Batch, Columns, Decision, Learnt
from headwater.data.exact import scores
from headwater.data.steps import Text, is_code

_ROUNDS = 8  # of k-means
_FEW = 500  # texts that tell the mean of a model's vectors
_SCALE = 127.0
_UNJUDGED = ("", "few_words", "unknown_words", "code", "other_language")  # by the number in the column "why"


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Remove texts of cosine >= threshold with a text that stays or left before them.

    encoder: see embed.ENCODERS; dims: of the static vectors (a model brings its own). cluster: texts a cluster is
    planned for; probes: clusters that a text is looked for in. languages: judged (facts "language"; empty: all); code:
    whether program text is, which the same few words make look alike. shortest: texts of fewer words are left alone.
    """

    threshold: float = 0.9
    encoder: str = "static"
    dims: int = 128
    cluster: int = 1000
    probes: int = 2
    largest: int = 4096
    shortest: int = 8
    languages: tuple[str, ...] = ()
    code: bool = False
    seed: int = 1
    score: str = ""
    name: ClassVar[str] = "semantic"
    source: ClassVar[str] = "SemDeDup: Abbas et al. 2023, arXiv:2303.09540"
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a cosine to act on lies above 0 and up to 1")
        if self.dims < 2 or self.cluster < 2 or self.largest < 2 or self.probes < 1:
            raise ValueError(
                f"dims {self.dims}, cluster {self.cluster}, largest {self.largest}: each is at least 2; probes "
                f"{self.probes}: at least 1"
            )
        embed.check(self.encoder)

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]:
        """What the vectors need, and the centroids, from a sample of a corpus of about `expected` texts."""
        wanted = max(1, min(expected // self.cluster, len(sample) // 4, 4096))
        if self.encoder == "static":
            groups = ["code" if is_code(t) else str(t.facts.get("language", "")) for t in sample]
            learnt = embed.learn_static([t.text for t in sample], groups, self.dims, self.seed)
            vectors, _ = self._vectors(Batch(sample), learnt)
        else:  # a model takes so long that it sees no more than the centroids need
            sample = sample[:: max(1, len(sample) // max(_FEW, 4 * wanted))]
            whole = embed.sentence_vectors(self.encoder, [t.text for t in sample])
            learnt = {"mean": whole.mean(axis=0)}
            vectors = embed.unit(whole - learnt["mean"])
        return {**learnt, "centroids": _kmeans(vectors, wanted, self.seed)}

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]:
        vectors, known = self._vectors(batch, learnt)
        near = vectors @ learnt["centroids"].T
        cluster = np.empty((len(vectors), min(self.probes, near.shape[1])), dtype=np.int32)
        for probe in range(cluster.shape[1]):
            cluster[:, probe] = np.argmax(near, axis=1)
            near[np.arange(len(near)), cluster[:, probe]] = -np.inf
        why = np.zeros(len(vectors), dtype=np.uint8)
        why[[bool(self.languages) and t.facts.get("language") not in self.languages for t in batch.texts]] = 4
        why[[is_code(t) for t in batch.texts]] = 0 if self.code else 3
        why[(known < embed.LEAST_KNOWN) | ~vectors.any(axis=1)] = 2
        why[batch.words.counts < self.shortest] = 1
        cluster[why > 0] = -1
        rounded = np.round(vectors * _SCALE).astype(np.int8)
        return {"vector": rounded, "cluster": cluster, "why": why} | scores(batch.texts, self.score)

    def _vectors(self, batch: Batch, learnt: Learnt) -> tuple[np.ndarray, np.ndarray]:
        """(unit vectors, the share of the words that they know)."""
        if self.encoder == "static":
            return embed.static(batch.words, learnt)
        vectors = embed.sentence_vectors(self.encoder, [t.text for t in batch.texts])
        return embed.unit(vectors - learnt["mean"]), np.ones(len(vectors))

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision:
        vectors, cluster = columns.mapped("vector"), columns.load("cluster")
        texts = columns.num_documents
        rank = np.empty(texts, dtype=np.int64)
        score = columns.load("score") if self.score else np.zeros(texts)
        rank[np.lexsort((np.arange(texts), -score))] = np.arange(texts)
        value, because = np.full(texts, -1, dtype=np.float32), np.full(texts, -1, dtype=np.int64)
        nearest = np.full(texts, -1, dtype=np.float32)
        sizes = [0]
        for members, home in _clusters(cluster, alive):
            sizes.append(int(home.sum()))
            for window in self._windows(len(members), members, vectors):
                self._compare(members[window], home[window], vectors, rank, value, because, nearest)
        judged = alive & (cluster[:, 0] >= 0)
        gone = value >= self.threshold
        because[~gone] = -1
        why = np.bincount(columns.load("why")[alive], minlength=len(_UNJUDGED))
        facts = {
            "judged": int(judged.sum()),
            "not_judged": {name: int(count) for name, count in zip(_UNJUDGED, why, strict=True) if name and count},
            "clusters": len(sizes) - 1, "largest_cluster": max(sizes),
            "cosine_with_nearest": np.histogram(nearest[nearest >= 0], bins=40, range=(0, 1))[0].tolist(),
        }  # fmt: skip
        return Decision({"same_meaning": np.flatnonzero(gone)}, because, facts=facts)

    def _compare(
        self, members: np.ndarray, home: np.ndarray, vectors: np.ndarray, rank: np.ndarray, value: np.ndarray,
        because: np.ndarray, nearest: np.ndarray,
    ) -> None:  # fmt: skip
        """Every text whose home this cluster is, with every text that is looked for in it: of each the best that ranks
        before it and has the cosine to remove it, where that is higher than what `value` holds.
        """
        members = members[np.argsort(~home, kind="stable")]
        homes = int(home.sum())
        if not homes:
            return
        whole = vectors[members].astype(np.float32)
        length = 1 / np.maximum(np.linalg.norm(whole, axis=1), 1)
        # Sums of whole numbers are exact in any order, so the number of threads changes nothing.
        product = whole[:homes] @ whole.T
        product[np.arange(homes), np.arange(homes)] = -1
        top = product.argmax(axis=1)
        highest = product[np.arange(homes), top]
        cosine = highest * length[:homes] * length[top]
        nearest[members[:homes]] = np.maximum(nearest[members[:homes]], cosine)
        # Rounded vectors are almost equally long, so one bound leaves few rows, and few pairs of them, to look at.
        bound = np.float32(self.threshold / (float(length[:homes].max()) * float(length.max())) * (1 - 1e-6))
        rows = np.flatnonzero(highest >= bound)
        one, two = np.nonzero(product[rows] >= bound)
        one = rows[one]
        found = product[one, two] * length[one] * length[two]
        close = found >= self.threshold
        one, two, found = members[one[close]], members[two[close]], found[close]
        later, earlier = np.where(rank[one] > rank[two], (one, two), (two, one))
        order = np.lexsort((rank[earlier], -found, later))
        later, first = np.unique(later[order], return_index=True)
        earlier, found = earlier[order][first], found[order][first]
        better = found > value[later]
        value[later[better]] = found[better]
        because[later[better]] = earlier[better]

    def _windows(self, count: int, members: np.ndarray, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """A cluster in pieces of at most `largest`, near vectors together: places in `members`."""
        if count <= self.largest:
            yield np.arange(count)
            return
        some = members[np.linspace(0, count - 1, self.largest).astype(np.int64)]
        sample = vectors[some].astype(np.float32)
        sample -= sample.mean(axis=0)
        axis = np.linalg.svd(sample.T @ sample)[0][:, 0]
        along = np.concatenate(
            [vectors[members[at : at + self.largest]].astype(np.float32) @ axis for at in range(0, count, self.largest)]
        )
        yield from np.array_split(np.argsort(along, kind="stable"), -(-count // self.largest))


def _clusters(cluster: np.ndarray, alive: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(texts to be looked for in a cluster, ascending; which of them are at home there), cluster by cluster."""
    texts, place = np.nonzero((cluster >= 0) & alive[:, None])
    number = cluster[texts, place]
    order = np.argsort(number, kind="stable")
    texts, place, number = texts[order], place[order], number[order]
    for start, stop in pairwise(np.flatnonzero(np.diff(number, prepend=-1, append=-1)).tolist()):
        yield texts[start:stop], place[start:stop] == 0


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
