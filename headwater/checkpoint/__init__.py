"""Checkpoints on disk: which model a path holds, where its tensors are, and how to write one.

`read` understands a Hugging Face-format directory, a .gguf file and a hub id; `write` makes a directory that
transformers loads where it knows the shape. Tensor bytes and names are weights.py's, shapes config.py's.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from headwater import hub, weights
from headwater.checkpoint import gguf, huggingface
from headwater.config import Config


def read_config(path_or_id: str | Path) -> Config:
    """The Config alone, from config.json or GGUF metadata; ValueError when it is not understood."""
    path = hub.resolve(path_or_id, files=("config.json",))
    return gguf.read_config(path) if path.suffix == ".gguf" else huggingface.read_config(path)


def read(path_or_id: str | Path) -> tuple[Config, dict[str, weights.Source], torch.dtype]:
    """(Config, unread tensors by our names, dtype of the files' first matrix)."""
    path = hub.resolve(path_or_id)
    return gguf.read(path) if path.suffix == ".gguf" else huggingface.read(path)


def write(directory: str | Path, config: Config, tensors: Mapping[str, torch.Tensor], *, max_shard_bytes: int) -> None:
    """Write a Hugging Face-format directory atomically; see huggingface.write."""
    huggingface.write(Path(directory), config, tensors, max_shard_bytes)
