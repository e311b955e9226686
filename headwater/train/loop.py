"""THE training loop: every stage (pre-training, SFT, distillation, preference) is this loop with other arguments.

It knows a module, an iterator of batches (dicts of tensors), an objective, an optimizer and a schedule; it imports
no model. It owns: accumulation, clipping, counting, health, evaluation, saving, exact resuming, a clean stop.
Progress bars, logs and plots are hooks (train.progress). What differs when it is one of several processes is asked of
one object (train.ranks), so there is no second loop.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headwater.ops.head_loss import NothingToLearn
from headwater.train.checkpoint import Counters
from headwater.train.ranks import SOLO, Batch, Batches, Forward, Solo

Objective = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor]]]


class Unhealthy(RuntimeError):
    """The loss or gradient is not finite, or no gradient reaches the parameters. The failing step updated nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to train.

    `clip` bounds the gradient norm. `autocast` is the dtype of matrix products, also of a fused head; None: that of the
    weights. After `seconds` of one call it stops as if it had been asked to.
    """

    steps: int
    accumulate: int = 1
    clip: float = 1.0
    autocast: torch.dtype | None = None
    evaluate_every: int = 0
    save_every: int = 0
    seconds: float = math.inf

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; the time of a call must be above 0 (math.inf for no bound)")
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
    ranks: Solo = SOLO,
) -> Result:
    """Train `model` in place until `plan.steps` updates are done, its time is over, or SIGINT or SIGTERM stops it.

    `hooks` see every Step; of a hook with a method `failed(reason)` that is called before an update's error is raised.
    `objective` follows the contract of headwater.objectives. `schedule(step)` multiplies each group's `initial_lr`.
    `evaluate` runs every `plan.evaluate_every` updates and after the last, in eval mode. A run continues from
    `checkpoint` if it exists (its `identity` must be the same), saved every `plan.save_every` updates, at the end and
    on a stop. Resuming is exact: the same losses as a run that was never stopped.
    `ranks`: one of several processes (train.parallel): `batches` is the stream of all, an update takes the same of it
    for any number; hooks run on the first, `evaluate` on all. Raises Unhealthy, ValueError (batch, probe, checkpoint).
    """
    if evaluate is None and plan.evaluate_every:
        raise ValueError(f"evaluate_every is {plan.evaluate_every} but no evaluate function is given")
    counters, identity = Counters(), identity or {}
    hooks = ranks.begin(hooks)
    keeper = None if checkpoint is None else ranks.keeper(checkpoint)
    if keeper is not None and keeper.exists():
        counters = keeper.load(model, optimizer, batches, identity=identity)
    resumed_at = saved_at = counters.step
    device, agreed = next(model.parameters()).device, False
    with _stop_requested(plan.seconds) as asked, keeper or nullcontext():
        while counters.step < plan.steps and not ranks.stopping(asked(), agreed):
            started = time.perf_counter()
            with _named(counters.step + 1, hooks):
                micro, tokens = ranks.read(batches, plan.accumulate, device)
                if counters.step == resumed_at and "segment_ids" in micro[0]:
                    ranks.probe(model, micro[0], forward)
                metrics, norm, agreed = _update(
                    model, micro, objective, optimizer, schedule(counters.step),
                    forward=forward, plan=plan, ranks=ranks, asked=asked(),
                )  # fmt: skip
            seconds = time.perf_counter() - started
            counters = Counters(counters.step + 1, counters.tokens + tokens, counters.seconds + seconds, metrics)
            last = counters.step == plan.steps
            due = last or (plan.evaluate_every and counters.step % plan.evaluate_every == 0)
            evaluation = _evaluate(model, evaluate) if evaluate and due else {}
            for hook in hooks:
                hook(Step(plan.steps, optimizer.param_groups[0]["lr"], norm, tokens, seconds, counters, evaluation))
            due = last or ranks.stopping(asked(), agreed) or counters.step % (plan.save_every or math.inf) == 0
            if keeper is not None and due:
                keeper.save(model, optimizer, batches, counters=counters, identity=identity)
                saved_at = counters.step
        if keeper is not None and saved_at < counters.step:  # asked to stop while the last update was being reported
            keeper.save(model, optimizer, batches, counters=counters, identity=identity)
    return Result(resumed_at, counters.step >= plan.steps, counters)


def _update(
    model: nn.Module,
    micro: Sequence[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    factor: float,
    *,
    forward: Forward,
    plan: Plan,
    ranks: Solo,
    asked: bool,
) -> tuple[dict[str, float], float, bool]:
    """One update over all micro-batches of all ranks.

    Returns metrics averaged by weight, the gradient norm before clipping, and whether a rank was asked to stop.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    sums = {"weight": 0.0, "loss": 0.0}
    empty: NothingToLearn | None = None
    for i, batch in enumerate(micro, 1):
        device = batch["input_ids"].device
        with torch.autocast(device.type, plan.autocast) if plan.autocast else nullcontext():
            outputs = ranks.run(model, batch, forward)
            try:
                loss, metrics = objective(outputs, batch)
            except NothingToLearn as e:
                empty, loss, metrics = e, _nothing(outputs), {"weight": torch.zeros(())}
        weight = float(metrics["weight"])
        ranks.before_backward(model, last=i == len(micro))
        # Sums over the batch, divided once below: micro-batches with few targets must not count as much as full ones.
        (loss * weight).backward()
        for name, value in {**metrics, "loss": loss.detach()}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * (1.0 if name == "weight" else weight)
    sums, stop, where = ranks.total(sums, asked)
    total = sums["weight"]
    if total == 0:
        raise empty or NothingToLearn("no rank had a target in this update")
    if not math.isfinite(sums["loss"]):
        raise Unhealthy(
            f"the loss is {sums['loss'] / total}{where}; "
            "cure: a lower learning rate, a longer warm-up, or look at this batch"
        )
    norm = _clip(optimizer, total, plan.clip, ranks)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    optimizer.step()
    return {name: value if name == "weight" else value / total for name, value in sums.items()}, norm, stop


def _nothing(outputs: Any) -> Tensor:
    """A loss of 0 that depends on all outputs: other ranks wait for this one's part of the backward pass."""
    leaves = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    return torch.stack([(t * 0.0).sum() for t in leaves]).sum()


def _clip(optimizer: torch.optim.Optimizer, weight: float, clip: float, ranks: Solo) -> float:
    """Divide the summed gradients by `weight`, bound their joint norm by `clip`; returns the norm before the bound."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        raise Unhealthy("no parameter got a gradient: the objective does not depend on the trained parameters")
    norm = ranks.norm(gradients) / weight
    if not math.isfinite(norm) or norm == 0.0:
        raise Unhealthy(
            f"the gradient norm is {norm} while the loss is finite; "
            "cure: check frozen parameters and masks (0), or the learning rate and dtype (not finite)"
        )
    torch._foreach_mul_(ranks.held(gradients), min(1.0, clip / norm) / weight)
    return norm


@contextmanager
def _named(step: int, hooks: Sequence[Callable[[Step], None]]) -> Iterator[None]:
    """A fault inside says which update it was, once the hooks have heard of it."""
    try:
        yield
    except (Unhealthy, ValueError) as e:
        reason = f"step {step}: {e}"
        for hook in hooks:
            if (failed := getattr(hook, "failed", None)) is not None:
                failed(reason)
        raise (Unhealthy if isinstance(e, Unhealthy) else ValueError)(reason) from e


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return evaluate(model)


@contextmanager
def _stop_requested(seconds: float) -> Iterator[Callable[[], bool]]:
    """Whether to stop once the update in progress ends: the first SIGINT or SIGTERM came (a second acts as usual), or
    `seconds` are over.
    """
    stop, end = threading.Event(), time.monotonic() + seconds

    def asked() -> bool:
        return stop.is_set() or time.monotonic() >= end

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread
        return
    before = {s: signal.getsignal(s) or signal.SIG_DFL for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for s in before:
        signal.signal(s, ask)
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
