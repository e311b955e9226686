"""Causal grouped-query attention (Ainslie et al. 2023) with an optional sliding window."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


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


Mask = torch.Tensor | Documents | str | None


def attention(
    q_bhtn: torch.Tensor, k_bgsn: torch.Tensor, v_bgsn: torch.Tensor, scale: float, mask: Mask
) -> torch.Tensor:
    """Attention output (b, h, t, n) through torch's fused kernel.

    mask: bool (b or 1, t, s), True where a query may look; "causal" when query i may look at keys up to i; None when
    every query may look at every key; Documents: causal inside each of them, at no cost for the rest of the square.
    """
    if isinstance(mask, Documents):
        rows = []
        for q, k, v, lengths in zip(q_bhtn, k_bgsn, v_bgsn, mask.lengths, strict=True):
            cut = [x[None].split(lengths, dim=2) for x in (q, k, v)]
            rows.append(torch.cat([attention(a, b, c, scale, "causal") for a, b, c in zip(*cut, strict=True)], dim=2))
        return torch.cat(rows)
    if isinstance(mask, torch.Tensor):
        return F.scaled_dot_product_attention(
            q_bhtn, k_bgsn, v_bgsn, attn_mask=mask[:, None], scale=scale, enable_gqa=True
        )
    return F.scaled_dot_product_attention(
        q_bhtn, k_bgsn, v_bgsn, is_causal=mask == "causal", scale=scale, enable_gqa=True
    )


def visible(query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Bool (b, t, s): key not after the query and, with a window, among the last `window` tokens counting itself."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
