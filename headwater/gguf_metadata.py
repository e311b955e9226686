"""The key-value part of a GGUF file as a dict: vocabularies of 65,000 entries in a tenth of a second.

The `gguf` package's reader makes several arrays for every string, which takes seconds; it stays the reader of tensors
and the writer of files. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ARRAY_DEPTH = 4


def read(path: str | Path) -> dict[str, Any]:
    """Every key with its value (int, float, bool, str or a list of them). ValueError if the file is damaged."""
    path = Path(path)
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).metadata()
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as e:
        raise ValueError(f"{path} is not a readable GGUF file: {e}") from e


class _Reader:
    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 0

    def metadata(self) -> dict[str, Any]:
        if self._data[:4] != b"GGUF":
            raise ValueError(f"it begins with {self._data[:4]!r}, not b'GGUF'")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 (little-endian) are read")
        self._scalar("Q")  # the number of tensors
        return {self._string(): self._value(self._scalar("I"), 0) for _ in range(self._count())}

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
        values = list(struct.unpack_from(form, self._data, self._at))
        self._at += struct.calcsize(form)
        return values

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return value

    def _count(self) -> int:
        """A length, checked against the file so that a damaged one cannot ask for memory."""
        count = self._scalar("Q")
        if count > len(self._data) - self._at:
            raise ValueError(f"length {count} at byte {self._at} of {len(self._data)}")
        return count

    def _string(self) -> str:
        size = self._count()
        self._at += size
        return self._data[self._at - size : self._at].decode("utf-8")
