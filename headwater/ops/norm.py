"""Root-mean-square normalisation (Zhang and Sennrich 2019), in the rounding order of the published checkpoints."""

from typing import Any

import torch

from headwater.ops import fused
from headwater.ops.blocks import blocks


def rms_norm_plain(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x (..., n) scaled to unit root mean square over n in fp32, then times weight (n,).

    With offset 0 the result is cast to x's dtype before the multiplication (LFM2, Llama, Qwen3); with another offset
    (Gemma: 1) the weight is offset and multiplied in fp32 and the product is cast.
    """
    x_hat = x.float()
    x_hat = x_hat * torch.rsqrt(x_hat.square().mean(-1, keepdim=True) + eps)
    if offset:
        return (x_hat * (weight.float() + offset)).to(x.dtype)
    return weight * x_hat.to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """The values of `rms_norm_plain`; where gradients are wanted it keeps x and one number a row for them."""
    if not offset and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RmsNorm.apply(x, weight, eps)
    return rms_norm_plain(x, weight, eps, offset)


class _RmsNorm(torch.autograd.Function):
    """Gradients in fp32, a piece at a time; autograd would keep three fp32 copies of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x_nd = x.reshape(-1, x.shape[-1])
        if fused.usable(x_nd, weight):
            y_nd, inverse_n1 = fused.norm(x_nd, weight, eps)
            ctx.save_for_backward(x_nd, weight, inverse_n1)
            return y_nd.view(x.shape)
        y_nd = torch.empty(x_nd.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
        inverse_n1 = torch.empty((len(x_nd), 1), dtype=torch.float32, device=x.device)
        for at in blocks(x_nd):
            some = x_nd[at].float()
            torch.rsqrt(some.square().mean(-1, keepdim=True) + eps, out=inverse_n1[at])
            torch.mul((some * inverse_n1[at]).to(x.dtype), weight, out=y_nd[at])
        ctx.save_for_backward(x_nd, weight, inverse_n1)
        return y_nd.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x_nd, weight, inverse_n1 = ctx.saved_tensors
        grad_nd, wide = upstream[0].reshape(x_nd.shape), weight.float()
        for_x, for_weight = ctx.needs_input_grad[:2]
        if fused.usable(grad := grad_nd.contiguous(), x_nd, weight):
            d_x, d_weight = fused.norm_back(grad, x_nd, weight, inverse_n1, for_x=for_x, for_weight=for_weight)
            return _shaped(d_x, upstream[0]), None if d_weight is None else d_weight.to(weight.dtype), None
        d_x = torch.empty_like(x_nd) if for_x else None
        d_weight = torch.zeros_like(wide) if for_weight else None
        for at in blocks(x_nd):
            grad, x_hat = grad_nd[at].float(), x_nd[at].float() * inverse_n1[at]
            both = grad * x_hat
            if d_weight is not None:
                d_weight += both.sum(0)
            if d_x is not None:
                shared = torch.mv(both, wide)[:, None] / len(wide)
                slope = torch.mul(grad, wide).addcmul_(x_hat, shared, value=-1.0)
                torch.mul(slope, inverse_n1[at], out=d_x[at])
        return _shaped(d_x, upstream[0]), None if d_weight is None else d_weight.to(weight.dtype), None


def _shaped(d_x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if d_x is None else d_x.view(like.shape)
