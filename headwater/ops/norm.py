"""Root-mean-square normalisation (Zhang and Sennrich 2019), in the rounding order of the published checkpoints."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x (..., n) scaled to unit root mean square over n in fp32, then times weight (n,).

    With offset 0 the result is cast to x's dtype before the multiplication (LFM2, Llama, Qwen3); with another offset
    (Gemma: 1) the weight is offset and multiplied in fp32 and the product is cast.
    """
    x_hat = x.float()
    x_hat = x_hat * torch.rsqrt(x_hat.square().mean(-1, keepdim=True) + eps)
    if offset:
        return (x_hat * (weight.float() + offset)).to(x.dtype)
    return weight * x_hat.to(x.dtype)
