"""Several asynchronous generators as one, each item with the number of its source."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """(source, item) as they come. The first fault ends all; every source is closed at the end."""
    results: asyncio.Queue[tuple[int, T | None, Exception | None]] = asyncio.Queue()

    async def drain(index: int, source: AsyncGenerator[T, None]) -> None:
        fault = None
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    results.put_nowait((index, item, None))
        except Exception as e:
            fault = e
        results.put_nowait((index, None, fault))

    if len(sources) == 1:
        async with contextlib.aclosing(sources[0]):
            async for only in sources[0]:
                yield 0, only
        return
    tasks = [asyncio.create_task(drain(i, s)) for i, s in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, item, fault = await results.get()
            if fault is not None:
                raise fault
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
