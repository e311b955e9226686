"""A conversation on the plain torch model, by generate.py and its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headwater.cache import Cache
from headwater.completion import Completion
from headwater.config import Config
from headwater.engine.conversation import Conversation
from headwater.generate import generate
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

if TYPE_CHECKING:
    from headwater.model import Lfm2


class TorchTalk(Conversation):
    """A conversation in one cache of a model."""

    name = "torch"

    def __init__(self, model: Lfm2, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._model, self._tokenizer = model, tokenizer
        self._cache: Cache | None = None

    @property
    def config(self) -> Config:
        """Of the model."""
        return self._model.config

    def _rewind(self, held: int, same: int) -> int:
        if self._cache is not None and same:
            try:
                self._cache.rewind(held - same)
            except ValueError:
                pass  # it went on otherwise further back than the convolutions remember
            else:
                return same
        self._cache = self._model.new_cache()
        return 0

    def _complete(
        self,
        prompt: list[int],
        past: int,
        params: SamplingParams,
        on_text: Callable[[str], None] | None,
        skip_special: bool,
    ) -> Completion:
        (completion,) = generate(
            self._model, [prompt[past:]], params, tokenizer=self._tokenizer, cache=self._cache, past=[prompt[:past]],
            on_text=None if on_text is None else lambda _, text: on_text(text), skip_special=skip_special,
        )  # fmt: skip
        return completion
