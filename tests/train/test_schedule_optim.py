"""Learning rates as functions of the step, and which tensors decay."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from headwater.train.optim import adamw, describe, parameter_groups
from headwater.train.schedule import WSD, Cosine


def test_cosine_warms_up_to_the_peak_and_ends_at_its_final_value():
    schedule = Cosine(steps=101, warmup=10, final=0.1)
    assert [schedule(s) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule(10) == 1.0
    assert schedule(55) == pytest.approx(0.55)
    assert schedule(100) == pytest.approx(0.1)
    falling = [schedule(s) for s in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_wsd_is_flat_then_falls_to_its_final_value_without_a_jump():
    schedule = WSD(steps=100, warmup=5, decay=40, final=0.0)
    assert schedule(0) == pytest.approx(0.2)
    assert {schedule(s) for s in range(5, 60)} == {1.0}
    assert schedule(60) == pytest.approx(1 - (1 / 40) ** 0.5)
    assert schedule(99) == 0.0
    falling = [schedule(s) for s in range(59, 100)]
    assert all(a > b for a, b in pairwise(falling))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_stay_between_zero_and_one(steps):
    for schedule in (Cosine(steps=steps, warmup=1), WSD(steps=steps, warmup=1, decay=steps - 1), Cosine(steps=steps)):
        assert all(0.0 <= schedule(s) <= 1.0 for s in range(steps + 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10, "warmup": 6, "decay": 5}, r"warmup 6 \+ decay 5 steps exceed the 10"),
        ({"steps": 10, "warmup": -1}, "warmup is -1"),
        ({"steps": 10, "final": 1.5}, "final is 1.5"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WSD(**arguments)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.conv = nn.Conv1d(4, 4, 3, groups=4)
        self.norm = nn.RMSNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight


def test_groups_hold_each_trainable_tensor_once_and_only_matrices_decay():
    model = Tied()
    groups = parameter_groups(model)
    assert groups == {
        "matrix": [model.conv.weight],
        "embedding": [model.embed.weight],
        "vector": [model.conv.bias, model.norm.weight],
    }
    optimizer = adamw(model, lr=1e-3, embedding_lr=2e-3, weight_decay=0.1)
    by_kind = {g["kind"]: g for g in optimizer.param_groups}
    assert {k: g["weight_decay"] for k, g in by_kind.items()} == {"matrix": 0.1, "embedding": 0.0, "vector": 0.0}
    assert {k: g["initial_lr"] for k, g in by_kind.items()} == {"matrix": 1e-3, "embedding": 2e-3, "vector": 1e-3}
    assert "embedding: 1 tensors, 44 values, lr 0.002, decay 0" in describe(optimizer)


def test_a_step_without_gradient_shrinks_matrices_alone():
    model = Tied()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw(model, lr=1e-2, weight_decay=0.5).step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"conv.weight"}


def test_nothing_to_train_and_odd_rates_are_errors():
    with pytest.raises(ValueError, match="no parameter of this model requires a gradient"):
        adamw(Tied().requires_grad_(False), lr=1e-3)
    with pytest.raises(ValueError, match=r"embedding_lr is 2\.0"):
        adamw(Tied(), lr=1e-3, embedding_lr=2.0)
