"""Several processes train one model: THE loop's `ranks` under torchrun, over FSDP2 (`fully_shard`).

Decisions: (1) every rank walks the same stream of batches and makes its own rows of it alone, so the stream, its saved
position and the losses do not depend on the number of ranks. (2) Gradients are summed, never averaged, and divided once
by the targets of all ranks. (3) Three meshes over the same ranks: (replicas, shards) for FSDP or HSDP, (data, context)
for rows and their parts, (the rest, experts) for experts; `context` and `experts` are neighbours, for the fast links.
(4) No rank raises alone where others would wait for it. Not for tensor or pipeline parallelism: no model here needs it.
"""

import datetime
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from headwater.ops.head_loss import Head
from headwater.train import context_parallel, expert_parallel
from headwater.train.dcp import Folder
from headwater.train.probe import check_packing
from headwater.train.ranks import PROBE_LENGTH, Batch, Batches, Forward, Keeper, Solo, T, Totals


class Ranks(Solo):
    """The processes that torchrun started: `with Ranks(context=2) as ranks: ... train(..., ranks=ranks)`.

    replicas: groups of ranks that each hold all parameters (HSDP); within one they are sharded. context: ranks that
    share each row. experts: ranks that share the experts of each layer. All divide the number of ranks.
    ValueError: they do not, or torchrun did not start this process.
    """

    def __init__(
        self,
        *,
        replicas: int = 1,
        context: int = 1,
        experts: int = 1,
        device: str | None = None,
        timeout: datetime.timedelta = datetime.timedelta(minutes=10),
    ) -> None:
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not set: not one of several processes; "
                "cure: torchrun --nproc-per-node N your_recipe.py"
            )
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        for name, size in (("replicas", replicas), ("context", context), ("experts", experts)):
            if size < 1 or self.world % size:
                raise ValueError(f"{name} is {size}; it must divide the {self.world} ranks")
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(kind, int(os.environ.get("LOCAL_RANK", self.rank))) if kind != "cpu" else None
        if self.device is not None:
            torch.cuda.set_device(self.device)
        self._started = not dist.is_initialized()
        if self._started:
            dist.init_process_group("gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl", timeout=timeout)
        self.first = self.rank == 0
        self.data, self.replicas = self.world // context, replicas
        self._data_rank = self.rank // context
        self._shards = _mesh(kind, ("replica", replicas), ("shard", self.world // replicas))
        self._experts = _mesh(kind, ("rest", self.world // experts), ("expert", experts))
        rows = _mesh(kind, ("data", self.data), ("context", context))
        self._context = context_parallel.Context(rows.get_group("context")) if context > 1 else None
        self._saving = dist.new_group(backend="gloo", timeout=timeout)  # a thread saves: it needs a group of its own
        self._names: list[str] = []

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            dist.barrier()
        if self._started:
            dist.destroy_process_group()

    def shard(self, model: nn.Module, *, products: torch.dtype | None = None, keep: bool = False) -> nn.Module:
        """Spread `model` over the ranks, in place, and return it; build the optimizer after this.

        Every rank brings the same weights. products: the dtype in which parameters are gathered and multiplied (bf16);
        gradients are summed in fp32. keep: hold gathered parameters from forward to backward (less traffic, more
        memory). ValueError: the model cannot be split the way these ranks are.
        """
        if self.device is not None:
            model.to(self.device)
        if self._context is not None:
            context_parallel.split(model, self._context)
        # Inputs keep their dtype: weights of the chosen experts are fp32 in every model.
        reduced = torch.float32 if products else None
        policy = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=reduced, cast_forward_inputs=False)
        options: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": not keep}
        mesh = self._shards if self.replicas > 1 else self._shards["shard"]
        if self._experts["expert"].size() > 1:
            for part in expert_parallel.split(model, self._experts["expert"]):
                fully_shard(part, mesh=self._experts["rest"], shard_placement_fn=_second_axis(self._experts), **options)
        model.register_forward_hook(_lend)  # before FSDP's own hook, which looks at what this one returns
        for child in model.children():
            for block in child if isinstance(child, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    def begin(self, hooks: Sequence[T]) -> list[T]:
        self._names = []  # another objective reports other things
        return super().begin(hooks)

    def read(self, batches: Batches, count: int, device: torch.device) -> tuple[list[dict[str, Tensor]], int]:
        whole = count % self.data == 0
        micro, tokens = [], 0
        for i in range(count):
            batch, size = self._part(batches, mine=i % self.data == self._data_rank if whole else None, count=count)
            tokens += size
            if batch is not None:
                if self._context is not None:
                    batch = self._context.part(batch)
                micro.append({k: v.to(device, non_blocking=True) for k, v in batch.items()})
        return micro, tokens

    def _part(self, batches: Batches, *, mine: bool | None, count: int) -> tuple[dict[str, Tensor] | None, int]:
        """(this rank's rows of the next batch, its tokens). mine: all of them or none; None: its share."""
        share = getattr(batches, "share", None)
        batch = None if share else next(batches)
        rows = batches.rows if batch is None else len(batch["input_ids"])  # type: ignore[attr-defined]
        if mine is None and rows % self.data:
            raise ValueError(
                f"an update of {count} batches of {rows} rows does not divide over {self.data} data ranks; "
                "cure: let rows or accumulate be a multiple of them"
            )
        each = rows // self.data
        first, stop = (self._data_rank * each, self._data_rank * each + each) if mine is None else (0, rows * mine)
        part = share(first, stop) if batch is None else {k: v[first:stop] for k, v in batch.items()}  # type: ignore[misc]
        return part if stop > first else None, rows * part["input_ids"].shape[1]

    def run(self, model: nn.Module, batch: Batch, forward: Forward) -> Any:
        return forward(model, batch) if self._context is None else self._context.run(model, batch, forward)

    def probe(self, model: nn.Module, batch: Batch, forward: Forward) -> None:
        def worst(difference: float) -> float:
            found = torch.tensor(math.inf if math.isnan(difference) else difference, device=batch["input_ids"].device)
            dist.all_reduce(found, dist.ReduceOp.MAX)
            return found.item()

        if self._context is None:
            check_packing(model, forward, batch["input_ids"][0, :PROBE_LENGTH], agree=worst)
        else:
            ids, together, alone = self._context.probe(batch["input_ids"][0], forward, PROBE_LENGTH)
            check_packing(model, alone, ids, together=together, agree=worst)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def before_backward(self, model: nn.Module, *, last: bool) -> None:
        if self.replicas > 1 and isinstance(model, FSDPModule):
            model.set_requires_all_reduce(last)  # between replicas once an update; between shards each time

    def total(self, sums: dict[str, float], stop: bool) -> Totals:
        if not self._names:
            known: list[list[str]] = [[] for _ in range(self.world)]
            dist.all_gather_object(known, sorted(sums))
            self._names = sorted({name for names in known for name in names})
        if unknown := sums.keys() - set(self._names):
            raise ValueError(f"the objective reports {sorted(unknown)}, which it did not in its first update")
        mine = torch.tensor([*(sums.get(name, 0.0) for name in self._names), stop], dtype=torch.float64)
        mine = mine.to(self.device or "cpu")
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine)
        every = torch.stack(parts)
        losses = every[:, self._names.index("loss")].tolist()
        bad = [str(rank) for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        *values, stops = every.sum(0).tolist()
        where = f" on rank{'s' * (len(bad) > 1)} {', '.join(bad)}" if bad else ""
        return Totals(dict(zip(self._names, values, strict=True)), stops > 0, where)

    def stopping(self, asked: bool, agreed: bool) -> bool:
        return agreed  # a rank that was asked says so in the next total

    def norm(self, gradients: Sequence[Tensor]) -> float:
        held = self.held(gradients)
        squares = torch.stack(torch._foreach_norm(held)).double().square()
        copies = torch.tensor([self._copies(g) for g in gradients], dtype=torch.float64, device=squares.device)
        total = (squares / copies).sum()
        dist.all_reduce(total)
        return math.sqrt(total.item()) if math.isfinite(total.item()) else total.item()

    def _copies(self, tensor: Tensor) -> int:
        """How many ranks hold each value of it."""
        if not isinstance(tensor, DTensor):
            return self.world
        mesh = tensor.device_mesh
        return self.world // math.prod(mesh.size(i) for i, p in enumerate(tensor.placements) if p.is_shard())

    def held(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]

    def keeper(self, path: str | Path) -> Keeper:
        return Folder(path, self._saving)


def _mesh(kind: str, *sides: tuple[str, int]) -> DeviceMesh:
    names, sizes = zip(*sides, strict=True)
    return init_device_mesh(kind, sizes, mesh_dim_names=names)


def _second_axis(experts: DeviceMesh) -> Any:
    """Experts are already split along their first axis; FSDP splits the second where it divides."""
    rest = experts["rest"].size()

    def place(parameter: nn.Parameter) -> Shard | None:
        if parameter.shape[1] % rest:
            raise ValueError(
                f"an expert matrix of {parameter.shape[1]} rows does not divide over {rest} ranks; "
                "cure: more expert ranks, so that fewer share an expert"
            )
        return Shard(1)

    return place


class _Lent(torch.autograd.Function):
    """The same values as another node of the graph."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0]


def _lend(module: nn.Module, arguments: Any, output: Any) -> Any:
    """A Head's weight is a parameter, and FSDP hangs a hook on each output: on a parameter they would pile up."""
    if isinstance(output, Head) and output.weight.is_leaf and output.weight.requires_grad:
        return Head(output.hidden, _Lent.apply(output.weight))
    return output
