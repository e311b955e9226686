"""Checkpoints of runs over several ranks: each writes its shards, any number of ranks reads them (torch's DCP).

PATH/step-N holds DCP's shards and run.json: counters, the position in the data, settings, size and SHA-256 of every
file. It is written beside training, under another name, and renamed when all of it is on disk: a kill at any point
leaves the last whole one. Only tensors are stored and read, with restricted loaders: a file from elsewhere cannot run
code. All ranks need the same directory. Not for one process without torchrun (train.checkpoint), nor for exchange.
"""

import hashlib
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as torch_dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule

from headwater.files import read_json, write_json
from headwater.train.checkpoint import Counters, Stateful, same_identity

T = TypeVar("T")

FORMAT = 1
KEPT = 2
"""Published checkpoints that stay: should the newest be damaged, there is one before it."""

_CARD = "run.json"
_KNOWN = {
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}  # fmt: skip


class Folder:
    """The keeper (train.ranks) of a run at `path`; `group`: a gloo group of all ranks that nothing else uses."""

    def __init__(self, path: str | Path, group: dist.ProcessGroup) -> None:
        self.path, self._group = Path(path), group
        self._rank = dist.get_rank(group)
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        fault = f"{path} is a file; runs over several ranks keep a directory" if self.path.is_file() else None
        self._agree(fault)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # after a fault other ranks may be gone: whoever waits for them waits for ever
            self.wait()

    def exists(self) -> bool:
        return self._newest() is not None

    def wait(self) -> None:
        """Until the last save is on disk; OSError on every rank if one could not write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise OSError(f"{self.path}: a checkpoint was not written, the one before it stays: {fault}") from fault

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Stateful,
        *,
        counters: Counters,
        identity: Mapping[str, Any],
    ) -> None:
        """Copy the state to main memory, and write it while training goes on. OSError: the save before this failed."""
        self.wait()
        tensors = {**_tensors(model, optimizer), **_generators(self._rank)}
        staged = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        card = {
            "format": FORMAT, "ranks": dist.get_world_size(self._group), "identity": dict(identity),
            "counters": asdict(counters), "batches": batches.state_dict(), "groups": _groups(model, optimizer),
        }  # fmt: skip
        self._thread = threading.Thread(target=self._write, args=(staged, card), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        try:
            self._publish(tensors, card)
        except BaseException as e:
            self._fault = e

    def _publish(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        target = self.path / f"step-{card['counters']['step']:08}"
        part = self.path / f".{target.name}.part"
        self._together(lambda: self._make(part))
        torch_dcp.save(tensors, storage_writer=_Writer(part), process_group=self._group)
        own = part.glob(f"__{self._rank}_*.distcp")
        files = self._together(lambda: {f.name: _checksum(f) for f in own})
        self._together(lambda: self._seal(part, target, card, files))

    def _make(self, part: Path) -> None:
        if self._rank == 0:
            for stale in self.path.glob(".step-*.part"):  # what a kill left
                shutil.rmtree(stale, ignore_errors=True)
            part.mkdir(parents=True)

    def _seal(self, part: Path, target: Path, card: dict[str, Any], files: list[dict[str, Any]]) -> None:
        if self._rank:
            return
        index = {".metadata": _checksum(part / ".metadata")}
        card["files"] = {name: sums for some in [index, *files] for name, sums in sorted(some.items())}
        write_json(part / _CARD, {**card, "sha256": _digest(card)})
        _sync(part)
        if not target.exists():
            part.rename(target)
        _sync(self.path)
        for old in self._published()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def _together(self, act: Callable[[], T]) -> list[T]:
        """What `act` gives on each rank. OSError on all of them where it fails on one: no rank waits for it."""
        mine: T | None = None
        fault: str | None = None
        try:
            mine = act()
        except Exception as e:
            fault = f"{type(e).__name__}: {e}"
        found: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, (mine, fault), group=self._group)
        if faults := [fault for _, fault in found if fault is not None]:
            raise OSError(faults[0])
        return [mine for mine, _ in found]

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Stateful, *, identity: Mapping[str, Any]
    ) -> Counters:
        """Put the newest state into the given objects, spread as they are; the counters.

        ValueError, on all ranks: a file is missing or damaged, or the run had another identity, model, data or
        optimizer. Nothing is changed then.
        """
        folder = self._newest()
        assert folder is not None, "asked to load where nothing exists"
        fault, card, index = None, {}, Metadata({})
        try:
            card = _card(folder)
            index = _index(folder)
            for name in sorted(card["files"])[self._rank :: dist.get_world_size(self._group)]:
                _check_file(folder, name, card["files"][name])
            told = json.loads(json.dumps(dict(identity)))  # from the disk a tuple comes back as a list
            same_identity(folder, card["identity"], told)
            wanted, states = _targets(folder, index, model, optimizer)
            wanted |= {k: t for k, t in _generators(self._rank).items() if k in index.state_dict_metadata}
            settings = _settings(folder, card["groups"], model, optimizer)
            batches.load_state_dict(card["batches"])
        except (ValueError, OSError) as e:
            fault = str(e)
        self._agree(fault)
        torch_dcp.load(wanted, storage_reader=_Reader(folder), process_group=self._group)
        for parameter, state in states:
            optimizer.state[parameter] = state
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
        _restore_generators(wanted, self._rank)
        return Counters(**card["counters"])

    def _newest(self) -> Path | None:
        """The same answer on every rank."""
        found: list[str | None] = [str(p) for p in self._published()[-1:]] or [None]
        dist.broadcast_object_list(found, src=0, group=self._group)
        return None if found[0] is None else Path(found[0])

    def _published(self) -> list[Path]:
        return sorted(p for p in self.path.glob("step-*") if p.is_dir())

    def _agree(self, fault: str | None) -> None:
        faults: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(faults, fault, group=self._group)
        if found := [f for f in faults if f is not None]:
            raise ValueError(found[0])


class _Writer(torch_dcp.FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        return StorageMeta()  # it would tell the path


class _Reader(torch_dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _index(Path(self.path))


class _Plain(pickle.Unpickler):
    """Builds what a DCP index consists of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of ours does")
        return super().find_class(module, name)


def _index(folder: Path) -> Metadata:
    try:
        with (folder / ".metadata").open("rb") as f:
            index = _Plain(f).load()
        kinds = {type(entry) for entry in index.state_dict_metadata.values()}
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ImportError) as e:
        raise ValueError(f"{folder / '.metadata'} is damaged ({e}); {_cure(folder)}") from e
    if kinds - {TensorStorageMetadata}:
        raise ValueError(f"{folder} holds more than tensors: not a checkpoint of ours")
    return index


def _card(folder: Path) -> dict[str, Any]:
    path = folder / _CARD
    if not path.exists():
        raise ValueError(f"{path} is missing; {_cure(folder)}")
    card = read_json(path)
    if not isinstance(card, dict) or card.pop("sha256", None) != _digest(card):
        raise ValueError(f"{path} is damaged: not what its own checksum says; {_cure(folder)}")
    if card["format"] != FORMAT:
        raise ValueError(f"{path} has format {card['format']}; this reads {FORMAT}")
    return card


def _check_file(folder: Path, name: str, sums: list[Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ValueError(f"the shard {path} is missing; {_cure(folder)}")
    if path.stat().st_size != sums[0] or _checksum(path) != sums:
        raise ValueError(f"the shard {path} is damaged: not the bytes that were written; {_cure(folder)}")


def _cure(folder: Path) -> str:
    others = sorted(p.name for p in folder.parent.glob("step-*") if p.name < folder.name)
    goes_on = f"goes on from {others[-1]}" if others else "starts over"
    return f"cure: bring the file back, or remove {folder}: the run {goes_on}"


def _checksum(path: Path) -> list[Any]:
    """[bytes, SHA-256]"""
    with path.open("rb") as f:
        return [path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()]


def _digest(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Names of files to disk: without it a crash may forget a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves parameters gathered
    return dict(model.named_parameters())


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = _parameters(model)
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise ValueError(f"the optimizer keeps a {type(value).__name__} as {key!r}; only tensors are stored")
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def _targets(
    folder: Path, index: Metadata, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[tuple[nn.Parameter, dict[str, Tensor]]]]:
    """Tensors to read into by name, and the optimizer's by parameter."""
    parameters = _parameters(model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted: dict[str, Tensor] = {f"model/{name}": t for name, t in model.state_dict().items()}
    stored = {key: e for key, e in index.state_dict_metadata.items() if isinstance(e, TensorStorageMetadata)}
    for key in sorted({*wanted, *(k for k in stored if k.startswith("model/"))}):
        sizes = [tuple(stored[key].size) if key in stored else "absent"]
        sizes.append(tuple(wanted[key].shape) if key in wanted else "absent")
        if sizes[0] != sizes[1]:
            name = key.removeprefix("model/")
            raise ValueError(f"{folder} does not fit this model: tensor {name!r} is {sizes[0]} there, {sizes[1]} here")
    fused = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    states: dict[str, dict[str, Tensor]] = {}
    for key in (k for k in stored if k.startswith("optimizer/")):
        _, name, kind = key.split("/")
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in trained:
            raise ValueError(
                f"{folder} was made with another optimizer: it has a state of {name!r}, which is fixed here"
            )
        entry = stored[key]
        if entry.size == parameter.shape:
            target = torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
        else:
            device = parameter.device if fused else "cpu"
            target = torch.zeros(entry.size, dtype=entry.properties.dtype, device=device)
        wanted[key] = states.setdefault(name, {})[kind] = target
    return wanted, [(parameters[name], state) for name, state in states.items()]


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Settings of each parameter group, with the names of its parameters."""
    names = {id(p): name for name, p in _parameters(model).items()}
    groups = []
    for group in optimizer.param_groups:
        settings = {k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)}
        groups.append({"names": [names[id(p)] for p in group["params"]], "settings": settings})
    return groups


def _settings(
    folder: Path, groups: list[dict[str, Any]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """The stored settings for each group here; groups may be cut in another way, as long as each had one setting."""
    of = {name: group["settings"] for group in groups for name in group["names"]}
    names = {id(p): name for name, p in _parameters(model).items()}
    found = []
    for group in optimizer.param_groups:
        settings = [of.get(names[id(p)]) for p in group["params"]]
        if settings[0] is None or any(s != settings[0] for s in settings):
            raise ValueError(f"{folder} was made with another optimizer: other parameter groups")
        found.append({k: tuple(v) if isinstance(v, list) else v for k, v in settings[0].items()})
    return found


def _generators(rank: int) -> dict[str, Tensor]:
    """States of torch's generators; on another number of ranks each missing one stays as it is."""
    states = {f"generator/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"generator/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(tensors: Mapping[str, Tensor], rank: int) -> None:
    if (state := tensors.get(f"generator/{rank}/cpu")) is not None:
        torch.set_rng_state(state)
    if (state := tensors.get(f"generator/{rank}/cuda")) is not None:
        torch.cuda.set_rng_state(state)
