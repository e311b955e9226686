"""What can be wrong with a run that goes on: a loss that is stuck or rises, gradients that explode or reach nothing,
batches with hardly a target, a router that uses few experts.

A hook of train.loop that changes nothing; `line` says what it sees in words. What makes an update impossible (not
finite, no gradient at all, no target) the loop itself refuses, and that reason becomes the line. The bounds are ours,
chosen so that healthy runs of the tests and recipes stay silent.
"""

from collections import deque
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from headwater.train.balance import load_metrics, routed_layers, take_loads
from headwater.train.loop import Step

FINE = "healthy"
GAIN = 1e-3  # share of the best loss by which it must fall to count as falling
PATIENCE = 1 / 3  # of the updates so far: a loss that follows a power law falls by percents in that time
RISE = 1.15  # of the best loss
EXPLODES, VANISHES = 30.0, 1e-4  # of the median gradient norm
FEW_TARGETS = 0.01  # of the tokens
IDLE = 0.5  # of a layer's experts


class Health:
    """Watch the updates it is called with. `window`: updates that the loss may stand still at least, and that the
    median of the gradient norm spans. `every`: updates between looks at each tensor's gradient (given a model).

    Call it after Balance, if there is one. `line`: FINE, or everything that is wrong.
    """

    def __init__(self, model: nn.Module | None = None, *, window: int = 200, every: int = 10) -> None:
        for name, value in (("window", window), ("every", every)):
            if value < 2:
                raise ValueError(f"{name} is {value}; it counts updates and must be at least 2")
        self._model, self._window, self._every = model, window, every
        self._layers: list[Any] = [] if model is None else routed_layers(model)
        self._norms: deque[float] = deque(maxlen=window)
        self._horizon = max(5, window // 10)
        self._loss, self._weight, self._seen = 0.0, 0.0, 0
        self._best, self._best_at, self._best_step = float("inf"), 0, 0
        self._silent: set[str] = set()
        self._unreached: set[str] = set()
        self._idle_for = 0
        self.line = FINE

    def __call__(self, step: Step) -> None:
        self._seen += 1
        found = [self._of_loss(step), self._of_norm(step.gradient_norm), self._of_tensors()]
        found += [self._of_targets(step), self._of_router(step)]
        self.line = "; ".join(text for text in found if text) or FINE

    def failed(self, reason: str) -> None:
        self.line = reason

    def _of_loss(self, step: Step) -> str:
        rate = 1.0 / self._horizon
        self._loss += (step.done.metrics["loss"] - self._loss) * rate
        self._weight += (1.0 - self._weight) * rate
        if self._seen < self._horizon:
            return ""
        now = self._loss / self._weight
        if now < self._best - GAIN * abs(self._best) or self._best == float("inf"):
            self._best, self._best_at, self._best_step = now, self._seen, step.done.step
        since = self._seen - self._best_at
        if since > self._horizon and now > self._best * RISE:
            return f"the loss rises: {self._best:.3f} at update {self._best_step}, now {now:.3f}"
        if since >= max(self._window, PATIENCE * self._seen):
            return f"the loss is stuck: {self._best:.3f} at update {self._best_step}, no better since"
        return ""

    def _of_norm(self, norm: float) -> str:
        usual = median(self._norms) if len(self._norms) >= self._horizon else norm
        self._norms.append(norm)
        if norm > EXPLODES * usual:
            return f"the gradient explodes: norm {norm:.3g}, usually {usual:.3g}"
        if norm < VANISHES * usual:
            return f"the gradient vanishes: norm {norm:.3g}, usually {usual:.3g}"
        return ""

    def _of_tensors(self) -> str:
        """Trainable tensors without a gradient in two looks running: a zero that is new may pass (LoRA's first)."""
        if self._model is None:
            return ""
        if self._seen % self._every == 1:
            silent = {name for name, p in self._model.named_parameters() if p.requires_grad and _no_gradient(p)}
            self._unreached, self._silent = silent & self._silent, silent
        if not self._unreached:
            return ""
        names = sorted(self._unreached)
        return f"no gradient reaches {len(names)} tensors ({', '.join(names[:2])}{', ...' if names[2:] else ''})"

    def _of_targets(self, step: Step) -> str:
        weight = step.done.metrics.get("weight", float(step.tokens))
        if weight < FEW_TARGETS * step.tokens:
            return f"the loss mask is nearly empty: {weight:,.0f} targets in {step.tokens:,} tokens"
        return ""

    def _of_router(self, step: Step) -> str:
        if not self._layers:
            return ""
        if "load_idle" not in step.done.metrics:
            loads = [load for _, load in take_loads(self._layers, together=False)]  # hooks run on the first rank alone
            step.done.metrics.update(load_metrics(loads))
        idle = step.done.metrics.get("load_idle", 0.0)
        self._idle_for = self._idle_for + 1 if idle >= IDLE else 0
        if self._idle_for < self._horizon:
            return ""
        return f"a router collapsed: {idle:.0%} of the experts of a layer get no token"


def _no_gradient(p: Tensor) -> bool:
    if hasattr(p, "to_local"):
        return False  # a shard says nothing of the whole
    return p.grad is None or not bool(torch.any(p.grad))
