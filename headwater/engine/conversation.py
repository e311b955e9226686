"""One conversation on one model: prompts answered one after another, of which only what is new is read. For chat.

What every engine shares; engine/talk.py is the native one, engine/torch.py the plain one. Imports neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from headwater.completion import Completion
from headwater.config import Config
from headwater.sampling import SamplingParams


class Conversation(ABC):
    """Answers prompts and keeps what it has read. name: of the engine."""

    name: str

    def __init__(self) -> None:
        self._held: list[int] = []

    @property
    @abstractmethod
    def config(self) -> Config:
        """Of the model."""

    @property
    def context(self) -> int:
        """Most tokens of the conversation."""
        return self.config.max_positions

    def save(self, path: str | Path) -> None:
        """Write what was read and written as a file. ValueError where the engine cannot, or has nothing; OSError."""
        raise ValueError(f"the {self.name} engine keeps no state in files; run on the native one")

    def load(self, path: str | Path) -> int:
        """Go on from what `save` wrote; the number of tokens that need no reading. ValueError when the file is not for
        this model and engine; nothing is changed then. OSError."""
        raise ValueError(f"the {self.name} engine reads no state from files; run on the native one")

    @abstractmethod
    def _rewind(self, held: int, same: int) -> int:
        """Go back from `held` tokens to `same`, or to none where that is too far; the tokens that are left."""

    @abstractmethod
    def _complete(
        self,
        prompt: list[int],
        past: int,
        params: SamplingParams,
        on_text: Callable[[str], None] | None,
        skip_special: bool,
    ) -> Completion:
        """The answer to `prompt`, whose first `past` tokens have been read."""

    def answer(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        on_text: Callable[[str], None] | None = None,
        skip_special: bool = True,
    ) -> tuple[Completion, int]:
        """(the answer, how many of `ids` had been read already).

        ValueError when the prompt cannot be served; an exception from `on_text` passes through.
        """
        prompt = list(ids)
        same = 0
        for a, b in zip(self._held, prompt[:-1], strict=False):
            if a != b:
                break
            same += 1
        # A stopped call leaves the state in between, where only the engine itself can know what is held.
        held, self._held = len(self._held), []
        past = self._rewind(held, same)
        completion = self._complete(prompt, past, params, on_text, skip_special)
        self._held = [*prompt, *completion.ids[:-1]]
        return completion, past
