"""A GGUF file opened through the `gguf` package: checked access to metadata and tensors.

Knows the container only: what the keys mean is the business of checkpoint/gguf.py and tokenizer.py.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


class _Reader(gguf.GGUFReader):
    """GGUFReader over a plain view of the mapped bytes: slicing np.memmap objects takes most of its parsing time."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)


class GgufFile:
    """Metadata and unread tensors of a .gguf file; ValueError when it is damaged or cut short."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._reader = _Reader(self.path)
        except FileNotFoundError as e:
            raise ValueError(f"{path}: no such file") from e
        except (ValueError, IndexError, KeyError, OverflowError, OSError, TypeError, MemoryError) as e:
            raise ValueError(f"{path} is not a whole GGUF file ({e}); download or copy it again") from e
        self.tensors = {t.name: t for t in self._reader.tensors}

    def find(self, key: str, default: Any = None) -> Any:
        """The metadata value of `key`, or `default`."""
        field = self._reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except (ValueError, IndexError) as e:
            raise ValueError(f"{self.path}: the metadata value of {key!r} is damaged ({e})") from e

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """The metadata value of `key`; ValueError when it is absent without default, or not of `kind`."""
        value = self.find(key)
        if value is None:
            if default is None:
                raise ValueError(f"{self.path}: the metadata key {key!r} is missing")
            return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind):
            raise ValueError(f"{self.path}: {key} is {value!r}; allowed: {kind.__name__}")
        return value
