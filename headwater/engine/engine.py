"""Engine: requests in, tokens out, on the native core. add, step, finished; generate, stream and logits on top of them.

One step runs one token of every running answer and a piece of the prompts that wait, so a long prompt does not silence
the others. Not a server (headwater.serve) and not the reference (headwater.generate). Loading imports no torch.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import hub
from headwater.completion import Completion, Logprob, OnText, Writer
from headwater.config import Config
from headwater.engine import native, program
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

_DEFAULT_CONTEXT = 32_768
_BURST = 16
"""Tokens that a lonely answer takes in one call of the core when nobody reads along."""


@dataclass
class _Request:
    id: int
    prompt: list[int]
    writer: Writer
    sampler: Any
    slot: int = -1
    read: int = 0
    started: float = field(default_factory=time.perf_counter)
    prefilled: float = 0.0


class Engine:
    """A model in memory with room for `max_sequences` answers at a time. Build one with `from_pretrained`."""

    def __init__(self, config: Config, core: Any, tokenizer: Tokenizer | None) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._core = core
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._done: dict[int, Completion] = {}
        self._next_id = 0

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        max_sequences: int = 4,
        weights: str | None = "Q8_0",
        chunk_size: int = 512,
        cpus: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
    ) -> "Engine":
        """Load a .gguf file, or a Hugging Face-format directory whose matrices are rounded to `weights` on the way in
        (None: kept as the files have them).

        threads: default all processors this process may use; cpus: processor numbers to pin them to. context: most
        tokens of one sequence. chunk_size: most tokens of one run. tokenizer: one that is read already.
        ValueError names what cannot be read or run.
        """
        path = hub.resolve(path_or_id)
        threads = threads or native.default_threads()
        config, source = native.open_weights(path, weights, threads=threads)
        context = min(config.max_positions, context or _DEFAULT_CONTEXT)
        core = native.build(
            program.lower(config, source), capacity=context, max_slots=max_sequences, max_tokens=chunk_size,
            max_selected=max(16, max_sequences), threads=threads, cpus=cpus,
        )  # fmt: skip
        return cls(config, core, tokenizer or native.tokenizer(path))

    @property
    def core(self) -> Any:
        """The native program, for a caller that keeps a slot for itself."""
        return self._core

    @property
    def context(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        return self._core.capacity

    def add(self, prompt: str | Sequence[int], params: SamplingParams = SamplingParams()) -> int:  # noqa: B008 (frozen)
        """Queue a prompt (text or ids); the request's number. ValueError when it cannot be served."""
        ids, writer, sampler = self.begin(prompt, params)
        self._waiting.append(_Request(self._next_id, ids, writer, sampler))
        self._next_id += 1
        return self._next_id - 1

    def begin(
        self, prompt: str | Sequence[int], params: SamplingParams, *, skip_special: bool = True
    ) -> tuple[list[int], Writer, Any]:
        """(ids, the writer of the answer, the sampler that has seen the ids) of a checked prompt; nothing is queued."""
        ids = self._ids(prompt)
        room = self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; the context is {self.context}, one of it for the answer"
            )
        eos = frozenset(self.config.eos_ids) | (frozenset(self.tokenizer.eos_ids) if self.tokenizer else frozenset())
        sampler = native.Sampler(
            temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p,
            repetition_penalty=params.repetition_penalty, seed=params.seed,
            logprobs=-1 if params.logprobs is None else params.logprobs,
        )  # fmt: skip
        sampler.saw(ids)
        writer = Writer(params, min(params.max_tokens, room), eos, self.tokenizer, skip_special)
        return ids, writer, sampler

    def step(self, burst: int = 1) -> list[tuple[int, str]]:
        """Run once; (request, new certain text) of each answer that moved. burst: tokens for an answer alone."""
        while self._waiting and len(self._running) < self._core.max_slots:
            request = self._waiting.popleft()
            request.slot = self._core.open()
            self._running.append(request)
        if burst > 1 and len(self._running) == 1 and not self._waiting and self._alone(self._running[0]):
            return self._burst(self._running[0], burst)
        work, wanted = self._plan()
        if not work:
            return []
        self._core.run(work)
        events = [(r.id, self._take(r, row)) for row, r in enumerate(wanted)]
        self._retire()
        return events

    def finished(self, request: int) -> Completion | None:
        """The answer of a request, handed over once, or None while it is being written."""
        return self._done.pop(request, None)

    def cancel(self, request: int) -> None:
        """Forget a request and free its sequence; nothing happens when it is not known."""
        self._waiting = deque(r for r in self._waiting if r.id != request)
        for r in self._running:
            if r.id == request:
                self._core.close(r.slot)
        self._running = [r for r in self._running if r.id != request]
        self._done.pop(request, None)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
        *,
        on_text: OnText | None = None,
    ) -> list[Completion]:
        """Answer every prompt; row i belongs to prompt i and does not depend on the others."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if isinstance(prompts, str) or len(each) != len(prompts):
            raise ValueError("generate takes a list of prompts and one SamplingParams, or one for each prompt")
        rows = {self.add(p, s): i for i, (p, s) in enumerate(zip(prompts, each, strict=True))}
        answers: dict[int, Completion] = {}
        while len(answers) < len(rows):
            for request, text in self.step(1 if on_text else _BURST):
                if text and on_text is not None and request in rows:
                    on_text(rows[request], text)
            answers |= {r: c for r in rows if (c := self.finished(r)) is not None}
        return [answers[r] for r in rows]

    def stream(self, prompt: str | Sequence[int], params: SamplingParams = SamplingParams()) -> Iterator[str]:  # noqa: B008
        """The answer's text, piece by piece as it becomes certain."""
        request = self.add(prompt, params)
        try:
            while self.finished(request) is None:
                yield from (text for r, text in self.step() if r == request and text)
        finally:
            self.cancel(request)

    def logits(self, ids: Sequence[int], *, chunk_size: int = 16) -> "np.ndarray":
        """fp32 logits (tokens, vocabulary) after each of the ids, read as one new sequence."""
        import numpy as np

        ids = self._ids(ids)
        slot = self._core.open()
        try:
            rows = []
            for start in range(0, len(ids), chunk_size):
                piece = ids[start : start + chunk_size]
                rows.append(self._core.logits(self._core.run([(slot, piece, "all")])))
            return np.concatenate(rows)
        finally:
            self._core.close(slot)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("the model came without a tokenizer; give token ids instead of text")
            prompt = self.tokenizer.encode(prompt, bos=self.tokenizer.add_bos)
        ids = [int(t) for t in prompt]
        if not ids:
            raise ValueError("the prompt is empty; allowed: at least one token (the BOS token alone will do)")
        if not all(0 <= t < self.config.vocab_size for t in ids):
            raise ValueError(
                f"the prompt has ids outside 0..{self.config.vocab_size - 1}; is it the model's tokenizer?"
            )
        return ids

    def _plan(self) -> tuple[list[tuple[int, list[int], str]], list[_Request]]:
        """Segments of the next run, and the requests whose logits it gives, in row order."""
        work: list[tuple[int, list[int], str]] = []
        wanted: list[_Request] = []
        budget = self._core.max_tokens
        for r in sorted(self._running, key=lambda r: r.read < len(r.prompt)):
            if r.read >= len(r.prompt):
                piece = [r.writer.completion.ids[-1]]
            else:
                piece = r.prompt[r.read : r.read + budget]
                r.read += len(piece)
            if not piece:
                continue
            budget -= len(piece)
            whole = r.read >= len(r.prompt)
            work.append((r.slot, piece, "last" if whole else "none"))
            if whole:
                wanted.append(r)
        return work, wanted

    def _take(self, r: _Request, row: int) -> str:
        token, logprob, likely = r.sampler.pick(self._core, row)
        r.sampler.saw([token])
        r.prefilled = r.prefilled or time.perf_counter()
        c = r.writer.completion
        return r.writer.push(token, None if c.logprobs is None else Logprob(token, logprob, tuple(likely)))

    @staticmethod
    def _alone(r: _Request) -> bool:
        plain = not r.writer.params.stop and r.writer.params.logprobs is None
        return plain and r.read >= len(r.prompt)

    def _burst(self, r: _Request, burst: int) -> list[tuple[int, str]]:
        c = r.writer.completion
        count = min(burst, r.writer.max_tokens - len(c.ids))
        tokens = self._core.decode(r.slot, c.ids[-1], count, r.sampler, sorted(r.writer.eos_ids))
        text = "".join(r.writer.push(t) for t in tokens)
        self._retire()
        return [(r.id, text)]

    def _retire(self) -> None:
        for r in [r for r in self._running if r.writer.done]:
            self._core.close(r.slot)
            c = r.writer.completion
            c.prefill_seconds, c.decode_seconds = r.prefilled - r.started, time.perf_counter() - r.prefilled
            self._done[r.id] = c
            self._running.remove(r)
