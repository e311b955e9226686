"""Named tensors in files: safetensors read lazily and written in a stream.

Names in memory follow the LFM2 checkpoints without the `model.` prefix (`layers.3.conv.in_proj.weight`); experts are
stacked (`layers.3.feed_forward.experts.w1`, one row per expert). Not for what a family calls its tensors: that is
checkpoint/'s table.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from headwater.files import atomic, closest, write_json
from headwater.safetensors_file import INDEX, SINGLE, places

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TORCH = {name: dtype for dtype, name in _DTYPES.items()}


def split_expert(name: str) -> tuple[str, int | None]:
    """`…experts.3.w1.weight` -> (`…experts.w1`, 3); other names -> (name, None)."""
    parts = name.split(".")
    if len(parts) >= 4 and parts[-4] == "experts" and parts[-3].isdecimal() and parts[-1] == "weight":
        return ".".join([*parts[:-3], parts[-2]]), int(parts[-3])
    return name, None


def join_expert(name: str, expert: int) -> str:
    """The inverse of `split_expert`."""
    stem, _, matrix = name.rpartition(".")
    return f"{stem}.{expert}.{matrix}.weight"


@dataclass(frozen=True)
class Source:
    """A tensor that is read when asked: `read()` returns it; shape, dtype and origin are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    read: Callable[[], torch.Tensor]


def open_safetensors(directory: Path) -> dict[str, Source]:
    """Every tensor of a directory's safetensors files by the file's own name, unread.

    ValueError when there are none, when the index names files or tensors that are not there, or a file is damaged.
    """
    found = places(directory)
    return {
        name: Source(p.shape, _TORCH[p.dtype], p.path.name, partial(_read, p.path, name)) for name, p in found.items()
    }


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as f:
        return f.get_tensor(name)


def fill(wanted: Mapping[str, torch.Tensor], sources: Mapping[str, Source], *, optional: Iterable[str] = ()) -> None:
    """Copy each source into the tensor of its name, one at a time (never more than one source is in memory).

    `sources` use our names, experts one by one. ValueError lists missing, extra and misshaped tensors and changes
    nothing; `optional` names may be absent.
    """
    places: dict[str, torch.Tensor] = {}
    for name, tensor in wanted.items():
        if ".experts." in name:
            places |= {join_expert(name, e): tensor[e] for e in range(tensor.shape[0])}
        else:
            places[name] = tensor
    missing = sorted(places.keys() - sources.keys() - set(optional))
    extra = sorted(sources.keys() - places.keys())
    faults = [f"{n}{closest(n, extra)}" for n in missing[:3]]
    if faults:
        raise ValueError(
            f"{len(missing)} tensors are missing, first {'; '.join(faults)}; is config.json of this model?"
        )
    if extra:
        raise ValueError(f"{len(extra)} tensors have no place in the model, first {', '.join(extra[:3])}")
    for name, source in sources.items():
        if source.shape != tuple(places[name].shape):
            shape = tuple(places[name].shape)
            raise ValueError(f"{name} in {source.origin} has shape {source.shape}; the configuration asks for {shape}")
    with torch.no_grad():
        for name, source in sources.items():
            try:
                places[name].copy_(source.read())
            except (SafetensorError, OSError) as e:
                raise ValueError(f"{source.origin} is damaged at {name} ({e}); download or copy it again") from e


def unstack(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors with each stack of experts taken apart, as files keep them."""
    for name, tensor in tensors.items():
        if ".experts." in name:
            for e in range(tensor.shape[0]):
                yield join_expert(name, e), tensor[e]
        else:
            yield name, tensor


def write_safetensors(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int) -> None:
    """Write tensors in order to model.safetensors, or to numbered shards with an index, streaming."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} has dtype {tensor.dtype}; allowed: {', '.join(map(str, _DTYPES))}")
        if shards[-1] and size + _nbytes(tensor) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _nbytes(tensor)
        total += _nbytes(tensor)
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + _nbytes(tensor)
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as part, part.open("wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for tensor in tensors.values():
            data = tensor.detach().cpu().contiguous()
            if math.prod(data.shape):
                f.write(data.view(-1).view(torch.uint8).numpy().data)
