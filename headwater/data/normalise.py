"""One form for equal text: Unicode NFC, line ends, spaces; no control characters, NULs or half surrogates.

Program text (`is_code`) keeps every character that a compiler reads: there, only line ends, a byte order mark, NULs and
half surrogates are touched. Not for judging: what stays broken (U+FFFD) is for rules.Malformed to count.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from headwater import optional
from headwater.data import fast
from headwater.data.steps import Removed, Text, Verdict, is_code

# Controls, soft hyphen, marks that switch the direction of text unseen (those of Arabic and Hebrew typing, U+200E and
# U+200F, and the joiners U+200C and U+200D stay), byte order marks, code points that are no text.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufdd0-\ufdef\ufffe\uffff]"
)
_LINE_ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")  # U+3000 stays: Japanese indents with it
_HALVES = re.compile("[\ud800-\udfff]")
_KINDS = (_LINE_ENDS, _UNSEEN, _SPACES, _HALVES)
_TOUCHED = re.compile("[" + "".join(kind.pattern[1:-1] for kind in _KINDS) + "]")  # one pass for all four
_LAST = 0x32000
# From where blanks begin alone: a long row of them before no line end would be tried from each of them.
_TRAILING = re.compile(r"(?<![ \t])[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
# UTF-8 read as Latin-1 or Windows-1252 shows one of these; only then is the repair library asked.
_MOJIBAKE = re.compile("[\xc2-\xf4][\x80-\xbf\u0152-\u0178\u0192-\u02dc\u2013-\u2122]|\u00e2\u20ac")


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """Rewrites every text; a text of which nothing is left is removed ("empty").

    mojibake: also repair UTF-8 that was read in a wrong encoding, with the `ftfy` library (extra "data").
    """

    mojibake: bool = False

    name: ClassVar[str] = "normalise"
    source: ClassVar[str] = "Unicode Standard Annex #15 (NFC); arXiv 2112.11446 appendix A.1.1"

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        repair = _repairer() if self.mojibake else None
        unusual = find_unusual([text.text for text in texts])
        return [self._one(text, repair, u) for text, u in zip(texts, unusual, strict=True)]

    def _one(self, text: Text, repair: Callable[[str], str] | None, unusual: bool) -> Verdict:
        old = new = text.text
        if is_code(text):
            new = normalise_code(old)
        else:
            if repair is not None and not old.isascii() and _MOJIBAKE.search(old):
                new, unusual = repair(old), True
            new = normalise_blanks(normalise_characters(new) if unusual else new)
        if not new or new.isspace():
            return Removed("empty", f"{len(old)} characters, none of them text")
        return text if new is old or new == old else Text(text.id, new, text.source, text.facts)


def normalise_characters(text: str) -> str:
    """NFC; LF line ends; no control or unseen characters; plain spaces; U+FFFD in place of half surrogates."""
    return unicodedata.normalize("NFC", _TOUCHED.sub(_instead, text.replace("\r\n", "\n")))


@cache
def _replacement(touched: str) -> str:
    for pattern, instead in ((_LINE_ENDS, "\n"), (_SPACES, " "), (_HALVES, "\ufffd")):
        if pattern.fullmatch(touched):
            return instead
    return ""


def _instead(match: re.Match[str]) -> str:
    return _replacement(match[0])


def find_unusual(texts: Sequence[str]) -> list[bool]:
    """Which texts normalise_characters could change: one pass over all of them, since most texts are clean."""
    if fast.core is not None:
        return fast.core.marked(list(texts), _unusual_points().view(np.uint8)).tolist()
    joined = "\n".join([*texts, ""])
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.flatnonzero(_unusual_points()[np.minimum(points, _LAST)])
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    found = np.zeros(len(texts), bool)
    found[np.searchsorted(ends, places, side="right")] = True
    return found.tolist()


def normalise_blanks(text: str) -> str:
    """No spaces at line ends, at most one blank line between paragraphs, nothing blank around. Spaces inside a line
    and indentation stay.
    """
    if "\n" in text:
        if " \n" in text or "\t\n" in text:
            text = _TRAILING.sub("", text)
        if "\n\n\n" in text:
            text = _BLANK_LINES.sub("\n\n", text)
    return text.rstrip().lstrip("\n")


def normalise_code(text: str) -> str:
    """LF line ends, no byte order mark at the start, no NULs, no half surrogates; nothing else."""
    text = text.removeprefix("\ufeff").replace("\x00", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def _repairer() -> Callable[[str], str]:
    fix: Callable[[str], str] = optional.load("ftfy", extra="data").fix_encoding
    return fix


@cache
def _unusual_points() -> np.ndarray:
    """For each code point up to _LAST (which stands for all above) whether normalise_characters may change it."""
    every = "".join(map(chr, range(_LAST)))
    # A mark may join the letter before it, and the jamo of a syllable each other.
    unusual = [
        not unicodedata.is_normalized("NFC", c) or unicodedata.category(c)[0] == "M" or "\u1100" <= c < "\u1200"
        for c in every
    ]
    for pattern in _KINDS:
        for found in pattern.finditer(every):
            unusual[found.start()] = True
    return np.array([*unusual, True])
