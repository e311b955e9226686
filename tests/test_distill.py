"""Truncated distillation: the chain rule that ties the losses together, gradients by fp64 autograd, faults by name."""

import functools

import pytest
import torch

from headwater.objectives.distill import KINDS, distill, distill_full
from headwater.objectives.next_token import next_token
from headwater.ops.head_loss import Head

WORDS = 41


def made(k=6, rows=2, steps=9, width=7, seed=0):
    """(student Head, teacher logits (b, t, v), batch with the teacher's K most likely ids), all fp64."""
    g = torch.Generator().manual_seed(seed)
    head = Head(
        torch.randn(rows, steps, width, generator=g, dtype=torch.float64).requires_grad_(),
        torch.randn(WORDS, width, generator=g, dtype=torch.float64).requires_grad_(),
    )
    teacher = 2 * torch.randn(rows, steps, WORDS, generator=g, dtype=torch.float64)
    logprobs, ids = teacher.log_softmax(-1).topk(k, -1)
    return head, teacher, {
        "input_ids": torch.randint(WORDS, (rows, steps), generator=g),
        "segment_ids": torch.tensor([[0] * 4 + [1] * (steps - 4)] * rows),
        "teacher_ids": ids, "teacher_logprobs": logprobs, "teacher_mass": logprobs.exp().sum(-1),
    }  # fmt: skip


def kept(batch, x):
    """The positions that have a target: not the last of a document."""
    segments = batch["segment_ids"]
    keep = torch.zeros_like(segments, dtype=torch.bool)
    keep[:, :-1] = segments[:, 1:] == segments[:, :-1]
    return x[keep]


def autograd_decoupled(head, batch, temperature):
    """The formula of the report, written from probabilities."""
    p = kept(batch, head.logits().softmax(-1))
    ids, logprobs = kept(batch, batch["teacher_ids"]), kept(batch, batch["teacher_logprobs"])
    m, q = logprobs.exp().sum(-1), p.gather(1, ids).sum(-1)
    binary = m * (m / q).log() + (1 - m) * ((1 - m) / (1 - q)).log()
    a = (logprobs / temperature).softmax(-1)
    b = (p.gather(1, ids).log() / temperature).softmax(-1)
    return (binary + m * (a * (a / b).log()).sum(-1)).mean()


only_teacher = functools.partial(distill, label_weight=0.0, teacher_weight=1.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_decoupled_is_the_report_formula_and_so_are_its_gradients(temperature):
    head, _, batch = made()
    loss, metrics = only_teacher(head, batch, temperature=temperature)
    expected = autograd_decoupled(head, batch, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert metrics["kd"] == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["weight"] == 14
    for a, b in zip(torch.autograd.grad(loss, head), torch.autograd.grad(expected, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_at_temperature_one_decoupled_is_the_bucket_loss():
    """Chain rule: KL over K ids and a bucket = KL of the masses + mass * KL inside."""
    head, _, batch = made()
    one, other = (only_teacher(head, batch, kind=k, temperature=1.0)[0] for k in ("decoupled", "bucket"))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    apart = (only_teacher(head, batch, kind=k, temperature=2.0)[0].item() for k in ("decoupled", "bucket"))
    assert len({round(x, 6) for x in apart}) == 2


@pytest.mark.parametrize("kind", ["decoupled", "bucket", "top_k"])
def test_all_words_kept_is_full_kl(kind):
    head, teacher, batch = made(k=WORDS)
    loss, _ = only_teacher(head, batch, kind=kind, temperature=1.0)
    full, _ = distill_full(
        head, batch, teacher=lambda _: Head(teacher, torch.eye(WORDS, dtype=torch.float64)),
        label_weight=0.0, teacher_weight=1.0,
    )  # fmt: skip
    torch.testing.assert_close(loss, full, rtol=0, atol=1e-6)
    for a, b in zip(torch.autograd.grad(loss, head), torch.autograd.grad(full, head), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_student_equal_to_its_teacher_rests_only_where_the_support_is_shared():
    """The mismatch that the report warns of: the naive loss pulls an equal student away, the decoupled one does not."""
    head, _, batch = made()
    logprobs, batch["teacher_ids"] = head.logits().detach().log_softmax(-1).topk(6, -1)
    batch |= {"teacher_logprobs": logprobs, "teacher_mass": logprobs.exp().sum(-1)}
    size = {}
    for kind in ("decoupled", "bucket", "top_k"):
        loss, _ = only_teacher(head, batch, kind=kind, temperature=2.0)
        size[kind] = torch.autograd.grad(loss, head.hidden)[0].abs().max().item()
    assert size["decoupled"] < 1e-7
    assert size["bucket"] < 1e-7
    assert size["top_k"] > 1e-3


def test_drawn_ids_give_the_gradient_of_the_full_loss_on_average():
    head, teacher, batch = made()
    p = teacher.softmax(-1)
    full = torch.autograd.grad(-(kept(batch, p) * kept(batch, head.logits().log_softmax(-1))).sum(-1).mean(), head)
    batch["teacher_ids"] = torch.arange(WORDS).expand(*p.shape)
    draws, g = 40_000, torch.Generator().manual_seed(5)
    picks = torch.multinomial(p.flatten(0, 1), draws, replacement=True, generator=g)
    batch["teacher_counts"] = torch.stack([row.bincount(minlength=WORDS) for row in picks]).view(p.shape).double()
    loss, _ = only_teacher(head, batch, kind="sampled", temperature=1.0)
    for a, b in zip(torch.autograd.grad(loss, head), full, strict=True):
        assert (a - b).abs().max() < 0.02 * b.abs().max()


def test_weights_square_and_z_loss_add_up():
    head, _, batch = made()
    head = Head(*(t.detach() for t in head))
    nll, said = next_token(head, batch, z_loss=0.1)
    kd, _ = only_teacher(head, batch, kind="bucket", temperature=3.0)
    loss, metrics = distill(
        head, batch, kind="bucket", temperature=3.0, square=True, label_weight=0.25, teacher_weight=2, z_loss=0.1
    )
    expected = 0.25 * said["nll"] + 2 * 9 * kd + 0.1 * said["z"]
    torch.testing.assert_close(loss, expected)
    assert metrics["nll"] == said["nll"]
    assert nll == pytest.approx((said["nll"] + 0.1 * said["z"]).item())


def test_the_square_of_the_temperature_is_for_what_is_tempered():
    """Of the decoupled loss that is the term inside the K ids: the one of the masses has no temperature."""
    head, _, batch = made()
    p = kept(batch, head.logits().softmax(-1))
    q, m = p.gather(1, kept(batch, batch["teacher_ids"])).sum(-1), kept(batch, batch["teacher_mass"])
    binary = (m * (m / q).log() + (1 - m) * ((1 - m) / (1 - q)).log()).mean()
    plain, _ = only_teacher(head, batch, temperature=3.0)
    squared, metrics = only_teacher(head, batch, temperature=3.0, square=True)
    expected = binary + 9 * (plain - binary)
    torch.testing.assert_close(squared, expected, rtol=1e-6, atol=0)
    assert metrics["kd"] == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(squared, head), torch.autograd.grad(expected, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_next_token_from_a_head_is_next_token_from_logits():
    head, _, batch = made()
    fused, plain = next_token(head, batch, z_loss=0.01), next_token(head.logits(), batch, z_loss=0.01)
    torch.testing.assert_close(fused[0], plain[0])
    assert fused[1].keys() == plain[1].keys()
    for a, b in zip(torch.autograd.grad(fused[0], head), torch.autograd.grad(plain[0], head), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_teachers_and_students_stay_finite(kind):
    head, _, batch = made()
    sure = torch.full_like(batch["teacher_logprobs"], -80.0)
    sure[..., 0] = 0.0
    batch |= {"teacher_logprobs": sure, "teacher_mass": torch.ones(2, 9), "teacher_counts": (sure == 0).double()}
    for scale in (1e-3, 1.0, 300.0):
        tried = Head((head.hidden.detach() * scale).float().requires_grad_(), head.weight.detach().float())
        loss, _ = distill(tried, batch, kind=kind, temperature=1.0)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, tried.hidden)[0]).all()


def test_faults_are_named():
    head, _, batch = made()
    with pytest.raises(ValueError, match="kind is 'topk'; allowed: decoupled, top_k, bucket, sampled"):
        distill(head, batch, kind="topk")
    with pytest.raises(ValueError, match="temperature is 0"):
        distill(head, batch, temperature=0)
    with pytest.raises(ValueError, match="unbiased loss at 1"):
        distill(head, batch | {"teacher_counts": batch["teacher_logprobs"].exp()}, kind="sampled", temperature=2)
    with pytest.raises(ValueError, match="no 'teacher_ids'"):
        distill(head, {"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match=r"teacher_logprobs has shape \(2, 9, 5\)"):
        distill(head, batch | {"teacher_logprobs": batch["teacher_logprobs"][..., 1:]})
    with pytest.raises(ValueError, match="takes a Head"):
        distill(head.logits(), batch)
    other = Head(head.hidden, torch.zeros(WORDS + 1, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"{WORDS + 1} words, the student {WORDS}"):
        distill_full(head, batch, teacher=lambda _: other)
