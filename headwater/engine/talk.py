"""A conversation on an Engine: what the model has read stays in a slot between answers.

Not for many requests at a time (Engine.step does that): a Talk holds one slot of its engine for itself.
"""

import time
from collections.abc import Callable

from headwater.completion import Completion, Logprob
from headwater.config import Config
from headwater.engine.conversation import Conversation
from headwater.engine.engine import Engine
from headwater.sampling import SamplingParams


class Talk(Conversation):
    """A conversation in one slot of an engine."""

    name = "native"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine, self._core = engine, engine.core
        self._slot = self._core.open()

    @property
    def config(self) -> Config:
        """Of the engine's model."""
        return self._engine.config

    def _rewind(self, held: int, same: int) -> int:
        try:
            self._core.rewind(self._slot, same)
        except ValueError:  # it went on otherwise further back than the convolutions remember
            same = 0
            self._core.rewind(self._slot, 0)
        return same

    def _complete(
        self,
        prompt: list[int],
        past: int,
        params: SamplingParams,
        on_text: Callable[[str], None] | None,
        skip_special: bool,
    ) -> Completion:
        prompt, writer, sampler = self._engine.begin(prompt, params, skip_special=skip_special)
        start = time.perf_counter()
        size = self._core.max_tokens
        for at in range(past, len(prompt), size):
            piece = prompt[at : at + size]
            self._core.run([(self._slot, piece, "last" if at + size >= len(prompt) else "none")])
        prefilled = time.perf_counter()
        c = writer.completion
        while True:
            token, logprob, likely = sampler.pick(self._core, 0)
            sampler.saw([token])
            text = writer.push(token, None if c.logprobs is None else Logprob(token, logprob, tuple(likely)))
            if text and on_text is not None:
                on_text(text)
            if writer.done:
                break
            self._core.run([(self._slot, [token], "last")])
        c.prefill_seconds, c.decode_seconds = prefilled - start, time.perf_counter() - prefilled
        return c
