"""What the prefix cache saves: the first token of a long conversation's second turn, beside that of its first.

    python -m recipes.second_turn MODEL.gguf [--tokens 4096] [--rounds 3] [--threads 2]

Three second turns: in the same process, which has read the answer again while nobody waited; in the next one, from
disk; and with no cache, whose greedy tokens the others must give. Random weights will do.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from headwater.engine.aio import AsyncEngine
from headwater.engine.engine import Engine
from headwater.sampling import SamplingParams

ANSWER, QUESTION = 128, 30
ASKED = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
_CACHE = 1 << 30


async def timed(front: AsyncEngine, ids: list[int]) -> tuple[float, list[int], int]:
    """(seconds to the first token, the answer, tokens of the prompt that were cached)."""
    start, first = time.perf_counter(), 0.0
    async with aclosing(front.stream(ids, ASKED)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            first = first or time.perf_counter() - start
            if delta.completion is not None:
                return first, delta.completion.ids, delta.completion.cached_tokens
    raise AssertionError("a stream ends with a completion")


async def rested(front: AsyncEngine) -> None:
    """Until what was said is read again."""
    while await front.call(lambda e: e.read_again()):
        pass


async def a_round(model: Path, threads: int, context: int, prompt: list[int], question: list[int]) -> dict:
    """(seconds, cached tokens) of the kinds of turn; their answers are compared."""

    def engine(cache: int, directory: str | None = None) -> Engine:
        return Engine.from_pretrained(
            model, threads=threads, context=context, max_sequences=2, cache_bytes=cache, cache_dir=directory
        )

    with tempfile.TemporaryDirectory() as directory:
        kept = engine(_CACHE, directory)
        async with AsyncEngine(kept) as front:
            first, answer, _ = await timed(front, prompt)
            turn = [*prompt, *answer, *question]
            await rested(front)
            after = await timed(front, turn)
        assert kept.prefix_cache is not None
        kept.prefix_cache.close()
        following = engine(_CACHE, directory)
        async with AsyncEngine(following) as front:
            disk = await timed(front, turn)
        assert following.prefix_cache is not None
        following.prefix_cache.close()
    async with AsyncEngine(engine(0)) as front:
        plain = await timed(front, turn)
    assert after[1] == disk[1] == plain[1], "the cache changed an answer"
    found = {"no cache": plain, "in the same process": after, "in the next, from disk": disk}
    return {"first turn": (first, 0), **{name: (turn[0], turn[2]) for name, turn in found.items()}}


def main(model: Path, tokens: int = 4096, rounds: int = 3, threads: int = 2) -> None:
    context = tokens + 2 * ANSWER + QUESTION + 64
    found = []
    for number in range(rounds):
        draw = random.Random(number)
        prompt, question = ([draw.randrange(300, 40_000) for _ in range(n)] for n in (tokens, QUESTION))
        found.append(asyncio.run(a_round(model, threads, context, prompt, question)))
    table = Table("turn", "first token, ms", "of the first turn's", "cached tokens")
    whole = statistics.median(f["first turn"][0] for f in found)
    for name in found[0]:
        seconds = statistics.median(f[name][0] for f in found)
        table.add_row(name, f"{1000 * seconds:,.0f}", f"{100 * seconds / whole:.1f} %", str(found[0][name][1]))
    title = f"{model.name}, {tokens} tokens, then {ANSWER} of the answer and {QUESTION} new, {threads} threads, median"
    Console(width=120).print(f"{title} of {rounds}; the answers were the same", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--tokens", type=int, default=4096, help="of the first turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    main(**vars(parser.parse_args()))
