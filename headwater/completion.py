"""What an answer is, and how its tokens become certain text: for the plain loop and the engines, without torch."""

from collections.abc import Callable
from typing import Literal

from headwater.records import field, record
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer


@record(frozen=True)
class Logprob:
    """Natural-log probability of the chosen token under the model, and of the likeliest ones as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@record
class Completion:
    """One answer. ids: every sampled token, an end token included; text: without end and stop texts; stopped_by: the
    stop text that ended it.

    prefill_seconds: reading the prompts of the whole batch; decode_seconds: from then to this answer's last token.
    prompt_tokens, and cached_tokens of them that an earlier request had read (engines alone count them).
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] = "length"
    logprobs: list[Logprob] | None = None
    prefill_seconds: float = field(default=0.0, compare=False)
    decode_seconds: float = field(default=0.0, compare=False)
    prompt_tokens: int = field(default=0, compare=False)
    cached_tokens: int = field(default=0, compare=False)
    stopped_by: str | None = None


OnText = Callable[[int, str], None]
"""Called with (row, new text) as soon as the text is certain: whole characters, and no beginning of a stop text."""


class Writer:
    """One answer being written: its tokens, its certain text, and whether it is done."""

    def __init__(
        self,
        params: SamplingParams,
        max_tokens: int,
        eos_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        skip_special: bool = True,
    ) -> None:
        if params.stop and tokenizer is None:
            raise ValueError("stop texts came without a tokenizer; pass tokenizer= so that they can be found")
        self.params, self.max_tokens = params, max_tokens
        self.eos_ids = frozenset() if params.ignore_eos else eos_ids
        self.completion = Completion(logprobs=None if params.logprobs is None else [])
        self.done = False
        self._decoder = tokenizer.stream(skip_special=skip_special) if tokenizer else None
        self._num_words = tokenizer.vocab_size if tokenizer else 0
        self._held = ""
        self._thinking = params.think is not None

    def forced(self) -> int | None:
        """The token that must come next because the budget of thought is spent, or None."""
        think, ids = self.params.think, self.completion.ids
        if not self._thinking or think is None or len(ids) < len(think.start) + think.tokens:
            return None
        thought = ids[len(think.start) :]
        begun = min(len(thought), len(think.end) - 1)
        while begun and tuple(thought[-begun:]) != think.end[:begun]:
            begun -= 1
        return think.end[begun]

    def forbidden(self) -> list[int]:
        """Tokens that may not come next: those that end the answer, before min_tokens."""
        return sorted(self.eos_ids) if len(self.completion.ids) < self.params.min_tokens else []

    def push(self, token: int, logprob: Logprob | None = None) -> str:
        """Record the next token; the text that became certain."""
        c = self.completion
        c.ids.append(token)
        self._think(c.ids)
        if c.logprobs is not None and logprob is not None:
            c.logprobs.append(logprob)
        ended = token in self.eos_ids
        text = self._advance_text(token, ended)
        if ended:
            c.finish_reason, self.done = "stop", True
        elif len(c.ids) >= self.max_tokens and not self.done:
            self.done = True
        if self.done and self._decoder is not None and c.finish_reason == "length":
            text += self._release(self._decoder.finish(), final=True)
        c.text += text
        return text

    def _think(self, ids: list[int]) -> None:
        """Note that a thought ended, or that the answer does not begin with one."""
        think = self.params.think
        if not self._thinking or think is None:
            return
        first, last = len(think.start), len(think.end)
        if len(ids) <= first:
            self._thinking = ids[-1] == think.start[len(ids) - 1]
        elif len(ids) >= first + last and tuple(ids[-last:]) == think.end:
            self._thinking = False

    def _advance_text(self, token: int, ended: bool) -> str:
        if self._decoder is None:
            return ""
        if ended:
            return self._release(self._decoder.finish(), final=True)
        if token >= self._num_words:  # a row that only fills the embedding up; an untrained model draws it
            return ""
        return self._release(self._decoder.push(token), final=False)

    def _release(self, new: str, final: bool) -> str:
        """Text that no stop text can claim any more; a stop text found ends the answer."""
        self._held += new
        found = [(i, stop) for stop in self.params.stop if (i := self._held.find(stop)) >= 0]
        if found:
            at, self.completion.stopped_by = min(found)
            text, self._held = self._held[:at], ""
            self.completion.finish_reason, self.done = "stop", True
            return text
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self.params.stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
