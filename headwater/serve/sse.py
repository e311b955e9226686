"""Answers that stream: server-sent events with signs of life, an end at the client's disconnect, and a time limit.

The waiting for a disconnect serves answers in one piece too. Starlette's own streaming notices a lost client only when
it writes; a slot must be freed at once.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headwater.serve.errors import ApiError

log = logging.getLogger("headwater.serve")
T = TypeVar("T")
KEEP_ALIVE = b": keep-alive\n\n"
_FAREWELL_SECONDS = 5.0
"""For the last words of a stream, however slowly its client reads."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip


class Disconnected(Exception):
    """The client went away; nobody reads an answer any more."""


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends what `events` yields. close: called at the end in any case; fault: an exception in the API's own words."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], None],
        fault: Callable[[Exception], bytes],
        keep_alive: float,
        limit: float,
    ) -> None:
        self.status_code, self.background = 200, None
        self.body = b""
        self.raw_headers = list(_HEADERS)
        self._events, self._close, self._fault = events, close, fault
        self._keep_alive, self._limit = keep_alive, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sender = asyncio.create_task(self._send(send))
            gone = asyncio.create_task(_disconnect(receive))
            try:
                await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _stop(sender, gone)
                await self._events.aclose()
        finally:
            self._close()  # a generator that never began does not run its own end

    async def _send(self, send: Send) -> None:
        async def put(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        last = b""
        try:
            async with asyncio.timeout(self._limit), aclosing(with_keep_alive(self._events, self._keep_alive)) as found:
                async for data in found:
                    await put(data)
        except TimeoutError:
            last = self._fault(late(self._limit))
        except OSError:
            return  # the client went away while we wrote
        except Exception as e:
            if not isinstance(e, ApiError):
                log.error("a stream failed", exc_info=e)
            last = self._fault(e)
        # A client that reads no more must not keep its place for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                if last:
                    await put(last)
                await put(b"", more=False)


async def with_keep_alive(events: AsyncIterator[bytes], seconds: float) -> AsyncGenerator[bytes, None]:
    """The events, and a comment whenever none came for so long."""
    iterator = aiter(events)
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(iterator))  # type: ignore[arg-type]
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            task, pending = pending, None
            try:
                yield task.result()
            except StopAsyncIteration:
                return
    finally:
        if pending is not None:
            await _stop(pending)


async def attended(request: Request, work: Coroutine[Any, Any, T], close: Callable[[], None], limit: float) -> T:
    """The result of `work`, unless the client goes away (Disconnected) or `limit` seconds pass (ApiError).

    close: called at the end in any case.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected if gone.done() else late(limit)
    finally:
        await _stop(task, gone)
        close()


def late(limit: float) -> ApiError:
    """What is said when an answer takes too long."""
    return ApiError(f"the answer took longer than {limit:g} s, the limit of this server", status=504, code="timeout")


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
