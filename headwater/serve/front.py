"""Requests of the event loop on one engine in one thread: submit, a stream of pieces, cancel. Nobody else touches it.

The engine decides what runs when; here is only the way there and back, the limit of the queue, and the clock.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from headwater.completion import Completion, Logprob, Writer
from headwater.engine.engine import Engine, _Request
from headwater.sampling import SamplingParams
from headwater.serve.errors import ApiError
from headwater.serve.guide import Guide, GuidedSampler


@dataclass(frozen=True)
class Piece:
    """One token of an answer: the text that became certain with it, and its log probability if asked for."""

    token: int
    text: str
    logprob: Logprob | None = None


@dataclass(frozen=True)
class Work:
    """What the engine is asked: ids to continue, how, and under which guide."""

    ids: list[int]
    params: SamplingParams
    guide: Guide | None = None
    skip_special: bool = False


@dataclass
class Stats:
    """Counters that /metrics shows; written by the engine's thread, read by anybody."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    cancelled: int = 0
    ttft: Callable[[float], None] = lambda seconds: None
    gap: Callable[[float], None] = lambda seconds: None


class Ticket:
    """One request on its way: iterate over its pieces, then read `completion`."""

    def __init__(self, front: "Front", work: Work) -> None:
        self.work = work
        self.cached_tokens = 0
        self.completion: Completion | None = None
        self.id = -1
        self.writer: Writer | None = None
        self.closed = False
        self.last = self.begun = time.perf_counter()
        self._front, self._loop = front, asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    def put(self, item: Piece | Exception | None) -> None:
        """From the engine's thread; None: the end."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (item := await self._pieces.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> None:
        """Free the slot; nothing happens when the answer is complete."""
        self._front.cancel(self)


@dataclass
class Front:
    """Start it, submit, close it. slots run at a time, and queue_limit more may wait."""

    engine: Engine
    slots: int
    queue_limit: int
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self._commands: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._live: dict[int, Ticket] = {}
        self._open: set[Ticket] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def running(self) -> int:
        return min(len(self._open), self.slots)

    @property
    def waiting(self) -> int:
        return max(0, len(self._open) - self.slots)

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what still runs is dropped."""
        self._commands.put(("close", None))
        self._thread.join()

    def submit(self, work: Work) -> Ticket:
        """Queue a request; ApiError 429 when too many wait. From the event loop."""
        if len(self._open) >= self.slots + self.queue_limit:
            raise ApiError(
                f"{len(self._open)} requests run or wait here already, which is the limit; try again later",
                status=429, code="queue_full", retry_after=1 + self.waiting // max(1, self.slots),
            )  # fmt: skip
        ticket = Ticket(self, work)
        self._open.add(ticket)
        self._commands.put(("add", ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        if not ticket.closed:
            ticket.closed = True
            self._open.discard(ticket)
            self._commands.put(("cancel", ticket))

    # -- the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                while not (self._live and self._commands.empty()):
                    what, ticket = self._commands.get()
                    if what == "close":
                        return
                    self._obey(what, ticket)
                self._step()
            except Exception as e:
                self._fail(e)

    def _obey(self, what: str, ticket: Ticket) -> None:
        if what == "cancel":
            if self._live.pop(ticket.id, None) is not None:
                self.engine.cancel(ticket.id)
                self.stats.cancelled += 1
            return
        if ticket.closed:
            return
        try:
            ticket.id = self._add(ticket)
        except Exception as e:
            self._end(ticket, e)
            return
        self._live[ticket.id] = ticket
        self.stats.prompt_tokens += len(ticket.work.ids)

    def _add(self, ticket: Ticket) -> int:
        engine, work = self.engine, ticket.work
        ids, writer, sampler = engine.begin(work.ids, work.params, skip_special=work.skip_special)
        if work.guide is not None:
            sampler = GuidedSampler(sampler, work.guide)
        ticket.writer = writer
        request = _Request(engine._next_id, ids, writer, sampler)
        engine._next_id += 1
        engine._waiting.append(request)
        return request.id

    def _step(self) -> None:
        events = self.engine.step()
        now = time.perf_counter()
        for request, text in events:
            ticket = self._live.get(request)
            if ticket is None:
                continue
            assert ticket.writer is not None
            c = ticket.writer.completion
            ticket.put(Piece(c.ids[-1], text, c.logprobs[-1] if c.logprobs else None))
            (self.stats.ttft if len(c.ids) == 1 else self.stats.gap)(now - ticket.last)
            ticket.last = now
            self.stats.generated_tokens += 1
            done = self.engine.finished(request)
            if done is not None:
                ticket.completion = done
                del self._live[request]
                self._end(ticket, None)

    def _end(self, ticket: Ticket, how: Exception | None) -> None:
        ticket.put(how)
        ticket._loop.call_soon_threadsafe(self._forget, ticket)

    def _forget(self, ticket: Ticket) -> None:
        ticket.closed = True
        self._open.discard(ticket)

    def _fail(self, error: Exception) -> None:
        """A step that raised would raise again: everybody who ran is told, and the engine starts afresh."""
        live, self._live = self._live, {}
        for request, ticket in live.items():
            self.engine.cancel(request)
            self._end(ticket, error)
