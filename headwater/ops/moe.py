"""Sparse mixture of experts with a sigmoid router whose bias steers selection only (LFM2 report 2.3, DeepSeek-V3)."""

import torch
import torch.nn.functional as F


def route(
    logits_ne: torch.Tensor,
    expert_bias: torch.Tensor | None,
    num_chosen: int,
    norm_topk_prob: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen experts (n, num_chosen) and their fp32 weights for router logits (n, e).

    Selection ranks sigmoid(logits) + bias, ties going to the lower index; the weights are the plain sigmoids.
    """
    scores = logits_ne.float().sigmoid()
    ranked = scores if expert_bias is None else scores + expert_bias
    chosen = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :num_chosen]
    weights = scores.gather(-1, chosen)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    return chosen, weights * scaling


def experts_plain(
    x_nd: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    w1_eid: torch.Tensor,
    w2_edi: torch.Tensor,
    w3_eid: torch.Tensor,
) -> torch.Tensor:
    """The meaning of `experts`, one token and one expert at a time."""
    outputs = []
    for x, row, row_weights in zip(x_nd, chosen.tolist(), weights, strict=True):
        y = torch.zeros_like(x)
        for e, weight in zip(row, row_weights, strict=True):
            y = y + weight.to(x.dtype) * (w2_edi[e] @ (F.silu(w1_eid[e] @ x) * (w3_eid[e] @ x)))
        outputs.append(y)
    return torch.stack(outputs)


def experts(
    x_nd: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    w1_eid: torch.Tensor,
    w2_edi: torch.Tensor,
    w3_eid: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum (n, d) of the chosen SwiGLU experts; tokens are grouped by expert, idle experts cost nothing."""
    num_tokens, num_chosen = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    token_of = order // num_chosen
    weight_of = weights.flatten()[order]
    counts = chosen.flatten().bincount(minlength=w1_eid.shape[0]).tolist()
    y_nd = x_nd.new_zeros(num_tokens, x_nd.shape[1])
    start = 0
    for e, count in enumerate(counts):
        if count:
            tokens = token_of[start : start + count]
            x = x_nd[tokens]
            out = F.linear(F.silu(F.linear(x, w1_eid[e])) * F.linear(x, w3_eid[e]), w2_edi[e])
            y_nd = y_nd.index_add(0, tokens, (out * weight_of[start : start + count, None]).to(x_nd.dtype))
            start += count
    return y_nd
