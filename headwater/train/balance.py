"""Keep the experts of a mixture evenly busy without an auxiliary loss: the router's bias follows the load.

After each update a layer's bias rises by `rate` where an expert got fewer tokens than the mean, and falls where it got
more (DeepSeek-V3, arXiv 2412.19437, 2.1.2). The LFM2 report names "adaptive routing biases" and gives no rule:
INFERRED. The bias steers selection alone, so the gradient does not see it. A hook of train.loop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwater.train.loop import Step


class Balance:
    """Call after every update; adds `load_max` (largest load over the mean), `load_cv` (standard deviation over mean)
    and `load_idle` (share of experts without a token), each of the worst layer, to the metrics of the step.

    Modules with `expert_bias` and `load` are taken; loads are summed over the ranks of a process group.
    ValueError: the model has none, or `rate` is not positive.
    """

    every_rank = True  # each holds the biases

    def __init__(self, model: nn.Module, *, rate: float = 1e-3) -> None:
        if not rate > 0:
            raise ValueError(f"rate is {rate}; the step of the router's bias must be above 0")
        self._rate = rate
        self._layers: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "expert_bias", None), Tensor)]
        if not self._layers:
            raise ValueError("no layer of this model has a router bias: there is nothing to balance")

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        loads = take_loads(self._layers)
        for layer, load in loads:
            layer.expert_bias += self._rate * torch.sign(1.0 - load / load.mean())
        step.done.metrics.update(load_metrics([load for _, load in loads]))


def routed_layers(model: nn.Module) -> list[Any]:
    """Modules that count in `load` how many tokens each expert got."""
    return [m for m in model.modules() if (load := getattr(m, "load", ...)) is None or isinstance(load, Tensor)]


def take_loads(layers: Sequence[Any], *, together: bool = True) -> list[tuple[Any, Tensor]]:
    """(layer, tokens of each expert, fp32) of the layers that tokens passed; their counts start anew.

    together: over all ranks, each of which has to call it; else of this one.
    """
    taken = []
    for layer in layers:
        if (load := layer.load) is None:
            continue
        layer.load = None
        if together and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load)
        taken.append((layer, load.float()))
    return taken


def load_metrics(loads: Sequence[Tensor]) -> dict[str, float]:
    """`load_max`, `load_cv` and `load_idle` of the worst layer; see Balance."""
    worst = {"load_max": 0.0, "load_cv": 0.0, "load_idle": 0.0}
    for load in loads:
        share = load / load.mean()
        found = share.max(), share.std(correction=0), (load == 0).float().mean()
        worst = {name: max(value, now.item()) for (name, value), now in zip(worst.items(), found, strict=True)}
    return worst
