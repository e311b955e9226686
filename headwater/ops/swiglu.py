"""The gated product inside a SwiGLU feed-forward part (Shazeer 2020): silu(gate) * up."""

from typing import Any

import torch
import torch.nn.functional as F

from headwater.ops import fused
from headwater.ops.blocks import blocks


def swiglu_plain(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The meaning of `swiglu`."""
    return F.silu(gate) * up


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, (..., i); where gradients are wanted it keeps the two inputs alone."""
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _Swiglu.apply(gate, up)
    return F.silu(gate).mul_(up)


class _Swiglu(torch.autograd.Function):
    """Autograd would keep silu(gate) beside the inputs, a third more."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        if gate.dtype == up.dtype and fused.usable(gate, up):
            return fused.swiglu(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        if gate.dtype == up.dtype and fused.usable(grad := upstream[0].contiguous(), gate, up):
            return fused.swiglu_back(grad, gate, up)
        gate_ni, up_ni, grad_ni = (t.reshape(-1, t.shape[-1]) for t in (gate, up, upstream[0]))
        wide = torch.promote_types(gate.dtype, torch.float32)
        d_gate, d_up = torch.empty_like(gate_ni), torch.empty_like(up_ni)
        for at in blocks(gate_ni):
            x, grad = gate_ni[at].to(wide), grad_ni[at].to(wide)
            share = x.sigmoid()
            active = x * share
            d_up[at] = grad * active
            slope = share.addcmul_(active, 1.0 - share)
            d_gate[at] = slope.mul_(grad).mul_(up_ni[at])
        return d_gate.view(gate.shape), d_up.view(up.shape)
