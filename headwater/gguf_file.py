"""The GGUF container: metadata as a dict and tensors as views of the mapped file, every length checked against it.

Knows the container only; what the keys mean is the business of checkpoint/gguf.py and tokenizer.py. The `gguf`
package's own reader builds several arrays for every vocabulary entry and takes seconds; its block sizes and its
dequantization serve here, and it stays the writer. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
Both packages are imported where a file is opened: the native engine describes its files without them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.records import record

if TYPE_CHECKING:
    import gguf
    import numpy as np

    from headwater.vocabulary import Texts

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ARRAY_DEPTH = 4
_MAX_DIMENSIONS = 4


@record(frozen=True)
class GgufTensor:
    """One tensor: shape with the fastest dimension last, element type, and its raw bytes (rows, bytes per row)."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    data: np.ndarray

    def dequantize(self, part: int | None = None) -> np.ndarray:
        """fp32 values of the whole tensor, or of one slice of its first dimension."""
        import gguf
        import numpy as np

        shape = self.shape if part is None else self.shape[1:]
        rows = self.data
        if part is not None:
            per_part = math.prod(self.shape[1:-1])
            rows = rows[part * per_part : (part + 1) * per_part]
        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        if self.type in plain:
            return rows.view(plain[self.type]).astype(np.float32).reshape(shape)
        return gguf.quants.dequantize(rows, self.type).reshape(shape)


class Described:
    """What a GGUF file says about itself: `metadata` by key, read with checks. Both readers of such files are one."""

    path: Path
    metadata: Mapping[str, Any]

    def texts(self, key: str) -> Texts | None:
        """An array of texts that is searched where it lies, from readers that can do that."""
        return None

    def unusual(self, key: str, usual: int) -> tuple[int, list[tuple[int, int]]] | None:
        """Of an array of integers: its length, and (place, item) of those that are not `usual`; None without it."""
        items = self.find(key)
        return None if items is None else (len(items), [(i, item) for i, item in enumerate(items) if item != usual])

    def find(self, key: str, default: Any = None) -> Any:
        """The metadata value of `key`, or `default`."""
        return self.metadata.get(key, default)

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """The metadata value of `key`; ValueError when it is absent without default, or not of `kind`."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path}: the metadata key {key!r} is missing")
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind):
            raise ValueError(f"{self.path}: {key} is {value!r}; allowed: {kind.__name__}")
        return value


class GgufFile(Described):
    """Metadata and tensors of a .gguf file; ValueError when it is damaged or cut short.

    kinds: the GGUF type of each metadata value, and behind an array's type that of its items.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        import numpy as np

        self.kinds: dict[str, tuple[int, ...]] = {}
        try:
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r")
            self._at = 0
            self.metadata, self.tensors = self._read()
        except FileNotFoundError as e:
            raise ValueError(f"{path}: no such file") from e
        except (struct.error, UnicodeDecodeError, ValueError, OverflowError, OSError) as e:
            raise ValueError(f"{path} is not a whole GGUF file: {e}; download or copy it again") from e

    def _read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        self._bytes = self._data.data
        if bytes(self._bytes[:4]) != b"GGUF":
            raise ValueError(f"it begins with {bytes(self._bytes[:4])!r}, not b'GGUF'")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 (little-endian) are read")
        num_tensors, num_keys = self._count(), self._count()
        metadata = dict(self._pair() for _ in range(num_keys))
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = {info[0]: self._tensor(*info, start=start) for info in infos}
        if len(tensors) != len(infos):
            raise ValueError("two tensors have the same name")
        return metadata, tensors

    def _pair(self) -> tuple[str, Any]:
        key, kind = self._string(), self._scalar("I")
        self.kinds[key] = (kind,) if kind != _ARRAY else (kind, *struct.unpack_from("<I", self._bytes, self._at))
        return key, self._value(kind, 0)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self._string(), self._scalar("I")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise ValueError(f"{name} has {rank} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(rank)]))
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], code: int, offset: int, start: int) -> GgufTensor:
        import gguf
        import numpy as np

        kind = gguf.GGMLQuantizationType(code)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block or math.prod(shape) == 0:
            raise ValueError(f"{name} has shape {shape}, which {kind.name} blocks of {block} cannot fill")
        row_bytes = shape[-1] // block * block_bytes
        begin, size = start + offset, math.prod(shape[:-1]) * row_bytes
        if begin + size > len(self._data):
            raise ValueError(f"{name} ends at byte {begin + size} of {len(self._data)}")
        return GgufTensor(name, shape, kind, self._data[begin : begin + size].view(np.ndarray).reshape(-1, row_bytes))

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth == _MAX_ARRAY_DEPTH:
            raise ValueError(f"value type {kind} at byte {self._at}")
        item, count = self._scalar("I"), self._count()
        if item not in _SCALARS:
            return [self._value(item, depth + 1) for _ in range(count)]
        form = f"<{count}{_SCALARS[item]}"
        values = list(struct.unpack_from(form, self._bytes, self._at))
        self._at += struct.calcsize(form)
        return values

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return value

    def _count(self) -> int:
        """A length, checked against the file so that a damaged one cannot ask for memory."""
        count = self._scalar("Q")
        if count > len(self._bytes) - self._at:
            raise ValueError(f"length {count} at byte {self._at} of {len(self._bytes)}")
        return count

    def _string(self) -> str:
        size = self._count()
        self._at += size
        return str(self._bytes[self._at - size : self._at], "utf-8")
