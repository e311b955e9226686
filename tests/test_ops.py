"""Every operator against its plain twin: values and gradients at odd sizes, in fp64 so that only meaning differs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headwater.ops import blocks
from headwater.ops.attention import Documents, attention, attention_plain, visible
from headwater.ops.moe import experts, experts_plain, route
from headwater.ops.norm import rms_norm, rms_norm_plain
from headwater.ops.rope import cos_sin, rotate, rotate_plain
from headwater.ops.short_conv import gated_short_conv, gated_short_conv_plain, short_conv, short_conv_plain
from headwater.ops.swiglu import swiglu, swiglu_plain


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def agree(fast: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor], tolerance: float = 1e-10) -> None:
    """Equal values, and equal gradients of a random functional of them."""
    assert torch.allclose(fast, plain, rtol=0, atol=tolerance), (fast - plain).abs().max()
    functional = torch.randn(fast.shape, dtype=fast.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((fast * functional).sum(), inputs),
        torch.autograd.grad((plain * functional).sum(), inputs, retain_graph=True),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("steps", [1, 2, 5, 11])
@pytest.mark.parametrize("past", ["none", "tail", "segments", "both"])
def test_short_conv(width, steps, past):
    u, weight, bias, tail = randn(2, steps, 5), randn(5, width), randn(5), randn(2, width - 1, 5, seed=3)
    segments = torch.tensor([[0] * 3 + [1] * 1 + [2] * 7, [5] * 6 + [6] * 5])[:, :steps]
    options = {"tail": tail} if past == "tail" else {"segments_bt": segments} if past == "segments" else {}
    if past == "both":  # the row goes on from another rank: the tail brings its own segments
        before = torch.tensor([[-1, -1, -1, 0, 0, 0], [4, 4, 5, 5, 5, 5]])[:, 7 - width :]
        options = {"tail": tail, "segments_bt": torch.cat([before, segments], 1)}
    inputs = [u, weight, bias] + ([tail] if "tail" in options and width > 1 else [])
    agree(short_conv(u, weight, bias, **options), short_conv_plain(u, weight, bias, **options), inputs)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 11])
@pytest.mark.parametrize("packed", [False, True])
def test_gated_short_conv(width, steps, packed):
    mixed, weight, bias = randn(2, steps, 15), randn(5, width), randn(5)
    segments = torch.tensor([[0] * 3 + [1] * 1 + [2] * 7, [5] * 6 + [6] * 5])[:, :steps] if packed else None
    for b in (bias, None):
        inputs = [mixed, weight] + ([] if b is None else [b])
        agree(gated_short_conv(mixed, weight, b, segments), gated_short_conv_plain(mixed, weight, b, segments), inputs)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_swiglu(rows, monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 100)  # several pieces, the last one short
    gate, up = randn(rows, 3, 11), randn(rows, 3, 11, seed=5)
    agree(swiglu(gate, up), swiglu_plain(gate, up), [gate, up])
    with torch.no_grad():
        assert torch.equal(swiglu(gate, up), swiglu_plain(gate, up))


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(rows, offset, monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 100)
    x, weight = randn(rows, 3, 11), randn(11)
    fast, plain = rms_norm(x, weight, 1e-5, offset), rms_norm_plain(x, weight, 1e-5, offset)
    agree(fast, plain, [x, weight], 1e-5)  # fp32 inside
    x, weight = x.detach().bfloat16(), weight.detach().bfloat16()
    assert torch.equal(rms_norm(x.requires_grad_(), weight, 1e-5, offset), rms_norm_plain(x, weight, 1e-5, offset))


def test_gradients_in_bf16_are_those_of_fp32_rounded():
    """The fused backward passes compute in fp32 and round once, so they lie as near as bf16 can."""
    x, gate, up, mixed = (randn(5, 6, n, seed=n).detach().bfloat16() for n in (64, 32, 32, 48))
    weight, taps = randn(64).detach().bfloat16(), randn(16, 3).detach().bfloat16()
    cases = (
        (lambda a, b: rms_norm(a, b, 1e-5), lambda a, b: rms_norm_plain(a, b, 1e-5), (x, weight)),
        (swiglu, swiglu_plain, (gate, up)),
        (gated_short_conv, gated_short_conv_plain, (mixed, taps)),
    )
    for fast, plain, given in cases:
        narrow = [t.clone().requires_grad_() for t in given]
        exact = [t.float().requires_grad_() for t in given]
        for a, b in zip(
            torch.autograd.grad(fast(*narrow).float().square().sum(), narrow),
            torch.autograd.grad(plain(*exact).square().sum(), exact),
            strict=True,
        ):
            assert (a.float() - b).norm() < 0.02 * b.norm()


def test_short_conv_is_the_published_sum():
    """v_t = w0 u_(t-2) + w1 u_(t-1) + w2 u_t with zeros before the start."""
    u = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    v = short_conv(u, torch.tensor([[0.5, 2.0, 3.0]]))
    assert v.flatten().tolist() == [3.0, 32.0, 320.5, 3205.0]


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (5, 1), (4, 4)])
@pytest.mark.parametrize(("steps", "past"), [(1, 9), (7, 0), (4, 6)])
@pytest.mark.parametrize("window", [None, 3])
def test_attention(heads, kv_heads, steps, past, window):
    q, k, v = (
        randn(2, heads, steps, 8),
        randn(2, kv_heads, past + steps, 8),
        randn(2, kv_heads, past + steps, 8, seed=2),
    )
    positions = torch.arange(past, past + steps)[None]
    mask = visible(positions, torch.arange(past + steps)[None], window)
    plain = attention_plain(q, k, v, 0.3, mask)
    agree(attention(q, k, v, 0.3, mask), plain, [q, k, v], 1e-5)  # the plain softmax is in fp32
    if past == 0 and window is None:
        agree(attention(q, k, v, 0.3, "causal"), plain, [q, k, v], 1e-5)
    if steps == 1 and window is None:
        agree(attention(q, k, v, 0.3, None), plain, [q, k, v], 1e-5)


def test_attention_of_packed_documents_by_their_lengths():
    q, k, v = randn(2, 6, 11, 8), randn(2, 2, 11, 8), randn(2, 2, 11, 8, seed=2)
    lengths = ((3, 1, 7), (11,))
    segments = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in lengths])
    positions = torch.arange(11)[None]
    mask = visible(positions, positions) & (segments[:, :, None] == segments[:, None, :])
    plain = attention_plain(q, k, v, 0.3, mask)
    agree(attention(q, k, v, 0.3, Documents(lengths)), plain, [q, k, v], 1e-5)


def test_window_counts_the_current_token():
    mask = visible(torch.arange(5)[None], torch.arange(5)[None], window=2)[0]
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


def test_who_looks_at_whom_takes_a_byte_a_pair():
    """Rows split over ranks make this mask: what `train.scale` counts for it, and what memory has."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.nbytes)
            return out

    positions = torch.arange(64)[None]
    for window in (None, 9):
        with Largest() as largest:
            visible(positions, positions, window)
        assert largest.size == 64 * 64


def test_rotate():
    x = randn(2, 3, 7, 10)
    positions = torch.arange(14).view(2, 7) * 3
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.01, 0.0])
    fast = rotate(x, *cos_sin(positions, frequencies))
    agree(fast, rotate_plain(x, positions, frequencies), [x], 1e-4)  # fp32 inside
    assert torch.allclose(fast[..., [4, 9]], x[..., [4, 9]], atol=1e-6), "a frequency of zero does not turn"


def test_rms_norm_rounds_before_the_weight():
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.linspace(0.5, 2, 33).bfloat16()
    x_hat = (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-5), x_hat * weight)
    x, weight = randn(3, 9), randn(9)
    plain = x * (weight + 1) / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(rms_norm(x, weight, 1e-5, offset=1.0), plain, atol=1e-6)


def test_route_selects_with_the_bias_and_weighs_without():
    """C4.5, by hand: expert 2 is lifted over expert 1 by its bias, its weight stays its own sigmoid."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]])
    chosen, weights = route(logits, torch.tensor([0.0, 0.0, 0.5, 0.0]), 2, norm_topk_prob=True, scaling=2.0)
    assert chosen.tolist() == [[2, 0]]
    p = torch.tensor([0.0, 2.0]).sigmoid()
    assert torch.allclose(weights[0], 2 * p / (p.sum() + 1e-6))
    _, plain = route(logits, None, 2, norm_topk_prob=False, scaling=1.0)
    assert torch.allclose(plain[0], torch.tensor([2.0, 1.0]).sigmoid())


def test_route_breaks_ties_to_the_lower_index_for_any_batch():
    """C4.6: one row and 32 rows choose the same experts, in bf16 logits with many ties too."""
    logits = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)).mul(2).round().bfloat16()
    together = route(logits, None, 4, True, 1.0)[0]
    alone = torch.cat([route(row[None], None, 4, True, 1.0)[0] for row in logits])
    assert torch.equal(together, alone)
    assert route(torch.zeros(1, 6), None, 3, True, 1.0)[0].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_experts(tokens):
    x, w1, w2, w3 = randn(tokens, 5), randn(6, 7, 5), randn(6, 5, 7), randn(6, 7, 5, seed=4)
    chosen, weights = route(randn(tokens, 6).detach(), None, 3, True, 1.5)
    weights = weights.double()
    agree(experts(x, chosen, weights, w1, w2, w3), experts_plain(x, chosen, weights, w1, w2, w3), [x, w1, w2, w3])
