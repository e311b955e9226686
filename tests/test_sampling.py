"""SamplingParams checks itself, and every rule of `pick` does what its name says."""

import pytest
import torch

from headwater.generate import pick
from headwater.sampling import PRESETS, SamplingParams


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": "a"}, "min_p is 'a'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": "end"}, "stop is 'end'"),
        ({"stop": ("",)}, "non-empty"),
        ({"max_tokens": True}, "max_tokens is True"),
    ],
)
def test_values_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        SamplingParams(**options)


def test_presets_are_the_published_ones():
    assert (PRESETS["lfm2"].temperature, PRESETS["lfm2"].min_p, PRESETS["lfm2"].repetition_penalty) == (0.3, 0.15, 1.05)


PROBABILITIES = torch.tensor([0.05, 0.4, 0.2, 0.3, 0.05])
LOGITS = PROBABILITIES.log()


def drawn(
    params: SamplingParams, logits: torch.Tensor = LOGITS, seen: tuple[int, ...] = (), n: int = 4000
) -> torch.Tensor:
    """Shares of the tokens in n draws."""
    generator = torch.Generator().manual_seed(0)
    picks = [pick(logits, params, torch.tensor(seen, dtype=torch.long), generator) for _ in range(n)]
    return torch.tensor(picks).bincount(minlength=5) / n


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.4, 0.2, 0.3, 0.05]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.01}, [0, 1.0, 0, 0, 0]),
        ({"min_p": 0.45}, [0, 4 / 9, 2 / 9, 3 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 0.5}, [0.0084, 0.5378, 0.1345, 0.3025, 0.0084]),
    ],
)
def test_shares_of_draws(options, expected):
    shares = drawn(SamplingParams(**{"temperature": 1.0} | options))
    assert torch.allclose(shares, torch.tensor(expected), atol=0.03)
    assert not shares[torch.tensor(expected) == 0].any()


def test_greedy_takes_the_first_of_equals():
    assert pick(torch.tensor([0.0, 2.0, 2.0]), SamplingParams(), torch.tensor([]), torch.Generator()) == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature):
    """The smallest made logits infinite in fp32, and the choice one of NaNs."""
    logits = torch.tensor([3.0, 1.0, 60.0, -70.0, 59.0])
    assert pick(logits, SamplingParams(temperature=temperature), torch.tensor([]), torch.Generator()) == 2


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    params = SamplingParams(repetition_penalty=2.0)
    none = torch.Generator()
    assert pick(torch.tensor([3.0, 2.0, -1.0]), params, torch.tensor([0]), none) == 1
    assert pick(torch.tensor([-1.0, -1.5]), params, torch.tensor([0]), none) == 1
    assert pick(torch.tensor([-1.0, -2.5]), params, torch.tensor([0]), none) == 0


def test_same_seed_same_draws():
    params = SamplingParams(temperature=1.0)
    assert torch.equal(drawn(params, n=50), drawn(params, n=50))
