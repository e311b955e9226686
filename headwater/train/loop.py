"""THE training loop: every stage (pre-training, SFT, distillation, preference) is this loop with other arguments.

It knows a module, an iterator of batches (dicts of tensors), an objective, an optimizer and a schedule; it imports no model.
It owns: accumulation, clipping, counting, health, evaluation, saving, exact resuming, a clean stop. Progress bars, logs and
plots are hooks (train.progress). Not for more than one process: train.parallel is a later layer around the module.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headwater.train import checkpoint as checkpoints
from headwater.train.checkpoint import Counters, Stateful
from headwater.train.probe import check_packing

Batch = Mapping[str, Tensor]
Objective = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor]]]
Forward = Callable[[nn.Module, Batch], Any]


class Batches(Stateful, Protocol):
    """An iterator of batches that can say where it is and go back there."""

    def __next__(self) -> Batch: ...


class Unhealthy(RuntimeError):
    """The run cannot go on: loss or gradient is not finite, or no gradient reaches the parameters. Nothing was updated."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to train. `clip` bounds the gradient norm; `autocast` is the dtype of matrix products, None = as the weights."""

    steps: int
    accumulate: int = 1
    clip: float = 1.0
    autocast: torch.dtype | None = None
    evaluate_every: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("accumulate", 1), ("evaluate_every", 0), ("save_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; the bound of the gradient norm must be above 0 (math.inf for none)")


@dataclass(frozen=True)
class Step:
    """What a hook sees after each update. `step` counts updates done; `seconds` is this update's; the total_* span all resumes."""

    step: int
    steps: int
    loss: float
    lr: float
    gradient_norm: float
    tokens: int
    seconds: float
    total_tokens: int
    total_seconds: float
    metrics: dict[str, float]
    evaluation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended. `finished` is False after an interrupt; `resumed_at` is the step it started from."""

    step: int
    finished: bool
    resumed_at: int
    total_tokens: int
    total_seconds: float
    metrics: dict[str, float]


def run_model(model: nn.Module, batch: Batch) -> Tensor:
    """The usual forward: the model's own arguments, picked by name from the batch."""
    return model(batch["input_ids"], **{k: batch[k] for k in ("attention_mask", "segment_ids") if k in batch})


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    plan: Plan,
    *,
    forward: Forward = run_model,
    hooks: Sequence[Callable[[Step], None]] = (),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Result:
    """Train `model` in place until `plan.steps` updates are done, or until SIGINT or SIGTERM asks for a stop.

    `objective` follows the contract of headwater.objectives. `schedule(step)` multiplies each group's `initial_lr`.
    `evaluate` runs every `plan.evaluate_every` updates and after the last, in eval mode. If `checkpoint` names a file that
    exists the run continues from it (its `identity` must be the same); it is saved every `plan.save_every` updates, at the
    end and on a stop. Resuming is exact: the same losses as a run that was never stopped.
    Raises Unhealthy, or ValueError when a batch, the packing probe or the checkpoint is at fault.
    """
    counters, identity = Counters(), identity or {}
    if checkpoint is not None and Path(checkpoint).exists():
        counters = checkpoints.load(checkpoint, model, optimizer, batches, identity)
    resumed_at = counters.step
    if evaluate is None and plan.evaluate_every:
        raise ValueError(f"evaluate_every is {plan.evaluate_every} but no evaluate function is given")
    probed = saved = False
    with _stop_requested() as stop:
        while counters.step < plan.steps and not stop.is_set():
            started = time.perf_counter()
            micro = [next(batches) for _ in range(plan.accumulate)]
            device = next(model.parameters()).device
            micro = [{k: v.to(device, non_blocking=True) for k, v in batch.items()} for batch in micro]
            if not probed and "segment_ids" in micro[0]:
                check_packing(model, forward, micro[0]["input_ids"][0, :64])
            probed = True
            metrics, norm = _update(model, micro, objective, optimizer, schedule, plan, forward, counters.step)
            tokens = sum(batch["input_ids"].numel() for batch in micro)
            seconds = time.perf_counter() - started
            counters = Counters(counters.step + 1, counters.tokens + tokens, counters.seconds + seconds, metrics)
            last = counters.step == plan.steps
            due = plan.evaluate_every and counters.step % plan.evaluate_every == 0
            evaluation = _evaluate(model, evaluate) if evaluate and (due or last) else {}
            lr = optimizer.param_groups[0]["lr"]
            event = Step(
                counters.step, plan.steps, metrics["loss"], lr, norm, tokens, seconds,
                counters.tokens, counters.seconds, metrics, evaluation,
            )  # fmt: skip
            for hook in hooks:
                hook(event)
            saved = False
            if checkpoint is not None and (last or (plan.save_every and counters.step % plan.save_every == 0)):
                checkpoints.save(checkpoint, model, optimizer, batches, counters, identity)
                saved = True
    if checkpoint is not None and not saved and counters.step > resumed_at:
        checkpoints.save(checkpoint, model, optimizer, batches, counters, identity)
    finished = counters.step >= plan.steps
    return Result(counters.step, finished, resumed_at, counters.tokens, counters.seconds, counters.metrics)


def _update(
    model: nn.Module,
    micro: Sequence[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    plan: Plan,
    forward: Forward,
    step: int,
) -> tuple[dict[str, float], float]:
    """One optimizer update over all micro-batches; returns metrics averaged by weight, and the gradient norm before clipping."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for batch in micro:
        device = batch["input_ids"].device
        with torch.autocast(device.type, plan.autocast) if plan.autocast else nullcontext():
            outputs = forward(model, batch)
        try:
            loss, metrics = objective(outputs, batch)
        except ValueError as e:
            raise ValueError(f"batch of step {step + 1}: {e}") from e
        weight = float(metrics["weight"])
        if not math.isfinite(loss.item()):
            raise Unhealthy(
                f"the loss is {loss.item()} at step {step + 1}; cure: a lower learning rate, a longer warm-up, or look at this batch"
            )
        # Sums over the batch, divided once below: micro-batches with few targets must not count as much as full ones.
        (loss * weight).backward()
        for name, value in {**metrics, "loss": loss}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * (1.0 if name == "weight" else weight)
    total = sums["weight"]
    norm = _clip(optimizer, total, plan.clip, step)
    factor = schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    optimizer.step()
    return {name: value if name == "weight" else value / total for name, value in sums.items()}, norm


def _clip(optimizer: torch.optim.Optimizer, weight: float, clip: float, step: int) -> float:
    """Divide the summed gradients by `weight` and bound their joint norm by `clip`; returns the norm before the bound."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        raise Unhealthy(f"no parameter got a gradient at step {step + 1}: the objective does not depend on the trained parameters")
    norm = torch.nn.utils.get_total_norm(gradients).item() / weight
    if not math.isfinite(norm) or norm == 0.0:
        raise Unhealthy(
            f"the gradient norm is {norm} at step {step + 1} while the loss is finite; "
            "cure: check frozen parameters and masks (0), or the learning rate and dtype (not finite)"
        )
    torch._foreach_mul_(gradients, min(1.0, clip / norm) / weight)
    return norm


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return evaluate(model)


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets, so that the update in progress ends and is saved; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for s in before:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
