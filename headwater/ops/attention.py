"""Causal grouped-query attention (Ainslie et al. 2023) with an optional sliding window."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from headwater.ops import fused

MASK_VALUES = 1 << 23
"""A mask of packed documents larger than this is not made, they run one by one: the square of a long row is large."""


def attention_plain(
    q_bhtn: torch.Tensor, k_bgsn: torch.Tensor, v_bgsn: torch.Tensor, scale: float, mask_bts: torch.Tensor
) -> torch.Tensor:
    """The meaning of `attention`: softmax(scale q k^T where mask) v, each KV head serving h / g query heads."""
    group = q_bhtn.shape[1] // k_bgsn.shape[1]
    k_bhsn = k_bgsn.repeat_interleave(group, dim=1)
    v_bhsn = v_bgsn.repeat_interleave(group, dim=1)
    scores = (q_bhtn @ k_bhsn.transpose(-1, -2) * scale).float()
    scores = scores.masked_fill(~mask_bts[:, None], float("-inf"))
    return scores.softmax(-1).to(v_bhsn.dtype) @ v_bhsn


@dataclass(frozen=True)
class Documents:
    """Each row is documents one behind the other that do not see each other: their lengths, which sum up to t."""

    lengths: tuple[tuple[int, ...], ...]

    @cached_property
    def starts_bt(self) -> torch.Tensor:
        """Where the document of each token begins in its row, int32."""
        rows = []
        for lengths in self.lengths:
            sizes = torch.tensor(lengths, dtype=torch.int32)
            rows.append((sizes.cumsum(0, dtype=torch.int32) - sizes).repeat_interleave(sizes))
        return torch.stack(rows)

    @cached_property
    def mask_bts(self) -> torch.Tensor:
        """The same as a mask."""
        at = torch.arange(self.starts_bt.shape[1])
        return (at[None, None, :] <= at[None, :, None]) & (at[None, None, :] >= self.starts_bt[:, :, None])


Mask = torch.Tensor | Documents | str | None


def attention(
    q_bhtn: torch.Tensor, k_bgsn: torch.Tensor, v_bgsn: torch.Tensor, scale: float, mask: Mask
) -> torch.Tensor:
    """Attention output (b, h, t, n), through a kernel of our own where a CPU trains, else through torch's.

    mask: bool (b or 1, t, s), True where a query may look; "causal" when query i may look at keys up to i; None when
    every query may look at every key; Documents: causal inside each of them.
    """
    if isinstance(mask, Documents | str):
        learns = _learns(q_bhtn, k_bgsn, v_bgsn)
        if learns and fused.attends(*(parts := _as_products(q_bhtn, k_bgsn, v_bgsn))):
            return _Attention.apply(*parts, scale, _starts(mask, parts[0]))
    if isinstance(mask, Documents):
        if len(q_bhtn) * q_bhtn.shape[2] ** 2 > MASK_VALUES:
            return _one_by_one(q_bhtn, k_bgsn, v_bgsn, scale, mask)
        mask = mask.mask_bts.to(q_bhtn.device)
    if isinstance(mask, torch.Tensor):
        return F.scaled_dot_product_attention(
            q_bhtn, k_bgsn, v_bgsn, attn_mask=mask[:, None], scale=scale, enable_gqa=True
        )
    return F.scaled_dot_product_attention(
        q_bhtn, k_bgsn, v_bgsn, is_causal=mask == "causal", scale=scale, enable_gqa=True
    )


def visible(query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Bool (b, t, s): key not after the query and, with a window, among the last `window` tokens counting itself."""
    queries, keys = query_positions[:, :, None], key_positions[:, None, :]
    seen = keys <= queries  # a difference of positions would take eight bytes a pair
    return seen if window is None else seen & (keys > queries - window)


def _one_by_one(
    q_bhtn: torch.Tensor, k_bhtn: torch.Tensor, v_bhtn: torch.Tensor, scale: float, documents: Documents
) -> torch.Tensor:
    rows = []
    for q, k, v, lengths in zip(q_bhtn, k_bhtn, v_bhtn, documents.lengths, strict=True):
        cut = [x[None].split(lengths, dim=2) for x in (q, k, v)]
        rows.append(torch.cat([attention(a, b, c, scale, "causal") for a, b, c in zip(*cut, strict=True)], dim=2))
    return torch.cat(rows)


def _learns(*parts: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and any(x.requires_grad for x in parts)


def _starts(mask: Documents | str, q_bhtn: torch.Tensor) -> torch.Tensor:
    if isinstance(mask, Documents):
        return mask.starts_bt
    return torch.zeros((len(q_bhtn), q_bhtn.shape[2]), dtype=torch.int32)


def _as_products(*parts: torch.Tensor) -> Sequence[torch.Tensor]:
    """In the dtype that autocast gives to matrix products, as torch's own attention does."""
    kind = parts[0].device.type
    if not torch.is_autocast_enabled(kind):
        return parts
    return [x.to(torch.get_autocast_dtype(kind)) for x in parts]


class _Attention(torch.autograd.Function):
    """torch's own kernel for a CPU takes five times as long back as forth, and reads the whole square of a mask."""

    @staticmethod
    def forward(
        ctx: Any, q_bhtn: torch.Tensor, k_bgtn: torch.Tensor, v_bgtn: torch.Tensor, scale: float, starts: torch.Tensor
    ) -> torch.Tensor:
        o_bhtn, lse_bht = fused.attention(q_bhtn, k_bgtn, v_bgtn, scale, starts)
        ctx.save_for_backward(q_bhtn, k_bgtn, v_bgtn, starts, o_bhtn, lse_bht)
        ctx.scale = scale
        return o_bhtn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_bhtn, k_bgtn, v_bgtn, starts, o_bhtn, lse_bht = ctx.saved_tensors
        if grad.stride(3) != 1:
            grad = grad.contiguous()
        back = fused.attention_back(grad, q_bhtn, k_bgtn, v_bgtn, ctx.scale, starts, o_bhtn, lse_bht)
        return *back, None, None
