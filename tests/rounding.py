"""What an engine with rounded activations computes, exactly: our model with the inputs of its matrices rounded.

`int8` is ours, `int8_half_scale` llama.cpp's for types of 32 values, `q8_k` llama.cpp's for K-quants, whose one scale
for 256 values is coarser. Weights are used as they are (dequantized), in double precision: only the rounding is left.
"""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F

import headwater.model

Round = Callable[[torch.Tensor], torch.Tensor]


def int8(x: torch.Tensor) -> torch.Tensor:
    """One scale per 32 values, 127 levels a side: what the native kernels do to activations."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / scale).round() * scale).flatten(-2)


def int8_half_scale(x: torch.Tensor) -> torch.Tensor:
    """The same with the scale kept as a half: llama.cpp's activations for types of 32 values."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / scale).round() * scale.half().float()).flatten(-2)


def q8_k(x: torch.Tensor) -> torch.Tensor:
    """One scale per 256 values, the extreme one at -127: llama.cpp's activations for K-quants."""
    blocks = x.unflatten(-1, (-1, 256))
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = torch.where(extreme == 0, 1.0, extreme / -127)
    return ((blocks / scale).round().clamp(max=127) * scale).flatten(-2)


@contextlib.contextmanager
def rounded_inputs(of: Callable[[torch.Tensor], Round | None], *, f16_cache: bool = False) -> Iterator[None]:
    """Inside, a product with a matrix rounds its input by `of(matrix)` (None: not at all); keys and values to f16."""
    linear, attention = F.linear, headwater.model.attention

    def rounding(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        how = of(w)
        if how is None:
            return linear(x, w, b)
        return linear(how(x).double(), w.double(), None if b is None else b.double()).float()

    def halved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> torch.Tensor:
        return attention(q, k.half().float(), v.half().float(), *rest)

    with (
        mock.patch.object(F, "linear", rounding),
        mock.patch.object(headwater.model, "attention", halved if f16_cache else attention),
    ):
        yield
