"""One file that holds everything a run needs to go on exactly where it was: weights, optimizer, batches, counters, RNG.

Written atomically (a killed run leaves the last good file) and read with torch's restricted loader, which builds
tensors and plain containers only: a file from elsewhere cannot run code. Not the exchange format of models: that is
a Hugging Face directory (`model.save_pretrained`).
"""

import glob
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from headwater.files import atomic

FORMAT = 1


class Stateful(Protocol):
    """Something whose position can be saved: a batch iterator."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Counters:
    """How far a run is: updates done, tokens read, seconds spent in updates, metrics of the last one."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def save(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Stateful,
    *,
    counters: Counters,
    identity: Mapping[str, Any],
) -> None:
    """Write the whole state of a run to `path`, atomically. OSError (disk full) leaves the previous file as it was."""
    state = {
        "format": FORMAT,
        "identity": dict(identity),
        "counters": asdict(counters),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "batches": batches.state_dict(),
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }
    for stale in Path(path).parent.glob(f".{glob.escape(Path(path).name)}.{'?' * 8}.part"):  # what a kill left
        stale.unlink(missing_ok=True)
    try:
        with atomic(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as e:  # torch's writer raises the latter
        raise OSError(
            f"{path}: a checkpoint was not written, the one before it stays; is the disk full? ({_first_line(e)})"
        ) from e


def load(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Stateful,
    *,
    identity: Mapping[str, Any],
) -> Counters:
    """Put the state of `path` into the given objects (and torch's generators) and return the counters.

    ValueError: the file is not such a checkpoint or is damaged, or was made by a run with another identity, model or
    optimizer; nothing is changed then, except that a failing optimizer may leave the model loaded.
    """
    state = _read(path)
    same_identity(path, state["identity"], dict(identity))
    _fill(path, state, model, optimizer)
    batches.load_state_dict(state["batches"])
    torch.set_rng_state(state["rng"]["cpu"])
    if state["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    return Counters(**state["counters"])


def branch(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Counters:
    """Begin another stage from the run of `path`: its weights and the optimizer's moments, with rates and decay of
    `optimizer` as they are here. Where it stood in its data, its generators and its identity are left behind.

    Returns the counters of that run. ValueError as in `load`.
    """
    state = _read(path)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    _fill(path, state, model, optimizer)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    return Counters(**state["counters"])


def _read(path: str | Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError) as e:
        raise ValueError(
            f"{path} is not a readable checkpoint ({_first_line(e)}); cure: delete it and start over"
        ) from e
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this version (format {FORMAT}); cure: delete it and start over"
        )
    return state


def _fill(path: str | Path, state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _same_tensors(path, state["model"], model.state_dict())
    model.load_state_dict(state["model"])
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as e:
        raise ValueError(f"{path} was made with another optimizer: {_first_line(e)}") from e


def same_identity(path: str | Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError unless both runs have the same settings."""
    other = [f"{k}: {was.get(k)!r} then, {now.get(k)!r} now" for k in sorted({*was, *now}) if was.get(k) != now.get(k)]
    if other:
        raise ValueError(
            f"{path} belongs to a run with other settings ({'; '.join(other)}); "
            "cure: the same settings, another folder, or start over"
        )


def _same_tensors(path: str | Path, was: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> None:
    for name in sorted({*was, *now}):
        a, b = was.get(name), now.get(name)
        if a is None or b is None or a.shape != b.shape:
            then, here = ("absent" if t is None else tuple(t.shape) for t in (a, b))
            raise ValueError(
                f"{path} does not fit this model: tensor {name!r} is {then} in the file and {here} in the model"
            )


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]
