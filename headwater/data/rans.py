"""Entropy coding of integer tables: range asymmetric numeral systems (Duda, arXiv 1311.2540), many lanes at once.

A table of T rows and M columns is cut into lanes of consecutive rows; one numpy step codes one column of one row of
every lane. Each column has its Frequencies. Not a file format: the caller keeps shapes, frequencies and checksums.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

SCALE_BITS = 20
_LOW = np.uint64(1 << 31)
_WORD = np.uint64(32)
_SHIFT = np.uint64(SCALE_BITS)
_MASK = np.uint64((1 << SCALE_BITS) - 1)
LANES = 64


class Frequencies:
    """How often each symbol 0..n-1 occurs, as shares of 2^20; a symbol of share 0 cannot be coded."""

    def __init__(self, shares: np.ndarray) -> None:
        total = int(shares.sum(dtype=np.int64))
        if total != 1 << SCALE_BITS or shares.min(initial=0) < 0:
            raise ValueError(f"the shares of a frequency table add up to {total}; they must be {1 << SCALE_BITS}")
        self.shares = shares.astype(np.uint64)
        self.starts = np.concatenate([[0], np.cumsum(shares, dtype=np.uint64)[:-1]]).astype(np.uint64)

    @classmethod
    def of(cls, counts: np.ndarray) -> "Frequencies":
        """Shares nearest to `counts` (n,) in which every symbol that occurs stays codable."""
        seen = counts > 0
        if not seen.any() or seen.sum() > 1 << (SCALE_BITS - 1):
            raise ValueError(f"{int(seen.sum())} different symbols; between 1 and {1 << (SCALE_BITS - 1)} can be coded")
        shares = np.where(seen, np.maximum(1, counts * (1 << SCALE_BITS) // counts.sum(dtype=np.int64)), 0)
        spare = (1 << SCALE_BITS) - int(shares.sum())
        for symbol in np.argsort(-shares, kind="stable"):  # what rounding left over goes to, or comes from, the largest
            change = spare if spare > 0 else max(spare, 1 - int(shares[symbol]))
            shares[symbol] += change
            spare -= change
            if spare == 0:
                break
        return cls(shares)

    @cached_property
    def symbols(self) -> np.ndarray:
        """Symbol of each of the 2^20 slots."""
        kind = np.uint8 if len(self.shares) <= 256 else np.uint32
        return np.repeat(np.arange(len(self.shares), dtype=kind), self.shares.astype(np.int64))


def encode(table: np.ndarray, columns: Sequence[Frequencies]) -> bytes:
    """Bytes of an integer table (T, M); columns: the frequencies of each of its M columns."""
    lanes, rows, padded = _lanes(table)
    state = np.full(lanes, _LOW)
    words: list[np.ndarray] = []
    for row in range(rows - 1, -1, -1):
        for column in range(table.shape[1] - 1, -1, -1):
            f, symbol = columns[column], padded[:, row, column]
            share = f.shares[symbol]
            if not share.all():
                raise ValueError(f"column {column} holds a symbol that its frequencies do not know")
            full = state >= (share << np.uint64(31 + 32 - SCALE_BITS))
            words.append(state[full].astype(np.uint32))
            state = np.where(full, state >> _WORD, state)
            quotient = state // share
            state = (quotient << _SHIFT) + (state - quotient * share) + f.starts[symbol]
    return state.astype("<u8").tobytes() + np.concatenate(words[::-1]).astype("<u4").tobytes()


def decode(data: bytes, rows: int, columns: Sequence[Frequencies]) -> np.ndarray:
    """The table (rows, M) that `encode` took, uint32. ValueError when the bytes are not one."""
    lanes, deep, _ = _lanes(np.empty((rows, 0), np.uint32))
    if len(data) < 8 * lanes or len(data) % 4:
        raise ValueError(f"coded data of {len(data)} bytes; {rows} rows begin with {8 * lanes} bytes of state")
    state = np.frombuffer(data, "<u8", lanes).astype(np.uint64)
    words = np.frombuffer(data, "<u4", offset=8 * lanes).astype(np.uint64)
    out = np.empty((lanes, deep, len(columns)), np.uint32)
    at = 0
    for row in range(deep):
        for column, f in enumerate(columns):
            slot = state & _MASK
            symbol = f.symbols[slot]
            out[:, row, column] = symbol
            state = f.shares[symbol] * (state >> _SHIFT) + slot - f.starts[symbol]
            hungry = np.flatnonzero(state < _LOW)
            if len(hungry):
                if at + len(hungry) > len(words):
                    raise ValueError("coded data ends too early")
                state[hungry] = (state[hungry] << _WORD) | words[at : at + len(hungry)]
                at += len(hungry)
    if at != len(words) or (state != _LOW).any():
        raise ValueError("coded data does not end where its symbols do")
    return out.reshape(lanes * deep, len(columns))[:rows]


def _lanes(table: np.ndarray) -> tuple[int, int, np.ndarray]:
    """(lanes, rows of each, the table as (lanes, rows, M), filled up with copies of its last row)."""
    if not len(table):
        raise ValueError("a table without rows cannot be coded")
    rows = -(-len(table) // LANES)
    lanes = -(-len(table) // rows)
    filled = np.concatenate([table, np.repeat(table[-1:], lanes * rows - len(table), axis=0)])
    return lanes, rows, filled.reshape(lanes, rows, table.shape[1])
