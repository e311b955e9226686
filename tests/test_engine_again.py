"""Where answers have another arithmetic than prompts they are read again, when nobody waits, and the next turn finds
them: with the tokens of a run alone."""

import asyncio
import dataclasses

import pytest
from test_checkpoint import write_gguf
from test_engine_batches import wide
from test_native_program import model, tokens

from headwater.checkpoint.gguf import GgufFile
from headwater.engine import native, program
from headwater.engine.again import Again
from headwater.engine.aio import AsyncEngine
from headwater.engine.engine import RING, Engine
from headwater.engine.prefix_cache import PrefixCache
from headwater.engine.scheduler import BLOCK
from headwater.export.gguf import requantize
from headwater.sampling import SamplingParams

ASKED = SamplingParams(max_tokens=70, ignore_eos=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A model of k-quants, whose answers are summed in another order than its prompts on every processor."""
    path = tmp_path_factory.mktemp("again") / "m.gguf"
    source = path.with_name("f32.gguf")
    write_gguf(source, "lfm2", model(wide("lfm2")))
    requantize(path, GgufFile(source), type="q4_k", pure=True)
    return native.open_weights(path, "F32", threads=1)


def engine(opened, *, cache_bytes=1 << 24, slots=2, directory=None):
    config, weights = opened
    core = native.build(
        program.lower(config, weights), capacity=600, max_slots=slots, max_tokens=2 * BLOCK, max_selected=16, ring=RING,
        threads=1,
    )  # fmt: skip
    assert not core.one_arithmetic
    sizes = BLOCK * core.bytes_per_token, core.tail_bytes
    cache = PrefixCache("m", sizes, max_bytes=cache_bytes, directory=directory) if cache_bytes else None
    return Engine(dataclasses.replace(config, eos_ids=()), core, None, prefix_cache=cache)


def second_turn(first, prompt):
    return [*prompt, *first.ids, *tokens(30, seed=8)]


def test_the_next_turn_finds_the_answer(opened):
    e, prompt = engine(opened), tokens(130)
    first = e.generate([prompt], ASKED)[0]
    while e.read_again():
        pass
    turn = second_turn(first, prompt)
    got = e.generate([turn], ASKED)[0]
    assert got.cached_tokens == 200 // BLOCK * BLOCK > 130
    assert got.ids == engine(opened, cache_bytes=0).generate([turn], ASKED)[0].ids
    assert e.counters.tokens_again == 2 * BLOCK, "what the prompt had left was not read again"


def test_without_a_pause_it_is_right_as_well(opened):
    e, prompt = engine(opened), tokens(130)
    turn = second_turn(e.generate([prompt], ASKED)[0], prompt)
    got = e.generate([turn], ASKED)[0]
    assert got.cached_tokens == 130 // BLOCK * BLOCK
    assert got.ids == engine(opened, cache_bytes=0).generate([turn], ASKED)[0].ids


@pytest.mark.parametrize("slots", [1, 2])
def test_a_newcomer_gets_the_slot(opened, slots):
    """Half-read conversations give way, and are finished later from where they were."""
    e, prompts = engine(opened, slots=slots), [tokens(250, seed=s) for s in range(4)]
    want = [c.ids for c in engine(opened, cache_bytes=0, slots=4).generate(prompts, ASKED)]
    params = [ASKED] * 2
    for prompt, ids in zip(prompts, want, strict=True):
        answers = [e.finished(r) for r in run(e, e.add_group(prompt, params))]
        assert [c.ids for c in answers] == [ids, ids]
        assert e.read_again()
    while e.read_again():
        pass
    assert e.idle and not e.read_again()
    turns = [[*p, *ids, 5] for p, ids in zip(prompts, want, strict=True)]
    assert [c.cached_tokens for c in e.generate(turns, ASKED)] == [320 // BLOCK * BLOCK] * 4


def run(e, requests):
    while not e.idle:
        e.step()
    return requests


def test_the_thread_does_it_by_itself_and_the_disk_keeps_it(opened, tmp_path):
    e, prompt = engine(opened, directory=tmp_path), tokens(130)

    async def talk():
        async with AsyncEngine(e) as front:
            first = await front.generate(prompt, ASKED)
            for _ in range(6000):
                if e.counters.tokens_again >= 2 * BLOCK:
                    return first
                await asyncio.sleep(0.01)
            raise AssertionError("it was never read again")

    first = asyncio.run(talk())
    e.prefix_cache.close()
    after = engine(opened, directory=tmp_path)
    got = after.generate([second_turn(first, prompt)], ASKED)[0]
    assert got.cached_tokens == 4 * BLOCK == BLOCK * after.prefix_cache.counters.from_disk


def test_what_the_cache_could_not_hold_is_left_alone(opened):
    e = engine(opened, cache_bytes=1)
    e.generate([tokens(130)], ASKED)
    assert not e.read_again()


def test_no_slot_is_no_fault(opened):
    e = engine(opened, slots=1)
    again = Again(e.core, e.prefix_cache)
    again.note(tokens(100))
    taken = e.core.open()
    assert not again.step()
    e.core.close(taken)
    again.note(tokens(100))
    assert again.step() and not again.step()
