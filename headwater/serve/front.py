"""The way of requests to the engine and back: the limit of the queue, faults in the words of HTTP, times for metrics.

The engine's own thread, its scheduler and its prefix cache are headwater.engine's (aio, scheduler, prefix_cache).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from headwater.engine.aio import AsyncEngine, Delta, EngineClosed
from headwater.engine.engine import Engine, Mask, QueueFull
from headwater.sampling import SamplingParams
from headwater.serve.errors import ApiError


@dataclass(frozen=True)
class Work:
    """One prompt and the answers wanted: a SamplingParams and a mask for each. user: who shares fairly with others."""

    ids: list[int]
    params: Sequence[SamplingParams]
    masks: Sequence[Mask | None]
    skip_special: bool = False
    user: str | None = None


@dataclass
class Times:
    """Who is told the seconds to a first token, and between tokens."""

    first: Callable[[float], None] = lambda seconds: None
    gap: Callable[[float], None] = lambda seconds: None


class Ticket:
    """A place in the engine for one Work. Close it in any case; leaving `deltas` early frees the slots at once."""

    def __init__(self, front: "Front", work: Work) -> None:
        self.work, self.begun = work, time.perf_counter()
        self._front, self._closed = front, False

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What the engine writes. ApiError for what goes wrong there."""
        w = self.work
        stream = self._front.running_engine.stream(
            w.ids, w.params, masks=w.masks, user=w.user, skip_special=w.skip_special
        )
        last: dict[int, float] = {}
        try:
            async with aclosing(stream) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    if delta.ids:
                        self._clock(delta.index, last)
                    yield delta
        except (QueueFull, EngineClosed, MemoryError) as e:
            raise refusal(e) from e

    def _clock(self, index: int, last: dict[int, float]) -> None:
        now, times = time.perf_counter(), self._front.times
        if index in last:
            times.gap(now - last[index])
        else:
            times.first(now - self.begun)
        last[index] = now

    def close(self) -> None:
        """Give the place back; nothing happens the second time."""
        if not self._closed:
            self._closed = True
            self._front.leave(len(self.work.params))


@dataclass
class Front:
    """Start it inside an event loop, submit, close it. `queue_limit` answers may wait beside those that run."""

    engine: Engine
    queue_limit: int
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        self._running: AsyncEngine | None = None
        self.open = 0

    @property
    def slots(self) -> int:
        return self.engine.core.max_slots

    @property
    def running_engine(self) -> AsyncEngine:
        if self._running is None:
            raise ApiError("the server is not running", status=503)
        return self._running

    @property
    def alive(self) -> bool:
        """Whether requests are being answered."""
        return self._running is not None and self._running.failure is None

    def start(self) -> None:
        self._running = AsyncEngine(self.engine)

    async def close(self) -> None:
        """Take nothing more, end what is left, end the thread; the cache on disk is whole then."""
        if self._running is not None:
            await asyncio.to_thread(self._running.close, timeout=1.0)
        if self.engine.prefix_cache is not None:
            await asyncio.to_thread(self.engine.prefix_cache.close)

    def submit(self, work: Work) -> Ticket:
        """A place for the work; ApiError 429 when too many wait."""
        self._enter(len(work.params))
        return Ticket(self, work)

    async def embed(self, ids: list[int], user: str | None) -> np.ndarray:
        """The embedding of one text, fp32 (hidden_size,), of length 1."""
        self._enter(1)
        try:
            vector = await self.running_engine.embed(ids, user=user)
        except (QueueFull, EngineClosed, MemoryError) as e:
            raise refusal(e) from e
        finally:
            self.leave(1)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _enter(self, count: int) -> None:
        over = self.open + count - self.slots - self.queue_limit
        if over > 0:
            raise ApiError(
                f"{self.open} answers are being written or wait here, {count} more is over the limit; try again later",
                status=429, code="queue_full", retry_after=1 + over // self.slots,
            )  # fmt: skip
        self.open += count

    def leave(self, count: int) -> None:
        """Of Ticket."""
        self.open -= count


def refusal(error: BaseException) -> ApiError:
    """An exception of the engine in the words of HTTP."""
    if isinstance(error, QueueFull):
        return ApiError(str(error), status=429, code="queue_full", retry_after=1)
    if isinstance(error, EngineClosed):
        return ApiError(str(error), status=503, code="shutting_down")
    return ApiError("there is no memory for this request now; try again later", status=503, retry_after=5)
