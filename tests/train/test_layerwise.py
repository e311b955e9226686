"""Fitting parts to what they replace: what is measured, who learns, what is saved."""

import pytest
import torch
from torch import nn

from headwater.train.layerwise import Layerwise, layer_error


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, ids, attention_mask=None):
        h = self.embed(ids)
        return self.second((h + self.first(h)).tanh())


BATCH = {"input_ids": torch.arange(10).view(2, 5)}


def test_errors_are_of_each_part_on_the_teachers_own_stream():
    teacher, student = Net(0), Net(1)
    fit = Layerwise(teacher, {"first": student.first, "second": student.second})
    out = fit(BATCH["input_ids"])
    assert out.shape == (2, 5, 2, 2)
    h = teacher.embed(BATCH["input_ids"])
    seen = (h + teacher.first(h)).tanh()  # what the teacher's second part sees, not the student's
    torch.testing.assert_close(out[:, :, 1, 0], (student.second(seen) - teacher.second(seen)).square().sum(-1))
    torch.testing.assert_close(out[:, :, 0, 1], teacher.first(h).square().sum(-1))
    loss, metrics = layer_error(out, BATCH)
    errors = out.sum((0, 1))
    assert loss.item() == pytest.approx((errors[:, 0] / errors[:, 1]).mean().item())
    assert metrics["worst"].item() == pytest.approx((errors[:, 0] / errors[:, 1]).max().item())
    assert metrics["weight"] == 10


def test_only_the_parts_learn_and_are_saved_and_they_arrive():
    teacher, student = Net(0), Net(1)
    fit = Layerwise(teacher, {"first": student.first})
    assert {id(p) for p in fit.parameters()} == {id(p) for p in student.first.parameters()}
    assert len(fit.state_dict()) == 2
    optimizer = torch.optim.Adam(fit.parameters(), 0.05)
    for _ in range(300):
        loss, _ = layer_error(fit(BATCH["input_ids"]), BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.first._forward_hooks


def test_padding_does_not_count():
    fit = Layerwise(Net(0), {"first": Net(1).first})
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    loss, metrics = layer_error(fit(BATCH["input_ids"]), BATCH | {"attention_mask": mask})
    assert metrics["weight"] == 8
    assert loss != layer_error(fit(BATCH["input_ids"]), BATCH)[0]


def test_faults_are_named():
    with pytest.raises(ValueError, match="no part 'third'"):
        Layerwise(Net(0), {"third": nn.Linear(6, 6)})
    with pytest.raises(ValueError, match="no part to fit"):
        Layerwise(Net(0), {})
    with pytest.raises(ValueError, match="a Layerwise gives"):
        layer_error(torch.zeros(2, 5, 11), BATCH)
