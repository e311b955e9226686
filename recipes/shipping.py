"""A trained model as a GGUF file, and how fast that file is in the native engine. A part of other recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headwater.bench.cases import named
from headwater.bench.worker import run
from headwater.export import gguf
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer


def ship(model: Lfm2, tokenizer: Tokenizer, path: Path, type: str, head: str | None = None) -> None:
    """Write a model of fp32 weights as a GGUF file, rounded to `type`. head: another type of embedding or head."""
    tensors = {name: _Floats(value) for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    gguf.write(path, model.config, tensors, tokenizer, type=type, head=head, name=path.stem, threads=threads)


def speeds(path: Path, cases: Sequence[str], context: int) -> dict[str, float]:
    """Tokens a second of a .gguf file by case of headwater.bench, of those that fit `context` tokens."""
    found = {}
    for case in map(named, cases):
        if case.tokens + case.depth < context:
            found[case.name] = case.tokens / min(run(str(path), case, torch.get_num_threads())["seconds"])
    return found


class _Floats:
    """A weight as the exporter reads it."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value, self.shape = value, tuple(value.shape)

    def read(self) -> Any:
        return self._value.numpy()
