"""The compiled module, which is imported here alone, and a model's weights begun before anything else is loaded.

A start imports for as long as the weights take to be repacked, so the two go on side by side. Imports nothing of the
engine: what files mean is native.py's business.
"""

import os
from typing import Any

try:
    from headwater.engine import _native as module
except ImportError as e:
    raise ImportError(
        f"the native core of headwater is not built ({e}); install with `pip install .` (needs a C++20 compiler)"
    ) from e

PACKED_VERSION = 3
"""Of packed files: the layout of weights and of the file around them."""
_TURNED = ("attn_q.weight", "attn_k.weight")
"""Matrices whose rows some files have in another order, by head: small ones, read when it is known."""


def compiled_file() -> str:
    """The file of the compiled module: its build decides the layout of packed weights."""
    return str(module.__file__)


def default_threads() -> int:
    """As many threads as processors this process may use."""
    return len(os.sched_getaffinity(0))


def begin(gguf: Any, threads: int) -> None:
    """Begin to repack the matrices of an open file (module.Gguf), but for small ones, which are read when asked."""
    names = [
        name for name, (format_, dims) in gguf.tensors().items()
        if len(dims) in (2, 3) and format_ != "F32" and not name.endswith(_TURNED)
    ]  # fmt: skip
    gguf.begin(names, threads=threads)


def begun(path: str, threads: int | None) -> Any:
    """A .gguf file, open and begun (module.Gguf), or None where it cannot be: whoever opens it next will say why."""
    try:
        gguf = module.Gguf(path)
        begin(gguf, threads or default_threads())
    except (ValueError, MemoryError):
        return None
    return gguf
