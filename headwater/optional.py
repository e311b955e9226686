"""The one way to use a dependency that the base install lacks: `torch = optional.load("torch", extra="train")`."""

import importlib
from types import ModuleType


def load(name: str, *, extra: str) -> ModuleType:
    """Import module `name`; if it is absent raise ImportError that names the extra to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ImportError(
            f"this needs the package {name!r}, which is not installed; cure: pip install 'headwater[{extra}]'"
        ) from e
