"""Removes texts that say the same again and again: lines, paragraphs, runs of words (Gopher's repetition filters).

Shares of runs are of words instead of Gopher's characters. In scripts without spaces a character is a word, so runs
there are twice as long. Not for repetition between texts (deduplication).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.data.ngrams import Runs, count_covered, count_repeats
from headwater.data.steps import Removed, Text, Verdict, is_code
from headwater.data.words import Words, words_of

_SPACELESS = 0.4  # words a character; a script with spaces stays far below


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Removes prose in which a share is above its bound.

    lines, paragraphs: of lines (paragraphs: between blank lines) that stood before in the text; line_characters,
    paragraph_characters: of characters in such. top: (n, bound) for the words in the most frequent run of n words;
    again: (n, bound) for the words in runs of n words that stood before. Runs are looked at from `from_words` words on
    (a sentence repeats its words without being repetitive).
    """

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    again: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    from_words: int = 50

    name: ClassVar[str] = "repetition"
    source: ClassVar[str] = "arXiv 2112.11446, appendix A.1.1 and table A1"

    def __post_init__(self) -> None:
        for field, rows in (("top", self.top), ("again", self.again)):
            if not rows or any(n < 1 or not 0 < bound <= 1 for n, bound in rows) or [*rows] != sorted(rows):
                raise ValueError(f"{field} is {rows}; needed: rows (n, bound), n rising from 1, bound in (0, 1]")

    def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        verdicts: list[Verdict] = list(texts)
        bodies = ["" if is_code(text) else text.text for text in texts]
        for number, body in enumerate(bodies):
            verdicts[number] = self._lines(body) or verdicts[number]
        words = words_of([text.text for text in texts])  # also of code, for they are the words of the next step too
        spaceless = words.counts > _SPACELESS * np.fromiter((len(text.text) for text in texts), np.int64, len(texts))
        top, again = self._suspects(words, spaceless)
        prose = np.fromiter((not is_code(text) for text in texts), bool, len(texts))
        top, again = top & prose, again & prose
        open_ = np.fromiter((isinstance(verdict, Text) for verdict in verdicts), bool, len(texts))
        for factor in (1, 2):
            mine = open_ & (spaceless == (factor == 2))
            removed = self._top(Runs(words), mine & top, factor)
            mine[list(removed)] = False
            for number, why in (removed | self._again(Runs(words), mine & again, factor)).items():
                verdicts[number] = why
        return verdicts

    def _lines(self, body: str) -> Removed | None:
        if "\n" not in body:
            return None
        parts = (("line", "\n", self.lines, self.line_characters),
                 ("paragraph", "\n\n", self.paragraphs, self.paragraph_characters))  # fmt: skip
        for what, mark, most, most_characters in parts:
            pieces = [piece for piece in map(str.strip, body.split(mark)) if piece]
            different = set(pieces)
            if len(pieces) == len(different):
                continue
            again = len(pieces) - len(different)
            if again > most * len(pieces):
                return Removed(f"repeated_{what}s", f"{again} of {len(pieces)}")
            characters = sum(map(len, pieces)) - sum(map(len, different))
            if characters > most_characters * len(body):
                return Removed(f"repeated_{what}s", f"{characters} of {len(body)} characters")
        return None

    def _suspects(self, words: Words, spaceless: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each text whether its shortest runs repeat enough for a bound of `top`, of `again` to be passed: a run of
        k words that repeats contains shorter ones that do.
        """
        runs = Runs(words)
        top, again = np.zeros((2, len(words.counts)), bool)
        (n_top, _), (n_again, _) = self.top[0], self.again[0]
        least_top = min(bound / -(-n // n_top) for n, bound in self.top)
        least_again = min(bound for _, bound in self.again)
        for factor in (1, 2):
            chosen = (spaceless == (factor == 2)) & (words.counts >= self.from_words * factor)
            if not chosen.any():
                continue
            most, _ = count_repeats(runs, n_top * factor, chosen)
            _, repeats = count_repeats(runs, n_again * factor, chosen)
            top |= chosen & (most > 1) & (most * n_top * factor > least_top * words.counts)
            again |= chosen & (repeats * n_again * factor > least_again * words.counts)
        return top, again

    def _top(self, runs: Runs, chosen: np.ndarray, factor: int) -> dict[int, Removed]:
        sizes, removed, left = runs.words.counts, dict[int, Removed](), chosen.copy()
        for n, bound in self.top:
            if not left.any():
                break
            most, _ = count_repeats(runs, n * factor, left)
            gone = left & (most > 1) & (most * n * factor > bound * sizes)
            for at in np.flatnonzero(gone).tolist():
                removed[at] = Removed("top_run", f"{most[at]} times the same {n * factor} words in {sizes[at]}")
            left &= ~gone
        return removed

    def _again(self, runs: Runs, chosen: np.ndarray, factor: int) -> dict[int, Removed]:
        least = min(bound for _, bound in self.again)
        sizes, removed, left = runs.words.counts, dict[int, Removed](), chosen.copy()
        for n, bound in self.again:
            if not left.any():
                break
            covered = count_covered(runs, n * factor, left)
            gone = left & (covered > bound * sizes)
            for at in np.flatnonzero(gone).tolist():
                removed[at] = Removed("repeated_runs", f"{covered[at]} of {sizes[at]} words, in runs of {n * factor}")
            left &= ~gone & (covered > least * sizes)  # where few words are covered, longer runs cover no more
        return removed
