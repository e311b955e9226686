"""Held-out bits per byte by language and samples, with a real tiny model and tokenizer."""

import pytest
import torch

from headwater import Lfm2, Tokenizer
from headwater.evals.bits_per_byte import bits_per_byte
from headwater.evals.held_out import HeldOut, by_language
from headwater.evals.samples import Samples
from headwater.sampling import SamplingParams

ROWS = [{"text": "The river runs."}, {"text": "Der Fluss.", "lang": "de"}, {"text": "A boat.", "lang": "en"}]


@pytest.fixture(scope="module")
def pair(tiny_model):
    return Lfm2.from_pretrained(tiny_model), Tokenizer.from_pretrained(tiny_model)


def test_languages_are_kept_apart_and_bounded():
    assert by_language(ROWS) == {"de": ["Der Fluss."], "en": ["The river runs.", "A boat."]}
    assert by_language(ROWS, most_bytes=5)["en"] == ["The river runs."]
    with pytest.raises(ValueError, match="row 0 has no 'text'; it has title"):
        by_language([{"title": "x"}])


def test_each_kind_has_its_own_number(pair):
    model, tokenizer = pair
    kinds = by_language(ROWS)
    model.train()
    found = HeldOut(tokenizer, kinds)(model)
    assert model.training
    for kind, texts in kinds.items():
        assert found[f"bits_per_byte/{kind}"] == pytest.approx(bits_per_byte(model, tokenizer, texts))
    assert found["bits_per_byte/mean"] == pytest.approx((found["bits_per_byte/de"] + found["bits_per_byte/en"]) / 2)
    assert HeldOut(tokenizer, {"en": ["A boat."]})(model).keys() == {"bits_per_byte/en"}
    rough = HeldOut(tokenizer, kinds, autocast=torch.bfloat16)(model)
    assert 0 < abs(rough["bits_per_byte/mean"] - found["bits_per_byte/mean"]) < 0.05
    for wrong in ({}, {"en": []}):
        with pytest.raises(ValueError, match="held-out text is empty"):
            HeldOut(tokenizer, wrong)


def test_samples_are_the_same_each_time_and_leave_no_trace(pair):
    model, tokenizer = pair
    model.train()
    state = torch.get_rng_state()
    sample = Samples(model, tokenizer, ["The river"], SamplingParams(max_tokens=6, temperature=0.8, seed=3))
    first = sample()
    assert first.keys() == {"The river"}
    assert sample() == first
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="no prompt"):
        Samples(model, tokenizer, [])
