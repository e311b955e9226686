"""THE training loop: every stage (pre-training, SFT, distillation, preference) is this loop with other arguments.

It knows a module, an iterator of batches (dicts of tensors), an objective, an optimizer and a schedule; it imports
no model. It owns: accumulation, clipping, counting, health, evaluation, saving, exact resuming, a clean stop.
Progress bars, logs and plots are hooks (train.progress). Not for more than one process: train.parallel is a later
layer around the module.
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


PROBE_LENGTH = 64  # ids of the first batch that the packing probe runs on


class Batches(Stateful, Protocol):
    """An iterator of batches that can say where it is and go back there."""

    def __next__(self) -> Batch: ...


class Unhealthy(RuntimeError):
    """The loss or gradient is not finite, or no gradient reaches the parameters. The failing step updated nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to train.

    `clip` bounds the gradient norm. `autocast` is the dtype of matrix products; None: that of the weights.
    """

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
    """What a hook sees after each update. `tokens` and `seconds` are this update's; `done` spans all resumes.

    `gradient_norm` is the one before clipping; `evaluation` is filled only where one was due.
    """

    steps: int
    lr: float
    gradient_norm: float
    tokens: int
    seconds: float
    done: Counters
    evaluation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended. `resumed_at` is the step it went on from; not `finished`: it was asked to stop."""

    resumed_at: int
    finished: bool
    done: Counters


def run_model(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """The usual forward: the model's own arguments, picked by name from the batch; logits (B, T, V)."""
    given = {k: batch[k] for k in ("attention_mask", "segment_ids") if k in batch}
    return model(batch["input_ids"], **given, **options)


def run_head(model: nn.Module, batch: Batch) -> Any:
    """As `run_model`, up to a Head: the objective projects a few rows at a time, the logits are never all there."""
    return run_model(model, batch, project=False)


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    *,
    plan: Plan,
    forward: Forward = run_model,
    hooks: Sequence[Callable[[Step], None]] = (),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Result:
    """Train `model` in place until `plan.steps` updates are done, or until SIGINT or SIGTERM asks for a stop.

    `hooks` see every Step; of a hook with a method `failed(reason)` that is called before an update's error is raised.
    `objective` follows the contract of headwater.objectives. `schedule(step)` multiplies each group's `initial_lr`.
    `evaluate` runs every `plan.evaluate_every` updates and after the last, in eval mode. If `checkpoint` names a
    file that exists the run continues from it (its `identity` must be the same); it is saved every `plan.save_every`
    updates, at the end and on a stop. Resuming is exact: the same losses as a run that was never stopped.
    Raises Unhealthy, or ValueError when a batch, the packing probe or the checkpoint is at fault.
    """
    if evaluate is None and plan.evaluate_every:
        raise ValueError(f"evaluate_every is {plan.evaluate_every} but no evaluate function is given")
    counters, identity = Counters(), identity or {}
    if checkpoint is not None and Path(checkpoint).exists():
        counters = checkpoints.load(checkpoint, model, optimizer, batches, identity=identity)
    resumed_at = saved_at = counters.step
    with _stop_requested() as stop:
        while counters.step < plan.steps and not stop.is_set():
            started = time.perf_counter()
            micro = _read(model, batches, plan.accumulate)
            if counters.step == resumed_at and "segment_ids" in micro[0]:
                check_packing(model, forward, micro[0]["input_ids"][0, :PROBE_LENGTH])
            try:
                metrics, norm = _update(
                    model, micro, objective, optimizer, schedule(counters.step), forward=forward, plan=plan
                )
            except (Unhealthy, ValueError) as e:
                raise _refused(e, counters.step + 1, hooks) from e
            tokens = sum(batch["input_ids"].numel() for batch in micro)
            seconds = time.perf_counter() - started
            counters = Counters(counters.step + 1, counters.tokens + tokens, counters.seconds + seconds, metrics)
            last = counters.step == plan.steps
            due = last or (plan.evaluate_every and counters.step % plan.evaluate_every == 0)
            evaluation = _evaluate(model, evaluate) if evaluate and due else {}
            for hook in hooks:
                hook(Step(plan.steps, optimizer.param_groups[0]["lr"], norm, tokens, seconds, counters, evaluation))
            due = last or stop.is_set() or (plan.save_every and counters.step % plan.save_every == 0)
            if checkpoint is not None and due:
                checkpoints.save(checkpoint, model, optimizer, batches, counters=counters, identity=identity)
                saved_at = counters.step
    if checkpoint is not None and saved_at < counters.step:
        # the request to stop came while the last update was being reported
        checkpoints.save(checkpoint, model, optimizer, batches, counters=counters, identity=identity)
    return Result(resumed_at, counters.step >= plan.steps, counters)


def _refused(e: Exception, step: int, hooks: Sequence[Callable[[Step], None]]) -> Exception:
    """The error with the step it stopped, once the hooks have heard of it."""
    reason = f"step {step}: {e}"
    for hook in hooks:
        if (failed := getattr(hook, "failed", None)) is not None:
            failed(reason)
    return Unhealthy(reason) if isinstance(e, Unhealthy) else ValueError(reason)


def _read(model: nn.Module, batches: Batches, count: int) -> list[dict[str, Tensor]]:
    """The next `count` batches, on the device of the model."""
    device = next(model.parameters()).device
    return [{k: v.to(device, non_blocking=True) for k, v in next(batches).items()} for _ in range(count)]


def _update(
    model: nn.Module,
    micro: Sequence[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    factor: float,
    *,
    forward: Forward,
    plan: Plan,
) -> tuple[dict[str, float], float]:
    """One update over all micro-batches; returns metrics averaged by weight and the gradient norm before clipping."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for batch in micro:
        device = batch["input_ids"].device
        with torch.autocast(device.type, plan.autocast) if plan.autocast else nullcontext():
            outputs = forward(model, batch)
        loss, metrics = objective(outputs, batch)
        weight = float(metrics["weight"])
        if not math.isfinite(loss.item()):
            raise Unhealthy(
                f"the loss is {loss.item()}; cure: a lower learning rate, a longer warm-up, or look at this batch"
            )
        # Sums over the batch, divided once below: micro-batches with few targets must not count as much as full ones.
        (loss * weight).backward()
        for name, value in {**metrics, "loss": loss.detach()}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * (1.0 if name == "weight" else weight)
    total = sums["weight"]
    norm = _clip(optimizer, total, plan.clip)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    optimizer.step()
    return {name: value if name == "weight" else value / total for name, value in sums.items()}, norm


def _clip(optimizer: torch.optim.Optimizer, weight: float, clip: float) -> float:
    """Divide the summed gradients by `weight`, bound their joint norm by `clip`; returns the norm before the bound."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        raise Unhealthy("no parameter got a gradient: the objective does not depend on the trained parameters")
    norm = torch.nn.utils.get_total_norm(gradients).item() / weight
    if not math.isfinite(norm) or norm == 0.0:
        raise Unhealthy(
            f"the gradient norm is {norm} while the loss is finite; "
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
    """An event that the first SIGINT or SIGTERM sets, so that the update in progress ends; a second acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread
        return
    before = {s: signal.getsignal(s) or signal.SIG_DFL for s in (signal.SIGINT, signal.SIGTERM)}

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
