"""Evaluation items as bags of words: finds an item whose words stand in another order, or of which some are others.

A word is one of 2**16 rows by its hash, has a random direction, and weighs by its rarity; an item is the sum of its
words' vectors in 8 bits, and the rows of its rarest words, which say where to look. Words are no meaning: a paraphrase
in other words, or a translation, needs a sentence model (decontaminate.SemanticMatch). No item's text is kept.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headwater.data import fast
from headwater.data.named_sets import choose, concatenate, read_arrays
from headwater.data.words import Words, mix, paired, words_of
from headwater.files import atomic

SHIPPED = Path(__file__).parent / "fingerprints" / "meaning.npz"
FORMAT, WEIGHTS = "headwater bags of words 1", "headwater rarity of words 1"
_WHAT = "bags of words"
DIMS = 128
_ROW_BITS = 16
_KEYS, _SHARED = 8, 4  # of an item's rarest words, those looked for; and how many of them a text must have
_LONGEST = 128  # words of a piece; a longer item is several
_CHUNK, _STRIDE = 512, 384  # words of a text looked at together, and how far on the next begin
_COMMON = 2.0  # -ln of the share of texts: a more frequent word is no key
_STEPS = 16  # windows begin every sixteenth of an item
_LEVELS, _SCALE = 16.0, 2.0 * np.sqrt(DIMS)  # of a weight, and of a vector's numbers, in whole numbers


class Found(NamedTuple):
    """The best match of each text that has one: number of the text, index into `names`, cosine, first and last word."""

    texts: np.ndarray
    owners: np.ndarray
    cosines: np.ndarray
    words: np.ndarray


@dataclass(frozen=True, eq=False)
class Bags:
    """names: the sets. Of each piece of an item: keys (pieces, 8) uint16 rows of its rarest words, shares (pieces, 8)
    uint8 of 255 of its squared weight, vectors (pieces, DIMS) int8, lengths in words, owners as index into `names`.
    items, short: of each set, items seen, and those of too few different words.
    """

    names: tuple[str, ...]
    keys: np.ndarray
    shares: np.ndarray
    vectors: np.ndarray
    lengths: np.ndarray
    owners: np.ndarray
    items: tuple[int, ...]
    short: tuple[int, ...]

    @classmethod
    def build(cls, sets: Mapping[str, Iterable[str]], weights: np.ndarray | None = None) -> "Bags":
        """Of named sets of texts. weights: rarity of each row (default: what is shipped). ValueError: no set, or one
        without an item of eight different words that are not among the most frequent.
        """
        if not sets:
            raise ValueError("there are no sets to take bags of words of; give at least one name with its texts")
        weights = shipped_weights() if weights is None else weights
        keys: list[np.ndarray] = []
        shares: list[np.ndarray] = []
        vectors: list[np.ndarray] = []
        lengths, owners, items, short = list[int](), list[int](), list[int](), list[int]()
        for number, (name, texts) in enumerate(sets.items()):
            bodies = list(dict.fromkeys(texts))
            before, missed = len(keys), 0
            for rows in _rows_of(words_of(bodies)):
                pieces = [(piece, *found) for piece in _pieces(rows) if (found := _rarest(piece, weights)) is not None]
                missed += not pieces
                for piece, rarest, share in pieces:
                    keys.append(rarest)
                    shares.append(np.round(share * 255))
                    vectors.append(_whole(_vectors(piece, weights).sum(axis=0, dtype=np.float32)))
                    lengths.append(len(piece))
            if len(keys) == before:
                raise ValueError(f"set {name!r} has {len(bodies)} texts and none of {_KEYS} different words that tell")
            owners += [number] * (len(keys) - before)
            items.append(len(bodies))
            short.append(missed)
        return cls(
            tuple(sets), np.array(keys, np.uint16), np.array(shares, np.uint8), np.array(vectors, np.int8),
            np.array(lengths, np.uint16),
            np.array(owners, np.uint16), tuple(items), tuple(short),
        )  # fmt: skip

    @classmethod
    def join(cls, many: Sequence["Bags"]) -> "Bags":
        """All sets of several files; ValueError: two of them have one name."""
        names, owners = concatenate([(one.names, one.owners) for one in many])
        arrays = {
            name: np.concatenate([getattr(one, name) for one in many])
            for name in ("keys", "shares", "vectors", "lengths")
        }
        return cls(
            names=names, **arrays, owners=owners,
            items=tuple(n for one in many for n in one.items), short=tuple(n for one in many for n in one.short),
        )  # fmt: skip

    def only(self, names: Sequence[str]) -> "Bags":
        """These sets alone; ValueError names an unknown one and the closest."""
        chosen, kept, owners = choose(self.names, self.owners, names)
        return Bags(
            tuple(self.names[i] for i in chosen), self.keys[kept], self.shares[kept], self.vectors[kept],
            self.lengths[kept], owners, tuple(self.items[i] for i in chosen),
            tuple(self.short[i] for i in chosen),
        )  # fmt: skip

    def find(self, words: Words, threshold: float) -> Found:
        """The best match of each text, where its cosine is at least `threshold`: of an item with as many words in a row
        of the text as it has itself (with all of them, if they are fewer). Among equals the first.
        """
        # Without words of a share x of the squared weight the cosine is at most sqrt(1 - x).
        share = self.shares.sum(axis=1, dtype=np.int32) - np.int32(255 * (1 - threshold**2) + 1)
        needed = np.maximum(share, 0)
        if fast.core is not None:
            texts, items, cosines, places = self._compiled.find(paired(words), words.starts, needed, threshold)
            return Found(texts, self.owners[items].astype(np.int64), cosines, places)
        rows = _rows(words)
        best: dict[int, tuple[float, int, int, int]] = {}
        for begin, end, text in zip(*(bounds.tolist() for bounds in _chunks(words.starts)), strict=True):
            piece = rows[begin:end]
            for item in self._candidates(piece, needed).tolist():
                length = min(int(self.lengths[item]), len(piece))
                if not _together(piece, self.keys[item], length):
                    continue
                cosine, at = _best_window(piece, self.vectors[item], length)
                if cosine >= threshold and cosine > best.get(text, (0.0,))[0]:
                    first = begin - int(words.starts[text]) + at
                    best[text] = (cosine, int(self.owners[item]), first, first + length)
        found = sorted(best.items())
        return Found(
            np.array([n for n, _ in found], np.int64), np.array([m[1] for _, m in found], np.int64),
            np.array([m[0] for _, m in found]), np.array([m[2:] for _, m in found], np.int64).reshape(-1, 2),
        )  # fmt: skip

    def _candidates(self, rows: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The items of whose rarest words these have half, and of their weight as much as is needed."""
        there = np.zeros(1 << _ROW_BITS, bool)
        there[rows] = True
        shared = there[self.keys]
        enough = (self.shares * shared).sum(axis=1, dtype=np.int32) >= needed
        return np.flatnonzero(enough & (shared.sum(axis=1) >= _SHARED))

    @cached_property
    def _compiled(self) -> Any:
        """The same search in the compiled core."""
        assert fast.core is not None
        return fast.core.Bags(self.keys, self.shares, self.vectors, self.lengths, shipped_weights())

    def save(self, path: str | Path, weights: np.ndarray | None = None) -> None:
        """A compressed .npz of plain arrays; the same sets give the same bytes. weights: kept beside them."""
        arrays = {
            "format": np.array(FORMAT), "names": np.array(self.names), "keys": self.keys, "shares": self.shares,
            "vectors": self.vectors,
            "lengths": self.lengths, "owners": self.owners, "items": np.array(self.items),
            "short": np.array(self.short),
            "rarity": np.array(_name_of(shipped_weights() if weights is None else weights)),
        }  # fmt: skip
        if weights is not None:
            arrays["weights"] = weights
        with atomic(path) as part, part.open("wb") as f:
            np.savez_compressed(f, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Bags":
        """Read what save wrote; ValueError if the file is something else, or of another release's rarities."""
        values = read_arrays(path, _WHAT)
        if str(values.get("format")) != FORMAT:
            raise ValueError(f"{path} is no file of bags of words of this release ({FORMAT!r})")
        if str(values["rarity"]) != _name_of(shipped_weights()):
            raise ValueError(f"{path} was built with other rarities of words than are shipped; cure: build it again")
        pieces = len(values["keys"])
        wanted = {
            "keys": (np.uint16, (pieces, _KEYS)),
            "shares": (np.uint8, (pieces, _KEYS)),
            "vectors": (np.int8, (pieces, DIMS)),
            "lengths": (np.uint16, (pieces,)),
            "owners": (np.uint16, (pieces,)),
        }
        if not pieces or any((values[k].dtype, values[k].shape) != kind for k, kind in wanted.items()):
            raise ValueError(f"{path} is damaged: its arrays do not fit each other")
        if int(values["owners"].max()) >= len(values["names"]):
            raise ValueError(f"{path} is damaged: it speaks of a set that it does not name")
        if not values["lengths"].all() or int(values["lengths"].max()) > _LONGEST:
            raise ValueError(f"{path} is damaged: an item has no words, or more than {_LONGEST}")
        return cls(
            tuple(map(str, values["names"])), values["keys"], values["shares"], values["vectors"], values["lengths"],
            values["owners"],
            tuple(map(int, values["items"])), tuple(map(int, values["short"])),
        )  # fmt: skip


def learn_weights(languages: Mapping[str, Iterable[str]]) -> np.ndarray:
    """(2**16,) uint8: the rarity of each row, -ln of the share of texts that have it, in the language where it is most
    frequent, from texts of each language.
    """
    share = np.zeros(1 << _ROW_BITS)
    largest = 1
    for texts in languages.values():
        bodies = list(texts)
        largest = max(largest, len(bodies))
        for_each = [np.unique(rows) for rows in _rows_of(words_of(bodies))]
        counts = np.bincount(np.concatenate(for_each), minlength=len(share)) if for_each else np.zeros(len(share))
        share = np.maximum(share, counts / max(1, len(bodies)))
    return np.round(-np.log(np.maximum(share, 1 / largest)) * _LEVELS).astype(np.uint8)


@cache
def shipped_weights() -> np.ndarray:
    """What learn_weights gave for the shipped sets; own sets are built with the same."""
    return read_arrays(SHIPPED, _WHAT)["weights"]


def _name_of(weights: np.ndarray) -> str:
    return f"{WEIGHTS}: {zlib.crc32(weights.tobytes()):08x}"


def _rows(words: Words) -> np.ndarray:
    return (paired(words) >> np.uint64(64 - _ROW_BITS)).astype(np.int64)


def _rows_of(words: Words) -> list[np.ndarray]:
    return np.split(_rows(words), words.starts[1:-1]) if len(words.counts) else []


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // _LONGEST)))


def _rarest(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The keys of a piece, and the share of its squared weight that each has; None: it has too few words that tell."""
    different, times = np.unique(rows, return_counts=True)
    weight = weights[different].astype(np.float64)
    telling = np.flatnonzero(weight >= _COMMON * _LEVELS)
    if len(telling) < _KEYS:
        return None
    chosen = np.sort(telling[np.argsort(-weight[telling], kind="stable")][:_KEYS])
    mass = (weight * times) ** 2
    return different[chosen], mass[chosen] / mass.sum()


@cache
def _signs() -> np.ndarray:
    """(2**16, DIMS) int8: a random direction for each row, the same in every process and release."""
    numbers = np.arange(1 << (_ROW_BITS + 1), dtype=np.uint64)
    bits = np.unpackbits(mix(numbers + np.uint64(1)).astype("<u8").view(np.uint8)).reshape(1 << _ROW_BITS, DIMS)
    return bits.astype(np.int8) * 2 - 1


def _vectors(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(words, DIMS) int64: the direction of each word times its weight."""
    return _signs()[rows].astype(np.int64) * weights[rows][:, None]


def _whole(vector: np.ndarray) -> np.ndarray:
    """A vector rounded to steps of half of its standard deviation, which cost three bits when compressed."""
    return np.clip(np.round(vector * (_SCALE / max(1e-6, float(np.linalg.norm(vector))))), -127, 127).astype(np.int8)


def _chunks(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first word, end, number of the text) of each chunk of some texts."""
    counts = np.diff(starts)
    many = 1 + np.maximum(0, -(-(counts - _CHUNK) // _STRIDE))
    text = np.repeat(np.arange(len(counts)), many)
    place = np.arange(len(text)) - np.repeat(np.cumsum(many) - many, many)
    begins = starts[:-1][text] + place * _STRIDE
    return begins, np.minimum(begins + _CHUNK, starts[1:][text]), text


def _best_window(rows: np.ndarray, vector: np.ndarray, length: int) -> tuple[float, int]:
    """(cosine, first word) of the `length` words in a row that are most like a vector; all sums are whole numbers."""
    sums = np.concatenate([np.zeros((1, DIMS), np.int64), _vectors(rows, shipped_weights()).cumsum(axis=0)])
    at = _starts(len(rows), length)
    windows, whole = sums[at + length] - sums[at], vector.astype(np.int64)
    squares = (windows * windows).sum(axis=1).astype(np.float64) * float(whole @ whole)
    cosines = (windows @ whole) / np.sqrt(np.maximum(squares, 1.0))
    top = int(cosines.argmax())
    return float(cosines[top]), int(at[top])


def _together(rows: np.ndarray, keys: np.ndarray, length: int) -> bool:
    """Whether a quarter more words in a row than `length` hold as many keys as a text must have."""
    at = np.flatnonzero((rows[:, None] == keys).any(axis=1))
    return bool((at[_SHARED - 1 :] - at[: 1 - _SHARED]).min(initial=len(rows)) <= 1.25 * length)


def _starts(count: int, length: int) -> np.ndarray:
    """Where windows of `length` begin in `count` words, the last one included."""
    return np.unique(np.append(np.arange(0, count - length + 1, max(1, length // _STEPS)), count - length))
