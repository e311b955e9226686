"""Next-token cross-entropy over packed, masked batches.

Batch keys read here, all (B, T): `input_ids` int64; optional `segment_ids` int64 (one number a document of the row),
`loss_mask` bool (true where the token itself is to be predicted), `attention_mask` (0 at padding).
Not for making batches (headwater.data) and not for running the model (headwater.train.loop).
Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def next_token_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """The id each position has to predict, (B, T) int64; IGNORE where there is none.

    Position t predicts token t+1 only inside one document, only if `loss_mask` asks for token t+1, never to or from
    padding. The one place where the shift is made, so that no objective can cross a document boundary.
    """
    ids = batch["input_ids"]
    if ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}; it must be (rows, positions)")
    keep = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    for name in ("segment_ids", "loss_mask", "attention_mask"):
        mask = batch.get(name)
        if mask is None:
            continue
        if mask.shape != ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}; they must be the same"
            )
        if name == "segment_ids":
            keep &= mask[:, 1:] == mask[:, :-1]
        elif name == "loss_mask":
            keep &= mask[:, 1:].bool()
        else:
            keep &= mask[:, 1:].bool() & mask[:, :-1].bool()
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = torch.where(keep, ids[:, 1:], IGNORE)
    return targets


def next_token(logits: Tensor, batch: Mapping[str, Tensor], *, z_loss: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats over the batch's targets, computed in fp32 from `logits` (B, T, V).

    `z_loss` adds that multiple of the mean squared log-partition (PaLM, section 5): it keeps logits from drifting.
    Metrics: `weight` (number of targets), `nll` (the cross-entropy alone), with z_loss also `z`.
    ValueError: shapes disagree, or no position of the batch has a target.
    """
    targets = next_token_targets(batch).flatten()
    if logits.shape[:2] != batch["input_ids"].shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, input_ids {tuple(batch['input_ids'].shape)}; "
            "they must agree in rows and positions"
        )
    valid = targets != IGNORE
    weight = valid.sum()
    if not weight:
        raise ValueError(
            "no position of this batch has a target: its loss mask is empty, or every document is one token long; "
            "cure: drop such documents before packing"
        )
    flat = logits.flatten(0, 1).float()
    nll = F.cross_entropy(flat, targets, ignore_index=IGNORE, reduction="sum") / weight
    metrics = {"weight": weight, "nll": nll.detach()}
    if not z_loss:
        return nll, metrics
    z = torch.logsumexp(flat, -1).square().masked_fill(~valid, 0.0).sum() / weight
    metrics["z"] = z.detach()
    return nll + z_loss * z, metrics
