"""Removes texts that hold evaluation items: by runs of words, and by meaning.

The runs of several sets are shipped as hashes, and their items as bags of words (fingerprints/README.md lists them);
more are given as files, which may hold the vectors of a sentence model instead. Not for splitting a long text around
the part that matches: one match removes the whole of it.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from headwater.data import embed
from headwater.data.fingerprints import Fingerprints
from headwater.data.meaning import SHIPPED as SHIPPED_BAGS
from headwater.data.meaning import Bags
from headwater.data.steps import Removed, Text, Verdict
from headwater.data.words import words_of
from headwater.files import atomic

SHIPPED = Path(__file__).parent / "fingerprints" / "evaluations.npz"
Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> (texts, dims) unit vectors
Stamped = tuple[str, int, int]  # path, bytes and time of the last change in ns of a file
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Removes a text that holds an evaluation item ("contaminated"): one run of words of a shipped set, or half of an
    item's runs (at most 50) of the user's own ones, as Fingerprints.build was told.

    sets: names of shipped sets (empty: all of them); files: more fingerprints (Fingerprints.save), all their sets.
    shipped=False: these files alone. least: how many times what is needed must be there.
    """

    sets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    shipped: bool = True
    least: int = 1

    name: ClassVar[str] = "decontaminate"
    source: ClassVar[str] = "GPT-3, arXiv 2005.14165, appendix C (13-grams)"

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least is {self.least}; it must be at least 1")
        if not self.shipped and (self.sets or not self.files):
            raise ValueError("without the shipped fingerprints, `files` must name some and `sets` must be empty")
        self.fingerprints()  # an unknown set or file is known before the first text

    def fingerprints(self) -> Fingerprints:
        return _gather(self.sets, _as_they_are(self.files), self.shipped)

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        verdicts: list[Verdict] = list(texts)
        prints = self.fingerprints()
        hits = prints.find(words_of([text.text for text in texts]))
        _, once = np.unique(np.stack([hits.texts, hits.runs]), axis=1, return_index=True)
        held = np.bincount(hits.texts[once], 1 / hits.needed[once], minlength=len(texts))
        for number in np.flatnonzero(held > self.least - 1e-6).tolist():
            counts = Counter(hits.owners[hits.texts == number].tolist())
            detail = ", ".join(f"{prints.names[owner]}: {count}" for owner, count in sorted(counts.items()))
            verdicts[number] = Removed("contaminated", f"runs of {detail}")
        return verdicts


def _as_they_are(files: Sequence[str]) -> tuple[Stamped, ...]:
    """Files with what changes when they are written again, so that nothing remembered is of an older one."""
    stats = [Path(file).stat() for file in files]
    return tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True))


@cache
def _gather(sets: tuple[str, ...], files: tuple[Stamped, ...], shipped: bool) -> Fingerprints:
    parts = [Fingerprints.load(SHIPPED)] if shipped else []
    if sets:
        parts = [parts[0].only(sets)]
    return Fingerprints.join([*parts, *(Fingerprints.load(path) for path, *_ in files)])


@dataclass(frozen=True, kw_only=True)
class DecontaminateMeaning:
    """Removes a text of which a part says what an evaluation item says ("contaminated_meaning").

    Of the shipped sets and of files that `headwater data fingerprint --meaning words` wrote, by bags of words
    (meaning.py); of files written with a sentence model, by that model: much slower, and it sees paraphrases and
    translations. sets: names of shipped sets (empty: all); shipped=False: the files alone. threshold: cosine from
    which words count as the item; of a sentence model, what stands in its file.
    """

    sets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    shipped: bool = True
    threshold: float = 0.75

    name: ClassVar[str] = "decontaminate_meaning"
    source: ClassVar[str] = "LFM2 report, arXiv 2511.23404, section 4 (semantic match); bags of words are ours"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a cosine in (0, 1] is needed")
        if not self.shipped and (self.sets or not self.files):
            raise ValueError("without the shipped sets, `files` must name some and `sets` must be empty")
        _gather_meaning(self.sets, _as_they_are(self.files), self.shipped)  # what is unknown is known at once

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        verdicts: list[Verdict] = list(texts)
        bags, models = _gather_meaning(self.sets, _as_they_are(self.files), self.shipped)
        if bags is not None:
            found = bags.find(words_of([text.text for text in texts]), self.threshold)
            for number, owner, cosine, (first, end) in zip(*(column.tolist() for column in found), strict=True):
                detail = f"{bags.names[owner]}: {cosine:.3f} at words {first + 1} to {end}"
                verdicts[number] = Removed("contaminated_meaning", detail)
        for model in models:
            left = [number for number, verdict in enumerate(verdicts) if isinstance(verdict, Text)]
            for number, verdict in zip(left, model([texts[number] for number in left]), strict=True):
                verdicts[number] = verdict
        return verdicts


@cache
def _gather_meaning(
    sets: tuple[str, ...], files: tuple[Stamped, ...], shipped: bool
) -> tuple[Bags | None, tuple["SemanticMatch", ...]]:
    parts = [Bags.load(SHIPPED_BAGS)] if shipped else []
    if sets:
        parts = [parts[0].only(sets)]
    models = [path for path, *_ in files if SemanticMatch.encoder_of(path)]
    parts += [Bags.load(path) for path, *_ in files if path not in models]
    return Bags.join(parts) if parts else None, tuple(map(SemanticMatch.of_file, models))


@dataclass(frozen=True, eq=False)
class SemanticMatch:
    """Removes a text of which a piece means what an evaluation item means ("contaminated_meaning").

    vectors: (items, dims) unit float32; owners: index into `names` for each; embed: the same sentence model; threshold:
    cosine from which two count as one (it depends on the model); piece: characters of text embedded at a time, cut at
    sentence ends.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    owners: np.ndarray
    embed: Embed
    threshold: float = 0.95
    piece: int = 400

    name: ClassVar[str] = "decontaminate_meaning"
    source: ClassVar[str] = "LFM2 report, arXiv 2511.23404, section 4 (semantic match); threshold is ours"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a cosine in (0, 1] is needed")
        if len(self.vectors) != len(self.owners) or self.vectors.ndim != 2:
            raise ValueError(f"{self.vectors.shape} vectors do not fit {len(self.owners)} owners")

    @classmethod
    def build(
        cls, sets: Mapping[str, Iterable[str]], embed: Embed, *, threshold: float = 0.95, piece: int = 400
    ) -> "SemanticMatch":
        """From named sets of texts."""
        texts = [(number, text) for number, one in enumerate(sets.values()) for text in dict.fromkeys(one)]
        if not texts:
            raise ValueError("there are no evaluation items to match; give at least one set with texts")
        vectors = np.concatenate([embed([t for _, t in texts[i : i + 256]]) for i in range(0, len(texts), 256)])
        owners = np.array([number for number, _ in texts], np.uint16)
        return cls(tuple(sets), vectors.astype(np.float32), owners, embed, threshold, piece)

    def save(self, path: str | Path, encoder: str = "") -> None:
        """Vectors and names; not the model. encoder: what embed.ENCODERS calls it, so that a plan can use the file."""
        arrays = {"names": np.array(self.names), "vectors": self.vectors.astype(np.float16), "owners": self.owners}
        if encoder:
            arrays |= {"encoder": np.array(encoder), "threshold": np.array(self.threshold)}
        with atomic(path) as part, part.open("wb") as f:
            np.savez(f, allow_pickle=False, **arrays)

    @staticmethod
    def encoder_of(path: str | Path) -> str:
        """The sentence model that a file was written with; "": none is named, it is of another kind."""
        with open(path, "rb") as f:
            if not zipfile.is_zipfile(f):
                return ""
            with np.load(f, allow_pickle=False) as arrays:
                return str(arrays["encoder"]) if {"encoder", "vectors", "threshold"} <= set(arrays.files) else ""

    @classmethod
    def of_file(cls, path: str | Path) -> "SemanticMatch":
        """A file that names its sentence model, with that model."""
        with np.load(path, allow_pickle=False) as arrays:
            encoder, threshold = str(arrays["encoder"]), float(arrays["threshold"])
        return cls.load(path, lambda texts: embed.sentence_vectors(encoder, texts), threshold=threshold)

    @classmethod
    def load(cls, path: str | Path, embed: Embed, *, threshold: float = 0.95, piece: int = 400) -> "SemanticMatch":
        """Read what save wrote. ValueError: another file, or vectors of another model (by their size)."""
        with np.load(path, allow_pickle=False) as arrays:
            if not {"names", "vectors", "owners"} <= set(arrays.files):
                raise ValueError(f"{path} holds no vectors of evaluation items")
            names, vectors, owners = arrays["names"], arrays["vectors"].astype(np.float32), arrays["owners"]
        size = embed(["size"]).shape[1]
        if size != vectors.shape[1]:
            raise ValueError(f"{path} has vectors of size {vectors.shape[1]}, the model gives {size}: another model")
        return cls(tuple(map(str, names)), vectors, owners, embed, threshold, piece)

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        verdicts: list[Verdict] = list(texts)
        pieces = [(number, piece) for number, t in enumerate(texts) for piece in cut_pieces(t.text, self.piece)]
        for start in range(0, len(pieces), 256):
            chunk = pieces[start : start + 256]
            near = self.embed([piece for _, piece in chunk]) @ self.vectors.T
            best = near.argmax(axis=1)
            for (number, piece), item, cosine in zip(chunk, best, near.max(axis=1), strict=True):
                if cosine >= self.threshold and isinstance(verdicts[number], Text):
                    name = self.names[self.owners[item]]
                    verdicts[number] = Removed("contaminated_meaning", f"{name}: {cosine:.3f} at {piece[:80]!r}")
        return verdicts


def cut_pieces(text: str, longest: int) -> list[str]:
    """Sentences in order, put together as long as they stay within `longest` characters; a longer sentence is cut."""
    pieces: list[str] = []
    held = ""
    for sentence in filter(None, _SENTENCE_END.split(text)):
        if held and len(held) + 1 + len(sentence) <= longest:
            held += " " + sentence
            continue
        if held:
            pieces.append(held)
        *whole, held = [sentence[i : i + longest] for i in range(0, len(sentence), longest)]
        pieces += whole
    return [*pieces, held] if held else pieces
