"""Rows split over ranks, in equal runs of positions: what a layer needs of the other runs is exchanged.

A short convolution of width k needs the k - 1 columns before its run (from the left neighbour, a few kilobytes);
attention, which few layers have and whose keys and values are small under GQA, gathers those of all runs. Everything
else looks at one position at a time. Documents, positions and boundaries are those of the whole row (layout.Layout).
Not for decoding. Shapes: b rows, t positions of one rank, d hidden.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.ops.head_loss import Head
from headwater.train.ranks import Batch, Forward


def split(model: nn.Module, context: "Context") -> None:
    """Let `model` take each row as runs of positions over the ranks of `context`. ValueError: it does not know how."""
    if not hasattr(model, "context"):
        raise ValueError(f"{type(model).__name__} cannot split rows over ranks: it has no `context`; cure: context=1")
    model.context = context  # type: ignore[assignment]


class Context:
    """The ranks of `group` share each row: layout.Context, and the slicing of batches."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self.bytes = 0
        """Sent by this rank so far for convolutions and attention, forward and backward."""

    def before(self, x_btd: Tensor, count: int) -> Tensor:
        """(b, count, d): the columns that the left neighbour ends with, zeros on the first rank."""
        return _Halo.apply(x_btd[:, x_btd.shape[1] - count :], self)

    def gathered(self, x: Tensor, axis: int) -> Tensor:
        """The runs of all ranks along `axis`, in order."""
        return _Gather.apply(x, axis, self) if x.is_floating_point() else self.all(x, axis)

    def all(self, x: Tensor, axis: int) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, axis)

    def shift(self, x: Tensor, by: int) -> Tensor:
        """x of the rank `by` to the left; zeros where there is none."""
        got, operations = torch.zeros_like(x), []
        for peer, operation, tensor in (
            (self.rank + by, dist.isend, x.contiguous()),
            (self.rank - by, dist.irecv, got),
        ):
            if 0 <= peer < self.size:
                operations.append(dist.P2POp(operation, tensor, group=self.group, group_peer=peer))
                self.bytes += tensor.nbytes if operation is dist.isend else 0
        for request in dist.batch_isend_irecv(operations) if operations else ():
            request.wait()
        return got

    def part(self, batch: Batch) -> dict[str, Tensor]:
        """This rank's run of each row, and one column more: the next token is what its last position predicts.

        Rows that do not divide evenly are filled up with positions that nothing is learnt from.
        """
        if "attention_mask" in batch:
            raise ValueError("a batch has an attention_mask; rows split over ranks are packed: segment_ids, loss_mask")
        length = batch["input_ids"].shape[1]
        each = -(-length // self.size)
        start, stop = self.rank * each, self.rank * each + each + 1
        whole = {"loss_mask": torch.ones_like(batch["input_ids"], dtype=torch.bool), **batch}
        cut = {}
        for name, column in whole.items():
            if column.shape[:2] != batch["input_ids"].shape:
                raise ValueError(
                    f"{name} has shape {tuple(column.shape)}; to be split over ranks it must begin "
                    f"as input_ids, {tuple(batch['input_ids'].shape)}"
                )
            fill = self.size * each + 1 - length
            last = column[:, -1:] + 1 if name == "segment_ids" else torch.zeros_like(column[:, -1:])
            cut[name] = torch.cat([column, last.expand(-1, fill, *column.shape[2:])], 1)[:, start:stop]
        return cut

    def run(self, model: nn.Module, batch: Batch, forward: Forward) -> Any:
        """forward on this rank's run; the column more gets outputs of zeros, which no objective looks at."""
        return _one_more(forward(model, {name: column[:, :-1] for name, column in batch.items()}))

    def probe(self, row: Tensor, forward: Forward, longest: int) -> tuple[Tensor, Forward, Forward]:
        """What train.probe needs: ids (the same on all ranks), forward of rows split over ranks, and of whole rows."""
        ids = self.all(row[:-1], 0)
        each = min(longest, len(ids)) // (2 * self.size) * 2

        def whole(model: nn.Module, batch: Batch) -> Any:
            model.context = None  # type: ignore[assignment]
            try:
                return forward(model, batch)
            finally:
                split(model, self)

        def together(model: nn.Module, batch: Batch) -> Any:
            start = self.rank * each
            out = forward(model, {name: column[:, start : start + each] for name, column in batch.items()})
            return Head(self.all(out.hidden, 1), out.weight) if isinstance(out, Head) else self.all(out, 1)

        return ids[: each * self.size], together, whole


def _one_more(outputs: Any) -> Any:
    if isinstance(outputs, Head):
        return Head(F.pad(outputs.hidden, (0, 0, 0, 1)), outputs.weight)
    if isinstance(outputs, Tensor) and outputs.ndim >= 3:
        return F.pad(outputs, (0, 0) * (outputs.ndim - 2) + (0, 1))
    raise ValueError(f"a forward gave {type(outputs).__name__}; rows split over ranks need logits (b, t, v) or a Head")


class _Halo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ends: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return context.shift(ends, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.context.shift(upstream[0], -1), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, context: Context) -> Tensor:
        ctx.axis, ctx.context = axis, context
        context.bytes += x.nbytes * (context.size - 1)
        return context.all(x, axis)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        context: Context = ctx.context
        parts = [p.contiguous() for p in upstream[0].chunk(context.size, ctx.axis)]
        out = torch.empty_like(parts[context.rank])
        context.bytes += out.nbytes * (context.size - 1)
        dist.reduce_scatter(out, parts, group=context.group)
        return out, None, None
