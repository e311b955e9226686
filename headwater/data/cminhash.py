"""C-MinHash signatures of the shingles of texts: of each slot the least of all shingles under two seeded permutations,
the second one shifted by the slot.

The compiled core computes them four times as fast as the library `rensa`, which is the twin and the definition: both
give the same numbers. Not for comparing signatures (near.py).
"""

from functools import cache

import numpy as np

from headwater import optional
from headwater.data import fast
from headwater.data.words import Words, mix, shingles

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def signatures(words: Words, width: int, slots: int, seed: int) -> np.ndarray:
    """(texts, slots) uint64, every bit of a slot as good as any other. A shingle is `width` words in a row, or all the
    words of a shorter text; texts without a word have one signature, which no other text has.

    Source: Li & Li 2022, arXiv:2109.03337.
    """
    if fast.core is not None:
        return fast.core.signatures(words.hashes, words.starts, width, slots, *_keys(seed))
    rensa = optional.load("rensa", extra="data")
    parts = shingles(words, width)
    sets = np.split(parts.hashes, parts.starts[1:-1])
    rows = rensa.CMinHash.digests64_from_token_hash_sets(sets, slots, seed)
    return mix(np.array(rows, dtype=np.uint64).reshape(len(words.counts), slots))


@cache
def _keys(seed: int) -> tuple[int, int]:
    """The keys of the two permutations: the first numbers of xoshiro256++ (Blackman & Vigna 2019, arXiv:1805.01407),
    whose state splitmix64 fills from the seed.
    """
    steps = (np.arange(1, 5, dtype=np.uint64) * np.uint64(_GOLDEN)) + np.uint64(seed & _MASK)
    a, b, c, d = map(int, mix(steps))
    first = (_rotated((a + d) & _MASK, 23) + a) & _MASK
    c, d = c ^ a, d ^ b
    a, d = a ^ d, _rotated(d, 45)  # what of the next state its number needs
    return first, (_rotated((a + d) & _MASK, 23) + a) & _MASK


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK
