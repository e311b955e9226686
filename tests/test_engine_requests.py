"""Requests of an Engine: every rule of SamplingParams as the reference has it, masks, budgets, groups, deadlines."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from test_native_program import VOCAB, build, config, model, reference, tokens

from headwater.engine import native
from headwater.engine.engine import RING, DeadlineExceeded, Engine, QueueFull
from headwater.engine.prefix_cache import PrefixCache
from headwater.engine.scheduler import BLOCK
from headwater.generate import generate
from headwater.sampling import SamplingParams, ThinkBudget

GREEDY = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def m():
    return model(config("lfm2"))


def engine(m, *, cache_bytes: int = 0, formats: str = "F32", core=None, **options) -> Engine:
    core = core or build(m, formats, ring=RING, capacity=400, max_tokens=2 * BLOCK)
    cache = None
    if cache_bytes:
        cache = PrefixCache("m", (BLOCK * core.bytes_per_token, core.tail_bytes), max_bytes=cache_bytes)
    norm = m.state_dict()["embedding_norm.weight"].numpy()
    return Engine(m.config, core, None, final_norm=norm, prefix_cache=cache, **options)


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 3.0}, {"frequency_penalty": 2.0}, {"presence_penalty": -1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3, "frequency_penalty": 1.0, "logit_bias": ((3, 4.0), (9, -1000.0))},
        {"logit_bias": ((17, 1000.0),)}, {"min_tokens": 7},
        {"think": ThinkBudget(tokens=3, end=(5, 6))}, {"think": ThinkBudget(tokens=0, end=(5,))},
        {"think": ThinkBudget(tokens=2, end=(5, 6), start=(1,))},
    ],
    ids=str,
)  # fmt: skip
def test_every_rule_is_the_references(m, params):
    prompts = [tokens(n, seed=n) for n in (5, 60)]
    eos = generate(m, prompts, SamplingParams(max_tokens=2))[0].ids[1]
    ending = dataclasses.replace(m.config, eos_ids=(eos,))
    ours, theirs = engine(m), m
    ours.config, old = ending, m.config
    theirs.config = ending
    try:
        asked = SamplingParams(max_tokens=20, **params)
        assert [c.ids for c in ours.generate(prompts, asked)] == [c.ids for c in generate(theirs, prompts, asked)]
    finally:
        m.config = old


def test_rules_do_what_they_say(m):
    e, prompt = engine(m), tokens(20)
    free = e.generate([prompt], SamplingParams(max_tokens=12))[0].ids
    once = e.generate([prompt], SamplingParams(max_tokens=12, presence_penalty=100.0))[0].ids
    assert len(set(once)) == 12 > len(set(free))
    assert e.generate([prompt], SamplingParams(max_tokens=4, logit_bias=((7, 1000.0),)))[0].ids == [7] * 4
    assert free[0] not in e.generate([prompt], SamplingParams(max_tokens=4, logit_bias=((free[0], -1000.0),)))[0].ids
    thought = SamplingParams(max_tokens=12, think=ThinkBudget(tokens=4, end=(9, 8)))
    assert e.generate([prompt], thought)[0].ids[:6] == [*free[:4], 9, 8]
    early = SamplingParams(max_tokens=12, think=ThinkBudget(tokens=8, end=(free[2],)))
    assert e.generate([prompt], early)[0].ids == free
    other = SamplingParams(max_tokens=12, think=ThinkBudget(tokens=4, end=(9,), start=((free[0] + 1) % VOCAB,)))
    assert e.generate([prompt], other)[0].ids == free


def test_masks_bound_every_token(m):
    e = engine(m)
    allowed = [3, 40, 77, 130]
    words = np.zeros(-(-VOCAB // 32), dtype=np.uint32)
    for t in allowed:
        words[t // 32] |= np.uint32(1 << (t % 32))
    seen = []

    def mask(ids):
        seen.append(len(ids))
        return words if len(ids) % 2 == 0 else None

    prompt, c = tokens(9), None
    for params in (GREEDY, SamplingParams(max_tokens=12, temperature=1.5, seed=3)):
        seen.clear()
        request = e.add(prompt, params, mask=mask)
        while (c := e.finished(request)) is None:
            e.step()
        assert seen == list(range(12))
        assert set(c.ids[::2]) <= set(allowed)
    rows = reference(m, prompt)[-1]
    request = e.add(prompt, GREEDY, mask=lambda ids: words)
    e.step()
    assert e.peek(request).ids == [allowed[int(np.argmax(rows[allowed]))]]


def test_a_mask_that_fails_ends_its_request_alone(m):
    e = engine(m)
    want = e.generate([tokens(9)], GREEDY)[0].ids

    def broken(ids):
        if len(ids) == 3:
            raise RuntimeError("no such rule")

    bad = [e.add(tokens(5), GREEDY, mask=broken), e.add(tokens(5), GREEDY, mask=lambda ids: np.zeros(5, np.uint32))]
    good = e.add(tokens(9), GREEDY)
    while (c := e.finished(good)) is None:
        e.step()
    assert c.ids == want
    with pytest.raises(RuntimeError, match="no such rule"):
        e.finished(bad[0])
    with pytest.raises(ValueError, match="allows no token"):
        e.finished(bad[1])
    assert e.idle


def test_a_group_reads_its_prompt_once(m):
    e, prompt = engine(m), tokens(70)
    params = [SamplingParams(max_tokens=10, temperature=1.0, seed=s) for s in range(6)]  # more than there are slots
    want = [e.generate([prompt], p)[0].ids for p in params]
    assert len({tuple(w) for w in want}) > 3
    before = e.counters.prompt_tokens
    requests = e.add_group(prompt, params)
    answers = {}
    while len(answers) < len(requests):
        e.step()
        answers |= {r: c.ids for r in requests if (c := e.finished(r)) is not None}
    assert [answers[r] for r in requests] == want
    assert e.counters.prompt_tokens - before == 70 * 3  # four share; two found no slot and read for themselves


def test_a_group_goes_on_without_its_leader(m):
    e, prompt = engine(m), tokens(200)
    want = e.generate([prompt], GREEDY)[0].ids
    first, second, third = e.add_group(prompt, [GREEDY] * 3)
    e.step()
    e.cancel(first)
    e.cancel(third)
    while (c := e.finished(second)) is None:
        e.step()
    assert c.ids == want
    assert e.idle


@pytest.mark.parametrize("lasting", [False, True])
def test_a_group_that_memory_is_short_for_ends_alone(m, lasting):
    e, prompt, opened = engine(m), tokens(70), []
    want = e.generate([prompt], GREEDY)[0].ids
    really = e._open

    def scarce():
        opened.append(1)
        if len(opened) == 2 or (lasting and len(opened) > 2):
            raise MemoryError("no room for a follower")
        return really()

    e._open = scarce
    requests = e.add_group(prompt, [GREEDY] * 3)
    answers, failed = {}, 0
    while len(answers) + failed < 3:
        e.step()
        for r in requests:
            try:
                if (c := e.finished(r)) is not None:
                    answers[r] = c.ids
            except MemoryError:
                failed += 1
    assert (len(answers), failed) == ((1, 2) if lasting else (3, 0))
    assert all(ids == want for ids in answers.values())
    assert e.idle


def test_queue_deadline_and_reservations(m):
    e = engine(m, max_queue=2)
    for _ in range(2):
        e.add(tokens(5), GREEDY)
    with pytest.raises(QueueFull) as full:
        e.add(tokens(5), GREEDY)
    assert full.value.retry_after >= 1
    e.step()
    late = e.add(tokens(5), SamplingParams(max_tokens=300), timeout=0.05)
    e.step()
    time.sleep(0.1)
    e.step()
    with pytest.raises(DeadlineExceeded):
        e.finished(late)
    core = build(m, ring=RING, capacity=400, max_tokens=2 * BLOCK)
    room = 4 * core.bytes_fixed + 100 * core.bytes_per_token
    small = engine(m, core=core, kv_bytes=room)
    with pytest.raises(ValueError, match="may hold 100"):
        small.add(tokens(60), SamplingParams(max_tokens=60))
    with pytest.raises(ValueError, match="may hold 100"):  # one of a group alone
        small.add_group(tokens(40), [SamplingParams(max_tokens=20), SamplingParams(max_tokens=70)])
    assert small.idle
    ids = [small.add(tokens(40), SamplingParams(max_tokens=20)) for _ in range(3)]
    small.step()
    assert (small.running, small.waiting) == (1, 2)
    while sum(small.finished(i) is not None for i in ids) < 3 and not small.idle:
        small.step()
    assert small.idle


def test_a_call_that_fails_leaves_nothing_behind(m):
    e = engine(m, max_queue=2)
    for call in (e.embed, lambda prompts: e.generate(prompts, GREEDY)):
        with pytest.raises(ValueError, match="the context is 400"):
            call([tokens(9), tokens(401)])
        assert e.idle
        with pytest.raises(QueueFull):
            call([tokens(5)] * 4)
        assert e.idle


def test_a_request_that_finds_no_slot_ends_alone(m):
    core = build(m, ring=RING, capacity=400, max_slots=2, max_tokens=2 * BLOCK)
    e = engine(m, core=core)
    want = e.generate([tokens(9)], GREEDY)[0].ids
    held = core.open()  # as a conversation does
    for ask in (
        lambda: [e.add(tokens(9), GREEDY), e.add(tokens(20), GREEDY)],
        lambda: e.add_group(tokens(9), [GREEDY] * 2),
    ):
        first, second = ask()
        while (c := e.finished(first)) is None:
            e.step()
        assert c.ids == want
        with pytest.raises(ValueError, match="are in use"):
            e.finished(second)
        assert e.idle
    core.close(held)
    assert e.generate([tokens(9)], GREEDY)[0].ids == want


def test_an_answer_that_becomes_no_number_ends_alone():
    broken = model(config("llama"))
    with torch.no_grad():
        broken.state_dict()["embed_tokens.weight"][7] = float("nan")
    e = engine(broken)
    request = e.add([1, 2, 3], SamplingParams(max_tokens=12, logit_bias=((7, 1000.0),)))
    with pytest.raises(ValueError, match="weights are damaged"):
        while e.finished(request) is None:
            e.step(16)
    assert e.idle
    assert len(e.generate([[1, 2, 3]], SamplingParams(max_tokens=3, logit_bias=((7, -1000.0),)))[0].ids) == 3


def test_embeddings_are_the_mean_of_the_final_hidden_states(m):
    e = engine(m)
    texts = [tokens(n, seed=n) for n in (1, 130, 40)]
    with torch.inference_mode():
        rows = [m.hidden(torch.tensor([t]))[0].mean(0).numpy() for t in texts]
    got = e.embed(texts)
    for ours, want in zip(got, rows, strict=True):
        assert np.allclose(ours, want / np.linalg.norm(want), atol=2e-3)


def test_faults_are_named(m):
    e = engine(m)
    with pytest.raises(ValueError, match="logit_bias has ids outside"):
        e.add([1], SamplingParams(logit_bias=((VOCAB, 1.0),)))
    with pytest.raises(ValueError, match="think budget has ids outside"):
        e.add([1], SamplingParams(think=ThinkBudget(tokens=1, end=(VOCAB,))))
    with pytest.raises(ValueError, match="without the final norm"):
        Engine(m.config, build(m), None).embed([[1]])
    with pytest.raises(ValueError, match="needs 48 and"):
        Engine(m.config, build(m, max_tokens=16), None)
    with pytest.raises(ValueError, match="is forced, but"):
        native.Sampler(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, logprobs=-1, seed=0).pick_from(
            np.zeros(4, np.float32), forced=4
        )
    with pytest.raises(ValueError, match="weights are damaged"):
        native.Sampler(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1, logprobs=-1, seed=0).pick_from(
            np.full(4, np.nan, np.float32)
        )
