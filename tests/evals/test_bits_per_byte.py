"""Bits per byte: the number itself on models whose probabilities are known, windows, batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.evals.bits_per_byte import bits_per_byte
from headwater.model import Lfm2
from headwater.train.loop import run_head


class Bytes:
    """One id a byte, BOS is 256."""

    def encode(self, text, *, bos):
        return [256] * bos + list(text.encode())


def uniform(ids):
    return torch.zeros(*ids.shape, 257)


def next_byte_is_one_more(ids):
    """Certain that each byte is the one before plus 1 (of 'abcdef...'); after BOS anything goes."""
    logits = 50.0 * F.one_hot((ids + 1) % 257, 257).float()
    return torch.where((ids == 256)[..., None], 0.0, logits)


def test_a_uniform_model_needs_log2_of_its_vocabulary_per_token():
    assert bits_per_byte(uniform, Bytes(), ["abc", "größer", ""]) == pytest.approx(math.log2(257))


def test_only_the_first_byte_costs_when_the_rest_is_certain():
    text = "abcdefghijklmnopqrstuvwxyz"
    for window, overlap in ((100, 10), (8, 3), (3, 2), (2, 1)):
        value = bits_per_byte(next_byte_is_one_more, Bytes(), [text], window=window, overlap=overlap)
        assert value == pytest.approx(math.log2(257) / 26, rel=1e-5), (window, overlap)


@pytest.mark.parametrize(("window", "overlap"), [(2, 1), (5, 1), (5, 4), (7, 3), (64, 63)])
@pytest.mark.parametrize("size", range(1, 14))
def test_every_token_is_scored_once_at_every_length(window, overlap, size):
    value = bits_per_byte(uniform, Bytes(), ["x" * size], window=window, overlap=overlap)
    assert value * size == pytest.approx(math.log2(257) * size)


def test_a_real_model_scores_the_same_in_any_batch_and_nearly_the_same_in_windows():
    attention = Attention(num_heads=2, num_kv_heads=1, head_dim=8, rope=Rope(theta=1e4))
    layers = stack("CAC", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=32))
    config = Config(vocab_size=257, hidden_size=16, layers=layers, max_positions=512)
    model = Lfm2(config, generator=torch.Generator().manual_seed(0)).train()
    texts = ["a short one", "and a much longer text, to be padded against", "é" * 40, "z"]
    expected = 0.0
    for text in texts:
        ids = torch.tensor([Bytes().encode(text, bos=True)])
        with torch.no_grad():
            expected += F.cross_entropy(model(ids)[0, :-1].double(), ids[0, 1:], reduction="sum").item()
    expected /= math.log(2) * sum(len(t.encode()) for t in texts)
    for batch_size in (1, 3, 16):
        assert bits_per_byte(model, Bytes(), texts, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(model, Bytes(), texts, window=20, overlap=12) == pytest.approx(expected, rel=0.02)
    assert bits_per_byte(model, Bytes(), texts, forward=run_head) == pytest.approx(expected, rel=1e-5)
    assert model.training, "the mode is left as it was"


def test_nothing_to_score_and_impossible_windows():
    with pytest.raises(ValueError, match="no text to score"):
        bits_per_byte(uniform, Bytes(), ["", ""])
    for overlap in (0, 8, 9):
        with pytest.raises(ValueError, match=f"overlap is {overlap}, window 8"):
            bits_per_byte(uniform, Bytes(), ["a"], window=8, overlap=overlap)
