"""Output projection fused with a loss: the (tokens, vocabulary) logits exist for a few tokens at a time only.

Decisions: gradients are taken in the forward pass, chunk by chunk, inside the buffer that held the logits. Products
take a chunk, for they are fast with many rows; softmax and loss take a few of its rows in fp32, that the cache holds.
A loss sees a row's log-partition, its label's logit and a few picked logits, which is all that cross-entropy and
every truncated distillation need; the gradient of the log-partition is the softmax, the rest is scattered. A loss
against a teacher's whole distribution has its own function. Plain twins beside both.
Shapes: n tokens, v vocabulary, d hidden, k picked ids.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.ops import fused

CHUNK_BYTES = 1 << 27
"""Size of the buffer of logits in the dtype of the products."""
BLOCK_BYTES = 1 << 23
"""Size of the piece of it that is there in fp32, on a CPU; elsewhere the whole chunk is."""
TILE = 1 << 13
"""Words a product of the weight's gradient takes at a time where it is summed over chunks."""


class NothingToLearn(ValueError):
    """A batch has no target. Among several (micro-batches, ranks) it counts nothing; alone it is a fault."""


class Head(NamedTuple):
    """A model's output before the projection: what a fused loss takes in place of logits."""

    hidden: Tensor
    """(..., d), after the last norm."""
    weight: Tensor
    """(v, d)"""

    def logits(self) -> Tensor:
        """(..., v), all at once."""
        return F.linear(self.hidden, self.weight)


class Scores(NamedTuple):
    """What a loss sees of some rows of logits, in fp32 (fp64 for fp64 inputs)."""

    partition_n: Tensor
    """log-sum-exp over the vocabulary."""
    label_n: Tensor
    picked_nk: Tensor
    tempered_n: Tensor
    """log-sum-exp of the logits divided by the temperature; the partition itself where that is 1."""


Loss = Callable[[Scores, slice], tuple[Tensor, dict[str, Tensor]]]
"""(scores of some rows, which rows) -> (sum of their losses, sums of what to report)."""


def scores(logits_nv: Tensor, labels_n: Tensor, picks_nk: Tensor | None = None, temperature: float = 1.0) -> Scores:
    """Scores of logits that are there anyway, for autograd."""
    logits_nv = _wide(logits_nv)
    partition = logits_nv.logsumexp(-1)
    picked = logits_nv.gather(1, labels_n.new_empty((len(labels_n), 0)) if picks_nk is None else picks_nk)
    tempered = partition if temperature == 1.0 else (logits_nv / temperature).logsumexp(-1)
    return Scores(partition, logits_nv.gather(1, labels_n[:, None])[:, 0], picked, tempered)


def head_loss_plain(
    hidden_nd: Tensor, weight_vd: Tensor, labels_n: Tensor, picks_nk: Tensor, loss: Loss, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The meaning of `head_loss`: all logits, then autograd."""
    return loss(scores(F.linear(hidden_nd, weight_vd), labels_n, picks_nk, temperature), slice(0, len(labels_n)))


def head_loss(
    hidden_nd: Tensor, weight_vd: Tensor, labels_n: Tensor, picks_nk: Tensor, loss: Loss, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """(sum of the losses of all rows, sums to report), with gradients to `hidden_nd` and `weight_vd`.

    labels_n, picks_nk: int64 ids; the ids picked in one row are distinct. Products run in the autocast dtype.
    """

    def whole(logits_nv: Tensor, at: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        places = torch.cat([labels_n[at, None], picks_nk[at]], 1)
        there = logits_nv.gather(1, places).float()
        partition = fused.partition(logits_nv)
        seen = Scores(partition, there[:, 0], there[:, 1:], partition)
        total, report, by = slopes(seen, at, gradient)
        if by is not None:
            add = torch.cat([by.label_n[:, None], by.picked_nk], 1)
            fused.slope_(logits_nv, partition, by.partition_n + by.tempered_n, places, add)
        return total, report

    def slopes(seen: Scores, at: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor], Scores | None]:
        with torch.enable_grad():
            leaves = Scores(*(s.detach().requires_grad_(gradient) for s in seen))
            total, report = loss(leaves, at)
        by = None
        if gradient:
            by = Scores(*torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
        return total.detach(), {name: value.detach() for name, value in report.items()}, by

    def rows(logits_nv: Tensor, at: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        labels, picks = labels_n[at, None], picks_nk[at]
        label, picked = logits_nv.gather(1, labels)[:, 0], logits_nv.gather(1, picks)
        heated = None if temperature == 1.0 else _exponentials(logits_nv / temperature)
        powers, total_n1, partition = _exponentials(logits_nv)
        seen = Scores(partition, label, picked, partition if heated is None else heated[2])
        total, report, by = slopes(seen, at, gradient)
        if by is not None:
            if heated is None:
                powers *= (by.partition_n + by.tempered_n)[:, None] / total_n1
            else:
                powers *= by.partition_n[:, None] / total_n1
                powers += heated[0].mul_(by.tempered_n[:, None] / (temperature * heated[1]))
            powers.scatter_add_(1, labels, by.label_n[:, None]).scatter_add_(1, picks, by.picked_nk)
        return total, report

    few = temperature == 1.0 and picks_nk.shape[1] < fused.MOST_PLACES
    return _chunked(hidden_nd, weight_vd, rows, whole if few else None)


def full_kl_plain(student: Head, teacher: Head, temperature: float = 1.0) -> Tensor:
    """The meaning of `full_kl`: both distributions at once, then autograd."""
    log_s, log_t = (_wide(h.logits() / temperature).log_softmax(-1) for h in (student, teacher))
    return (log_t.exp() * (log_t - log_s)).sum()


def full_kl(student: Head, teacher: Head, temperature: float = 1.0) -> Tensor:
    """Sum over rows of KL(teacher || student) over the whole vocabulary, both tempered; gradients to the student only.

    Heads of (n, d) and (n, d of the teacher).
    """

    def rows(logits_nv: Tensor, at: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            taught = _wide(F.linear(teacher.hidden[at], teacher.weight)).div_(temperature)
            taught -= taught.logsumexp(-1, keepdim=True)
            logits_nv.div_(temperature)
            logits_nv -= logits_nv.logsumexp(-1, keepdim=True)
            share = taught.exp()
            total = taught.sub_(logits_nv).mul_(share).sum()
            if gradient:
                logits_nv.exp_().sub_(share).div_(temperature)
        return total, {}

    return _chunked(student.hidden, student.weight, rows)[0]


Rows = Callable[[Tensor, slice, bool], tuple[Tensor, dict[str, Tensor]]]


def _chunked(
    hidden_nd: Tensor, weight_vd: Tensor, rows: Rows, whole: Rows | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    report: dict[str, Tensor] = {}
    return _Chunked.apply(hidden_nd, weight_vd, rows, whole, report), report


class _Chunked(torch.autograd.Function):
    """`rows(logits, which, gradient)` sums up some rows and, if asked, leaves the gradient where the logits were.

    rows: of fp32 logits. whole: the same of a chunk in the dtype of the products, where native kernels can read it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, rows: Rows, whole: Rows | None, report: dict[str, Tensor]
    ) -> Tensor:
        kind = hidden_nd.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_vd.dtype
        wide = torch.promote_types(dtype, torch.float32)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        size = max(1, CHUNK_BYTES // (dtype.itemsize * len(weight_vd)))
        block = max(1, BLOCK_BYTES // (wide.itemsize * len(weight_vd))) if kind == "cpu" else size
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        d_hidden = torch.empty_like(hidden_nd) if for_hidden else None
        d_weight = torch.zeros_like(weight_vd, dtype=wide) if for_weight and len(hidden_nd) > size else None
        with torch.autocast(kind, enabled=False):
            weight = weight_vd.to(dtype)
            for start in range(0, len(hidden_nd), size):
                chunk = hidden_nd[start : start + size].to(dtype)
                logits = F.linear(chunk, weight)
                look, step, width = rows, block, wide
                if whole is not None and fused.usable(logits):
                    look, step, width = whole, len(chunk), dtype
                for first in range(0, len(chunk), step):
                    narrow = logits[first : first + step]
                    some = narrow.to(width)
                    at = slice(start + first, start + first + len(some))
                    value, parts = look(some, at, for_hidden or for_weight)
                    total += value
                    for name, part in parts.items():
                        report[name] = report[name] + part if name in report else part
                    if for_hidden or for_weight:
                        narrow.copy_(some)  # nothing happens where they are one
                if d_hidden is not None:
                    d_hidden[start : start + size] = logits @ weight
                if d_weight is not None:
                    _add_product(d_weight, logits, chunk)
                elif for_weight:
                    d_weight = logits.t() @ chunk
                del logits
        ctx.gradients = (d_hidden, None if d_weight is None else d_weight.to(weight_vd.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward through a fused loss a second time; its gradients are handed over once")
        scale, (d_hidden, d_weight) = upstream[0], ctx.gradients
        ctx.gradients = None  # they are scaled in place
        if scale.device.type != "cpu" or scale != 1.0:
            for gradient in (d_hidden, d_weight):
                if gradient is not None:
                    gradient.mul_(scale)
        return d_hidden, d_weight, None, None, None


def _add_product(sum_vd: Tensor, slope_nv: Tensor, chunk_nd: Tensor) -> None:
    """sum += slope^T chunk; the sum over chunks stays wide when the products do not."""
    if sum_vd.dtype == slope_nv.dtype:
        sum_vd.addmm_(slope_nv.t(), chunk_nd)
        return
    for start in range(0, len(sum_vd), TILE):
        sum_vd[start : start + TILE] += slope_nv[:, start : start + TILE].t() @ chunk_nd


def _exponentials(logits_nv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(exponentials of the rows less their largest, in the place of the logits; their sums (n, 1); log-sum-exp (n))."""
    top = logits_nv.amax(-1, keepdim=True)
    total = logits_nv.sub_(top).exp_().sum(-1, keepdim=True)
    return logits_nv, total, (top + total.log())[:, 0]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
