"""Engine against the reference loop: the same tokens, whatever else runs beside them; requests, stops, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_native_program import F16_CACHE, STACKS, VOCAB, build, config, model, reference, tokens

from headwater.data.capture import truncate
from headwater.engine.engine import Engine
from headwater.generate import generate
from headwater.sampling import SamplingParams

GREEDY = SamplingParams(max_tokens=24)
NAMES = list(STACKS)


def engine(m, **options) -> Engine:
    return Engine(m.config, build(m, **options), None)


@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_as_the_reference(name):
    m = model(config(name))
    prompts = [tokens(n, seed=n) for n in (1, 70, 9, 33, 2, 5)]  # more than the engine has slots, longer than one run
    got = engine(m).generate(prompts, GREEDY)
    assert all(c.finish_reason == "length" for c in got)
    for prompt, c in zip(
        prompts, got, strict=True
    ):  # each token is the reference's choice, ties of the f16 cache aside
        rows = reference(m, prompt + c.ids)[len(prompt) - 1 : -1]
        chosen = rows[np.arange(len(c.ids)), c.ids]
        assert (rows.max(-1) - chosen).max() < 2 * F16_CACHE * np.abs(rows).max()
    if name != "lfm2_moe":  # where a router may flip, one tie changes all that follows
        assert [c.ids for c in got] == [c.ids for c in generate(m, prompts, GREEDY)]


def test_requests_arrive_and_leave_while_others_run():
    m = model(config("lfm2"))
    e = engine(m)
    prompts = [tokens(n, seed=n + 40) for n in (12, 3, 50, 20, 7)]
    want = [c.ids for c in generate(m, prompts, GREEDY)]
    ids = [e.add(p, GREEDY) for p in prompts[:2]]
    answers = {}
    for step in range(200):
        if step == 3:
            ids += [e.add(p, GREEDY) for p in prompts[2:]]
        if step == 6:
            e.cancel(ids[3])
        e.step()
        answers |= {i: c.ids for i in ids if (c := e.finished(i)) is not None}
    assert answers == {i: want[n] for n, i in enumerate(ids) if n != 3}


def test_a_single_answer_in_bursts_and_steps_is_the_same():
    m = model(config("lfm2"))
    prompt = tokens(11)
    sampled = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, min_p=0.02, repetition_penalty=1.1, seed=5)
    burst = engine(m).generate([prompt], sampled)[0]
    stepped = engine(m).generate([prompt], sampled, on_text=lambda *_: None)[0]
    assert burst.ids == stepped.ids
    assert burst.ids != engine(m).generate([prompt], SamplingParams(max_tokens=40, temperature=0.8, seed=6))[0].ids


def test_logprobs_are_the_models():
    m = model(config("llama"))
    prompt = tokens(20)
    c = engine(m).generate([prompt], SamplingParams(max_tokens=5, logprobs=3))[0]
    want = torch.tensor(reference(m, prompt + c.ids)).log_softmax(-1)[len(prompt) - 1 : -1]
    for row, token, said in zip(want, c.ids, c.logprobs, strict=True):
        assert said.token_id == token
        assert said.logprob == pytest.approx(row[token].item(), abs=2e-2)
        assert [t for t, _ in said.top] == row.topk(3).indices.tolist()


def test_logits_of_a_text():
    m = model(config("lfm3"))
    ids = tokens(40)
    want = reference(m, ids)
    assert np.abs(engine(m).logits(ids) - want).max() / np.abs(want).max() < 2e-3


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_the_likeliest_ids_behind_each(at_once):
    m = model(config("lfm3"))
    ids, e = tokens(40), engine(m, max_selected=at_once)
    top, logprobs, mass = e.likeliest(ids, 9)
    wanted = truncate(e.logits(ids), 9)
    assert top.shape == logprobs.shape == (40, 9) and np.array_equal(top, wanted[0])
    assert np.abs(logprobs - wanted[1]).max() < 2e-6 and np.abs(mass - wanted[2]).max() < 2e-6
    whole = e.likeliest(ids, VOCAB)
    assert np.abs(whole[2] - 1.0).max() < 1e-6 and np.array_equal(whole[0][:, :9], top)
    for k in (0, VOCAB + 1):
        with pytest.raises(ValueError, match="allowed: 1 to"):
            e.likeliest(ids, k)
    assert np.array_equal(e.likeliest(ids, 9)[0], top), "the slot of a call that failed is free again"


def test_a_stop_id_ends_the_answer():
    m = model(config("lfm2"))
    prompt = tokens(9)
    free = engine(m).generate([prompt], GREEDY)[0].ids
    m.config.__dict__["eos_ids"] = (free[4],)
    c = engine(m).generate([prompt], GREEDY)[0]
    assert c.ids == free[: free.index(free[4]) + 1]
    assert c.finish_reason == "stop"
    ignoring = SamplingParams(max_tokens=24, ignore_eos=True)
    assert engine(m).generate([prompt], ignoring)[0].ids == free


def test_the_context_ends_the_answer():
    m = model(config("lfm2"))
    c = engine(m, capacity=32).generate([tokens(28)], GREEDY)[0]
    assert len(c.ids) == 4


def test_errors_name_the_fault():
    e = engine(model(config("lfm2")), capacity=32)
    with pytest.raises(ValueError, match="the context is 32"):
        e.add(tokens(32))
    with pytest.raises(ValueError, match="empty"):
        e.add([])
    with pytest.raises(ValueError, match=f"outside 0..{VOCAB - 1}"):
        e.add([VOCAB])
    with pytest.raises(ValueError, match="without a tokenizer"):
        e.add("text")


def sampled_shares(params: dict, logits: np.ndarray, draws: int = 20_000) -> np.ndarray:
    from headwater.engine import native

    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0} | params
    s = native.Sampler(**options, logprobs=-1, seed=1)
    counts = np.bincount([s.pick_from(logits)[0] for _ in range(draws)], minlength=len(logits))
    return counts / draws


@pytest.mark.parametrize(
    "params",
    [
        {}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2},
        {"top_k": 4, "top_p": 0.8, "min_p": 0.1},
    ],
)  # fmt: skip
def test_sampling_has_the_stated_distribution(params):
    """The exact distribution, from the rules in the order that SamplingParams states."""
    logits = np.array([1.0, 3.0, 2.0, -1.0, 2.5, 0.0], dtype=np.float32)
    p = np.exp(logits.astype(np.float64) / params.get("temperature", 1.0))
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: params.get("top_k") or None]
    q = p[kept] / p[kept].sum()
    kept = kept[np.cumsum(q) - q < params.get("top_p", 1.0)]
    kept = kept[p[kept] >= params.get("min_p", 0.0) * p[kept[0]]]
    want = np.zeros(len(p))
    want[kept] = p[kept] / p[kept].sum()
    assert np.abs(sampled_shares(params, logits) - want).max() < 0.015


def test_loading_the_engine_imports_no_torch():
    code = "import sys, headwater.engine.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
