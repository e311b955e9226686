"""Headwater: run, make and ship LFM2-family language models on a plain CPU. Names load what they need at first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Config": "headwater.config",
    "MODELS": "headwater.config",
    "Lfm2": "headwater.model",
    "Tokenizer": "headwater.tokenizer",
    "Chat": "headwater.chat",
    "Engine": "headwater.engine.engine",
    "SamplingParams": "headwater.sampling",
    "generate": "headwater.generate",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}; it has {', '.join(_WHERE)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*_WHERE, "__version__"])
