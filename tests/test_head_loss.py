"""Losses fused with the output projection: values, reports and gradients of the plain twins, at odd sizes."""

import pytest
import torch

from headwater.ops import head_loss as module
from headwater.ops.head_loss import Head, full_kl, full_kl_plain, head_loss, head_loss_plain


def made(rows=7, words=37, width=5, picks=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(rows * words)
    hidden = torch.randn(rows, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(words, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(words, (rows,), generator=g)
    picked = torch.stack([torch.randperm(words, generator=g)[:picks] for _ in range(rows)])
    return hidden, weight, labels, picked


def every_score(scores, at):
    """A loss that leans on all that a loss may see, in another way in each row."""
    row = torch.arange(at.start, at.start + len(scores.label_n)) + 1.0
    total = (row * scores.partition_n.square() + scores.label_n.sin() + scores.tempered_n * row.sqrt()).sum()
    total = total + (scores.picked_nk * scores.partition_n[:, None]).tanh().sum()
    return total, {"label": scores.label_n.sum(), "rows": row.sum()}


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 2), (5, 100), (7, 3), (100, 100)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_fused_equals_plain(monkeypatch, chunk, block, temperature):
    hidden, weight, labels, picked = made()
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk * 8 * len(weight))
    monkeypatch.setattr(module, "BLOCK_BYTES", block * 8 * len(weight))
    fast, said = head_loss(hidden, weight, labels, picked, every_score, temperature)
    plain, says = head_loss_plain(hidden, weight, labels, picked, every_score, temperature)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    assert said.keys() == says.keys()
    for name in said:
        torch.testing.assert_close(said[name], says[name].detach(), rtol=1e-12, atol=0)
    for a, b in zip(
        torch.autograd.grad(3.0 * fast, (hidden, weight)), torch.autograd.grad(3.0 * plain, (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_full_kl(monkeypatch, temperature):
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 8 * 37)
    student, teacher = Head(*made()[:2]), Head(*(t.detach() for t in made(7, 37, 9)[:2]))
    fast, plain = full_kl(student, teacher, temperature), full_kl_plain(student, teacher, temperature)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(fast, student), torch.autograd.grad(plain, student), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_teacher_equal_to_the_student_teaches_nothing():
    student = Head(*made()[:2])
    loss = full_kl(student, Head(*(t.detach() for t in student)))
    assert abs(loss.item()) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, student))


def test_frozen_parts_get_no_gradient_and_evaluation_computes_none():
    hidden, weight, labels, picked = made()
    total, _ = head_loss(hidden, weight.detach(), labels, picked, every_score)
    total.backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        again, _ = head_loss(hidden, weight, labels, picked, every_score)
    assert not again.requires_grad
    assert again == total


def test_a_second_backward_is_refused():
    hidden, weight, labels, picked = made()
    total, _ = head_loss(hidden, weight, labels, picked, every_score)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@pytest.mark.parametrize("chunk", [64, 20])
def test_products_in_the_autocast_dtype_and_sums_in_fp32(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk * 2 * 501)
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * 4 * 501)
    monkeypatch.setattr(module, "TILE", 100)
    hidden, weight, labels, picked = made(64, 501, 32, dtype=torch.float32)

    def nll(scores, at):
        assert scores.partition_n.dtype == torch.float32
        return (scores.partition_n - scores.label_n).sum(), {}

    exact, _ = head_loss(hidden, weight, labels, picked, nll)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = head_loss(hidden, weight, labels, picked, nll)
    assert rough.dtype == torch.float32
    assert 0 < abs(rough - exact) / exact < 1e-2
    wanted = torch.autograd.grad(exact, (hidden, weight))
    rough.backward()
    for gradient, want in zip((hidden.grad, weight.grad), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - want).norm() < 0.02 * want.norm()
