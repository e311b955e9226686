"""Packed files (.hwp): weights in the native core's own layout, mapped instead of read: a second start is instant.

One file: 8 magic bytes, the length of a JSON header, the header (Config, where each tensor stands, the tokenizer's
source), then the tensors at multiples of 64. Bytes are this machine's layout for every instruction set; the format of
a model to give away is GGUF or safetensors, not this.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from headwater.config import Config
from headwater.files import atomic

_MAGIC = b"HWPACK01"
_ALIGN = 64
_MAX_HEADER = 64 << 20
_MATRIX_FIELDS = {"offset", "format", "rows", "k", "experts"}


class Recorder:
    """Weights that remember what they gave out, so that it can be written."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self.matrices: dict[str, Any] = {}
        self.vectors: dict[str, np.ndarray] = {}

    def matrix(self, name: str) -> Any:
        self.matrices[name] = self._weights.matrix(name)
        return self.matrices[name]

    def vector(self, name: str) -> np.ndarray:
        self.vectors[name] = np.ascontiguousarray(self._weights.vector(name), dtype=np.float32)
        return self.vectors[name]

    def norm(self, name: str) -> np.ndarray:
        self.vectors[name] = np.ascontiguousarray(self._weights.norm(name), dtype=np.float32)
        return self.vectors[name]


def write(path: str | Path, config: Config, recorded: Recorder, tokenizer: Path | None) -> None:
    """Write a packed file atomically. tokenizer: the file or directory that holds the model's tokenizer."""
    offset, tensors, blobs = 0, {}, []
    for name, values in {**recorded.matrices, **recorded.vectors}.items():
        if isinstance(values, np.ndarray):
            tensors[name] = {"offset": offset, "size": values.size}
            blobs.append(values.view(np.uint8))
        else:
            shape = {"rows": values.rows, "k": values.k, "experts": values.experts}
            tensors[name] = {"offset": offset, "format": values.format, **shape}
            blobs.append(values.bytes())
        offset += -(-blobs[-1].nbytes // _ALIGN) * _ALIGN
    source = None if tokenizer is None else str(tokenizer.resolve())
    header = json.dumps({"config": config.to_dict(), "tensors": tensors, "tokenizer": source}).encode()
    with atomic(path) as part, part.open("wb") as f:
        f.write(_MAGIC + struct.pack("<Q", len(header)) + header)
        f.write(bytes(-f.tell() % _ALIGN))
        for blob in blobs:
            f.write(blob.data)
            f.write(bytes(-blob.nbytes % _ALIGN))
        f.write(bytes(4096))  # kernels fetch ahead; the page behind the last tensor must be there


class PackedWeights:
    """The weights of a packed file by our names. ValueError when it is damaged."""

    def __init__(self, path: str | Path, mapped: Any) -> None:
        self.path, self._mapped = Path(path), mapped
        header, self._start = _header(self.path)
        try:
            self.config = Config.from_dict(header["config"])
            self._tensors: dict[str, dict[str, Any]] = dict(header["tensors"])
            self.tokenizer = None if header["tokenizer"] is None else Path(header["tokenizer"])
        except (KeyError, TypeError) as e:
            raise ValueError(f"{self.path}: the header lacks {e}; pack it again") from e
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")

    def matrix(self, name: str) -> Any:
        place = self._place(name, _MATRIX_FIELDS)
        return self._mapped.matrix(**{**place, "offset": self._start + place["offset"]})

    def vector(self, name: str) -> np.ndarray:
        place = self._place(name, {"offset", "size"})
        begin = self._start + place["offset"]
        if place["size"] < 1 or begin + 4 * place["size"] > self._bytes.size:
            raise ValueError(f"{self.path}: {name} reaches outside the file; it is truncated or damaged, pack it again")
        return np.frombuffer(self._bytes, np.float32, place["size"], begin)

    norm = vector

    def _place(self, name: str, fields: set[str]) -> dict[str, Any]:
        place = self._tensors.get(name)
        if not isinstance(place, dict) or set(place) != fields:
            raise ValueError(f"{self.path} does not say where {name} stands; pack it again")
        numbers = [v for k, v in place.items() if k != "format"]
        if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError(f"{self.path}: {name} stands at {place}; it is damaged, pack it again")
        return place


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as f:
        magic, size = f.read(8), f.read(8)
        length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
        if magic != _MAGIC or not 0 < length <= _MAX_HEADER:
            raise ValueError(f"{path} is not a packed file of this version; pack the model again")
        try:
            header = json.loads(f.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"{path}: the header is damaged ({e}); pack it again") from e
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is not an object; pack it again")
    return header, -(-(16 + length) // _ALIGN) * _ALIGN
