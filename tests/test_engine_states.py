"""What is kept of sequences: slots, saved states, the prefix cache. Never a stale or a neighbour's state, never a part.

Rows C1.7 to C1.10 and C3.2 to C3.8 of the known faults of other implementations, on the native engine.
"""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_engine_requests import engine
from test_native_program import STACKS, build, config, model, tokens

from headwater.config import ShortConv
from headwater.engine import state_file
from headwater.engine.engine import RING, ring_of
from headwater.engine.prefix_cache import PrefixCache
from headwater.engine.scheduler import BLOCK
from headwater.sampling import SamplingParams

ASKED = SamplingParams(max_tokens=9)


@pytest.fixture(scope="module", params=STACKS)
def m(request):
    return model(config(request.param))


@pytest.fixture(scope="module")
def lfm2():
    return model(config("lfm2"))


def last(p, slot, ids) -> np.ndarray:
    p.run([(slot, ids, "last")])
    return p.logits(1)[0]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100])
def test_a_state_restored_is_the_state_saved(m, length):
    p = build(m, ring=RING)
    ids = tokens(length)
    a, b = p.open(), p.open()
    p.run([(a, ids[:50], "none")])
    if ids[50:]:
        p.run([(a, ids[50:], "none")])
    end = -(-length // 16) * 16
    keys, tail = p.save_keys(a, 0, end), p.save_tail(a, length)
    p.run([(b, tokens(60, seed=9), "none")])  # the slot has had another's sequence
    p.rewind(b, 0)
    p.load_keys(b, 0, end, keys)
    p.restore(b, length, tail)
    assert p.length(b) == length
    assert np.array_equal(last(p, a, [5, 6, 7]), last(p, b, [5, 6, 7]))
    assert p.save_keys(b, 0, end) == p.save_keys(a, 0, end)
    with pytest.raises(ValueError, match="bytes of keys"):
        p.load_keys(b, 0, end + 16, keys) if keys else p.load_keys(b, 0, 16, bytes(3))
    with pytest.raises(ValueError, match="multiples of 16"):
        p.save_keys(a, 0, 7)
    with pytest.raises(ValueError, match="bytes of tail"):
        p.restore(b, length, bytes(len(tail) + 1))


def test_a_restored_ring_does_not_pretend_to_reach_back(lfm2):
    p = build(lfm2, ring=RING)
    a, b = p.open(), p.open()
    p.run([(a, tokens(40), "none")])
    p.run([(b, tokens(40, seed=4), "none")])
    p.load_keys(b, 0, 48, p.save_keys(a, 0, 48))
    p.restore(b, 40, p.save_tail(a, 40))
    with pytest.raises(ValueError, match="reaches back"):
        p.rewind(b, 30)
    p.rewind(a, 30)
    assert np.isfinite(last(p, a, [1])).all()


def test_what_lies_behind_the_end_is_not_saved(lfm2):
    p = build(lfm2, ring=RING)
    a, b = p.open(), p.open()
    p.run([(a, tokens(40), "none")])
    p.rewind(a, 35)
    p.run([(b, tokens(35), "none")])
    assert p.save_keys(a, 0, 48) == p.save_keys(b, 0, 48)


@pytest.mark.parametrize("name", ["lfm2", "lfm3", "conv_only", "gemma3"])
def test_a_prefix_found_gives_the_tokens_of_a_fresh_run(name):
    """At every kind of length: none, within a block, at its end, several; the second turn of the conversation too."""
    m = model(config(name))
    fresh, cached = engine(m), engine(m, cache_bytes=1 << 24)
    base = tokens(230)
    cached.generate([base], ASKED)
    for shared in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 150, 229, 230):
        prompt = base[:shared] + tokens(30, seed=shared)
        got, want = cached.generate([prompt], ASKED)[0], fresh.generate([prompt], ASKED)[0]
        assert got.ids == want.ids
        if shared >= 2 * BLOCK and shared % (2 * BLOCK) < BLOCK:
            assert got.cached_tokens >= shared // (2 * BLOCK) * 2 * BLOCK
    first = cached.generate([base], ASKED)[0]
    assert first.cached_tokens == 229 // BLOCK * BLOCK
    turn = [*base, *first.ids, *tokens(40, seed=8)]
    assert cached.generate([turn], ASKED)[0].ids == fresh.generate([turn], ASKED)[0].ids


def test_where_two_prompts_part_the_third_starts(lfm2):
    """The first reads past the place, the second stops there for a tail, the third has it."""
    e, base = engine(lfm2, cache_bytes=1 << 24), tokens(300)
    e.generate([base], ASKED)
    counts = [e.generate([base[: 3 * BLOCK + 5] + tokens(50, seed=s)], ASKED)[0].cached_tokens for s in (1, 2)]
    assert counts == [2 * BLOCK, 3 * BLOCK]


def test_many_at_once_with_cancels_get_what_each_would_alone(lfm2):
    """C3.1: arrivals, cancels and shared beginnings; few slots; the answers are those of runs alone."""
    rng = np.random.default_rng(0)
    bases = [tokens(200, seed=s) for s in range(3)]
    prompts = [bases[i % 3][: int(rng.integers(1, 200))] + tokens(int(rng.integers(1, 60)), seed=i) for i in range(30)]
    alone = engine(lfm2)
    want = [alone.generate([p], ASKED)[0].ids for p in prompts]
    e = engine(lfm2, cache_bytes=300_000)  # small: it evicts
    ids, answers, cancelled = {}, {}, set()
    for step in range(2000):
        if step % 2 == 0 and len(ids) < len(prompts):
            ids[e.add(prompts[len(ids)], ASKED, user=str(len(ids) % 4))] = len(ids)
        if step % 9 == 5 and ids:
            victim = list(ids)[int(rng.integers(len(ids)))]
            if victim not in answers:
                e.cancel(victim)
                cancelled.add(victim)
        e.step()
        answers |= {r: c.ids for r in ids if r not in cancelled and (c := e.finished(r)) is not None}
        if len(ids) == len(prompts) and e.idle:
            break
    assert len(answers) + len(cancelled) == 30 > len(cancelled) > 0
    assert {ids[r]: a for r, a in answers.items()} == {ids[r]: want[ids[r]] for r in answers}
    assert e.prefix_cache.counters.hit_tokens > 0 < e.prefix_cache.counters.evicted


def test_the_cache_on_disk_serves_the_next_process(lfm2, tmp_path):
    prompt = tokens(200)

    def started(model_name="m"):
        e = engine(lfm2, cache_bytes=1 << 24)
        sizes = BLOCK * e.core.bytes_per_token, e.core.tail_bytes
        e.prefix_cache = PrefixCache(model_name, sizes, max_bytes=1 << 24, directory=tmp_path)
        return e

    first = started()
    want = first.generate([prompt], ASKED)[0].ids
    first.prefix_cache.close()
    files = sorted(tmp_path.rglob("*.state"))
    assert len(files) == 4
    for i, damage in enumerate((b"", files[0].read_bytes()[:-40], b"x" * files[0].stat().st_size)):
        again = started()
        c = again.generate([prompt], ASKED)[0]
        assert c.ids == want
        assert c.cached_tokens == 4 * BLOCK if i == 0 else c.cached_tokens < 4 * BLOCK
        assert c.cached_tokens % BLOCK == 0
        again.prefix_cache.close()
        files[0].write_bytes(damage)
    assert started("other").generate([prompt], ASKED)[0].cached_tokens == 0


def test_a_disk_that_deletes_nothing_does_not_end_the_writing(tmp_path, monkeypatch):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.suffix == ".state":
            raise PermissionError(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    cache = PrefixCache("m", (1, 1), max_bytes=1 << 20, directory=tmp_path, disk_bytes=0)
    cache.put(cache.keys(range(3 * BLOCK)), [b"k"] * 3, b"t")
    cache.close()
    assert len(list(tmp_path.rglob("*.state"))) == 3


def test_a_wide_convolution_has_its_tail_at_every_block(lfm2):
    narrow = lfm2.config
    layers = [
        dataclasses.replace(layer, mixer=ShortConv(width=40)) if layer.mixer.kind == "conv" else layer
        for layer in narrow.layers
    ]
    wide = model(dataclasses.replace(narrow, layers=tuple(layers)))
    with pytest.raises(ValueError, match="with a prefix cache, 88"):
        engine(wide, cache_bytes=1 << 24)
    core = build(wide, ring=ring_of(wide.config), capacity=400, max_tokens=2 * BLOCK)
    e, asked = engine(wide, cache_bytes=1 << 24, core=core), SamplingParams(max_tokens=70, ignore_eos=True)
    first = e.generate([tokens(30)], asked)[0]
    turn = [*tokens(30), *first.ids, 5, 6]
    again = e.generate([turn], asked)[0]
    assert again.cached_tokens == 2 * BLOCK
    assert again.ids == engine(wide).generate([turn], asked)[0].ids


def test_memory_stays_within_its_budget(lfm2):
    e = engine(lfm2, cache_bytes=100_000)
    for s in range(12):
        e.generate([tokens(250, seed=s)], ASKED)
        assert e.prefix_cache.nbytes <= 100_000
        assert e.prefix_cache.nbytes == sum(b.nbytes for b in e.prefix_cache._blocks.values())
    assert e.prefix_cache.counters.evicted


def some_state(seed: int = 0) -> state_file.State:
    kv = np.random.default_rng(seed).bytes(200_000)
    return state_file.State("m", 0, 3, (1, 2, 3), kv, kv[:64])


def test_a_change_between_the_samples_of_a_file_gives_its_model_another_name(tmp_path):
    file, shape = tmp_path / "m.gguf", config("lfm2")
    file.write_bytes(bytes(8 << 20))
    os.utime(file, ns=(1, 1))
    name = state_file.model_id(shape, [file])
    assert state_file.model_id(shape, [file]) == name
    with file.open("r+b") as f:
        f.seek(4096 + 64)
        f.write(b"x")
    os.utime(file, ns=(2, 2))
    assert state_file.model_id(shape, [file]) != name


def test_state_files_say_what_is_wrong_with_them(tmp_path):
    path = tmp_path / "a.state"
    state_file.write(path, some_state())
    back = state_file.read(path, "m")
    assert back.ids == (1, 2, 3)
    assert back == some_state()
    with pytest.raises(ValueError, match="another model"):
        state_file.read(path, "n")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for i in range(60):
        bad = bytearray(whole)
        if i % 2:
            bad = bad[: int(rng.integers(len(bad)))]
        else:
            bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.state"):
            state_file.read(path, "m")


@pytest.mark.parametrize(
    "change", [{"kv": 1 << 40}, {"kv": -1}, {"tail": 1}, {"end": True}, {"ids": ["x"]}, {"first": 9}, {"more": 1}]
)
def test_headers_that_lie_are_refused(tmp_path, change):
    """With a right checksum: whoever wrote the file meant it."""
    import hashlib
    import json
    import struct

    header = {"model": "m", "first": 0, "end": 3, "ids": [1, 2, 3], "kv": 8, "tail": None} | change
    text = json.dumps(header).encode()
    body = b"HWSTATE2" + struct.pack("<I", len(text)) + text + bytes(8)
    (tmp_path / "a.state").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match=r"a\.state"):
        state_file.read(tmp_path / "a.state", "m")


_WRITER = """
import sys, itertools
sys.path.insert(0, sys.argv[2])
from test_engine_states import some_state, state_file
print("ready", flush=True)
for i in itertools.count():
    state_file.write(sys.argv[1], some_state(i % 3))
"""


def test_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.state"
    state_file.write(path, some_state())
    wanted = [some_state(i).kv for i in range(3)]
    for wait in (0.01, 0.03, 0.06):
        here = os.path.dirname(__file__)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])}
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), here], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert state_file.read(path, "m").kv in wanted
