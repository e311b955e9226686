"""Fill-in-the-middle: part of the code documents are cut in three, and the middle goes to the end to be learnt.

Which documents, where they are cut and in which order they go is decided by the id, so any number of workers makes the
same texts. The marks are ordinary text here; a tokenizer that has them as control tokens must be told to read them
(`Tokenizer.encode(..., special=True)`). Not for prose.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headwater.data.steps import Text, Verdict, is_code
from headwater.tokenizer import Tokenizer

PSM, SPM = "PSM", "SPM"


@dataclass(frozen=True)
class Marks:
    """The three control tokens. The defaults are LFM2's."""

    prefix: str = "<|fim_pre|>"
    middle: str = "<|fim_mid|>"
    suffix: str = "<|fim_suf|>"


KNOWN = (
    Marks(),
    Marks("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    Marks("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    Marks("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
)


def marks_of(tokenizer: Tokenizer) -> Marks:
    """The marks that a tokenizer has as control tokens; ValueError: none of the KNOWN ones."""
    for marks in KNOWN:
        ids = [tokenizer.encode(mark, special=True) for mark in (marks.prefix, marks.middle, marks.suffix)]
        if all(len(one) == 1 for one in ids):
            return marks
    raise ValueError(
        "this tokenizer has no fill-in-the-middle tokens: " + ", ".join(marks.prefix for marks in KNOWN) + " are known"
    )


@dataclass(frozen=True, kw_only=True)
class Fim:
    """Rewrites `share` of the code documents: `spm` of those as suffix-prefix-middle, the rest as prefix-suffix-middle.

    shortest: characters below which a document stays whole. A document that holds a mark already stays as it is. salt:
    another one cuts other documents. The fact "fim" says PSM or SPM.
    """

    share: float = 0.5
    spm: float = 0.5
    shortest: int = 30
    prefix: str = Marks().prefix
    middle: str = Marks().middle
    suffix: str = Marks().suffix
    salt: str = ""
    name: ClassVar[str] = "fim"
    source: ClassVar[str] = "arXiv 2207.14255, sections 3 and 4.3 (character level, SPM variant 2); share: LFM2 report"

    def __post_init__(self) -> None:
        for field in ("share", "spm"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} is {getattr(self, field)}; it lies between 0 and 1")
        if len({self.prefix, self.middle, self.suffix, ""}) < 4:
            raise ValueError(f"the marks are {self.prefix!r}, {self.middle!r}, {self.suffix!r}; all must differ")

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        return [self._one(text) if is_code(text) else text for text in texts]

    def _one(self, text: Text) -> Text:
        code = text.text
        chosen, order, *cuts = _draws(text.id, self.salt)
        marked = any(mark in code for mark in (self.prefix, self.middle, self.suffix))
        if chosen >= self.share or len(code) < self.shortest or marked:
            return text
        start, end = sorted(int(cut * (len(code) + 1)) for cut in cuts)
        form = SPM if order < self.spm else PSM
        new = transform(code, start, end, form, Marks(self.prefix, self.middle, self.suffix))
        return Text(text.id, new, text.source, text.facts | {"fim": form})


def transform(code: str, start: int, end: int, form: str, marks: Marks) -> str:
    """PSM: pre + prefix, suf + suffix, mid + middle. SPM (the paper's variant 2, nearer to PSM): pre, suf + suffix,
    mid + prefix + middle.
    """
    before, middle, after = code[:start], code[start:end], code[end:]
    if form == PSM:
        return f"{marks.prefix}{before}{marks.suffix}{after}{marks.middle}{middle}"
    return f"{marks.prefix}{marks.suffix}{after}{marks.middle}{before}{middle}"


def restore(text: str, form: str, marks: Marks) -> str:
    """The inverse of transform."""
    head, _, tail = text.removeprefix(marks.prefix).partition(marks.middle)
    before, _, after = head.partition(marks.suffix)
    return before + tail + after


def _draws(id: str, salt: str) -> list[float]:
    """Four numbers in [0, 1)."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=32, key=salt.encode()[:64]).digest()
    return [int.from_bytes(digest[i : i + 8]) / 2**64 for i in range(0, 32, 8)]
