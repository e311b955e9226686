"""Checkpoints on disk: which model a path holds, where its tensors are, and how to write one.

`read` understands a Hugging Face-format directory, a .gguf file and a hub id; `write` makes a directory that
transformers loads where it knows the shape. Tensor bytes are weights.py's, shapes config.py's.
`read_config` of a directory needs no torch, and the native engine neither, so each reader is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headwater import hub
from headwater.config import Config

if TYPE_CHECKING:
    import torch

    from headwater.weights import Source


def read_config(path_or_id: str | Path) -> Config:
    """The Config alone, from config.json or GGUF metadata; ValueError when it is not understood."""
    path = hub.resolve(path_or_id, files=("config.json",))
    if path.suffix != ".gguf":
        from headwater.checkpoint import huggingface

        return huggingface.read_config(path)
    from headwater.checkpoint import gguf

    return gguf.read_config(path)


def read(path_or_id: str | Path) -> tuple[Config, dict[str, Source], torch.dtype]:
    """(Config, unread tensors by our names, dtype of the files' first matrix)."""
    path = hub.resolve(path_or_id)
    if path.suffix != ".gguf":
        from headwater.checkpoint import huggingface

        return huggingface.read(path)
    from headwater.checkpoint import gguf

    return gguf.read(path)


def write(directory: str | Path, config: Config, tensors: Mapping[str, torch.Tensor], *, max_shard_bytes: int) -> None:
    """Write a Hugging Face-format directory atomically; see huggingface.write."""
    from headwater.checkpoint import huggingface

    huggingface.write(Path(directory), config, tensors, max_shard_bytes)
