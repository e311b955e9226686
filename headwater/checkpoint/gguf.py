"""Reading GGUF files: tensors dequantized one at a time. What the file says of its model is gguf_model's.

For the plain engine; the native engine reads quantized blocks itself. Conversions that llama.cpp's files carry are
undone here: interleaved Q/K rows (llama), norm weights with the one added (gemma3), flat convolutions (lfm2).
"""

from pathlib import Path

import numpy as np
import torch

from headwater.checkpoint.gguf_model import Facts, our_name
from headwater.checkpoint.gguf_model import read_config as config_of
from headwater.config import Attention, Config
from headwater.gguf_file import GgufFile, GgufTensor
from headwater.weights import Source, join_expert


class _File(Facts, GgufFile):  # type: ignore[misc]
    """An open GGUF file with dequantizing tensors."""

    tensors: dict[str, GgufTensor]


def _split_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of interleaved rotary pairs (2 i, 2 i + 1) back to half-split ones (i, i + n / 2), head by head."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _source(file: _File, tensor: GgufTensor, name: str, c: Config, expert: int | None = None) -> Source:
    shape = tensor.shape if expert is None else tensor.shape[1:]
    if name.endswith("conv.conv.weight"):
        shape = (shape[0], 1, shape[-1])

    def read() -> torch.Tensor:
        try:
            values = torch.from_numpy(np.array(tensor.dequantize(expert)))
        except NotImplementedError as e:
            raise ValueError(f"{file.path}: {tensor.name} has type {tensor.type.name}, which is not readable") from e
        if file.arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            mixer = c.layers[int(name.split(".")[1])].mixer
            assert isinstance(mixer, Attention)
            values = _split_halves(values, mixer.num_heads if "q_proj" in name else mixer.num_kv_heads)
        if c.norm_offset and "norm" in name:
            values = values - c.norm_offset
        return values.reshape(shape)

    return Source(shape, torch.float32, file.path.name, read)


def read_config(path: Path) -> Config:
    """Config of a GGUF file's metadata."""
    return config_of(_File(path))


def read(path: Path) -> tuple[Config, dict[str, Source], torch.dtype]:
    """Config, unread tensors by our names (dequantized to fp32 when read), and fp32."""
    file = _File(path)
    c = config_of(file)
    sources: dict[str, Source] = {}
    for tensor in file.tensors.values():
        name = our_name(tensor.name)
        if tensor.name == "rope_freqs.weight":
            continue
        if name is None:
            raise ValueError(f"{path}: the tensor {tensor.name!r} is not understood for architecture {file.arch!r}")
        if ".experts." in name:
            for e in range(tensor.shape[0]):
                sources[join_expert(name, e)] = _source(file, tensor, name, c, e)
        else:
            sources[name] = _source(file, tensor, name, c)
    return c, sources, torch.float32
