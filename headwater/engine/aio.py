"""An Engine for asyncio programs: one thread runs the core, any number of coroutines stream answers from it.

A stream that is left (its client went away, its task was cancelled) frees its slot before the next run. Not an HTTP
server: that is headwater.serve.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from headwater.completion import Completion, Logprob
from headwater.engine.engine import Engine, Mask
from headwater.sampling import SamplingParams

_log = logging.getLogger(__name__)
T = TypeVar("T")
_Call = Callable[[BaseException | None], None]
"""Run on the engine's thread; with an exception when it can no longer be run."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests: it is shutting down, or its thread has failed."""


@dataclass(frozen=True)
class Delta:
    """What one step added to answer `index` of a request. completion: the whole answer, once, with the last delta."""

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...]
    completion: Completion | None = None


@dataclass(eq=False)
class _Listener:
    """Where the deltas of the answers of one call go: a queue of its event loop."""

    loop: asyncio.AbstractEventLoop
    deltas: asyncio.Queue
    left: int = 0
    requests: list[int] = field(default_factory=list)

    def send(self, item: Delta | BaseException) -> None:
        with suppress(RuntimeError):  # its loop is closed: nobody listens
            self.loop.call_soon_threadsafe(self.deltas.put_nowait, item)


@dataclass(eq=False)
class _Answer:
    listener: _Listener
    index: int
    completion: Completion
    told: int = 0


class AsyncEngine:
    """Owns `engine`: from here on only its thread touches it. Use `async with`, or call `close`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._answers: dict[int, _Answer] = {}
        self._vectors: dict[int, Future] = {}
        self.failure: BaseException | None = None  # what ended the thread before its time
        self._closing, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="headwater-engine", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """For reading: config, tokenizer, chat_style, context, running, waiting, counters."""
        return self._engine

    async def __aenter__(self) -> "AsyncEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
        *,
        masks: Sequence[Mask | None] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        skip_special: bool = True,
    ) -> AsyncIterator[Delta]:
        """The deltas of an answer as they are written, or of several answers to one prompt (one SamplingParams each).

        Arguments and errors as Engine.add_group; DeadlineExceeded, or what a mask raised, come out of the iteration.
        Leave it with `aclose` (contextlib.aclosing) and its requests are cancelled.
        """
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        each = [params] if isinstance(params, SamplingParams) else list(params)

        ids = await asyncio.to_thread(self._engine.encode, prompt)  # long texts take long

        def begin() -> None:
            requests = self._engine.add_group(
                ids, each, masks=masks, user=user, timeout=timeout, skip_special=skip_special
            )
            listener.requests, listener.left = requests, len(requests)
            for i, request in enumerate(requests):
                self._answers[request] = _Answer(listener, i, self._engine.peek(request))

        try:
            await self._ask(begin)
            while listener.left:
                delta = await listener.deltas.get()
                if isinstance(delta, BaseException):
                    raise delta
                listener.left -= delta.completion is not None
                yield delta
        finally:
            if listener.left or not listener.requests:
                self._put(lambda _: self._leave(listener))

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> Completion:
        """One whole answer; options as `stream`."""
        async with aclosing(self.stream(prompt, params, **options)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if delta.completion is not None:
                    return delta.completion
        raise AssertionError("a stream ends with a completion")

    async def embed(
        self, text: str | Sequence[int], *, user: str | None = None, timeout: float | None = None
    ) -> np.ndarray:
        """As Engine.embed of one text, not normalised."""
        ids = await asyncio.to_thread(self._engine.encode, text)
        requests: list[int] = []
        result: Future[np.ndarray] = Future()

        def begin() -> None:
            request = self._engine.add_embedding(ids, user=user, timeout=timeout)
            requests.append(request)
            self._vectors[request] = result

        def leave(_: BaseException | None) -> None:
            for request in requests:
                self._vectors.pop(request, None)
                self._engine.cancel(request)

        try:
            await self._ask(begin)
            return await asyncio.wrap_future(result)
        finally:
            if not result.done() or result.cancelled():
                self._put(leave)

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run a short function on the engine's thread, between steps."""
        return await self._ask(lambda: function(self._engine))

    def close(self, *, timeout: float | None = None) -> bool:
        """Take no more requests, finish those that are there (for at most `timeout` seconds), end the thread.

        False when requests were cut short.
        """
        self._closing.set()
        self._calls.put(lambda _: None)
        self._thread.join(timeout)
        whole = not self._thread.is_alive()
        if not whole:
            self._calls.put(self._give_up)
            self._thread.join()
        return whole

    # --- on the caller's thread ---

    async def _ask(self, function: Callable[[], T]) -> T:
        """Run `function` on the engine's thread; its result or exception."""
        if self._closing.is_set():
            raise EngineClosed("the server is shutting down")
        result: Future[T] = Future()

        def run(error: BaseException | None) -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                if error is not None:
                    raise error
                result.set_result(function())
            except BaseException as e:
                result.set_exception(e)

        self._put(run)
        return await asyncio.wrap_future(result)

    def _put(self, call: _Call) -> None:
        self._calls.put(call)
        if self._ended.is_set():  # the thread may have looked for the last time already
            self._refuse_calls(EngineClosed("the server is shutting down"))

    # --- on the engine's thread ---

    def _serve(self) -> None:
        """Calls and steps until closed and idle."""
        try:
            more = False
            while True:
                self._take_calls(wait=self._engine.idle and not more)
                if self._closing.is_set() and self._engine.idle:
                    return
                if self._engine.idle:
                    more = self._engine.read_again()
                else:
                    self._step()
                    more = True
        except BaseException as e:
            _log.exception("the engine has failed")
            self.failure = e
            self._closing.set()
            self._abort(e)
        finally:
            self._closing.set()
            self._ended.set()
            self._abort(EngineClosed("the server is shutting down"))

    def _take_calls(self, *, wait: bool) -> None:
        while True:
            try:
                call = self._calls.get(block=wait)
            except queue.Empty:
                return
            wait = False
            call(None)

    def _step(self) -> None:
        for request, text in self._engine.step():
            if request in self._answers:
                self._tell(request, text)
        for request in list(self._answers):
            self._settle(request)
        for request in list(self._vectors):
            self._settle_vector(request)

    def _tell(self, request: int, text: str, completion: Completion | None = None) -> None:
        answer = self._answers[request]
        c, start = answer.completion, answer.told
        answer.told = len(c.ids)
        said = tuple(c.logprobs[start:]) if c.logprobs is not None else ()
        answer.listener.send(Delta(answer.index, text, tuple(c.ids[start:]), said, completion))

    def _settle(self, request: int) -> None:
        """Hand over an answer that is finished, or what went wrong with it."""
        try:
            completion = self._engine.finished(request)
        except Exception as e:
            self._answers.pop(request).listener.send(e)
            return
        if completion is not None:
            self._tell(request, "", completion)
            del self._answers[request]

    def _settle_vector(self, request: int) -> None:
        try:
            vector = self._engine.embedded(request)
        except Exception as e:
            _resolve(self._vectors.pop(request), e)
            return
        if vector is not None:
            _resolve(self._vectors.pop(request), vector)

    def _leave(self, listener: _Listener) -> None:
        for request in listener.requests:
            self._answers.pop(request, None)
            self._engine.cancel(request)

    def _give_up(self, _: BaseException | None) -> None:
        for listener in {a.listener for a in self._answers.values()}:
            listener.send(EngineClosed("the server is shutting down"))
            self._leave(listener)
        for request in list(self._vectors):
            _resolve(self._vectors.pop(request), EngineClosed("the server is shutting down"))
            self._engine.cancel(request)

    def _abort(self, error: BaseException) -> None:
        """Nobody waits for ever: every stream and every call that is left gets `error`."""
        for listener in {a.listener for a in self._answers.values()}:
            listener.send(error)
        for future in self._vectors.values():
            _resolve(future, error)
        self._answers, self._vectors = {}, {}
        self._refuse_calls(error)

    def _refuse_calls(self, error: BaseException) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call(error)


def _resolve(future: Future, result: Any) -> None:
    """Give a waiting coroutine its result or exception, if it still waits."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
