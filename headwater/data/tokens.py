"""Texts to one flat array of ids and a length each, for the shards.

Control tokens written in a text stay text; only the three marks that the step `fim` put in become control tokens.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from headwater.data.fim import marks_of
from headwater.data.steps import Text
from headwater.tokenizer import Tokenizer

_PARTS = 7  # of a text that was cut: nothing, prefix mark, piece, mark, piece, mark, piece


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with the marks that begin and end a document (None: no such mark)."""

    tokenizer: Tokenizer
    begin: int | None
    end: int | None

    @classmethod
    def load(cls, path: str, *, bos: bool, eos: bool) -> "Encoder":
        """ValueError: the tokenizer has no such mark."""
        tokenizer = Tokenizer.from_pretrained(path)
        for wanted, has, name in ((bos, tokenizer.bos_id is not None, "bos"), (eos, bool(tokenizer.eos_ids), "eos")):
            if wanted and not has:
                raise ValueError(f"the tokenizer {path} has no {name.upper()} token; cure: {name}=false in the output")
        return cls(tokenizer, tokenizer.bos_id if bos else None, tokenizer.eos_ids[0] if eos else None)

    @cached_property
    def _mark_ids(self) -> dict[str, int]:
        marks = marks_of(self.tokenizer)
        return {mark: self.tokenizer.id_of(mark) for mark in (marks.prefix, marks.middle, marks.suffix)}

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, self._mark_ids)) + ")")

    def _parts(self, text: Text) -> list[str]:
        """A text that was cut, as its three pieces with the marks between and an empty one in front."""
        parts = self._marks.split(text.text)
        if len(parts) != _PARTS:
            prefix, middle, suffix = self._mark_ids
            raise ValueError(
                f"{text.id} was cut for filling in the middle and holds {len(parts) // 2} marks of this tokenizer, not "
                f"3; cure: --set fim.prefix='{prefix}' --set fim.middle='{middle}' --set fim.suffix='{suffix}'"
            )
        return parts

    @property
    def dtype(self) -> np.dtype:
        """uint16 where every id fits."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what every id stands for."""
        hasher = hashlib.blake2b(digest_size=16)
        for token in range(self.tokenizer.vocab_size):
            try:
                piece = self.tokenizer.token_bytes(token)
            except ValueError:
                piece = b""  # an id that is not in use
            hasher.update(len(piece).to_bytes(4, "little") + piece)
        return hasher.hexdigest()

    def encode(self, texts: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts, length of each as int32), the marks included. ValueError: a text was cut for filling in
        the middle, and the tokenizer has no marks for that, or others.
        """
        before = [] if self.begin is None else [self.begin]
        after = [] if self.end is None else [self.end]
        pieces = [self._parts(t) if t.facts.get("fim") else [t.text] for t in texts]
        coded = iter(self.tokenizer.encode_batch(list(chain.from_iterable(pieces))))
        documents = []
        for parts in pieces:
            row = [*before]
            for part in parts:  # a mark stands between any two pieces, as a piece of its own
                piece = next(coded)
                row += [self._mark_ids[part]] if len(parts) > 1 and part in self._mark_ids else piece
            documents.append(row + after)
        lengths = np.fromiter(map(len, documents), dtype=np.int32, count=len(documents))
        ids = np.fromiter(chain.from_iterable(documents), dtype=self.dtype, count=int(lengths.sum()))
        return ids, lengths
