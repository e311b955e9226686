"""Next-token cross-entropy over packed, masked batches.

Batch keys read here, all (B, T): `input_ids` int64; optional `segment_ids` int64 (one number a document of the row),
`loss_mask` bool (true where the token itself is to be predicted), `attention_mask` (0 at padding).
Not for making batches (headwater.data) and not for running the model (headwater.train.loop).
Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from headwater.ops.head_loss import Head, NothingToLearn, Scores, head_loss, scores

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


def targets_of(outputs: Tensor | Head, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(which positions (B, T) have a target, the ids to predict there (n)) of logits or a Head that belong to a batch.

    ValueError: shapes disagree; NothingToLearn: no position of the batch has a target.
    """
    shape = outputs.hidden.shape[:-1] if isinstance(outputs, Head) else outputs.shape[:2]
    targets = next_token_targets(batch)
    if shape != targets.shape:
        raise ValueError(
            f"{'hidden states' if isinstance(outputs, Head) else 'logits'} have rows and positions {tuple(shape)}, "
            f"input_ids {tuple(targets.shape)}; they must agree"
        )
    keep = targets != IGNORE
    if not keep.any():
        raise NothingToLearn(
            "no position of this batch has a target: its loss mask is empty, or every document is one token long; "
            "cure: drop such documents before packing"
        )
    return keep, targets[keep]


def next_token(
    outputs: Tensor | Head, batch: Mapping[str, Tensor], *, z_loss: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats over the batch's targets, computed in fp32 from logits (B, T, V) or from a Head.

    A Head costs a few rows of logits at a time instead of the batch's. `z_loss` adds that multiple of the mean
    squared log-partition (PaLM, section 5): it keeps logits from drifting.
    Metrics: `weight` (number of targets), `nll` (the cross-entropy alone), with z_loss also `z`.
    ValueError: shapes disagree, or no position of the batch has a target.
    """
    keep, labels = targets_of(outputs, batch)

    def loss(scores: Scores, at: slice) -> tuple[Tensor, dict[str, Tensor]]:
        nll = (scores.partition_n - scores.label_n).sum()
        if not z_loss:
            return nll, {"nll": nll}
        z = scores.partition_n.square().sum()
        return nll + z_loss * z, {"nll": nll, "z": z}

    if isinstance(outputs, Head):
        none = labels.new_empty((len(labels), 0))
        total, sums = head_loss(outputs.hidden[keep], outputs.weight, labels, none, loss)
    else:
        total, sums = loss(scores(outputs[keep], labels), slice(None))
    metrics = {name: value.detach() / len(labels) for name, value in sums.items()}
    return total / len(labels), {"weight": torch.tensor(len(labels)), **metrics}
