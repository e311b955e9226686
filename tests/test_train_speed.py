"""The recipe that puts a training step beside transformers: both sides compute the same, at a tiny size."""

import dataclasses

import pytest
import torch

from headwater import config
from recipes import train_speed


@pytest.fixture
def tiny_row(monkeypatch):
    row = config.MODELS["LFM2-350M"]
    layers = tuple(dataclasses.replace(x, ffn=dataclasses.replace(x.ffn, intermediate_size=96)) for x in row.layers[:3])
    monkeypatch.setitem(config.MODELS, "LFM9-tiny", dataclasses.replace(row, vocab_size=1024, layers=layers))


@pytest.mark.parametrize("mode", train_speed.MODES)
def test_both_sides_report_the_same_loss(tiny_row, mode):
    ours, theirs = (
        train_speed.measure(side, "LFM9-tiny", mode, rows=2, length=24, steps=1, recompute=False)
        for side in train_speed.SIDES
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=train_speed.APART[mode])
    assert ours["parameters"] == theirs["parameters"]
    assert min(ours["seconds"], theirs["seconds"]) > 0
    assert ours["peak"] >= ours["before"] > 1e7


def test_one_side_alone_prints_json(tiny_row, capsys):
    arguments = "--side headwater --model LFM9-tiny --rows 1 --length 16 --steps 1 --threads 1 --recompute"
    found = train_speed.main(arguments.split())
    assert str(found["loss"]) in capsys.readouterr().out


def test_no_side_adds_to_the_gradients_of_its_last_step(tiny_row, monkeypatch):
    """The peer has parameters of its own over the same numbers: to sum them up takes it time and memory."""
    made, step_of = [], train_speed.step_of

    def remembered(*arguments):
        made.append(step_of(*arguments))
        return made[-1]

    monkeypatch.setattr(train_speed, "step_of", remembered)
    for side in train_speed.SIDES:
        train_speed.measure(side, "LFM9-tiny", "float32", rows=2, length=24, steps=2, recompute=False)
        module, step = made.pop()
        last = {name: p.grad.clone() for name, p in module.named_parameters()}
        module.zero_grad(set_to_none=True)
        step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(last[name], p.grad, msg=f"{side}: {name}")
