"""The mixture: how much English, other languages and code, by repeating what is scarce and leaving out what abounds.

Each text is kept a whole number of times that its id and the rates of its group alone decide, so the result is the same
for any workers and order. Sizes are UTF-8 bytes, since a mixture comes before any tokenizer. Not for the order of
training (difficulty.py).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headwater.data.corpus import Batch, Columns, Decision, Learnt
from headwater.data.steps import Text, is_code
from headwater.files import closest

ENGLISH, MULTILINGUAL, CODE = "english", "multilingual", "code"
PRESETS: dict[str, dict[str, float]] = {
    "75/20/5": {ENGLISH: 75, MULTILINGUAL: 20, CODE: 5},
    "60/25/15": {ENGLISH: 60, MULTILINGUAL: 25, CODE: 15},
}
UNKNOWN = "und"
_LETTERS = 8  # of a group's name, as bytes in a uint64


@dataclass(frozen=True)
class Rate:
    """Of one group (a language, or "code"): bytes there, bytes wanted, and how often a text of it is kept."""

    there: int
    wanted: float
    rate: float


def plan_mix(
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    *,
    temperature: float,
    most_repeats: float,
    total: int = 0,
) -> dict[str, Rate]:
    """Rates for groups ("en", other languages, "code") of so many bytes.

    Within the multilingual share a language weighs size ** temperature (XLM, arXiv 1911.02116, section 3.1); one that
    would be seen more than `most_repeats` times is held there and the others take its part. total: bytes of the
    mixture; 0: as many as there are of what has a share, or fewer where the shares cannot be kept otherwise.
    ValueError: a share above 0 of which there is no text, a total that cannot be reached.
    """
    groups = {name: _members(name, sizes) for name in (ENGLISH, MULTILINGUAL, CODE)}
    for name, share in shares.items():
        if share > 0 and not sum(groups[name].values()):
            raise ValueError(
                f"the mixture wants {share:g} parts of {name} and there is no such text, but of "
                f"{', '.join(sorted(sizes)) or 'nothing'}; cure: the step language before it (without, prose is "
                f"{UNKNOWN}), program text as a source of code, or other shares"
            )
    whole = sum(shares.values())
    there = {name: sum(members.values()) for name, members in groups.items()}
    possible = min(there[name] * most_repeats * whole / share for name, share in shares.items() if share > 0)
    if total > possible:
        raise ValueError(
            f"total is {total}; with at most {most_repeats:g} repeats these texts give {possible:.0f} bytes in these "
            "shares; cure: a smaller total, more repeats, or more text of the scarce kind"
        )
    all_wanted = sum(size for name, size in there.items() if shares.get(name, 0.0) > 0)
    total_bytes = float(total) if total else min(float(all_wanted), possible)
    rates: dict[str, Rate] = {}
    for name, members in groups.items():
        wanted = _spread(members, total_bytes * shares.get(name, 0.0) / whole, temperature, most_repeats)
        rates |= {g: Rate(size, wanted[g], wanted[g] / size if size else 0.0) for g, size in members.items()}
    return rates


def copies_of(rate: float, ids: Sequence[str], *, salt: str = "") -> list[int]:
    """How often each text is kept: the whole part of `rate`, and once more for the share of ids that the rest says. A
    higher rate keeps the same texts and more.
    """
    return [int(rate) + (draw(id, salt) < rate % 1.0) for id in ids]


def draw(id: str, salt: str) -> float:
    """A number in [0, 1) that the id alone decides."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest) / 2**64


def group_of(text: Text) -> str:
    """ "code", the language in the facts, or "und"."""
    return CODE if is_code(text) else str(text.facts.get("language", UNKNOWN))[:_LETTERS]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Keeps each text so often that the kept bytes have the wanted shares ("mixed_out": not once).

    preset: a name in PRESETS, or "" with `shares` as (name, weight) rows for english, multilingual and code. Languages
    come from the language step. temperature, most_repeats, total: see plan_mix (four repeats are nearly as good as
    new text, arXiv 2305.16264). salt: another one chooses other texts.
    """

    preset: str = "75/20/5"
    shares: tuple[tuple[str, float], ...] = ()
    temperature: float = 0.3
    most_repeats: float = 4.0
    total: int = 0
    salt: str = ""
    name: ClassVar[str] = "mix"
    source: ClassVar[str] = "LFM2 report, arXiv 2511.23404, section 3 (shares); arXiv 1911.02116 (languages)"
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if bool(self.preset) == bool(self.shares):
            if not self.preset:
                raise ValueError(f"a mixture needs a preset ({', '.join(PRESETS)}) or shares")
            raise ValueError("a mixture has a preset or shares, not both; cure: preset=''")
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"no preset {self.preset!r}{closest(self.preset, list(PRESETS))}; {', '.join(PRESETS)}")
        known = [ENGLISH, MULTILINGUAL, CODE]
        for row in self.shares:
            if len(row) != 2 or row[0] not in known or row[1] < 0:
                raise ValueError(f"shares has the row {row!r}; a row is one of {', '.join(known)} and its weight")
        if sum(self.weights.values()) <= 0:
            raise ValueError("the shares of the mixture are all 0")
        if not 0 <= self.temperature <= 1 or self.most_repeats <= 0 or self.total < 0:
            raise ValueError(
                f"temperature is {self.temperature}, most_repeats {self.most_repeats}, total {self.total}; needed: a "
                "temperature from 0 to 1, repeats above 0, a total of 0 or more"
            )

    @property
    def weights(self) -> dict[str, float]:
        return PRESETS[self.preset] if self.preset else {name: float(weight) for name, weight in self.shares}

    def prepare(self, sample: Sequence[Text], expected: int) -> dict[str, np.ndarray]:
        return {}

    def columns(self, batch: Batch, learnt: Learnt) -> dict[str, np.ndarray]:
        groups = [group_of(text).encode("ascii", "replace")[:_LETTERS].ljust(_LETTERS, b"\0") for text in batch.texts]
        return {
            "group": np.frombuffer(b"".join(groups), dtype=">u8").astype(np.uint64),
            "size": np.array([len(t.text.encode("utf-8", "surrogatepass")) for t in batch.texts], dtype=np.int64),
            "draw": np.array([draw(t.id, self.salt) for t in batch.texts], dtype=np.float64),
        }

    def decide(self, columns: Columns, alive: np.ndarray, learnt: Learnt) -> Decision:
        group, size = columns.load("group"), columns.load("size")
        codes, index = np.unique(group, return_inverse=True)
        names = [int(code).to_bytes(_LETTERS).rstrip(b"\0").decode() for code in codes]
        there = np.bincount(index, weights=size * alive, minlength=len(codes))
        sizes = {name: int(n) for name, n in zip(names, there, strict=True) if n}
        rates = plan_mix(
            sizes, self.weights, temperature=self.temperature, most_repeats=self.most_repeats, total=self.total
        )
        rate = np.array([rates[name].rate if name in rates else 0.0 for name in names])[index]
        copies = np.where(alive, rate.astype(np.int64) + (columns.load("draw") < rate % 1.0), 0)
        kept = np.bincount(index, weights=size * copies, minlength=len(codes))
        facts: dict[str, Any] = {
            name: {"bytes": sizes[name], "share": round(float(n) / max(1.0, kept.sum()), 4), "kept_bytes": int(n),
                   "rate": round(rates[name].rate, 4)}
            for name, n in zip(names, kept, strict=True) if name in sizes
        }  # fmt: skip
        return Decision({"mixed_out": np.flatnonzero(alive & (copies == 0))}, copies=copies, facts={"groups": facts})


def _members(name: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The groups that make up a part of the mixture."""
    if name == ENGLISH:
        return {g: n for g, n in sizes.items() if g == "en"}
    return {g: n for g, n in sizes.items() if (g == CODE) == (name == CODE) and g != "en"}


def _spread(sizes: Mapping[str, int], total: float, temperature: float, most: float) -> dict[str, float]:
    """Bytes wanted of each group: in proportion to size ** temperature, none above `most` times its size."""
    wanted: dict[str, float] = {}
    free = {g: n for g, n in sizes.items() if n}
    while free:
        weight = {g: n**temperature for g, n in free.items()}
        part = (total - sum(wanted.values())) / sum(weight.values())
        full = {g: n * most for g, n in free.items() if weight[g] * part > n * most}
        if not full:
            return wanted | {g: weight[g] * part for g in free} | {g: 0.0 for g, n in sizes.items() if not n}
        wanted |= full
        free = {g: n for g, n in free.items() if g not in full}
    return wanted
