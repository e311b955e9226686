"""Knowledge distillation from truncated teachers, and its rivals: pure functions of Scores, then one objective.

The LFM2 loss is the decoupled one (report, 3.3; spec: chain rule of KL with the tail's conditional dropped). What no
source states is an option: temperature 2, no factor temperature^2, equal weights of label and teacher.
Batch keys beside those of next_token, (B, T, K): `teacher_ids` int64, distinct in a row, `teacher_logprobs` (natural
logarithms of the teacher's untempered probabilities); optional (B, T) `teacher_mass`, the exact probability of the K
ids together; for `sampled`: `teacher_counts` (B, T, K), how often each id was drawn (0: not at all).
Position t of the teacher is its distribution of token t+1. Not for capturing teachers.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from headwater.objectives.next_token import next_token, targets_of
from headwater.ops.head_loss import Head, Scores, full_kl, head_loss

_LEAST = 1e-7
"""Probabilities under this are taken as it: half an fp32 step below 1."""


class Taught(NamedTuple):
    """What the teacher says of some rows. n rows, k ids."""

    logprobs_nk: Tensor
    mass_n: Tensor


Kd = Callable[[Scores, Taught, float, float], Tensor]
"""(student's scores, teacher, temperature, factor of what is tempered) -> loss (n)."""


def decoupled(scores: Scores, taught: Taught, temperature: float, factor: float = 1.0) -> Tensor:
    """KL(Bern(m) || Bern(q)) + m KL of the two distributions inside the K ids, tempered. m, q: masses of the K ids.

    LFM2 report (arXiv 2511.23404), 3.3: the temperature stays inside the conditional term, so both share its support.
    """
    return _binary(scores, taught) + factor * taught.mass_n * _kl(
        (taught.logprobs_nk / temperature).log_softmax(-1), (scores.picked_nk / temperature).log_softmax(-1)
    )


def top_k_kl(scores: Scores, taught: Taught, temperature: float, factor: float = 1.0) -> Tensor:
    """The naive form: the teacher renormalised over its K ids, the student tempered over its whole vocabulary.

    The two do not share a support, so it is not zero where the student equals the teacher: what `decoupled` cures.
    """
    log_t = (taught.logprobs_nk / temperature).log_softmax(-1)
    return factor * _kl(log_t, scores.picked_nk / temperature - scores.tempered_n[:, None])


def bucket_kl(scores: Scores, taught: Taught, temperature: float, factor: float = 1.0) -> Tensor:
    """KL over K ids and one bucket for all others, both tempered over the K+1 (as TRL, DistillKit)."""
    _, log_rest = _log_mass(scores)
    log_s = torch.cat([scores.picked_nk - scores.partition_n[:, None], log_rest[:, None]], -1)
    rest = (1.0 - taught.mass_n).clamp_min(_LEAST).log()
    log_t = torch.cat([taught.logprobs_nk, rest[:, None]], -1)
    return factor * _kl((log_t / temperature).log_softmax(-1), (log_s / temperature).log_softmax(-1))


def sampled(scores: Scores, taught: Taught, temperature: float, factor: float = 1.0) -> Tensor:
    """Cross-entropy to ids drawn from the teacher: `logprobs_nk` holds the logarithm of each id's share of the draws.

    Random Sampling Knowledge Distillation (ACL 2025): unbiased at temperature 1, the only one it has.
    """
    if temperature != 1.0:
        raise ValueError(f"temperature is {temperature}; drawn ids give an unbiased loss at 1 alone")
    return -factor * (taught.logprobs_nk.exp() * (scores.picked_nk - scores.partition_n[:, None])).sum(-1)


KINDS: dict[str, Kd] = {"decoupled": decoupled, "top_k": top_k_kl, "bucket": bucket_kl, "sampled": sampled}


def distill(
    outputs: Head,
    batch: Mapping[str, Tensor],
    *,
    kind: str = "decoupled",
    temperature: float = 2.0,
    square: bool = False,
    label_weight: float = 0.5,
    teacher_weight: float = 0.5,
    z_loss: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """label_weight * cross-entropy + teacher_weight * KD, a mean in nats over the batch's targets.

    outputs: Head of (B, T, d); the logits never exist at once. square: multiply what is tempered, so not the masses of
    `decoupled`, by temperature^2 (Hinton).
    Metrics: `weight`, `nll`, `kd` as it enters the loss, with z_loss also `z`.
    ValueError: a key missing or misshaped, nothing to learn.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    keep, labels = _checked(outputs, batch)
    ids, taught = _teacher(batch, keep, kind)
    factor = temperature**2 if square else 1.0

    def loss(scores: Scores, at: slice) -> tuple[Tensor, dict[str, Tensor]]:
        nll = (scores.partition_n - scores.label_n).sum()
        kd = KINDS[kind](scores, Taught(*(t[at] for t in taught)), temperature, factor).sum()
        report = {"nll": nll, "kd": kd}
        total = label_weight * nll + teacher_weight * kd
        if z_loss:
            report["z"] = scores.partition_n.square().sum()
            total = total + z_loss * report["z"]
        return total, report

    heat = temperature if kind == "top_k" else 1.0
    total, sums = head_loss(outputs.hidden[keep], outputs.weight, labels, ids, loss, heat)
    return total / len(labels), {"weight": torch.tensor(len(labels)), **{k: v / len(labels) for k, v in sums.items()}}


def distill_full(
    outputs: Head,
    batch: Mapping[str, Tensor],
    *,
    teacher: Callable[[Mapping[str, Tensor]], Head],
    temperature: float = 1.0,
    square: bool = False,
    label_weight: float = 0.5,
    teacher_weight: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `distill`, against the whole distribution of a teacher that is run here. Metrics: `weight`, `nll`, `kd`."""
    keep, labels = _checked(outputs, batch)
    with torch.no_grad():
        taught = teacher(batch)
    if taught.weight.shape[0] != outputs.weight.shape[0]:
        raise ValueError(
            f"the teacher has {taught.weight.shape[0]} words, the student {outputs.weight.shape[0]}; "
            "distillation needs one tokenizer"
        )
    kd = full_kl(
        Head(outputs.hidden[keep], outputs.weight), Head(taught.hidden[keep], taught.weight), temperature
    ) / len(labels)
    metrics = {"weight": torch.tensor(len(labels)), "kd": kd.detach()}
    nll = torch.zeros(())
    if label_weight:
        nll, parts = next_token(outputs, batch)
        metrics["nll"] = parts["nll"]
    return label_weight * nll + teacher_weight * (temperature**2 if square else 1.0) * kd, metrics


def _checked(outputs: Head, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(outputs, Head):
        raise ValueError(f"distillation takes a Head (hidden states and weight), not a {type(outputs).__name__}")
    return targets_of(outputs, batch)


def _teacher(batch: Mapping[str, Tensor], keep: Tensor, kind: str) -> tuple[Tensor, Taught]:
    """(ids (n, k), what is said of them) at the positions that count."""
    value = "teacher_counts" if kind == "sampled" else "teacher_logprobs"
    for name in ("teacher_ids", value):
        if name not in batch:
            raise ValueError(f"the batch has no {name!r}, which kind {kind!r} needs; it has {', '.join(batch)}")
        if batch[name].shape[:2] != keep.shape or batch[name].shape != batch["teacher_ids"].shape:
            raise ValueError(
                f"{name} has shape {tuple(batch[name].shape)}; it must be {tuple(keep.shape)} and the number of ids"
            )
    ids, values = batch["teacher_ids"][keep].long(), batch[value][keep]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if kind == "sampled":
        return ids, Taught((values / values.sum(-1, keepdim=True)).log(), values.new_ones(len(ids)))
    mass = batch["teacher_mass"][keep].to(values.dtype) if "teacher_mass" in batch else values.exp().sum(-1)
    return ids, Taught(values, mass.clamp(_LEAST, 1.0))


def _log_mass(scores: Scores) -> tuple[Tensor, Tensor]:
    """Logarithms of the student's mass inside the K ids and outside."""
    inside = (scores.picked_nk.logsumexp(-1) - scores.partition_n).clamp_max(-_LEAST)
    return inside, torch.log(-torch.expm1(inside))


def _binary(scores: Scores, taught: Taught) -> Tensor:
    log_q, log_rest = _log_mass(scores)
    m, rest = taught.mass_n, 1.0 - taught.mass_n
    return m * (m.log() - log_q) + torch.where(rest > _LEAST, rest * (rest.clamp_min(_LEAST).log() - log_rest), 0.0)


def _kl(log_t: Tensor, log_s: Tensor) -> Tensor:
    """Sum over the last axis of p_t (log p_t - log p_s); ids of probability 0 add nothing."""
    p = log_t.exp()
    return torch.where(p > 0, p * (log_t - log_s), 0.0).sum(-1)
