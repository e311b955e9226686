"""Several asynchronous iterators as one, each item with the number of its source."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T | None]]:
    """(source, item) as they come, and (source, None) at each source's end. The first fault ends all."""
    if len(sources) == 1:
        async for only in sources[0]:
            yield 0, only
        yield 0, None
        return
    results: asyncio.Queue[tuple[int, T | None, BaseException | None]] = asyncio.Queue()

    async def drain(index: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                results.put_nowait((index, item, None))
        except Exception as e:
            results.put_nowait((index, None, e))
        else:
            results.put_nowait((index, None, None))

    tasks = [asyncio.create_task(drain(i, s)) for i, s in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, item, fault = await results.get()
            if fault is not None:
                raise fault
            left -= item is None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
