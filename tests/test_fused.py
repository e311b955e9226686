"""The native forms of a training step's operators against the plain ones: every instruction set, type and odd size."""

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.ops import fused
from headwater.ops.attention import Documents, attention
from headwater.ops.head_loss import head_loss, head_loss_plain
from headwater.ops.norm import rms_norm, rms_norm_plain
from headwater.ops.short_conv import gated_short_conv, gated_short_conv_plain
from headwater.ops.swiglu import swiglu, swiglu_plain

WIDTHS = (1, 5, 16, 37, 96)
TYPES = (torch.float32, torch.bfloat16)
FLAGS = {"portable": "", "avx2": "avx2", "avx512": "avx512_vnni"}


def choose(isa, monkeypatch):
    assert fused._fused is not None, "the native module is not built"
    with open("/proc/cpuinfo") as f:
        if FLAGS[isa] not in f.read():
            pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("HEADWATER_ISA", isa)


@pytest.fixture(params=FLAGS)
def isa(request, monkeypatch):
    choose(request.param, monkeypatch)


@pytest.fixture(params=[*FLAGS, "torch"])
def form(request, monkeypatch):
    """The native form of each instruction set, and torch's."""
    if request.param == "torch":
        monkeypatch.setattr(fused, "_fused", None)
    else:
        choose(request.param, monkeypatch)


@pytest.fixture(params=["torch's threads", "own threads"])
def threads(request):
    """Who does the pieces."""
    path = fused._openmp()
    assert path, "torch brings no libgomp"
    assert fused._fused.join(path if request.param == "torch's threads" else "")
    yield
    assert fused._fused.join(path)


def random(*shape, dtype=torch.float32, seed=0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(result: Tensor, upstream: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(result, inputs, upstream.to(result.dtype)))


def exact(function, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients in float64, of the same values."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    result = function(*wide)
    return result.detach(), gradients(result, upstream, wide)


def agree(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype, steps: float = 1.0) -> None:
    """Within `steps` roundings of dtype, of the largest value of each tensor."""
    bound = steps * (2e-6 if dtype == torch.float32 else 2**-8)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert float((a.detach().double() - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", WIDTHS)
def test_norm(form, n, dtype):
    x = random(3, 7, n, dtype=dtype).requires_grad_()
    w = (1 + random(n, seed=1)).requires_grad_()
    g = random(3, 7, n, seed=2)
    y = rms_norm(x, w, 1e-5)
    assert y.dtype == torch.float32

    def plain(x, w):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w

    want, slopes = exact(plain, [x, w], g)
    agree([y, *gradients(y, g, [x, w])], [want, *slopes], dtype, 4)
    assert torch.allclose(y, rms_norm_plain(x, w, 1e-5), rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", WIDTHS)
def test_swiglu(form, n, dtype):
    gate, up = (random(2, 9, n, dtype=dtype, seed=s).mul(3).requires_grad_() for s in (0, 1))
    g = random(2, 9, n, dtype=dtype, seed=2)
    y = swiglu(gate, up)
    want, slopes = exact(swiglu_plain, [gate, up], g)
    agree([y, *gradients(y, g, [gate, up])], [want, *slopes], dtype, 2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("width", "bias", "packed"), [(1, False, False), (3, False, True), (3, True, False), (7, True, True)]
)
@pytest.mark.parametrize("d", [5, 37])
def test_gated_short_conv(form, d, width, bias, packed, dtype):
    mixed = random(2, 11, 3 * d, dtype=dtype).requires_grad_()
    inputs = [mixed, random(d, width, seed=1).requires_grad_()]
    if bias:
        inputs.append(random(d, seed=2).requires_grad_())
    segments = torch.tensor([[0] * 4 + [1] * 2 + [2] * 5, [3] * 11]) if packed else None
    g = random(2, 11, d, seed=3)

    def run(function, mixed, weight, bias=None):
        return function(mixed, weight, bias, segments)

    y = run(gated_short_conv, *inputs)
    want, slopes = exact(lambda *i: run(gated_short_conv_plain, *i), inputs, g)
    agree([y, *gradients(y, g, inputs)], [want, *slopes], dtype, 4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("heads", "groups", "n", "lengths"),
    [(2, 2, 16, [[1]]), (4, 2, 32, [[33]]), (3, 1, 48, [[10, 1, 22], [33]]), (4, 1, 80, [[64, 65], [129]])],
)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(form, heads, groups, n, lengths, causal, dtype):
    rows, steps = len(lengths), sum(lengths[0])
    mask = "causal" if causal else Documents(tuple(map(tuple, lengths)))
    document = torch.stack([torch.arange(len(ls)).repeat_interleave(torch.tensor(ls)) for ls in lengths])
    sees = torch.ones(steps, steps, dtype=torch.bool).tril() & (causal | (document[:, :, None] == document[:, None]))
    inputs = [random(rows, steps, h, n, dtype=dtype, seed=h + i) for i, h in enumerate((heads, groups, groups))]
    inputs = [x.mul(1.5).requires_grad_() for x in inputs]
    g = random(rows, heads, steps, n, dtype=dtype, seed=9)

    def run(function, mask, q, k, v):
        return function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.3, mask)

    y = run(attention, mask, *inputs)
    assert ("_Attention" in y.grad_fn.name()) == (fused._fused is not None)
    want, slopes = exact(lambda *i: run(exact_attention, sees.expand(rows, -1, -1), *i), inputs, g)
    agree([y, *gradients(y, g, inputs)], [want, *slopes], dtype, 4)
    with torch.no_grad():
        agree([run(attention, mask, *inputs)], [want], dtype, 4)


def exact_attention(q, k, v, scale, mask):
    """attention_plain, whose softmax is fp32, in the inputs' own dtype."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask[:, None], float("-inf"))
    return scores.softmax(-1) @ v


def test_attention_under_autocast_and_what_it_leaves_to_torch():
    q, k, v = (random(1, 2, 20, 16, seed=i).requires_grad_() for i in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(q, k, v, 0.25, "causal")
    assert y.dtype == torch.bfloat16 and "_Attention" in y.grad_fn.name()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
    agree([y], [wanted.detach().double()], torch.bfloat16, 4)
    for some in ((q, k[:, :, :5], v[:, :, :5]), (q[..., :9], k[..., :9], v[..., :9]), (q, k, v.double())):
        assert not fused.attends(*some)
    bad = torch.full_like(q, float("nan"))
    assert torch.isnan(attention(bad, k, v, 0.25, "causal")).all()
    starts = torch.zeros(1, 20, dtype=torch.int32)
    with pytest.raises(ValueError, match="behind itself"):
        fused.attention(q, k, v, 0.25, starts + 3)
    with pytest.raises(ValueError, match="starts are not"):
        fused.attention(q, k, v, 0.25, starts[:, :7].contiguous())
    with pytest.raises(ValueError, match="divide"):
        fused.attention(q, torch.cat([k] * 2, 1)[:, :3], torch.cat([v] * 2, 1)[:, :3], 0.25, starts)


def test_attention_of_more_rows_than_pieces():
    """Of so many rows a piece of the work has several."""
    v = torch.arange((1 << 19) + 3)[:, None, None, None].fmod(251).bfloat16().expand(-1, 1, 1, 16).contiguous()
    o, _ = fused.attention(v, v, v, 0.01, torch.zeros(len(v), 1, dtype=torch.int32))
    assert torch.equal(o, v)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("v", [3, 16, 37, 5000])
def test_head(form, v, dtype):
    """A label that is among the picks, one that is not; none picked."""
    for k in (0, 2):
        hidden, weight = random(6, 8, dtype=dtype).requires_grad_(), random(v, 8, dtype=dtype, seed=1).requires_grad_()
        labels, picks = torch.arange(6) % 3, torch.tensor([[1, 2]] * 6)[:, :k]

        def loss(s, _):
            return (s.partition_n - s.label_n + 0.3 * (s.picked_nk.sum(-1) - s.partition_n).square()).sum(), {}

        ours, _ = head_loss(hidden, weight, labels, picks, loss)
        inputs = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
        want, _ = head_loss_plain(*inputs, labels, picks, loss)
        slopes = torch.autograd.grad(want, inputs)
        agree([ours[None], *torch.autograd.grad(ours, [hidden, weight])], [want.detach()[None], *slopes], dtype, 10)


def test_the_same_bits_whatever_the_threads():
    x, w, g = random(300, 33), random(33, seed=1), random(300, 33, seed=2)
    mixed, taps, up = random(3, 100, 99), random(33, 3, seed=1), random(3, 100, 33, seed=2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            y, inverse = fused.norm(x, w, 1e-5)
            _, d_w = fused.norm_back(g, x, w, inverse, for_x=True, for_weight=True)
            _, d_taps, _ = fused.conv_back(up, mixed, taps, None, None)
            found.append(torch.cat([y.flatten(), d_w, d_taps.flatten()]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_what_is_no_number_stays_none(isa):
    nan = torch.from_numpy(np.array([0x7FFFFFFF, 0x7FC00000], np.uint32).view(np.float32).copy()).repeat(20)
    ones = torch.ones(40, dtype=torch.bfloat16)
    d_gate, d_up = fused.swiglu_back(nan, ones, ones)
    assert d_gate.isnan().all() and d_up.isnan().all()


def test_what_they_can_not_read_is_left_to_torch():
    x = random(4, 8)
    assert fused.usable(x, x.bfloat16())
    assert not fused.usable(x.double())
    assert not fused.usable(x.t())
    assert not fused.usable(x.half())
    assert not fused.usable(x.to("meta"))


def test_sizes_and_ids_are_checked():
    x = random(4, 8)
    with pytest.raises(ValueError, match="x has 32 values; it must have 28"):
        fused.norm(x, random(7), 1e-5)
    with pytest.raises(ValueError, match="up has 8 values; it must have 32"):
        fused.swiglu(x, random(8))
    with pytest.raises(ValueError, match="ids: 8 is no word of 8"):
        fused.slope_(x, random(4), random(4), torch.tensor([[8]] * 4), random(4, 1))
    with pytest.raises(ValueError, match="mixed is not three times as wide"):
        fused.conv(random(1, 2, 8), random(3, 2), None, None)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads(threads, count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    x, w = random(300, 640, dtype=torch.bfloat16), random(640, seed=1)
    y, inverse = fused.norm(x, w, 1e-5)
    grad = random(300, 640, seed=2)
    d_x, d_w = fused.norm_back(grad, x, w, inverse, for_x=True, for_weight=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = fused.norm_back(grad, x, w, fused.norm(x, w, 1e-5)[1], for_x=True, for_weight=True)
    assert torch.equal(y, fused.norm(x, w, 1e-5)[0]) and torch.equal(d_x, alone[0]) and torch.equal(d_w, alone[1])


def test_no_such_threads():
    assert not fused._fused.join("/no/such/libgomp.so.1")
