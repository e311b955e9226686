"""One conversation on an Engine: what the model has read stays in a slot between answers. For `headwater chat`.

Not for many requests at a time (Engine.step does that): a Talk holds one slot of its engine for itself.
"""

import time
from collections.abc import Callable, Sequence

from headwater.completion import Completion, Logprob
from headwater.config import Config
from headwater.engine.engine import Engine
from headwater.sampling import SamplingParams


class Talk:
    """Answers prompts one after another, reading only what the last ones did not hold."""

    name = "native"

    def __init__(self, engine: Engine) -> None:
        self._engine, self._core = engine, engine.core
        self._slot = self._core.open()
        self._held: list[int] = []

    @property
    def config(self) -> Config:
        """Of the engine's model."""
        return self._engine.config

    def answer(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        on_text: Callable[[str], None] | None = None,
        skip_special: bool = True,
    ) -> tuple[Completion, int]:
        """(the answer, how many of `ids` were in the slot already). ValueError as Engine.add; an exception from
        `on_text` passes through, and the next answer reads from the start.
        """
        prompt, writer, sampler = self._engine.begin(ids, params, skip_special=skip_special)
        held, self._held = self._rewound(prompt), []  # until the answer ends, the slot is in between
        start = time.perf_counter()
        size = self._core.max_tokens
        for at in range(held, len(prompt), size):
            piece = prompt[at : at + size]
            self._core.run([(self._slot, piece, "last" if at + size >= len(prompt) else "none")])
        prefilled = time.perf_counter()
        c = writer.completion
        while True:
            token, logprob, likely = sampler.pick(self._core, 0)
            sampler.wrote(token)
            text = writer.push(token, None if c.logprobs is None else Logprob(token, logprob, tuple(likely)))
            if text and on_text is not None:
                on_text(text)
            if writer.done:
                break
            self._core.run([(self._slot, [token], "last")], decode=True)
        c.prefill_seconds, c.decode_seconds = prefilled - start, time.perf_counter() - prefilled
        self._held = [*prompt, *c.ids[:-1]]
        return c, held

    def _rewound(self, prompt: list[int]) -> int:
        """Rewind the slot to the longest beginning of `prompt` it holds, the last token left to be read; its length."""
        same = 0
        for a, b in zip(self._held, prompt[:-1], strict=False):
            if a != b:
                break
            same += 1
        try:
            self._core.rewind(self._slot, same)
        except ValueError:  # it went on otherwise further back than the convolutions remember
            same = 0
            self._core.rewind(self._slot, 0)
        return same
