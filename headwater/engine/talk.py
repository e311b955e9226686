"""A conversation on an Engine: what the model has read and written stays in a slot between answers, and in files.

Not for many requests at a time (Engine.step does that): a Talk holds one slot of its engine for itself. What its state
promises where prompts and answers take different kernels stands in docs/engine.md.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.completion import Completion, Logprob, Writer
from headwater.config import Config
from headwater.engine.conversation import Conversation
from headwater.engine.engine import Engine
from headwater.engine.scheduler import BLOCK
from headwater.sampling import SamplingParams

_MAX_TAILS = 32
"""Ends of prompts that a conversation can go back to, however long ago they were."""


class Talk(Conversation):
    """A conversation in one slot of an engine."""

    name = "native"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine, self._core = engine, engine.core
        self._slot = self._core.open()
        # The convolutions remember few inputs. A chat style that drops old reasoning changes the text from the start of
        # an answer on, further back than that: the tail at the end of each prompt is kept to start from.
        self._tails: dict[int, bytes] = {}

    @property
    def config(self) -> Config:
        """Of the engine's model."""
        return self._engine.config

    @property
    def context(self) -> int:
        """Most tokens of the conversation."""
        return self._engine.context

    def save(self, path: str | Path) -> None:
        """Write the state as a file, whole or not at all. ValueError when there is none; OSError."""
        from headwater.engine import state_file

        if not self._held or not self._engine.model:
            raise ValueError("there is no state to save; let the model answer first, with an engine made from a file")
        length = len(self._held)
        end = -(-length // 16) * 16
        self._core.rewind(self._slot, length)  # a stopped answer may have run one token further
        kv, tail = self._core.save_keys(self._slot, 0, end), self._core.save_tail(self._slot, length)
        state_file.write(path, state_file.State(self._engine.model, 0, length, tuple(self._held), kv, tail))

    def load(self, path: str | Path) -> int:
        """Go on from what `save` wrote; the number of tokens that need no reading.

        ValueError, and nothing changed, for another model's file, or another machine's, or a damaged one; OSError.
        """
        from headwater.engine import state_file

        state = state_file.read(path, self._engine.model)
        end = -(-state.end // 16) * 16
        want = end * self._core.bytes_per_token, self._core.tail_bytes
        tail = b"" if state.tail is None else state.tail
        if state.first or len(state.ids) != state.end or (len(state.kv), len(tail)) != want:
            raise ValueError(f"{path} is no state of a whole conversation; read the conversation again")
        if state.end >= self.context:
            raise ValueError(f"{path} has {state.end} tokens; the context is {self.context}: allow a longer one")
        self._core.rewind(self._slot, 0)
        self._core.load_keys(self._slot, 0, end, state.kv)
        self._core.restore(self._slot, state.end, tail)
        self._held, self._tails = list(state.ids), {state.end: tail}
        return state.end

    def _rewind(self, held: int, same: int) -> int:
        try:
            self._core.rewind(self._slot, same)
        except ValueError:  # further back than the convolutions remember
            same = max((n for n in self._tails if n <= same), default=0)
            if same:
                self._core.restore(self._slot, same, self._tails[same])
            else:
                self._core.rewind(self._slot, 0)
        self._tails = {n: tail for n, tail in self._tails.items() if n <= same}
        return same

    def _complete(
        self,
        prompt: list[int],
        past: int,
        params: SamplingParams,
        on_text: Callable[[str], None] | None,
        skip_special: bool,
    ) -> Completion:
        self._held = prompt[:past]
        prompt, writer, sampler = self._engine.begin(prompt, params, skip_special=skip_special)
        start = time.perf_counter()
        self._read(prompt)
        prefilled = time.perf_counter()
        self._write(writer, sampler, on_text)
        c = writer.completion
        c.prefill_seconds, c.decode_seconds = prefilled - start, time.perf_counter() - prefilled
        return c

    def _read(self, prompt: list[int]) -> None:
        """Run what is new of a prompt. Pieces end where blocks do, as in Engine.step: bits may depend on it."""
        size = self._core.max_tokens // BLOCK * BLOCK
        while (at := len(self._held)) < len(prompt):
            piece = prompt[at : at // BLOCK * BLOCK + size]
            self._core.run([(self._slot, piece, "last" if at + len(piece) == len(prompt) else "none")])
            self._held += piece
        while len(self._tails) >= _MAX_TAILS:
            del self._tails[min(self._tails)]
        self._tails[len(prompt)] = self._core.save_tail(self._slot, len(prompt))

    def _write(self, writer: Writer, sampler: Any, on_text: Callable[[str], None] | None) -> None:
        """Write the answer. `_held` follows the core, so that a stopped answer stays readable."""
        c = writer.completion
        while True:
            forced = writer.forced()
            token, logprob, likely = sampler.pick(
                self._core, 0, None, writer.forbidden(), -1 if forced is None else forced
            )
            sampler.wrote(token)
            text = writer.push(token, None if c.logprobs is None else Logprob(token, logprob, tuple(likely)))
            if text and on_text is not None:
                on_text(text)
            if writer.done:
                return
            self._core.run([(self._slot, [token], "last")], decode=True)
            self._held.append(token)
