"""How hard a prompt is: the share of right answers that several models sample; predicted for the rest; easy first.

The predictor is ridge regression (scikit-learn) on features of the prompt, trained on the logit of the measured rates
and kept as plain JSON numbers. Not for filtering: it orders.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from headwater import optional
from headwater.data.words import words_of
from headwater.files import read_json, write_json

Answer = Callable[[str, int], str]  # (prompt, number of the sample) -> answer
Right = Callable[[str, str], bool]  # (prompt, answer) -> whether it is right
T = TypeVar("T")
FORMAT = "headwater difficulty 1"
_BUCKETS = 256
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?。！？]+")
_WORD = re.compile(r"\w+")
_OPERATIONS = re.compile(r"[-+*/=<>^%×÷√∑∫]")
_MEASURES = (
    "characters", "words", "sentences", "word_length", "numbers", "largest_number", "digits", "operations", "questions",
    "lines", "capitals", "beyond_ascii", "different_words", "code", "negations", "longest_sentence",
)  # fmt: skip
_NEGATION = re.compile(r"\b(?:not|no|never|without|except|unless|neither|nor)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Measured:
    """rate: share of right answers; by_model: name -> (right, samples)."""

    prompt: str
    rate: float
    by_model: Mapping[str, tuple[int, int]]


def measure(
    prompts: Iterable[str], models: Mapping[str, Answer], right: Right, *, samples: int = 4
) -> Iterator[Measured]:
    """The empirical success rate of each prompt over an ensemble; every model weighs the same.

    Source: LFM2 report, arXiv 2511.23404, section 4.2 (an ensemble of models, difficulty = success rate).
    """
    if not models or samples < 1:
        raise ValueError(f"{len(models)} models with {samples} samples each; at least one of both is needed")
    for prompt in prompts:
        won = {
            name: (sum(right(prompt, answer(prompt, number)) for number in range(samples)), samples)
            for name, answer in models.items()
        }
        yield Measured(prompt, sum(good / count for good, count in won.values()) / len(won), won)


def holds(answer: str, reference: str) -> bool:
    """Whether a free answer gives the right one: the same last number, where the reference ends with one (after "####"
    in GSM8K), else the reference's words in a row.
    """
    wanted = reference.rpartition("####")[2].strip()
    numbers = _NUMBER.findall(answer)
    if _NUMBER.fullmatch(wanted.strip("$€.%- ")):
        return bool(numbers) and _value(numbers[-1]) == _value(wanted.strip("$€.%- "))
    words, inside = _WORD.findall(wanted.casefold()), _WORD.findall(answer.casefold())
    return bool(words) and any(inside[i : i + len(words)] == words for i in range(len(inside) - len(words) + 1))


def _value(number: str) -> float:
    """1,234.50 as 1234.5."""
    return float(number.replace(",", "")) if number.count(".") <= 1 else math.nan


def features(prompts: Sequence[str]) -> np.ndarray:
    """(prompts, features) float64: sizes and shares of the text, and hashed words (signed, 256 buckets)."""
    measures = np.array([_measures(prompt) for prompt in prompts], dtype=np.float64).reshape(
        len(prompts), len(_MEASURES)
    )
    words = words_of(prompts)
    hashed = np.zeros((len(prompts), _BUCKETS))
    row = np.repeat(np.arange(len(prompts)), words.counts)
    sign = np.where(words.hashes >> np.uint64(63), 1.0, -1.0)
    np.add.at(hashed, (row, (words.hashes & np.uint64(_BUCKETS - 1)).astype(np.int64)), sign)
    return np.concatenate([measures, hashed / np.sqrt(np.maximum(words.counts, 1))[:, None]], axis=1)


def _measures(text: str) -> list[float]:
    words = text.split() or [""]
    numbers = _NUMBER.findall(text)
    largest = max((float("".join(filter(str.isdigit, n))[:15] or 0) for n in numbers), default=0.0)
    sentences = [s for s in _SENTENCE.split(text) if s.strip()] or [""]
    size = max(1, len(text))
    return [
        math.log1p(len(text)), math.log1p(len(words)), math.log1p(len(sentences)), sum(map(len, words)) / len(words),
        math.log1p(len(numbers)), math.log1p(largest), sum(map(str.isdigit, text)) / size,
        math.log1p(len(_OPERATIONS.findall(text))), text.count("?") + text.count("？"), math.log1p(text.count("\n")),
        sum(map(str.isupper, text)) / size, sum(c > "\x7f" for c in text) / size,
        len({w.lower() for w in words}) / len(words), float("```" in text or "def " in text),
        math.log1p(len(_NEGATION.findall(text))), math.log1p(max(map(len, sentences))),
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictor:
    """success = sigmoid(((features - mean) / scale) @ weights + bias)."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float

    @classmethod
    def fit(cls, prompts: Sequence[str], rates: Sequence[float], *, samples: int = 8) -> "Predictor":
        """Learn from measured rates; samples: answers behind each rate, which bound how sure a 0 or 1 is.

        The strength of the ridge is chosen by leave-one-out error. ValueError: too few prompts, rates out of [0, 1].
        """
        if len(prompts) != len(rates) or len(prompts) < 8:
            raise ValueError(
                f"{len(prompts)} prompts with {len(rates)} rates; at least 8 with one rate each are needed"
            )
        rate = np.asarray(rates, dtype=np.float64)
        if not ((rate >= 0) & (rate <= 1)).all():
            raise ValueError(f"rates run from {rate.min()} to {rate.max()}; each lies between 0 and 1")
        linear = optional.load("sklearn.linear_model", extra="data")
        x = features(prompts)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-12] = 1.0
        smooth = (rate * samples + 0.5) / (samples + 1)
        model = linear.RidgeCV(alphas=np.logspace(-1, 4, 16)).fit((x - mean) / scale, np.log(smooth / (1 - smooth)))
        return cls(mean, scale, np.asarray(model.coef_), float(model.intercept_))

    def predict(self, prompts: Sequence[str]) -> np.ndarray:
        """Success rates in (0, 1)."""
        logit = ((features(prompts) - self.mean) / self.scale) @ self.weights + self.bias
        return 1.0 / (1.0 + np.exp(-np.clip(logit, -60, 60)))

    def save(self, path: str | Path) -> None:
        """As JSON numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "scale", "weights")}
        write_json(path, {"format": FORMAT, "bias": self.bias, **arrays})

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Read what save wrote; ValueError: another file, or one of other features."""
        values: Any = read_json(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path} is no difficulty predictor of this release ({FORMAT!r})")
        arrays = [np.asarray(values.get(name), dtype=np.float64) for name in ("mean", "scale", "weights")]
        size = len(_MEASURES) + _BUCKETS
        if any(a.shape != (size,) or not np.isfinite(a).all() for a in arrays) or not math.isfinite(values["bias"]):
            raise ValueError(f"{path} is damaged: three lists of {size} finite numbers are needed")
        mean, scale, weights = arrays
        return cls(mean, scale, weights, float(values["bias"]))


def easy_to_hard(
    items: Iterable[T], success: Callable[[Sequence[T]], Sequence[float]], *, window: int = 0
) -> Iterator[T]:
    """Items from the highest success rate to the lowest; equal ones stay in order.

    window: sort only within so many items at a time, for streams that do not fit (0: all of them). Source: LFM2 report,
    arXiv 2511.23404, section 4.2 (curriculum from easy to hard).
    """
    if window < 0:
        raise ValueError(f"window is {window}; 0 (everything) or more is needed")
    stream = iter(items)
    while chunk := list(islice(stream, window or None)):
        rates = np.asarray(success(chunk), dtype=np.float64)
        if rates.shape != (len(chunk),) or np.isnan(rates).any():
            raise ValueError(f"success gave {rates.shape} for {len(chunk)} items; one number each is needed")
        for i in np.argsort(-rates, kind="stable").tolist():
            yield chunk[i]
