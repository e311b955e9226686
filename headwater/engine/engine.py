"""Engine: requests in, tokens out, on the native core: add, step, finished; generate, chat, stream, embed on top.

One step gives every running answer one token and then reads a piece of the prompts that wait (scheduler), so a long
prompt does not silence the others. Greedy answers are those of a run alone, whoever else is there (docs/engine.md).
Not a server (headwater.serve), not for several threads (aio.AsyncEngine), not the reference (headwater.generate).
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import hub
from headwater.completion import Completion, Logprob, OnText, Writer
from headwater.config import Config, ShortConv
from headwater.engine import at_once, native, program, reading
from headwater.engine.again import Again
from headwater.engine.answer import Answer, Counters, Mask
from headwater.engine.scheduler import BLOCK, DeadlineExceeded, Job, QueueFull, Scheduler, reserve_limit
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from headwater.chat import Chat
    from headwater.engine.prefix_cache import PrefixCache

__all__ = ["DeadlineExceeded", "Engine", "Mask", "QueueFull"]

RING = BLOCK + 16
"""Inputs that a convolution remembers: the tail at the last block boundary is known without stopping there."""
DEFAULT_CONTEXT = 32_768
_DEFAULT_QUEUE = 1024
_DEFAULT_CACHE = 256 << 20
_BURST = 16
"""Tokens that a lonely answer takes in one call of the core when nobody reads along."""
_BESIDE_ANSWERS = 4 * BLOCK
"""Prompt tokens of a step while answers are being written: the pause that a newcomer makes in their text."""


def ring_of(config: Config) -> int:
    """RING, or more where convolutions are so wide that the tail at the last block boundary would not be known."""
    widths = [layer.mixer.width for layer in config.layers if isinstance(layer.mixer, ShortConv)]
    return max([RING, *(BLOCK + w for w in widths)])


class Engine:
    """A model in memory with room for `max_sequences` answers at a time. Build one with `from_pretrained`."""

    def __init__(
        self,
        config: Config,
        core: Any,
        tokenizer: Tokenizer | None,
        *,
        chat: "Chat | None" = None,
        final_norm: Any = None,
        model: Callable[[], str] | None = None,
        max_queue: int = _DEFAULT_QUEUE,
        kv_bytes: int | None = None,
        prefix_cache: "PrefixCache | None" = None,
    ) -> None:
        self.config, self.tokenizer, self._chat = config, tokenizer, chat
        self._model, self.counters, self.prefix_cache = model, Counters(), prefix_cache
        self._core, self._final_norm = core, final_norm
        ring = ring_of(config)
        if core.max_tokens < BLOCK or (prefix_cache is not None and core.ring < ring):
            raise ValueError(
                f"the core runs {core.max_tokens} tokens and remembers {core.ring} inputs of convolutions; "
                f"the engine needs {BLOCK} and, with a prefix cache, {ring}"
            )
        limit = reserve_limit(core, kv_bytes)
        self._scheduler = Scheduler(slots=core.max_slots, max_queue=max_queue, reserve_limit=limit)
        self._again = None if prefix_cache is None or core.one_arithmetic else Again(core, prefix_cache)
        self._jobs: dict[int, Job] = {}
        self._done: dict[int, Any] = {}
        self._next_id = 0
        self._seconds_each = 1.0

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: "str | Path | native.GgufFile",
        *,
        threads: int | None = None,
        context: int | None = None,
        max_sequences: int = 4,
        weights: str | None = "Q8_0",
        chunk_size: int = 10 * BLOCK,
        cpus: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
        max_queue: int = _DEFAULT_QUEUE,
        kv_bytes: int | None = None,
        cache_bytes: int = _DEFAULT_CACHE,
        cache_dir: str | Path | None = None,
        style: str | None = None,
        logits_at_once: int = 16,
    ) -> "Engine":
        """Load a .gguf file (perhaps open), or a Hugging Face-format directory whose matrices are rounded to `weights`
        on the way in (None: kept as the files have them).

        threads: default all processors this process may use; cpus: processor numbers to pin them to. context: most
        tokens of one sequence. chunk_size: most tokens of one run. tokenizer: one that is read already. max_queue:
        requests that may wait. kv_bytes: what all running sequences may hold together (default: every one its whole
        context). cache_bytes, cache_dir: the prefix cache in memory (0: none) and on disk. style: of chats where there
        is no known template. logits_at_once: rows of `logits` a run. ValueError names what cannot be read or run.
        """
        path, threads = hub.resolve(path_or_id), threads or native.default_threads()
        if chunk_size < BLOCK:
            raise ValueError(f"chunk_size is {chunk_size}; allowed: {BLOCK} and more")
        file = path_or_id if isinstance(path_or_id, native.GgufFile) else native.opened(path)
        config, source = native.open_weights(file, weights, threads=threads)
        context = min(config.max_positions, context or DEFAULT_CONTEXT)
        core = native.build(
            program.lower(config, source), capacity=context, max_slots=max_sequences, max_tokens=chunk_size,
            max_selected=max(logits_at_once, max_sequences), ring=ring_of(config), threads=threads, cpus=cpus,
        )  # fmt: skip
        files = native.weight_files(path)
        stamps = [file.stat().st_mtime_ns for file in files]

        def model() -> str:
            from headwater.engine.state_file import model_id

            if [file.stat().st_mtime_ns for file in files] != stamps:
                raise ValueError(f"{path} changed since it was loaded; load it again to have its states in files")
            return model_id(config, files, str(weights), core.isa)

        cache = None
        if cache_bytes:
            from headwater.engine.prefix_cache import PrefixCache

            sizes = BLOCK * core.bytes_per_token, core.tail_bytes
            cache = PrefixCache(model(), sizes, max_bytes=cache_bytes, directory=cache_dir)
        words = tokenizer or native.tokenizer(file)
        chat = _styled(words, style) if style and words else None
        return cls(
            config, core, words, chat=chat, final_norm=source.norm("embedding_norm.weight"), model=model,
            max_queue=max_queue, kv_bytes=kv_bytes, prefix_cache=cache,
        )  # fmt: skip

    @functools.cached_property
    def model(self) -> str:
        """What tells this model's states from those of others; "" for an engine that was not made from a file."""
        return self._model() if self._model else ""

    @property
    def core(self) -> Any:
        """The native program, for a caller that keeps a slot for itself."""
        return self._core

    @property
    def context(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        return self._core.capacity

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._scheduler.waiting

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._jobs

    # --- requests ---

    def add(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
        *,
        mask: Mask | None = None,
        user: str | None = None,
        timeout: float | None = None,
        skip_special: bool = True,
    ) -> int:
        """Queue a prompt (text or ids); the request's number. ValueError when it cannot be served, QueueFull when too
        many wait.

        mask: what each token may be. user: who shares fairly with other users (default: every request by itself).
        timeout: seconds after which it fails with DeadlineExceeded. skip_special False: control tokens stay in the
        text by their names.
        """
        return self.add_group(prompt, [params], masks=[mask], user=user, timeout=timeout, skip_special=skip_special)[0]

    def add_group(
        self,
        prompt: str | Sequence[int],
        params: Sequence[SamplingParams],
        *,
        masks: Sequence[Mask | None] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        skip_special: bool = True,
    ) -> list[int]:
        """Several answers to one prompt, which is read once and copied: one SamplingParams (a seed of its own) each."""
        if not params or (masks is not None and len(masks) != len(params)):
            raise ValueError(f"{len(params)} SamplingParams and {len(masks or ())} masks; allowed: 1 or more, as many")
        jobs = []
        for p, mask in zip(params, masks or [None] * len(params), strict=True):
            ids, writer, sampler = self.begin(prompt, p, skip_special=skip_special)
            jobs.append(self._job(ids, user, timeout, Answer(writer, sampler, mask), writer.max_tokens))
        leader, *leader.followers = jobs
        return self._enqueue(leader)

    def add_embedding(
        self, prompt: str | Sequence[int], *, user: str | None = None, timeout: float | None = None
    ) -> int:
        """Queue a text whose embedding `embedded` will give."""
        import numpy as np

        if self._final_norm is None:
            raise ValueError("this engine was built without the final norm; embeddings need Engine.from_pretrained")
        ids = self.encode(prompt)
        if len(ids) > self.context:
            raise ValueError(f"the text has {len(ids)} tokens; the context is {self.context}: shorten it")
        writer = Writer(SamplingParams(), 0, frozenset(), None)
        answer = Answer(writer, None, pooled=np.zeros(self.config.hidden_size))
        return self._enqueue(self._job(ids, user, timeout, answer, 0))[0]

    def begin(
        self, prompt: str | Sequence[int], params: SamplingParams, *, skip_special: bool = True
    ) -> tuple[list[int], Writer, Any]:
        """(ids, the writer of the answer, the sampler that has seen the ids) of a checked prompt; nothing is queued."""
        ids = self.encode(prompt)
        room = self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; the context is {self.context}, one of it for the answer"
            )
        self._check_ids("logit_bias", [t for t, _ in params.logit_bias])
        if params.think is not None:
            self._check_ids("the think budget", [*params.think.start, *params.think.end])
        eos = frozenset(self.config.eos_ids) | (frozenset(self.tokenizer.eos_ids) if self.tokenizer else frozenset())
        sampler = native.Sampler(
            temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p,
            repetition_penalty=params.repetition_penalty, presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty, bias=list(params.logit_bias), seed=params.seed,
            logprobs=-1 if params.logprobs is None else params.logprobs,
        )  # fmt: skip
        sampler.saw(ids)
        writer = Writer(params, min(params.max_tokens, room), eos, self.tokenizer, skip_special)
        writer.completion.prompt_tokens = len(ids)
        return ids, writer, sampler

    def _job(self, ids: list[int], user: str | None, timeout: float | None, answer: Answer, more: int) -> Job:
        number, self._next_id = self._next_id, self._next_id + 1
        deadline = None if timeout is None else time.monotonic() + timeout
        name = f"#{number}" if user is None else user
        return Job(number, ids, name, reserve=len(ids) + more, deadline=deadline, payload=answer)

    def _enqueue(self, leader: Job) -> list[int]:
        slots = max(1, self._core.max_slots)
        for job in leader.followers:
            self._scheduler.check(job)
        self._scheduler.add(leader, retry_after=max(1.0, self._seconds_each * (1 + self.waiting) / slots))
        jobs = [leader, *leader.followers]
        self._jobs |= {j.id: j for j in jobs}
        return [j.id for j in jobs]

    def peek(self, request: int) -> Completion:
        """The answer so far of a request that is not finished."""
        return self._jobs[request].payload.writer.completion

    def finished(self, request: int) -> Completion | None:
        """The answer of a request, handed over once, or None while it is being written. Raises what went wrong with it
        (DeadlineExceeded, or what its mask raised)."""
        result = self._done.pop(request, None)
        if isinstance(result, Exception):
            raise result
        assert result is None or isinstance(result, Completion), "embedded() hands over embeddings"
        return result

    def embedded(self, request: int) -> "np.ndarray | None":
        """As `finished`, the embedding of add_embedding: fp32 (hidden_size,), not normalised."""
        result = self._done.pop(request, None)
        if isinstance(result, Exception):
            raise result
        assert not isinstance(result, Completion), "finished() hands over answers"
        return result

    def cancel(self, request: int) -> None:
        """Forget a request and free its sequence; nothing happens when it is not known."""
        self._done.pop(request, None)
        if request in self._jobs:
            self._remove(self._jobs[request])
            self.counters.cancelled += 1

    def _remove(self, job: Job) -> None:
        """Take a job out of everything. Its followers go on without it."""
        del self._jobs[job.id]
        if job in self._scheduler.running:
            self._scheduler.finish(job)
            if job.slot >= 0:
                self._core.close(job.slot)
        elif job in self._scheduler.all():
            self._scheduler.drop(job)
        else:
            for leader in (j for j in self._jobs.values() if job in j.followers):
                leader.followers.remove(job)
        if job.followers:
            heir, *heir.followers = job.followers
            self._scheduler.add(heir, first=True)

    # --- running ---

    def step(self, burst: int = 1) -> list[tuple[int, str]]:
        """Run once; (request, new certain text) of each answer that moved. burst: tokens for an answer alone."""
        self._expire()
        while (job := self._scheduler.admit()) is not None:
            self._start(job)
        writing = [j for j in self._scheduler.running if not j.reading]
        if burst > 1 and len(self._scheduler) == 1 and writing and writing[0].payload.alone:
            return self._burst(writing[0], burst)
        events: list[tuple[int, str]] = []
        most = min(self._core.max_tokens, self._core.max_selected)
        for start in range(0, len(writing), most):
            some = writing[start : start + most]
            # Apart from the prompts, whose arithmetic may differ, and so that text does not wait for them.
            self._core.run([(j.slot, j.payload.writer.completion.ids[-1:], "last") for j in some], decode=True)
            self.counters.decode_runs += 1
            events += self._take(list(enumerate(some)))
        events += self._read(min(self._core.max_tokens, _BESIDE_ANSWERS) if writing else self._core.max_tokens)
        return events

    def read_again(self) -> bool:
        """For times with no request: read a piece of the newest answer into the prefix cache, where its own states may
        not go. False when there was nothing to do."""
        if self._again is None or not self.idle:
            return False
        more = self._again.step()
        self.counters.tokens_again = self._again.tokens
        return more

    def _start(self, job: Job) -> None:
        try:
            job.slot = self._open()
            self._restore(job)
        except (MemoryError, ValueError) as e:  # no memory or no slot: this one is given up, the others go on
            self._fail(job, e)

    def _open(self) -> int:
        """A slot for a request, for which what is read again goes aside."""
        if self._again is not None and len(self._scheduler.running) >= self._core.max_slots - 1:
            self._again.pause()
        return self._core.open()

    def _read(self, budget: int) -> list[tuple[int, str]]:
        """Read the next pieces of prompts; the first tokens of those that are through."""
        pieces = self._scheduler.pieces(max(budget, BLOCK))[: self._core.max_selected]
        if not pieces:
            return []
        work = []
        for job, count in pieces:
            piece = job.prompt[job.read : job.read + count]
            through = job.read + count == len(job.prompt) and job.payload.pooled is None
            work.append((job.slot, piece, "last" if through else "none"))
        self._core.run(work)
        self.counters.prompt_runs += 1
        first = 0
        rows: list[tuple[int, Job]] = []
        num_rows = 0
        for (job, count), (_, _, want) in zip(pieces, work, strict=True):
            if job.payload.pooled is not None:
                self._pool(job, first, count)
            first += count
            job.read += count
            self.counters.prompt_tokens += count
            self._store(job, job.prompt, job.read)
            if want == "last":
                rows += [(num_rows, j) for j in [job, *self._follow(job)]]
                num_rows += 1
        return self._take(rows)

    def _follow(self, leader: Job) -> list[Job]:
        """The followers of a prompt that is read: those that there is room for, running; the rest wait for a slot."""
        started, waiting = [], []
        followers, leader.followers = leader.followers, []
        for job in followers:
            try:
                if not self._scheduler.fits(job):
                    raise MemoryError
                job.slot = self._open()
            except (MemoryError, ValueError):  # not now; a start that fails too gives up this one alone
                waiting.append(job)
                continue
            self._scheduler.start(job)
            try:
                self._core.copy(leader.slot, job.slot)
            except MemoryError as e:
                self._fail(job, e)
                continue
            answer = job.payload
            answer.keys, answer.stored = leader.payload.keys, leader.payload.stored
            job.read = answer.writer.completion.cached_tokens = len(job.prompt)
            started.append(job)
        for job in reversed(waiting):
            self._scheduler.add(job, first=True)
        return started

    def _take(self, rows: Sequence[tuple[int, Job]]) -> list[tuple[int, str]]:
        """Sample from rows of the last run; a job whose mask fails is given up alone."""
        events = []
        for row, job in rows:
            answer, c = job.payload, job.payload.writer.completion
            try:
                forced = answer.writer.forced()
                allowed = None if answer.mask is None or forced is not None else answer.mask(c.ids)
                token, logprob, likely = answer.sampler.pick(
                    self._core, row, allowed, answer.writer.forbidden(), -1 if forced is None else forced
                )
            except Exception as e:
                self._fail(job, e)
                continue
            answer.sampler.wrote(token)
            answer.prefilled = answer.prefilled or time.perf_counter()
            said = None if c.logprobs is None else Logprob(token, logprob, tuple(likely))
            events.append((job.id, answer.writer.push(token, said)))
            self.counters.answer_tokens += 1
            if answer.writer.done:
                self._retire(job)
        return events

    def _burst(self, job: Job, burst: int) -> list[tuple[int, str]]:
        writer, sampler = job.payload.writer, job.payload.sampler
        c = writer.completion
        count = min(burst, writer.max_tokens - len(c.ids))
        try:
            tokens = self._core.decode(job.slot, c.ids[-1], count, sampler, sorted(writer.eos_ids))
        except Exception as e:  # as in _take; where the slot stands now is not known
            self._fail(job, e)
            return []
        text = "".join(writer.push(t) for t in tokens)
        self.counters.answer_tokens += len(tokens)
        if writer.done:
            self._retire(job)
        return [(job.id, text)]

    def _retire(self, job: Job) -> None:
        answer, c = job.payload, job.payload.writer.completion
        now = time.perf_counter()
        c.prefill_seconds, c.decode_seconds = answer.prefilled - answer.started, now - answer.prefilled
        if self._again is None:
            self._store(job, [*job.prompt, *c.ids], self._core.length(job.slot))
        else:  # a prompt that repeats this answer would get other bits from its states than a run alone
            self._again.note([*job.prompt, *c.ids])
        self._finish(job, c)
        self._seconds_each += 0.1 * (now - answer.started - self._seconds_each)

    def _finish(self, job: Job, result: Any) -> None:
        self._remove(job)
        self._done[job.id] = result
        self.counters.done += 1

    def _fail(self, job: Job, error: Exception) -> None:
        self._remove(job)
        self._done[job.id] = error
        self.counters.failed += 1

    def _expire(self) -> None:
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.deadline is not None and now > job.deadline:
                self._fail(job, DeadlineExceeded("the request's time is over; ask for less, or allow more time"))

    # --- what prompts share ---

    def _restore(self, job: Job) -> None:
        """Start from what an earlier prompt had in common with this one; one token at least is left to be read."""
        if self.prefix_cache is None or job.payload.pooled is not None:
            return
        answer = job.payload
        answer.keys, answer.stored, shared = self.prefix_cache.restore(self._core, job.slot, job.prompt)
        job.read = answer.writer.completion.cached_tokens = answer.stored * BLOCK
        job.stop_at = shared * BLOCK

    def _store(self, job: Job, ids: list[int], held: int) -> None:
        """Keep the blocks of `ids` that the slot holds whole, with the tail at the last of them where it is known."""
        cache, answer = self.prefix_cache, job.payload
        blocks = held // BLOCK
        if cache is None or answer.pooled is not None or blocks <= answer.stored:
            return
        if blocks > len(answer.keys):
            answer.keys = cache.keys(ids[: blocks * BLOCK])
        cache.store(self._core, job.slot, answer.keys[:blocks], answer.stored)
        answer.stored = blocks

    # --- in one call ---

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
        return at_once.generate(self, prompts, each, on_text, 1 if on_text else _BURST)

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        params: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
        *,
        tools: Sequence[dict[str, Any] | str] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """The model's answer to a conversation in OpenAI's shape, its markup (calls, thoughts) left in the text.

        headwater.Chat takes the text apart: `chat.splitter(tools=tools)`. ValueError where the model has no chat style.
        """
        rendered = self.chat_style.render(list(messages), tools=tools, add_generation_prompt=True, today="now")
        request = self.add(rendered.encode()[0], params, skip_special=False)
        try:
            while True:
                for r, text in self.step(1 if on_text else _BURST):
                    if r == request and text and on_text is not None:
                        on_text(text)
                if (c := self.finished(request)) is not None:
                    return c
        finally:
            self.cancel(request)

    @property
    def chat_style(self) -> "Chat":
        """How this model writes conversations. ValueError where it has no tokenizer or no known template."""
        if self._chat is None:
            if self.tokenizer is None:
                raise ValueError("the model came without a tokenizer; give token ids instead of messages")
            if self.tokenizer.chat_template is None:
                raise ValueError("the model has no chat template (a base model?); name one: style='lfm2', for example")
            from headwater.chat import Chat

            self._chat = Chat.of(self.tokenizer)
        return self._chat

    def stream(self, prompt: str | Sequence[int], params: SamplingParams = SamplingParams()) -> Iterator[str]:  # noqa: B008
        """The answer's text, piece by piece as it becomes certain."""
        request = self.add(prompt, params)
        try:
            while self.finished(request) is None:
                yield from (text for r, text in self.step() if r == request and text)
        finally:
            self.cancel(request)

    def embed(self, texts: Sequence[str | Sequence[int]]) -> "np.ndarray":
        """fp32 (texts, hidden_size): the mean over tokens of the hidden states after the final norm, of length 1."""
        if isinstance(texts, str):
            raise ValueError("embed takes a list of texts; put this one in a list")
        return at_once.embed(self, texts)

    def logits(self, ids: Sequence[int], *, chunk_size: int | None = None, decode: bool = False) -> "np.ndarray":
        """fp32 logits (tokens, vocabulary) after each of the ids, read as one new sequence; decode: with the arithmetic
        of answers (docs/engine.md)."""
        return reading.logits(self._core, self.encode(ids), chunk_size, decode)

    def likeliest(self, ids: Sequence[int], k: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """What follows each of the ids, read as one new sequence: the k likeliest ids (tokens, k) in order, their
        log-probabilities, and the share of the whole distribution that they have (tokens), in fp64."""
        return reading.likeliest(self._core, self.encode(ids), k)

    def _pool(self, job: Job, first: int, count: int) -> None:
        rows = self._core.sum_normed("x", first, count, self.config.hidden_size, self._final_norm, self.config.norm_eps)
        job.payload.pooled += rows[0]
        if job.read + count == len(job.prompt):
            self._finish(job, (job.payload.pooled / len(job.prompt)).astype("float32"))

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt, checked. Safe to call from any thread. ValueError as `add`."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("the model came without a tokenizer; give token ids instead of text")
            prompt = self.tokenizer.encode(prompt, bos=self.tokenizer.add_bos)
        ids = [int(t) for t in prompt]
        if not ids:
            raise ValueError("the prompt is empty; allowed: at least one token (the BOS token alone will do)")
        self._check_ids("the prompt", ids)
        return ids

    def _check_ids(self, what: str, ids: Sequence[int]) -> None:
        if not all(0 <= t < self.config.vocab_size for t in ids):
            raise ValueError(f"{what} has ids outside 0..{self.config.vocab_size - 1}; is it the model's tokenizer?")


def _styled(tokenizer: Tokenizer, style: str) -> "Chat":
    from headwater.chat import Chat

    return Chat(tokenizer, style)
