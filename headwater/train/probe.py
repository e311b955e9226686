"""The start-up check of packed training: does a document see its neighbour?

A model that ignores `segment_ids` (or honours them in attention alone, while a convolution reads across the
boundary) trains without any error and learns from leaked text. So the loop runs this on the real model once, before
the first update.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headwater.ops.head_loss import Head

# Largest |packed - solo| over largest |solo| that rounding may explain; a leak is orders of magnitude above.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


Forward = Callable[[nn.Module, Mapping[str, Tensor]], Any]


def check_packing(
    model: nn.Module,
    forward: Forward,
    input_ids: Tensor,
    *,
    together: Forward | None = None,
    agree: Callable[[float], float] = lambda difference: difference,
) -> float:
    """Run two documents packed in one row, and the second alone; return the relative difference of the second's logits.

    `input_ids` (n,) n >= 8 supplies the text: its first half is one document, its second the other. `forward(model,
    batch)` must give logits (B, T, V) or a Head of them. Runs outside autocast and without gradient; the model's
    train or eval mode stays. `together` is the forward of the packed row where that one differs (rows split over
    ranks), `agree` makes the differences of several ranks one. ValueError: the difference is more than rounding: the
    model leaks across documents; or it gives no finite numbers.
    """
    if input_ids.ndim != 1 or len(input_ids) < 8:
        raise ValueError(f"the packing probe needs a row of at least 8 ids, not shape {tuple(input_ids.shape)}")
    cut = len(input_ids) // 2
    segments = (torch.arange(len(input_ids), device=input_ids.device) >= cut).long()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
            packed = _logits(
                (together or forward)(model, {"input_ids": input_ids[None], "segment_ids": segments[None]})
            )[:, cut:]
            alone = {"input_ids": input_ids[None, cut:], "segment_ids": torch.zeros_like(segments[None, cut:])}
            solo = _logits(forward(model, alone))
    finally:
        model.train(was_training)
    difference = ((packed - solo).abs().max() / solo.abs().max().clamp_min(1e-30)).item()
    difference = agree(difference)
    if math.isnan(difference):
        raise ValueError(
            "packing probe: what the model gives is not finite before any training; "
            "cure: look for NaN in its weights (a damaged file?), or another dtype"
        )
    limit = TOLERANCE.get(solo.dtype, 1e-4)
    if not difference <= limit:
        raise ValueError(
            "packing probe: a document packed behind another gets other logits than alone (relative difference "
            f"{difference:.2g}, allowed {limit:g} for {solo.dtype}): the model does not keep segment_ids apart; "
            "cure: one document a row, or a model whose every layer honours segment_ids"
        )
    return difference


def _logits(outputs: Any) -> Tensor:
    return outputs.logits() if isinstance(outputs, Head) else outputs
