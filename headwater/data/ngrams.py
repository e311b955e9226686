"""Hashes of all runs of n words of a batch of texts: what repetition and decontamination look at.

A prefix sum gives the runs of any length at the same cost. Not for shingles of whole texts (words.shingles).
"""

from functools import cache, cached_property

import numpy as np

from headwater.data import fast
from headwater.data.words import Words, mix

_STEP = 0xC2B2AE3D27D4EB4F  # odd, so that it has an inverse modulo 2**64
_MASK = (1 << 64) - 1
_STEP_INVERSE = pow(_STEP, -1, 1 << 64)


class Runs:
    """The runs of words of some texts; no run spans two texts."""

    def __init__(self, words: Words) -> None:
        self.words = words

    @cached_property
    def text_of_word(self) -> np.ndarray:
        """Number of the text of each word."""
        return np.repeat(np.arange(len(self.words.counts)), self.words.counts)

    @cached_property
    def _left(self) -> np.ndarray:
        """Words from each word to the end of its text, itself included."""
        return np.repeat(self.words.starts[1:], self.words.counts) - np.arange(len(self.words.hashes))

    @cached_property
    def _sums(self) -> np.ndarray:
        powers, _ = _powers(1 << len(self.words.hashes).bit_length())
        sums = np.zeros(len(self.words.hashes) + 1, np.uint64)
        np.cumsum(self.words.hashes * powers[: len(self.words.hashes)], out=sums[1:])
        return sums

    def of(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(hashes uint64, number of the first word) of every run of `n` words."""
        return self._hash(n, np.flatnonzero(self._left >= n))

    def among(self, n: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for those runs alone that begin at one of these words: the better way for few of them."""
        text = self.text_at(starts)
        at = starts[self.words.starts[text + 1] - starts >= n]
        hashes, power = np.zeros(len(at), np.uint64), 1
        for offset in range(n):
            hashes += self.words.hashes[at + offset] * np.uint64(power)
            power = power * _STEP & _MASK
        return mix(hashes + np.uint64(n)), at

    def text_at(self, words: np.ndarray) -> np.ndarray:
        """Number of the text of each of these words."""
        return np.searchsorted(self.words.starts, words, side="right") - 1

    def _hash(self, n: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, inverses = _powers(1 << len(self.words.hashes).bit_length())
        return mix((self._sums[at + n] - self._sums[at]) * inverses[at] + np.uint64(n)), at


def find_runs(
    runs: Runs, lengths: tuple[int, ...], begins: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(first words, hashes) of the runs that may be known ones: where a run of lengths[0] words begins whose hash is
    marked in `begins`, those of all `lengths` that begin there and are marked in `known`. Both are packed maps of 2**k
    bits, a hash's place in them its top k bits.
    """
    if fast.core is not None:
        return fast.core.runs(runs.words.hashes, runs.words.starts, list(lengths), begins, known)
    hashes, at = runs.of(lengths[0])
    begun = at[_marked(begins, hashes)]
    found = [runs.among(n, begun) for n in lengths]
    hashes, at = (np.concatenate(parts) for parts in zip(*found, strict=True))
    maybe = _marked(known, hashes)
    return at[maybe], hashes[maybe]


def _marked(packed: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Whether the bit of each hash is set in a packed bit map."""
    bits = (8 * len(packed)).bit_length() - 1
    where = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    return (packed.take(where >> 3) >> (7 - (where & 7)).astype(np.uint8) & 1).view(bool)


def count_repeats(runs: Runs, n: int, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each text: how often its most frequent run of `n` words stands there, and how many of its runs of `n` words
    stood there before. chosen (bool): texts that are asked for; the others have zeros.
    """
    texts = len(runs.words.counts)
    chosen = np.ones(texts, bool) if chosen is None else chosen
    if fast.core is not None:
        return fast.core.repeats(runs.words.hashes, runs.words.starts, n, chosen)
    most, again = np.zeros(texts, np.int64), np.zeros(texts, np.int64)
    hashes, at = runs.of(n)
    asked = chosen[runs.text_of_word[at]]
    hashes, at = hashes[asked], at[asked]
    if not len(at):
        return most, again
    bits = np.uint64(max(1, texts.bit_length()))
    key = (runs.text_of_word[at].astype(np.uint64) << (np.uint64(64) - bits)) | (hashes >> bits)
    key.sort()
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    times = np.diff(np.append(first, len(key)))
    text = (key[first] >> (np.uint64(64) - bits)).astype(np.int64)
    begin = np.flatnonzero(np.concatenate([[True], text[1:] != text[:-1]]))
    here = text[begin]
    most[here] = np.maximum.reduceat(times, begin)
    again[here] = np.add.reduceat(times - 1, begin)
    return most, again


def count_covered(runs: Runs, n: int, chosen: np.ndarray) -> np.ndarray:
    """Words of each chosen text (bool) that lie in runs of `n` words that stood before in it; a word counts once."""
    if fast.core is not None:
        return fast.core.covered(runs.words.hashes, runs.words.starts, n, chosen)
    covered = np.zeros(len(chosen), np.int64)
    for text in np.flatnonzero(chosen).tolist():
        start, stop = runs.words.starts[text : text + 2]
        mine = runs.words.hashes[start:stop]
        hashes, at = Runs(Words(mine, np.array([0, len(mine)]))).of(n)
        again = np.ones(len(at), bool)
        again[np.unique(hashes, return_index=True)[1]] = False
        edges = np.zeros(len(mine) + 1, np.int64)
        edges[at[again]] += 1
        np.subtract.at(edges, at[again] + n, 1)
        covered[text] = (np.cumsum(edges[:-1]) > 0).sum()
    return covered


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """step**i and its inverse modulo 2**64, for i < count."""
    powers = np.full(count, _STEP, np.uint64)
    inverses = np.full(count, _STEP_INVERSE, np.uint64)
    powers[0] = inverses[0] = 1
    return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)
