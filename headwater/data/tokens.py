"""Texts to one flat array of ids and a length each, for the shards. Not for control tokens in text: text stays text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from headwater.tokenizer import Tokenizer


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

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts, length of each as int32), the marks included."""
        before = [] if self.begin is None else [self.begin]
        after = [] if self.end is None else [self.end]
        documents = [before + ids + after for ids in self.tokenizer.encode_batch(texts)]
        lengths = np.fromiter(map(len, documents), dtype=np.int32, count=len(documents))
        ids = np.fromiter(chain.from_iterable(documents), dtype=self.dtype, count=int(lengths.sum()))
        return ids, lengths
