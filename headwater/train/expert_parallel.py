"""Experts spread over ranks: each token goes to the ranks that own its experts, and its results come back.

A rank owns an equal run of each layer's experts. Two all-to-all exchanges a layer and direction, of exactly the tokens
that were chosen: no capacity, nothing dropped. Not for choosing experts (ops.moe.route) nor for balancing them
(train.balance). Shapes: n tokens of this rank, k choices each, d hidden, e experts in all.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def split(model: nn.Module, mesh: DeviceMesh) -> list[nn.Module]:
    """Leave each rank of the 1-d `mesh` its run of every layer's experts; the modules that hold them.

    ValueError: the model has no experts, or their number does not divide over the ranks.
    """
    parts = [module for module in model.modules() if hasattr(module, "compute") and hasattr(module, "w1")]
    if not parts:
        raise ValueError("experts is above 1 but no layer of this model has experts; cure: experts=1")
    for part in parts:
        count = part.w1.shape[0]  # type: ignore[union-attr,index]
        if count % mesh.size():
            raise ValueError(f"{count} experts do not divide over {mesh.size()} ranks; cure: a divisor of {count}")
        for name, whole in list(part.named_parameters(recurse=False)):
            own = whole.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
            placed = DTensor.from_local(own, mesh, [Shard(0)], run_check=False)
            part.register_parameter(name, nn.Parameter(placed, requires_grad=whole.requires_grad))
        part.compute = Spread(mesh.get_group())  # type: ignore[assignment]
    return parts


class Spread:
    """The form of ops.moe.experts for experts that the ranks of `group` share."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._size = group, group.size()

    def __call__(
        self, x_nd: Tensor, chosen: Tensor, weights: Tensor, w1_eid: Tensor, w2_edi: Tensor, w3_eid: Tensor
    ) -> Tensor:
        w1, w2, w3 = (w.to_local() if isinstance(w, DTensor) else w for w in (w1_eid, w2_edi, w3_eid))
        own = len(w1)
        order = chosen.flatten().argsort(stable=True)
        token_of = order // chosen.shape[1]
        sent = chosen.flatten().bincount(minlength=own * self._size)
        got = torch.empty_like(sent)  # [source rank, own expert]
        dist.all_to_all_single(got, sent, group=self._group)
        out_sizes, in_sizes = (c.view(self._size, own).sum(1).tolist() for c in (sent, got))
        x = exchange(x_nd[token_of], out_sizes, in_sizes, self._group)
        y = _own_experts(x, got.view(self._size, own), w1, w2, w3)
        back = exchange(y, in_sizes, out_sizes, self._group)
        scaled = (back * weights.flatten()[order, None]).to(x_nd.dtype)
        return torch.zeros_like(x_nd).index_add(0, token_of, scaled)


def _own_experts(x: Tensor, counts_se: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """SwiGLU of rows that come by source rank and, within one, by expert; results in the same order."""
    of = torch.arange(counts_se.shape[1], device=x.device).repeat(len(counts_se))
    expert_of = of.repeat_interleave(counts_se.flatten())
    order = expert_of.argsort(stable=True)
    outputs = []
    for e, rows in enumerate(x[order].split(counts_se.sum(0).tolist())):
        # an idle expert takes part with no rows: every rank's gradients must exist, the others wait for them
        outputs.append(F.linear(F.silu(F.linear(rows, w1[e])) * F.linear(rows, w3[e]), w2[e]))
    return torch.cat(outputs)[order.argsort()]


def exchange(x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of x (sum of send, d) to the ranks of `group`, in runs; the rows that came. Differentiable."""
    return _Exchange.apply(x, send, receive, group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.back = (receive, send, group)
        return _all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(upstream[0], *ctx.back), None, None, None


def _all_to_all(x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(sum(receive), x.shape[1])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out
