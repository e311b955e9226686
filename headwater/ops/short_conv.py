"""Depthwise causal convolution over a few steps, the inner part of LFM2's gated short convolution (report, 2.2)."""

from typing import Any

import torch
import torch.nn.functional as F

from headwater.ops import fused


def short_conv_plain(
    u_btd: torch.Tensor,
    weight_dk: torch.Tensor,
    bias_d: torch.Tensor | None = None,
    tail: torch.Tensor | None = None,
    segments_bt: torch.Tensor | None = None,
) -> torch.Tensor:
    """The meaning of `short_conv`, one output at a time."""
    width, past = weight_dk.shape[1], 0 if tail is None else tail.shape[1]
    first = 0 if segments_bt is None else segments_bt.shape[1] - u_btd.shape[1]  # columns of segments before u
    seen = u_btd if tail is None else torch.cat([tail, u_btd], dim=1)
    rows = []
    for b in range(u_btd.shape[0]):
        columns = []
        for t in range(u_btd.shape[1]):
            v = torch.zeros_like(u_btd[b, t]) if bias_d is None else bias_d.clone()
            for j in range(width):
                source = t - (width - 1) + j
                crossed = segments_bt is not None and (
                    source + first < 0 or segments_bt[b, source + first] != segments_bt[b, t + first]
                )
                if source + past >= 0 and not crossed:
                    v = v + weight_dk[:, j] * seen[b, source + past]
            columns.append(v)
        rows.append(torch.stack(columns))
    return torch.stack(rows)


def short_conv(
    u_btd: torch.Tensor,
    weight_dk: torch.Tensor,
    bias_d: torch.Tensor | None = None,
    tail: torch.Tensor | None = None,
    segments_bt: torch.Tensor | None = None,
) -> torch.Tensor:
    """v_t = sum_j weight[:, j] * u_(t - (k-1) + j) (+ bias), shape (b, t, d).

    tail (b, k-1, d): the inputs before u, zeros when absent. segments_bt: a tap counts only where its source carries
    the same segment as its target, so packed documents do not see each other; with a tail it is (b, k-1+t), the
    tail's segments first (rows that are split over ranks).
    """
    width, steps = weight_dk.shape[1], u_btd.shape[1]
    assert tail is None or tail.shape[1] == width - 1, tail.shape
    assert segments_bt is None or segments_bt.shape[1] == steps + (0 if tail is None else width - 1), segments_bt.shape
    seen = F.pad(u_btd, (0, 0, width - 1, 0)) if tail is None else torch.cat([tail, u_btd], dim=1)
    if segments_bt is not None:
        segments_seen = F.pad(segments_bt, (width - 1, 0), value=-1) if tail is None else segments_bt
        segments_bt = segments_seen[:, width - 1 :]
    taps = weight_dk.t().contiguous()
    v_btd = u_btd * taps[-1]
    for back in range(1, width):
        start = width - 1 - back
        source = seen[:, start : start + steps]
        if segments_bt is not None:
            same = segments_seen[:, start : start + steps] == segments_bt
            source = source * same[..., None]
        v_btd = torch.addcmul(v_btd, source, taps[-1 - back])
    return v_btd if bias_d is None else v_btd + bias_d


def gated_short_conv_plain(
    mixed_btc: torch.Tensor,
    weight_dk: torch.Tensor,
    bias_d: torch.Tensor | None = None,
    segments_bt: torch.Tensor | None = None,
) -> torch.Tensor:
    """The meaning of `gated_short_conv`."""
    gate_in, gate_out, value = mixed_btc.chunk(3, dim=-1)
    return gate_out * short_conv_plain(gate_in * value, weight_dk, bias_d, segments_bt=segments_bt)


def gated_short_conv(
    mixed_btc: torch.Tensor,
    weight_dk: torch.Tensor,
    bias_d: torch.Tensor | None = None,
    segments_bt: torch.Tensor | None = None,
) -> torch.Tensor:
    """gate_out * short_conv(gate_in * value), (b, t, d), for mixed = (gate_in, gate_out, value) side by side, c = 3 d.

    For training whole sequences: it keeps `mixed` alone for its gradients.
    """
    return _GatedShortConv.apply(mixed_btc, weight_dk, bias_d, segments_bt)


class _GatedShortConv(torch.autograd.Function):
    """Autograd would keep the product, its padded copy, each masked tap and the result: twice the input again."""

    @staticmethod
    def forward(
        ctx: Any,
        mixed_btc: torch.Tensor,
        weight_dk: torch.Tensor,
        bias_d: torch.Tensor | None,
        segments_bt: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(mixed_btc, weight_dk, bias_d, segments_bt)
        if _native(mixed_btc, weight_dk, bias_d):
            return fused.conv(mixed_btc, weight_dk, bias_d, segments_bt)
        gate_in, gate_out, value = mixed_btc.chunk(3, dim=-1)
        return short_conv(gate_in * value, weight_dk, bias_d, segments_bt=segments_bt).mul_(gate_out)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mixed_btc, weight_dk, bias_d, segments_bt = ctx.saved_tensors
        (grad,) = upstream
        if _native(mixed_btc, weight_dk, bias_d):
            d_mixed, d_taps, d_bias = fused.conv_back(grad.contiguous(), mixed_btc, weight_dk, bias_d, segments_bt)
            return d_mixed, d_taps, d_bias, None
        gate_in, gate_out, value = mixed_btc.chunk(3, dim=-1)
        d_mixed = torch.empty_like(mixed_btc)
        d_gate_in, d_gate_out, d_value = d_mixed.chunk(3, dim=-1)
        u_btd = gate_in * value
        torch.mul(grad, short_conv(u_btd, weight_dk, bias_d, segments_bt=segments_bt), out=d_gate_out)
        d_v, taps = grad * gate_out, weight_dk.t().contiguous()
        wide, width = torch.promote_types(weight_dk.dtype, torch.float32), weight_dk.shape[1]
        d_taps = torch.zeros(taps.shape, dtype=wide, device=taps.device)
        d_taps[-1] = (u_btd * d_v).sum((0, 1), dtype=wide)
        d_u = d_v * taps[-1]
        for back in range(1, min(width, u_btd.shape[1])):
            later = d_v[:, back:]
            if segments_bt is not None:
                later = later * (segments_bt[:, back:] == segments_bt[:, :-back])[..., None]
            d_taps[-1 - back] = (u_btd[:, :-back] * later).sum((0, 1), dtype=wide)
            d_u[:, :-back].addcmul_(later, taps[-1 - back])
        torch.mul(d_u, value, out=d_gate_in)
        torch.mul(d_u, gate_in, out=d_value)
        d_bias = None if bias_d is None else d_v.sum((0, 1), dtype=wide).to(bias_d.dtype)
        return d_mixed, d_taps.t().to(weight_dk.dtype), d_bias, None


def _native(mixed_btc: torch.Tensor, weight_dk: torch.Tensor, bias_d: torch.Tensor | None) -> bool:
    """Weights in fp32, as under autocast: narrower ones round between the taps, which only torch's form does."""
    weights = (weight_dk,) if bias_d is None else (weight_dk, bias_d)
    wide = all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
    return wide and weight_dk.shape[1] <= fused.MOST_TAPS and fused.usable(mixed_btc)
