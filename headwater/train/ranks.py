"""What a process does differently in THE loop when it is one of several: reading, reducing, checking, saving.

`Solo` is the process that is alone, and the interface; train.parallel.Ranks is the other. The loop holds one of them
and never asks which. Not for what each process computes: that is the model's and the objective's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from headwater.train import checkpoint
from headwater.train.checkpoint import Counters, Stateful
from headwater.train.probe import check_packing

Batch = Mapping[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]
T = TypeVar("T")

PROBE_LENGTH = 64  # ids of the first batch that the packing probe runs on


class Batches(Stateful, Protocol):
    """An iterator of batches that can say where it is and go back there."""

    def __next__(self) -> Batch: ...


class Totals(NamedTuple):
    """Sums over all processes; whether any was asked to stop; where a loss was not finite, in words."""

    sums: dict[str, float]
    stop: bool
    where: str = ""


class Keeper(Protocol):
    """Where the state of a run is kept. A context manager: leaving it waits for what is still being written."""

    def __enter__(self) -> "Keeper": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def exists(self) -> bool: ...
    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Stateful, *, identity: Mapping[str, Any]
    ) -> Counters: ...
    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Stateful,
        *,
        counters: Counters,
        identity: Mapping[str, Any],
    ) -> None: ...


class Solo:
    """The only process of a run."""

    first = True
    """Whether this process reports: hooks run on it alone, unless they have a true `every_rank`."""

    def begin(self, hooks: Sequence[T]) -> list[T]:
        """Told once a run, before all else: those of its hooks that run on this process."""
        return [hook for hook in hooks if self.first or getattr(hook, "every_rank", False)]

    def read(self, batches: Batches, count: int, device: torch.device) -> tuple[list[dict[str, Tensor]], int]:
        """(this process's part of the next `count` batches, on the device; the tokens of all parts together)."""
        micro = [{k: v.to(device, non_blocking=True) for k, v in next(batches).items()} for _ in range(count)]
        return micro, sum(batch["input_ids"].numel() for batch in micro)

    def run(self, model: nn.Module, batch: Batch, forward: Forward) -> Any:
        """forward(model, batch), the outputs at the places of the batch's ids."""
        return forward(model, batch)

    def probe(self, model: nn.Module, batch: Batch, forward: Forward) -> None:
        """ValueError if the model leaks across packed documents (train.probe)."""
        check_packing(model, forward, batch["input_ids"][0, :PROBE_LENGTH])

    def before_backward(self, model: nn.Module, *, last: bool) -> None:
        """Told before each backward pass of an update; `last` for that of its last micro-batch."""

    def total(self, sums: dict[str, float], stop: bool) -> Totals:
        """The sums of this process, added up over all."""
        return Totals(sums, stop)

    def stopping(self, asked: bool, agreed: bool) -> bool:
        """Whether to stop now: this process was `asked`, all of them `agreed` in the last total."""
        return asked or agreed

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The Euclidean norm of all gradients of all processes as one vector."""
        return torch.nn.utils.get_total_norm(gradients).item()

    def held(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What this process holds of each tensor, to be changed in place."""
        return list(tensors)

    def keeper(self, path: str | Path) -> Keeper:
        return File(path)


class File:
    """The keeper of one process: one file (train.checkpoint), written before training goes on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(
                f"{path} is a directory, as runs over several processes keep it; "
                "cure: go on with torchrun (one process will do), or name another file"
            )

    def __enter__(self) -> "File":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def exists(self) -> bool:
        return self.path.exists()

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Stateful, *, identity: Mapping[str, Any]
    ) -> Counters:
        return checkpoint.load(self.path, model, optimizer, batches, identity=identity)

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Stateful,
        *,
        counters: Counters,
        identity: Mapping[str, Any],
    ) -> None:
        checkpoint.save(self.path, model, optimizer, batches, counters=counters, identity=identity)


SOLO = Solo()
