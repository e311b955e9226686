"""Words of many texts at once as 64-bit hashes: the input of every dedup step. `_find` says what they are, in numpy
passes over code points; the compiled core gives the same in a tenth of the time.

A word is a run of letters, digits and marks, lower-cased; scripts written without spaces (Han, kana, Thai, Lao,
Khmer, Burmese) give one word a character. Punctuation and spaces do not count. Not for tokens of a model, and not for
words as strings.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from headwater.data import fast

_TABLE = 0x32000  # code points from here on (private, emoji tags, selectors) part words
_SPACELESS = (
    (0x0E00, 0x1000), (0x1000, 0x10A0), (0x1780, 0x1800), (0x2E80, 0x3100), (0x31F0, 0x3200), (0x3400, 0xA000),
    (0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x1B000, 0x1B170), (0x20000, _TABLE),
)  # fmt: skip
_GAP, _LETTER, _ALONE = 0, 1, 2
_BASE, _STRIDE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, so they have inverses modulo 2**64
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)


_REMEMBERED = 2048  # texts


@dataclass(frozen=True)
class Words:
    """hashes: uint64 of all words of all texts; starts: where each text begins in it, and its length as last entry;
    alone: which words are one character of a script without spaces (None: nobody asked).
    """

    hashes: np.ndarray
    starts: np.ndarray
    alone: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.starts)


_LAST: list[tuple[list[str], Words]] = [([], Words(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, bool)))]


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text. Equal words have equal hashes in every process and release (version 1 of the scheme).

    Steps ask for the same texts one after the other, each time a few less: the last answer is kept, and a part of it
    costs little.
    """
    before, found = _LAST[0]
    rows = _among(texts, before)
    if rows is not None:
        return found if len(rows) == len(before) else _part(found, rows)
    found = _find(texts) if fast.core is None else _compiled(texts)
    if len(texts) <= _REMEMBERED:
        _LAST[0] = (list(texts), found)
    return found


def _among(texts: Sequence[str], before: Sequence[str]) -> list[int] | None:
    """Where each text stands in `before`, in order; None if one is not the very same object."""
    rows, numbered = [], enumerate(before)
    for text in texts:
        for row, other in numbered:
            if other is text:
                rows.append(row)
                break
        else:
            return None
    return rows


def _compiled(texts: Sequence[str]) -> Words:
    assert fast.core is not None
    hashes, starts, alone = fast.core.words(list(texts), *_tables())
    return Words(hashes, starts, alone.view(bool))


def _part(words: Words, rows: Sequence[int]) -> Words:
    kept = np.zeros(len(words.counts), dtype=bool)
    kept[rows] = True
    counts = words.counts
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])])
    mine = np.repeat(kept, counts)
    return Words(words.hashes[mine], starts, None if words.alone is None else words.alone[mine])


def _find(texts: Sequence[str]) -> Words:
    kinds, values = _tables()
    points = np.frombuffer(("\n".join(texts) + "\n").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    points = np.minimum(points, _TABLE)
    kind = kinds[points]
    before = np.empty_like(kind)
    before[0], before[1:] = _GAP, kind[:-1]
    # A word of a spaced script begins where the character before is none of its letters; the others stand alone.
    begins = np.flatnonzero((kind == _ALONE) | ((kind == _LETTER) & (before != _LETTER)))
    after = np.empty_like(kind)
    after[-1], after[:-1] = _GAP, kind[1:]
    ends = np.flatnonzero((kind == _ALONE) | ((kind == _LETTER) & (after != _LETTER))) + 1
    powers, inverses = _powers(1 << len(points).bit_length())
    sums = np.empty(len(points) + 1, dtype=np.uint64)
    sums[0] = 0
    np.cumsum(values[points] * powers[: len(points)], out=sums[1:])
    hashes = mix((sums[ends] - sums[begins]) * inverses[begins])
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Words(hashes, np.searchsorted(begins, bounds), kind[begins] == _ALONE)


def paired(words: Words) -> np.ndarray:
    """Hashes of the words, in scripts without spaces of each character with the one behind it: what stands there for a
    word, where a character alone says little.
    """
    assert words.alone is not None, "words that words_of gave"
    if not words.alone.any():
        return words.hashes
    pair = words.alone.copy()
    pair[:-1] &= pair[1:]
    pair[words.starts[1:][words.counts > 0] - 1] = False
    at = np.flatnonzero(pair)
    hashes = words.hashes.copy()
    hashes[at] = mix(words.hashes[at] * np.uint64(_STRIDE) + words.hashes[at + 1])
    return hashes


def shingles(words: Words, width: int) -> Words:
    """Hashes of every `width` words in a row of each text; a shorter text gives one, of all its words.

    A text without any word gives no shingle.
    """
    hashes, starts = words.hashes, words.starts
    counts = words.counts
    out = np.maximum(counts - width + 1, np.minimum(counts, 1))
    out_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(out)])
    padded = np.concatenate([hashes, np.zeros(width, np.uint64)])
    at = np.arange(out_starts[-1]) + np.repeat(starts[:-1] - out_starts[:-1], out)
    rolled = np.zeros(len(at), dtype=np.uint64)
    stop = np.repeat(starts[1:], out)
    for offset in range(width):
        here = at + offset
        # A short text ends inside the window: what follows belongs to the next text.
        rolled = rolled * np.uint64(_STRIDE) + np.where(here < stop, padded[here], np.uint64(0))
    return Words(mix(rolled), out_starts)


def mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit of uint64 `values` over all bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Of each code point: its kind, and the random 64-bit value of its lower-case form."""
    kinds = np.zeros(_TABLE + 1, dtype=np.uint8)
    folded = np.arange(_TABLE + 1, dtype=np.uint64)
    for point in range(_TABLE):
        char = chr(point)
        if unicodedata.category(char)[0] in "LNM":
            kinds[point] = _LETTER
            lower = char.lower()
            if len(lower) == 1:
                folded[point] = ord(lower)
    for start, stop in _SPACELESS:
        kinds[start:stop][kinds[start:stop] == _LETTER] = _ALONE
    with np.errstate(over="ignore"):
        return kinds, mix(folded * np.uint64(_BASE) + np.uint64(1))


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """base**i and its inverse modulo 2**64, for i < count."""
    powers = np.full(count, _BASE, dtype=np.uint64)
    inverses = np.full(count, _BASE_INVERSE, dtype=np.uint64)
    powers[0] = inverses[0] = 1
    return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)
