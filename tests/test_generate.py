"""The plain loop against transformers' greedy decoding, and what it promises about batches, text and caches."""

import pytest
import torch
from families import NAMES, pair, tokens

from headwater.generate import generate
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the river runs to the sea, and the sea runs to the river. é漢👍"] * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    import dataclasses

    from headwater.model import Lfm2

    return Lfm2(dataclasses.replace(pair("lfm2-k3")[1].config, vocab_size=tokenizer.vocab_size, eos_ids=(7,)))


def greedy_reference(theirs, prompt: list[int], n: int) -> list[int]:
    """The argmax of a whole run, one token at a time, without any cache."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("chunk_size", [512, 4, 1])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_batch_of_unequal_prompts(name, chunk_size):
    theirs, ours = pair(name)
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (1, 9, 2, 17)]
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    answers = generate(ours, prompts, params, chunk_size=chunk_size)
    assert [a.ids for a in answers] == [greedy_reference(theirs, p, 8) for p in prompts]
    assert all(a.finish_reason == "length" for a in answers)


def test_rows_do_not_depend_on_each_other():
    _, ours = pair("lfm2-k3")
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 12, 7)]
    each = [
        SamplingParams(max_tokens=m, temperature=1.0, seed=s, repetition_penalty=1.3, ignore_eos=True)
        for m, s in ((4, 1), (11, 2), (7, 3))
    ]
    together = generate(ours, prompts, each)
    alone = [generate(ours, [p], s)[0] for p, s in zip(prompts, each, strict=True)]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert [len(a.ids) for a in together] == [4, 11, 7]


def test_two_end_tokens_stop(model):
    """C4.15."""
    import dataclasses

    prompt = [5, 9, 11]
    free = generate(model, [prompt], SamplingParams(max_tokens=10, ignore_eos=True))[0].ids
    before = model.config
    end = next(t for t in free[1:] if t != free[0])
    model.config = dataclasses.replace(before, eos_ids=(6, end))
    try:
        stopped = generate(model, [prompt], SamplingParams(max_tokens=10))[0]
    finally:
        model.config = before
    assert stopped.ids == free[: free.index(end) + 1]
    assert stopped.finish_reason == "stop"


def test_text_streams_and_equals_the_whole(model, tokenizer):
    pieces: dict[int, list[str]] = {0: [], 1: []}
    prompts = [tokenizer.encode("the river"), tokenizer.encode("sea")]
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=4)
    answers = generate(model, prompts, params, tokenizer=tokenizer, on_text=lambda b, s: pieces[b].append(s))
    for b, answer in enumerate(answers):
        assert "".join(pieces[b]) == answer.text == tokenizer.decode(answer.ids)


@pytest.mark.parametrize("seed", range(12))
def test_stop_texts_never_leak(model, tokenizer, seed):
    """Whatever was streamed, it is the free text up to the first stop text, which may span tokens."""
    prompt = tokenizer.encode("the")
    free = generate(model, [prompt], SamplingParams(max_tokens=25, temperature=1.0, seed=seed), tokenizer=tokenizer)[0]
    stop = free.text[7:10]
    if not stop:
        assert len(free.text) <= 7
        return
    shown: list[str] = []
    params = SamplingParams(max_tokens=25, temperature=1.0, seed=seed, stop=(stop, "never said"))
    answer = generate(model, [prompt], params, tokenizer=tokenizer, on_text=lambda _, s: shown.append(s))[0]
    assert "".join(shown) == answer.text == free.text[: free.text.index(stop)]
    assert (answer.finish_reason, answer.stopped_by) == ("stop", stop)


def test_logprobs_are_the_models_own():
    theirs, ours = pair("lfm2-k3")
    prompt = tokens(1, 5)[0].tolist()
    params = SamplingParams(max_tokens=4, temperature=0.8, top_k=3, repetition_penalty=1.5, logprobs=2, ignore_eos=True)
    answer = generate(ours, [prompt], params)[0]
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt + answer.ids])).logits[0, 4:-1].log_softmax(-1)
    for row, token, said in zip(expected, answer.ids, answer.logprobs, strict=True):
        assert said.token_id == token
        assert abs(said.logprob - row[token].item()) < 1e-4
        assert [i for i, _ in said.top] == row.topk(2).indices.tolist()


def test_a_cache_carries_the_conversation_on():
    _, ours = pair("lfm3-k7")
    first, second = tokens(1, 9)[0].tolist(), tokens(1, 4, seed=8)[0].tolist()
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    cache = ours.new_cache()
    answer = generate(ours, [first], params, cache=cache)[0]
    assert cache.lengths == [9 + 4]
    later = generate(ours, [[answer.ids[-1], *second]], params, cache=cache)[0]
    assert later.ids == generate(ours, [first + answer.ids + second], params)[0].ids


def test_context_bounds_the_answer(model):
    import dataclasses

    before = model.config
    model.config = dataclasses.replace(before, max_positions=10)
    try:
        assert len(generate(model, [[5] * 7], SamplingParams(max_tokens=50, ignore_eos=True))[0].ids) == 3
        with pytest.raises(ValueError, match="prompt 0 has 10 tokens; the model's context is 10"):
            generate(model, [[5] * 10])
    finally:
        model.config = before


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: generate(m, []), "prompts is empty"),
        (lambda m: generate(m, [[1], []]), "prompt 1 is empty"),
        (lambda m: generate(m, [[1, 10**6]]), "outside 0.."),
        (lambda m: generate(m, [[-1]]), "outside 0.."),
        (lambda m: generate(m, [[1]], [SamplingParams()] * 2), "2 SamplingParams came for 1"),
        (lambda m: generate(m, [[1]], SamplingParams(stop=("x",))), "without a tokenizer"),
        (lambda m: generate(m, [[1]], on_text=print), "without a tokenizer"),
    ],
)
def test_bad_input(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)
