"""Optimizers over parameter groups chosen by what a tensor does, read from the module alone.

The rule, printed by `describe`: matrices and convolution filters decay; gains, biases and other 1-d tensors do not;
embedding tables (also when tied to the output head) do not either, because a row is only pulled back up by a gradient
when its token occurs, so decay would shrink rare tokens towards zero. Learning rates are set by the schedule:
each group's `initial_lr` is its peak.
"""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by kind: "matrix", "embedding", "vector". Each parameter stands in exactly one; empty
    kinds are left out.

    ValueError if nothing is trainable.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "vector": []}
    for p in model.parameters():  # yields a tied tensor once
        if p.requires_grad:
            kind = "embedding" if id(p) in tables else "matrix" if p.ndim >= 2 else "vector"
            groups[kind].append(p)
    if not any(groups.values()):
        raise ValueError("no parameter of this model requires a gradient: nothing can be trained; unfreeze some")
    return {kind: params for kind, params in groups.items() if params}


def adamw(
    model: nn.Module,
    *,
    lr: float,
    embedding_lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with the LFM2 defaults; `embedding_lr` (default `lr`) is the peak rate of
    embedding tables.
    """
    for name, rate in (("lr", lr), ("embedding_lr", embedding_lr)):
        if rate is not None and not 0.0 < rate < 1.0:
            raise ValueError(f"{name} is {rate}; a peak learning rate lies between 0 and 1")
    groups: list[dict[str, Any]] = []
    for kind, params in parameter_groups(model).items():
        rate = embedding_lr if kind == "embedding" and embedding_lr is not None else lr
        decay = weight_decay if kind == "matrix" else 0.0
        meshes: dict[Any, list[nn.Parameter]] = {}
        for p in params:  # torch's fused step takes tensors that are spread over the same ranks
            meshes.setdefault(getattr(p, "device_mesh", None), []).append(p)
        settings = {"lr": rate, "initial_lr": rate, "weight_decay": decay, "kind": kind}
        groups += [{"params": spread, **settings} for spread in meshes.values()]
    fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def describe(optimizer: torch.optim.Optimizer) -> str:
    """One line: tensors, elements, peak rate and decay of each group."""
    parts = []
    for g in optimizer.param_groups:
        count = sum(p.numel() for p in g["params"])
        rate = g.get("initial_lr", g["lr"])
        numbers = f"{len(g['params'])} tensors, {count:,} values, lr {rate:g}, decay {g['weight_decay']:g}"
        parts.append(f"{g.get('kind', 'all')}: {numbers}")
    return "; ".join(parts)
