"""Training on many GPUs on paper: the sums are those of the sizes they speak of."""

import json

import pytest

from headwater import cli
from headwater.config import MODELS
from headwater.ops.head_loss import CHUNK_BYTES
from headwater.train.scale import GPUS, LOGITS, Setting, estimate

DENSE, SPARSE = MODELS["LFM2-1.2B"], MODELS["LFM2-8B-A1B"]


def test_state_and_traffic_are_counted_from_the_parameters():
    e = estimate(DENSE, Setting(gpus=64))
    parameters = DENSE.num_parameters()
    assert (e.replicas, e.shards, e.experts) == (8, 8, 1)
    assert e.numbers["state"] == 16 * parameters / 8
    assert e.numbers["sharding bytes"] == e.accumulate * 7 / 8 * parameters * 8
    assert e.rows * e.accumulate * 64 * 4096 == 4_194_304
    assert f"{parameters:,} / 8 shards" in e.sums["state"]


def test_logits_are_those_of_the_fused_head():
    assert LOGITS == CHUNK_BYTES
    assert "0.40 GB of logits" in estimate(DENSE, Setting(gpus=64)).sums["activations"]


def test_flop_of_a_token():
    """6 N, and for attention 12 x (half the row) x heads x width a layer; a window bounds the keys."""
    e = estimate(DENSE, Setting(gpus=8))
    assert e.numbers["flop a token"] == 6 * DENSE.num_parameters() + 12 * 6 * 2048 * 32 * 64
    sparse = estimate(SPARSE, Setting(gpus=8))
    assert sparse.numbers["flop a token"] == 6 * SPARSE.num_parameters(active=True) + 12 * 6 * 2048 * 32 * 64


def test_the_share_of_the_peak_never_passes_what_the_layers_reach():
    for gpus in (1, 8, 64, 1000):
        e = estimate(DENSE, Setting(gpus=gpus, attained=0.4))
        assert 0 < e.numbers["MFU"] <= 0.4
        assert e.numbers["tokens/s"] * e.numbers["flop a token"] == pytest.approx(
            e.numbers["MFU"] * gpus * GPUS["H100"].peak
        )


def test_a_split_row_needs_less_memory_a_gpu():
    whole = estimate(DENSE, Setting(gpus=8, length=32768, batch_tokens=32768))
    split = estimate(DENSE, Setting(gpus=8, length=32768, batch_tokens=32768, context=8))
    assert (whole.rows, split.rows) == (1, 1)
    assert split.numbers["activations"] < whole.numbers["activations"] / 3
    assert "context" in split.numbers
    assert "context" not in whole.numbers


def test_experts_are_spread_over_neighbours():
    e = estimate(SPARSE, Setting(gpus=64))
    assert e.experts == 8
    assert e.numbers["experts"] > 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gpu": "H10"}, "did you mean"),
        ({"gpus": 0}, "gpus is 0"),
        ({"context": 3}, "context is 3; it must divide the 8 GPUs"),
        ({"attained": 1.5}, "attained is 1.5"),
        ({"length": 1 << 24, "batch_tokens": 1}, "one row of 16777216 tokens does not fit"),
    ],
)
def test_a_wrong_setting_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        estimate(DENSE, Setting(**{"gpus": 8, **wrong}))


def test_the_command_shows_its_sums(capsys):
    assert cli.run(["scale", "LFM2-1.2B", "--gpus", "8,1000", "--sums"]) == 0
    shown = capsys.readouterr().out
    assert "125 x 8" in shown
    assert "1,170,340,608 / 8 shards" in shown
    assert cli.run(["scale", "LFM2-1.2B", "--gpus", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["shards"] == 8
    assert cli.run(["scale", "LFM2-1.2B", "--gpus", "8;9"]) == 2
