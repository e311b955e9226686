"""A conversation on the plain torch model: the same face as engine.talk.Talk, on generate.py and its cache."""

from collections.abc import Callable, Sequence

from headwater.cache import Cache
from headwater.completion import Completion
from headwater.config import Config
from headwater.generate import generate
from headwater.model import Lfm2
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer


class TorchTalk:
    """Answers prompts one after another, reading only what the last ones did not hold."""

    name = "torch"

    def __init__(self, model: Lfm2, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._cache: Cache | None = None
        self._held: list[int] = []

    @property
    def config(self) -> Config:
        """Of the model."""
        return self._model.config

    def answer(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        on_text: Callable[[str], None] | None = None,
        skip_special: bool = True,
    ) -> tuple[Completion, int]:
        """(the answer, how many of `ids` were in the cache already)."""
        prompt = list(ids)
        cache, past = self._reusable(prompt)
        # Until the answer ends, nothing is known about the cache: a stopped forward call leaves it half-written.
        self._cache, self._held = None, []
        (completion,) = generate(
            self._model, [prompt[past:]], params, tokenizer=self._tokenizer, cache=cache, past=[prompt[:past]],
            on_text=None if on_text is None else lambda _, text: on_text(text), skip_special=skip_special,
        )  # fmt: skip
        self._cache, self._held = cache, [*prompt, *completion.ids[:-1]]
        return completion, past

    def _reusable(self, ids: list[int]) -> tuple[Cache, int]:
        """A cache that holds a beginning of `ids`, and its length: the last one, rewound where it went on otherwise."""
        same = 0
        for a, b in zip(self._held, ids[:-1], strict=False):
            if a != b:
                break
            same += 1
        if self._cache is not None and same:
            try:
                self._cache.rewind(len(self._held) - same)
            except ValueError:
                pass  # it went on otherwise further back than the convolutions remember
            else:
                return self._cache, same
        return self._model.new_cache(), 0
