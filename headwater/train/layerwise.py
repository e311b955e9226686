"""Fit new parts to the parts they replace: each sees what the old one saw and learns what the old one gave.

All parts learn at once from one pass of the frozen teacher, since none depends on another. The wrapper is a module
like any other for THE loop; `layer_error` is its objective. Not for training the assembled model (objectives.distill).
Shapes: B rows, T positions, P parts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Layerwise(nn.Module):
    """forward(...) runs `teacher` on the same arguments and gives (B, T, P, 2): squared errors, squared targets.

    parts: name of a submodule of the teacher -> the module to fit, called with the same arguments. Only the parts are
    parameters of this module. ValueError for a name that the teacher does not have.
    """

    def __init__(self, teacher: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        known = dict(teacher.named_modules())
        for name in parts:
            if name not in known:
                raise ValueError(f"the teacher has no part {name!r} to replace")
        if not parts:
            raise ValueError("no part to fit")
        self.names = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from parameters() and state_dict()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (teacher,) = self._teacher
        errors: list[Tensor] = []

        def watch(part: nn.Module) -> Any:
            def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], wanted: Tensor) -> None:
                with torch.set_grad_enabled(grad):
                    miss = part(*given, **named).float() - wanted.float()
                    errors.append(torch.stack([miss.square().sum(-1), wanted.float().square().sum(-1)], -1))

            return hook

        grad = torch.is_grad_enabled()
        hooks = [
            teacher.get_submodule(name).register_forward_hook(watch(part), with_kwargs=True)
            for name, part in zip(self.names, self.parts, strict=True)
        ]
        try:
            with torch.no_grad():
                teacher(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(errors, 2)


def layer_error(outputs: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over parts of the relative squared error over the batch's tokens; 1 is what a silent part would have.

    Metrics: `weight` (tokens), `worst` (the largest error of a part).
    """
    if outputs.ndim != 4 or outputs.shape[:2] != batch["input_ids"].shape:
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}; a Layerwise gives (B, T, P, 2)")
    keep = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(batch["input_ids"]).bool()
    sums = outputs[keep].sum(0)
    error_p = sums[:, 0] / sums[:, 1].clamp_min(1e-12)
    return error_p.mean(), {"weight": keep.sum(), "worst": error_p.detach().max()}
