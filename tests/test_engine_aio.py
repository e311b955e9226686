"""AsyncEngine: streams of many tasks at once, cancelling, deadlines, shutting down; the same tokens as alone."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from test_engine_requests import engine
from test_native_program import config, model, tokens

from headwater.engine.aio import AsyncEngine, EngineClosed
from headwater.engine.engine import DeadlineExceeded, QueueFull
from headwater.sampling import SamplingParams

LONG = SamplingParams(max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def m():
    return model(config("lfm2"))


def run(work, m, **options):
    """`work(front)` in an event loop; nothing may be left behind."""

    async def whole():
        async with AsyncEngine(engine(m, **options)) as front:
            result = await work(front)
            assert await front.call(lambda e: e.idle) or not await asyncio.sleep(0.2)
            assert await front.call(lambda e: (e.running, e.waiting)) == (0, 0)
            return result

    return asyncio.run(asyncio.wait_for(whole(), 300))


def test_many_streams_get_what_each_would_get_alone(m):
    prompts = [tokens(n, seed=n) for n in (3, 150, 60, 9, 200, 31, 5, 77)]
    asked = SamplingParams(max_tokens=15, logprobs=1)
    want = [engine(m).generate([p], asked)[0] for p in prompts]

    async def one(front, prompt, delay):
        await asyncio.sleep(delay)
        ids, said, last = [], [], None
        async with aclosing(front.stream(prompt, asked)) as deltas:
            async for d in deltas:
                ids += d.ids
                said += d.logprobs
                last = d.completion or last
        assert last.ids == ids and len(said) == len(ids)
        return last

    async def work(front):
        return await asyncio.gather(*(one(front, p, 0.01 * i) for i, p in enumerate(prompts)))

    assert run(work, m) == want


def test_a_stream_that_is_left_frees_its_slot(m):
    async def work(front):
        for _ in range(10):
            async with aclosing(front.stream(tokens(100), LONG)) as deltas:
                async for _ in deltas:
                    break
        tasks = [asyncio.create_task(front.generate(tokens(60, seed=i), LONG)) for i in range(12)]
        await asyncio.sleep(0.05)
        for t in tasks:
            t.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)  # a quick machine may have finished the first
        assert isinstance(ends[-1], asyncio.CancelledError)
        return (await front.generate(tokens(9), SamplingParams(max_tokens=5))).ids

    assert run(work, m) == engine(m).generate([tokens(9)], SamplingParams(max_tokens=5))[0].ids


def test_errors_come_to_their_own_stream(m):
    async def work(front):
        with pytest.raises(ValueError, match="outside"):
            await front.generate([999])
        with pytest.raises(DeadlineExceeded):
            await front.generate(tokens(5), LONG, timeout=0.0)
        tasks = [asyncio.create_task(front.generate(tokens(5, seed=i), LONG)) for i in range(16)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r).__name__ for r in results} == {"Completion", "QueueFull"}
        assert any(isinstance(r, QueueFull) and r.retry_after > 0 for r in results)

    run(work, m, max_queue=3)


def test_several_answers_and_embeddings(m):
    params = [SamplingParams(max_tokens=8, temperature=1.0, seed=s) for s in range(3)]
    alone = engine(m)
    want = [alone.generate([tokens(50)], p)[0].ids for p in params]

    async def work(front):
        answers = {}
        async with aclosing(front.stream(tokens(50), params)) as deltas:
            async for d in deltas:
                answers.setdefault(d.index, []).extend(d.ids)
        vectors = await asyncio.gather(*(front.embed(tokens(n)) for n in (5, 90)))
        return [answers[i] for i in range(3)], vectors

    answers, vectors = run(work, m)
    assert answers == want
    for got, n in zip(vectors, (5, 90), strict=True):
        assert np.allclose(got / np.linalg.norm(got), alone.embed([tokens(n)])[0])


def test_closing_finishes_what_runs_and_refuses_what_comes(m):
    async def work():
        front = AsyncEngine(engine(m))
        running = asyncio.create_task(front.generate(tokens(5), SamplingParams(max_tokens=50, ignore_eos=True)))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(asyncio.to_thread(front.close))
        await asyncio.sleep(0)
        assert len((await running).ids) == 50
        assert await closing
        with pytest.raises(EngineClosed):
            await front.generate(tokens(5))

    asyncio.run(asyncio.wait_for(work(), 300))


def test_closing_with_a_bound_cuts_streams_short(m):
    async def work():
        front = AsyncEngine(engine(m))
        tasks = [asyncio.create_task(front.generate(tokens(5, seed=i), LONG)) for i in range(40)]
        await asyncio.sleep(0.1)
        assert not await asyncio.to_thread(front.close, timeout=0.05)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(r, EngineClosed) for r in results)

    asyncio.run(asyncio.wait_for(work(), 300))


def test_an_engine_that_fails_lets_nobody_wait(m):
    async def work():
        e = engine(m)
        front = AsyncEngine(e)

        def broken(*_, **__):
            raise MemoryError("gone")

        await front.call(lambda e: setattr(e, "step", broken))
        with pytest.raises(MemoryError):
            await front.generate(tokens(5), LONG)
        assert isinstance(front.failure, MemoryError)
        with pytest.raises(EngineClosed):
            await front.generate(tokens(5))

    asyncio.run(asyncio.wait_for(work(), 300))
