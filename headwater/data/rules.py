"""Rules that remove one text at a time: length, damage, shares of symbols, refusals, overused phrases, boilerplate.

Every rule is a frozen dataclass whose fields are its thresholds and whose reasons are fixed words. Rules for prose
leave program text (`is_code`) alone. Repetition stands in repetition.py. Not for rewriting (normalise) or opinions
(judge).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np

from headwater.data import fast
from headwater.data.phrases import BOILERPLATE, OVERUSED, REFUSALS, Hit, find_phrases
from headwater.data.steps import Removed, Text, Verdict, is_code

_LETTERS = bytes([*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1), *range(0x80, 0x100)])
_DIGITS = b"0123456789"
_BLANK = b" \t\n"
_MOJIBAKE = re.compile(
    "[\xc3\xc2][\x80-\xbf]|\xe2\u20ac[\u2122\u0153\u009d\u201c\u201d\xa6\x99]|\xf0\u0178|\xef\xbb\xbf|\xef\xbf\xbd"
)
_LONGEST_TAG = 300
_TAG = re.compile(rf"</?[A-Za-z][^<>\n]{{0,{_LONGEST_TAG - 4}}}>")
_BYTES_A_WORD = 8  # for scripts without spaces; where there are spaces, words are shorter
_STOP_WORDS = (" the ", " of ", " and ", " to ", " that ", " with ", " be ", " have ")
_LINE_LEAD = " \t\"'*_>-–#“«("


def _all(table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(phrase for phrases in table.values() for phrase in phrases)


class _Rule:
    """The loop that all rules share."""

    prose_only: ClassVar[bool] = True

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        return [text if self.prose_only and is_code(text) else self.look(text) or text for text in texts]

    def look(self, text: Text) -> Removed | None:
        """Why `text` leaves; None: it stays."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Length(_Rule):
    """least, most: size in UTF-8 bytes, which is fairer between scripts than words or characters."""

    least: int = 100
    most: int = 1_000_000

    name: ClassVar[str] = "length"
    source: ClassVar[str] = "arXiv 2112.11446, appendix A.1.1 (50 to 100,000 words there)"
    prose_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"least is {self.least} and most {self.most}; needed: 0 <= least <= most")

    def look(self, text: Text) -> Removed | None:
        size = len(text.text) if text.text.isascii() else len(text.text.encode("utf-8", "surrogatepass"))
        if size < self.least:
            return Removed("too_short", f"{size} bytes")
        return Removed("too_long", f"{size} bytes") if size > self.most else None


@dataclass(frozen=True, kw_only=True)
class Malformed(_Rule):
    """Damaged text. Shares are of characters.

    replacement: U+FFFD; mojibake: pairs that UTF-8 read in a wrong encoding leaves; run: characters without any space
    (encoded data, minified files), except in scripts that write none; tags: characters inside HTML tags; fences: an odd
    number of ``` marks means that the text was cut inside a block.
    """

    replacement: float = 0.001
    mojibake: float = 0.005
    run: int = 1000
    tags: float = 0.3
    fences: bool = True

    name: ClassVar[str] = "malformed"
    source: ClassVar[str] = "LFM2 report, arXiv 2511.23404, section 4 (malformed samples); thresholds are ours"
    prose_only: ClassVar[bool] = False

    def look(self, text: Text) -> Removed | None:
        t = text.text
        ascii_only = t.isascii()
        if not ascii_only:
            count = t.count("\ufffd")
            if count > self.replacement * len(t):
                return Removed("replacement_characters", f"{count} of {len(t)} characters")
            if ("\xc3" in t or "\xc2" in t or "\xe2\u20ac" in t) and not is_code(text):
                count = len(_MOJIBAKE.findall(t))
                if 2 * count > self.mojibake * len(t):
                    return Removed("mojibake", f"{count} broken pairs in {len(t)} characters")
        if len(t) > self.run and _may_have_run(t, self.run):
            longest = max(t.split(), key=len, default="")
            spaceless = 0 if longest.isascii() else sum(c > "\u0e00" for c in longest)  # Thai, Han, kana and others
            if len(longest) > self.run and 2 * spaceless < len(longest):
                return Removed("unbroken_run", f"{len(longest)} characters without a space")
        if is_code(text):
            return None
        if self.fences and t.count("```") % 2:
            return Removed("unclosed_fence", f"{t.count('```')} marks of ```")
        if t.count("<") * _LONGEST_TAG > self.tags * len(t):
            inside = sum(map(len, _TAG.findall(t)))
            if inside > self.tags * len(t):
                return Removed("markup", f"{inside} of {len(t)} characters are tags")
        return None


@dataclass(frozen=True, kw_only=True)
class Shares(_Rule):
    """Gopher's quality rules that count characters, lines and words.

    letters: least share of letters among characters that are no space (Gopher: 80 % of words hold a letter); digits:
    most; hashes, ellipses_per_word: most per word; bullets, ellipses: most share of lines that begin with a bullet, end
    in an ellipsis; word: bounds of the mean length of words (not for scripts without spaces); stop_words: least
    different English ones in English texts of `from_words` words and more.
    """

    letters: float = 0.6
    digits: float = 0.3
    hashes: float = 0.1
    ellipses_per_word: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    word: tuple[float, float] = (3.0, 10.0)
    stop_words: int = 2
    from_words: int = 50

    name: ClassVar[str] = "shares"
    source: ClassVar[str] = "arXiv 2112.11446, appendix A.1.1 (quality filtering)"

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        """`look` at those texts that some rule may object to: most are let through by a few counts of all at once."""
        prose = [number for number, text in enumerate(texts) if not is_code(text)]
        verdicts: list[Verdict] = list(texts)
        for number, suspect in zip(prose, self._suspects([texts[number].text for number in prose]), strict=True):
            text = texts[number]
            if suspect or text.facts.get("language") == "en":
                verdicts[number] = (self.look(text) if suspect else self._few_stop_words(text)) or text
        return verdicts

    def _suspects(self, texts: list[str]) -> list[bool]:
        if fast.core is None:
            return [True] * len(texts)
        size, spaces, ends, tabs, letters, digits, hashes, dots = fast.core.counts(texts).T
        solid, gaps = size - spaces - ends - tabs, spaces + ends + 1
        words = np.maximum(gaps, size // _BYTES_A_WORD)
        mean = solid / gaps
        suspect = (letters < self.letters * solid) | (digits > self.digits * solid)
        suspect |= (hashes > self.hashes * words) | (dots > self.ellipses_per_word * words)
        suspect |= (ends >= 3) | ((gaps >= self.from_words) & ((mean < self.word[0]) | (mean > self.word[1])))
        return suspect.tolist()

    def look(self, text: Text) -> Removed | None:
        t = text.text
        raw = t.encode("utf-8", "surrogatepass")
        words = max(t.count(" ") + t.count("\n") + 1, len(raw) // _BYTES_A_WORD)
        solid = len(raw.translate(None, _BLANK))
        rest = raw.translate(None, _LETTERS + _BLANK)
        if solid - len(rest) < self.letters * solid:
            return Removed("few_letters", f"{solid - len(rest)} of {solid} bytes")
        digits = len(rest) - len(rest.translate(None, _DIGITS))
        if digits > self.digits * solid:
            return Removed("many_digits", f"{digits} of {solid} bytes")
        hashes, dots = t.count("#"), t.count("...") + t.count("…")
        if hashes > self.hashes * words:
            return Removed("many_hashes", f"{hashes} in {words} words")
        if dots > self.ellipses_per_word * words:
            return Removed("many_ellipses", f"{dots} in {words} words")
        return self._lines(t, dots) or self._words(text, solid)

    def _lines(self, t: str, dots: int) -> Removed | None:
        lines = [line for line in t.split("\n") if line] if "\n" in t else [t]
        if len(lines) < 4:
            return None
        bullets = sum(line.lstrip()[:1] in "•‣▪●○■*-–·" for line in lines)
        if bullets > self.bullets * len(lines):
            return Removed("bullet_lines", f"{bullets} of {len(lines)} lines")
        if dots > self.ellipses * len(lines):
            ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
            if ends > self.ellipses * len(lines):
                return Removed("ellipsis_lines", f"{ends} of {len(lines)} lines")
        return None

    def _words(self, text: Text, solid: int) -> Removed | None:
        words = text.text.count(" ") + text.text.count("\n") + 1
        if words < self.from_words:
            return None
        mean = solid / words
        if text.text.isascii() and not self.word[0] <= mean <= self.word[1]:
            return Removed("word_length", f"{mean:.1f} characters a word")
        return self._few_stop_words(text) if text.facts.get("language") == "en" else None

    def _few_stop_words(self, text: Text) -> Removed | None:
        """Of an English text."""
        words = text.text.count(" ") + text.text.count("\n") + 1
        if words < self.from_words:
            return None
        found = 0
        for word in _STOP_WORDS:
            found += word in text.text
            if found >= self.stop_words:
                return None
        return Removed("few_stop_words", f"{found} of {len(_STOP_WORDS)} in {words} words")


class PhraseRule:
    """What a text's phrases mean for it; PhraseRules finds them."""

    name: ClassVar[str]
    source: ClassVar[str]
    phrases: tuple[str, ...]

    def judge(self, text: Text, lower: str, hits: list[Hit]) -> Removed | None:
        """Why `text` (`lower` in lower case), with these hits of `phrases`, leaves; None: it stays."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Refusals(PhraseRule):
    """A model's refusal in the opening of a text or at the start of one of its lines (an answer after a question).

    opening: characters at the front in which a refusal counts wherever it stands.
    """

    opening: int = 400
    phrases: tuple[str, ...] = field(default=_all(REFUSALS), repr=False)

    name: ClassVar[str] = "refusals"
    source: ClassVar[str] = "LFM2 report, arXiv 2511.23404, section 4 (refusal filtering); the phrases are ours"

    def judge(self, text: Text, lower: str, hits: list[Hit]) -> Removed | None:
        for at, phrase in hits:
            before = lower[max(0, at - 12) : at].rstrip(_LINE_LEAD)
            if at < self.opening or not before or before[-1] in "\n:：":
                return Removed("refusal", phrase)
        return None


@dataclass(frozen=True, kw_only=True)
class OverusedPhrases(PhraseRule):
    """Too many of the phrases that generated text wears out: at least `least`, and more than `per_thousand` in 1,000
    words (a character of Chinese or Japanese counts as half a word).
    """

    least: int = 3
    per_thousand: float = 8.0
    phrases: tuple[str, ...] = field(default=_all(OVERUSED), repr=False)

    name: ClassVar[str] = "overused_phrases"
    source: ClassVar[str] = (
        "LFM2 report, arXiv 2511.23404, section 4 (stylistic filtering); phrases, thresholds are ours"
    )

    def judge(self, text: Text, lower: str, hits: list[Hit]) -> Removed | None:
        if len(hits) < self.least:
            return None
        spaceless = text.facts.get("language") in ("zh", "ja")
        words = len(lower) / 2 if spaceless else lower.count(" ") + lower.count("\n") + 1
        if len(hits) * 1000 <= self.per_thousand * words:
            return None
        return Removed("overused_phrases", f"{len(hits)} in {words:.0f} words: {', '.join({p: 0 for _, p in hits})}")


@dataclass(frozen=True, kw_only=True)
class Boilerplate(PhraseRule):
    """Lines of a page that are no text (cookie notices, menus, placeholder Latin): more than `share` of the characters.

    line: a longer line is text that mentions such a thing.
    """

    share: float = 0.3
    line: int = 200
    phrases: tuple[str, ...] = field(default=BOILERPLATE, repr=False)

    name: ClassVar[str] = "boilerplate"
    source: ClassVar[str] = "arXiv 1910.10683, section 2.2 (C4); phrases are ours"

    def judge(self, text: Text, lower: str, hits: list[Hit]) -> Removed | None:
        found = {p: 0 for _, p in hits}
        size = sum(len(line) for line in lower.split("\n") if len(line) <= self.line and any(p in line for p in found))
        if size <= self.share * len(lower):
            return None
        return Removed("boilerplate", f"{size} of {len(lower)} characters: {', '.join([*found][:5])}")


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """Looks for the phrases of all `rules` in one pass over a batch; the first rule that objects removes a text."""

    rules: tuple[PhraseRule, ...] = (Refusals(), OverusedPhrases(), Boilerplate())

    name: ClassVar[str] = "phrases"

    @property
    def source(self) -> str:
        return "; ".join(f"{rule.name}: {rule.source}" for rule in self.rules)

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        verdicts: list[Verdict] = list(texts)
        lower = ["" if is_code(text) else text.text.lower() for text in texts]
        every = tuple(dict.fromkeys(phrase for rule in self.rules for phrase in rule.phrases))
        for number, hits in find_phrases(lower, every).items():
            for rule in self.rules:
                mine = [hit for hit in hits if hit.phrase in _as_set(rule.phrases)]
                if mine and (removed := rule.judge(texts[number], lower[number], mine)):
                    verdicts[number] = removed
                    break
        return verdicts


@cache
def _as_set(phrases: tuple[str, ...]) -> frozenset[str]:
    return frozenset(phrases)


def _may_have_run(text: str, length: int) -> bool:
    """Whether `length` characters in a row may have no space: they would hold an aligned window of half as many."""
    half = max(1, length // 2)
    windows = (text[at : at + half] for at in range(0, len(text), half))
    return any(" " not in window and "\n" not in window for window in windows)
