"""Where the tensors of a directory's safetensors files stand: headers only, every length checked. No torch, no numpy.

weights.py reads them as torch tensors, the native engine maps the files. Format: eight bytes with the length of a JSON
header, the header (name -> dtype, shape, first and last byte), the tensors.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
"""The number formats that are read, and the bytes of a value."""
_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Place:
    """One tensor: its file, its first byte there, shape and number format (a key of DTYPES)."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str


def places(directory: Path) -> dict[str, Place]:
    """Every tensor of a directory's safetensors files by the file's own name.

    ValueError when there are none, when the index names files or tensors that are not there, or a file is damaged.
    """
    index = directory / INDEX
    weight_map: dict[str, str] = {}
    if index.exists():
        described = read_json(index)
        stated: Any = described.get("weight_map") if isinstance(described, dict) else None
        if not isinstance(stated, dict) or not all(isinstance(v, str) for v in stated.values()):
            raise ValueError(f"{index}: weight_map must map tensor names to file names")
        weight_map = stated
        shards = sorted(set(weight_map.values()))
        strange = [s for s in shards if Path(s).name != s]
        if strange:
            raise ValueError(f"{index} points outside its directory: {strange[0]!r}")
    else:
        shards = sorted(p.name for p in directory.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{directory} holds no .safetensors files; allowed: {SINGLE} or shards with {INDEX}")
    found: dict[str, Place] = {}
    for shard in shards:
        for name, place in _places_of(directory / shard).items():
            if name in found:
                raise ValueError(f"the tensor {name!r} stands in {found[name].path.name} and again in {shard}")
            found[name] = place
    absent = [name for name in weight_map if name not in found]
    if absent:
        raise ValueError(f"{index} lists {absent[0]!r} ({len(absent)} in all) but no shard holds it; download it again")
    return found


def _places_of(path: Path) -> dict[str, Place]:
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(0)
            (length,) = struct.unpack("<Q", f.read(8))
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(f.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        return {n: _place(path, n, v, 8 + length, size) for n, v in header.items() if n != "__metadata__"}
    except FileNotFoundError as e:
        raise ValueError(f"{path} is missing; the index names it, download it again") from e
    except _Foreign:
        raise
    except (struct.error, ValueError, RecursionError, OSError) as e:
        raise ValueError(f"{path} is not a whole safetensors file ({e}); download or copy it again") from e


class _Foreign(ValueError):
    """A whole file with a number format that is not read here."""


def _place(path: Path, name: str, value: Any, start: int, size: int) -> Place:
    fields = {"dtype": str, "shape": list, "data_offsets": list}
    if not isinstance(value, dict) or not all(isinstance(value.get(k), t) for k, t in fields.items()):
        raise ValueError(f"{name} is described as {value!r:.80}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in [*shape, *offsets]) or len(offsets) != 2:
        raise ValueError(f"{name} has shape {shape} at {offsets}")
    if dtype not in DTYPES:
        raise _Foreign(f"{name} in {path} has dtype {dtype}; allowed: {', '.join(DTYPES)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype]:
        raise ValueError(f"{name} has {end - begin} bytes for shape {shape} of {dtype}")
    if start + end > size:
        raise ValueError(f"{name} ends at byte {start + end} of {size}")
    return Place(path, start + begin, tuple(shape), dtype)
