"""What a corpus must not hold, as hashes: runs of words of evaluation items, small enough to ship, never their text.

An item of a spaced script gives its runs of 13 words, a shorter one runs of 10 or 8, below that none (GPT-3's N lies
between 8 and 13 as well). Korean words hold more, and scripts without spaces give one word a character: their runs are
shorter and longer. Case, punctuation and spacing do not count (words.py). Of an item of the user's a text must hold a
share, since one run may be a phrase of a template. Not for paraphrases (SemanticMatch).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headwater.data.named_sets import choose, concatenate, read_arrays
from headwater.data.ngrams import Runs, find_runs
from headwater.data.words import Words, words_of
from headwater.files import atomic

SPACED, KOREAN, SPACELESS = (8, 10, 13), (6, 8), (16, 20, 26)
FORMAT = "headwater fingerprints 1"
_HASH_BITS = 48  # a hash takes 4 bytes in the file: sorted, its top 16 bits are a table of counts
_LOW_BITS = 32
# A run is looked for only where one of the shortest length of its group begins that some run of the file begins with;
# a bit map of 2**23 bits for each group says so.
_GROUPS = ((6, (6, 8, 10, 13)), (16, (16, 20, 26)))
_MAP_BITS = 23
LENGTHS = tuple(n for _, group in _GROUPS for n in group)
SHARE, MOST_NEEDED = 0.5, 50  # of an item's runs, and in all, that a text must hold to count as holding the item
_SPACELESS_SHARE, _KOREAN_SHARE = 0.4, 0.3


class Hits(NamedTuple):
    """Runs of words of some texts that fingerprints hold: number of the text, index into `names`, runs needed,
    and which run it is.
    """

    texts: np.ndarray
    owners: np.ndarray
    needed: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """names: the sets; hashes: uint64 below 2**48, ascending, each once; owners: index into `names` for each hash (a
    run that several sets hold belongs to the first); needed: uint8, runs of its item that a text must hold; begins:
    packed bit map of the beginnings of runs, (groups, bytes); items, short: of each set, items seen, and those too
    short for a run.
    """

    names: tuple[str, ...]
    hashes: np.ndarray
    owners: np.ndarray
    needed: np.ndarray
    begins: np.ndarray
    items: tuple[int, ...]
    short: tuple[int, ...]

    @classmethod
    def build(
        cls, sets: Mapping[str, Iterable[str]], *, common: int = 10, share: float = SHARE
    ) -> "Fingerprints":  # fmt: skip
        """Fingerprints of named sets of texts. A run in more than `common` items of a set is a template, and dropped.
        A text holds an item if it has `share` of its runs, at least one and at most MOST_NEEDED (0: one is enough).

        ValueError: no set, or one from which nothing could be taken; a share that is none.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; the share of an item's runs lies between 0 and 1")
        if not sets:
            raise ValueError("there are no sets to build fingerprints of; give at least one name with its texts")
        parts, owners, needs, items, short = [], [], [], [], []
        begins = np.zeros((len(_GROUPS), 1 << _MAP_BITS), bool)
        for number, (name, texts) in enumerate(sets.items()):
            bodies = list(dict.fromkeys(texts))
            hashes, needed, missed = _runs_of_items(bodies, common, share, begins)
            if not len(hashes):
                raise ValueError(
                    f"set {name!r} has {len(bodies)} texts and none that is long enough for a run of words"
                )
            parts.append(hashes)
            owners.append(np.full(len(hashes), number, np.uint16))
            needs.append(needed)
            items.append(len(bodies))
            short.append(missed)
        hashes, owner, need = _unique(np.concatenate(parts), np.concatenate(owners), np.concatenate(needs))
        return cls(tuple(sets), hashes, owner, need, np.packbits(begins, axis=1), tuple(items), tuple(short))

    @classmethod
    def join(cls, many: Sequence["Fingerprints"]) -> "Fingerprints":
        """All sets of several fingerprints; ValueError: two of them have one name."""
        if len(many) == 1:
            return many[0]
        names, every = concatenate([(one.names, one.owners) for one in many])
        hashes, owner, need = _unique(
            np.concatenate([one.hashes for one in many]), every,
            np.concatenate([one.needed for one in many]),
        )  # fmt: skip
        items = tuple(count for one in many for count in one.items)
        short = tuple(count for one in many for count in one.short)
        begins = np.bitwise_or.reduce([one.begins for one in many])
        return cls(names, hashes, owner, need, begins, items, short)

    def only(self, names: Sequence[str]) -> "Fingerprints":
        """These sets alone; ValueError names an unknown one and the closest."""
        chosen, kept, owners = choose(self.names, self.owners, names)
        return Fingerprints(
            tuple(self.names[i] for i in chosen), self.hashes[kept], owners,
            self.needed[kept], self.begins, tuple(self.items[i] for i in chosen), tuple(self.short[i] for i in chosen),
        )  # fmt: skip

    def without(self, hashes: np.ndarray) -> "Fingerprints":
        """Without these runs (see runs_of), such as those found everywhere in a corpus."""
        kept = ~np.isin(self.hashes, hashes)
        return replace(self, hashes=self.hashes[kept], owners=self.owners[kept], needed=self.needed[kept])

    def find(self, words: Words) -> Hits:
        """Every run of words of some texts that stands here."""
        runs = Runs(words)
        texts, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for group, (_, lengths) in enumerate(_GROUPS):
            at, hashes = find_runs(runs, lengths, self.begins[group], self._map)
            hashes >>= np.uint64(64 - _HASH_BITS)
            place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            hit = self.hashes[place] == hashes
            texts.append(runs.text_at(at[hit]))
            places.append(place[hit])
        where = np.concatenate(places)
        return Hits(np.concatenate(texts), self.owners[where], self.needed[where], where)

    @cached_property
    def _map(self) -> np.ndarray:
        """The same for the beginnings of the hashes themselves: a search among them costs fifty times a bit."""
        bits = np.zeros(1 << _MAP_BITS, bool)
        bits[self.hashes >> np.uint64(_HASH_BITS - _MAP_BITS)] = True
        return np.packbits(bits)

    def save(self, path: str | Path) -> None:
        """A compressed .npz of plain arrays; the same sets give the same bytes."""
        table = np.bincount((self.hashes >> np.uint64(_LOW_BITS)).astype(np.int64), minlength=1 << 16)
        arrays: dict[str, np.ndarray] = {
            "format": np.array(FORMAT), "names": np.array(self.names), "table": table.astype(np.uint32),
            "low": (self.hashes & np.uint64((1 << _LOW_BITS) - 1)).astype(np.uint32),
            "owners": self.owners.astype(np.uint8 if len(self.names) < 256 else np.uint16),
            "begins": self.begins, "items": np.array(self.items), "short": np.array(self.short),
        }  # fmt: skip
        if (self.needed > 1).any():
            arrays["needed"] = self.needed
        with atomic(path) as part, part.open("wb") as f:
            np.savez_compressed(f, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Fingerprints":
        """Read what save wrote; ValueError if the file is something else."""
        values = read_arrays(path, "fingerprints")
        if str(values.get("format")) != FORMAT:
            raise ValueError(f"{path} is no file of fingerprints of this release ({FORMAT!r})")
        high = np.repeat(np.arange(1 << 16, dtype=np.uint64), values["table"])
        if not len(high) == len(values["low"]) == len(values["owners"]) > 0:
            raise ValueError(f"{path} is damaged: its arrays do not fit each other")
        if int(values["owners"].max()) >= len(values["names"]):
            raise ValueError(f"{path} is damaged: it speaks of a set that it does not name")
        hashes = high << np.uint64(_LOW_BITS) | values["low"].astype(np.uint64)
        needed = values.get("needed", np.ones(len(hashes), np.uint8))
        if len(needed) != len(hashes) or needed.dtype != np.uint8 or not needed.all():
            raise ValueError(f"{path} is damaged: its arrays do not fit each other")
        return cls(
            tuple(map(str, values["names"])), hashes, values["owners"].astype(np.uint16), needed, values["begins"],
            tuple(map(int, values["items"])), tuple(map(int, values["short"])),
        )  # fmt: skip


def runs_of(texts: Sequence[str]) -> np.ndarray:
    """Hashes of all runs of all LENGTHS of some texts, in the form of Fingerprints.hashes; with repeats."""
    runs = Runs(words_of(texts))
    return np.concatenate([runs.of(n)[0] >> np.uint64(64 - _HASH_BITS) for n in LENGTHS])


def lengths_for(text: str, words: int) -> tuple[int, ...]:
    """The lengths of runs that fit the script of a text of so many words."""
    if words > _SPACELESS_SHARE * len(text):
        return SPACELESS
    hangul = sum("\uac00" <= c <= "\ud7a3" for c in text)
    return KOREAN if hangul > _KOREAN_SHARE * len(text) else SPACED


def _runs_of_items(
    bodies: Sequence[str], common: int, share: float, begins: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """(hashes of the runs of all items, ascending; how many of the item a text must hold, for each; number of items too
    short for any). Marks their `begins`.
    """
    words = words_of(bodies)
    runs = Runs(words)
    counts = words.counts.tolist()
    length = np.array(
        [max((n for n in lengths_for(b, c) if n <= c), default=0) for b, c in zip(bodies, counts, strict=True)]
    )
    found, needs = [], []
    for group, (shortest, lengths) in enumerate(_GROUPS):
        for n in lengths:
            hashes, at = runs.of(n)
            hashes >>= np.uint64(64 - _HASH_BITS)
            item = runs.text_of_word[at]
            mine = length[item] == n
            pairs = np.unique(np.stack([hashes[mine], item[mine].astype(np.uint64)]), axis=1)
            _, group_of, times = np.unique(pairs[0], return_inverse=True, return_counts=True)
            pairs = pairs[:, times[group_of] <= common]
            of_item = np.bincount(pairs[1].astype(np.int64), minlength=len(bodies))
            needed = np.clip(np.ceil(share * of_item), 1, MOST_NEEDED).astype(np.uint8)[pairs[1].astype(np.int64)]
            kept, first = np.unique(pairs[0], return_index=True)
            found.append(kept)
            needs.append(np.minimum.reduceat(needed, first) if len(first) else needed)
            start = at[mine & np.isin(hashes, kept)]
            begins[group][runs.among(shortest, start)[0] >> np.uint64(64 - _MAP_BITS)] = True
    hashes, need, _ = _unique(np.concatenate(found), np.concatenate(needs), np.concatenate(needs))
    return hashes, need, int((length == 0).sum())


def _unique(hashes: np.ndarray, owners: np.ndarray, needed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each hash once: with its first owner, and the smallest of what its items need."""
    order = np.argsort(hashes, kind="stable")
    different, first = np.unique(hashes[order], return_index=True)
    least = np.minimum.reduceat(needed[order], first) if len(first) else needed
    return different, owners[order][first], least
