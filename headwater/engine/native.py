"""The only file that touches the compiled module: files and tensors become packed weights, a Spec becomes a Program.

Loading imports no torch. GGUF blocks are repacked straight from the file; float tensors are quantized on the way in.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.checkpoint import gguf_model
from headwater.config import Attention, Config, Moe
from headwater.engine.packed import PackedWeights, Recorder
from headwater.engine.packed import write as write_packed
from headwater.engine.program import Spec, lower
from headwater.tokenizer import Tokenizer

try:
    from headwater.engine import _native
except ImportError as e:
    raise ImportError(
        f"the native core of headwater is not built ({e}); install with `pip install .` (needs a C++20 compiler)"
    ) from e

Matrix = _native.Matrix
Sampler = _native.Sampler
Program = _native.Program
isa = _native.isa
read_bandwidth = _native.read_bandwidth
peak = _native.peak
cpu_name = _native.cpu_name


def default_threads() -> int:
    """As many threads as processors this process may use."""
    return len(os.sched_getaffinity(0))


class _Metadata(Mapping[str, Any]):
    """Metadata decoded key by key, when asked: vocabularies are long."""

    def __init__(self, file: Any) -> None:
        self._file, self._keys = file, dict.fromkeys(file.keys())

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.value(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class _Tensor:
    file: Any
    name: str
    shape: tuple[int, ...]

    def dequantize(self) -> np.ndarray:
        return self.file.vector(self.name).reshape(self.shape)


class GgufFile(gguf_model.Facts):
    """An open GGUF file, described through the native reader. ValueError when it is damaged or not ours to read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.native = _native.Gguf(os.fspath(path))
        self.metadata = _Metadata(self.native)
        self.tensors = {
            name: _Tensor(self.native, name, tuple(reversed(dims))) for name, (_, dims) in self.native.tensors().items()
        }


class GgufWeights:
    """The weights of a GGUF file by our names, repacked when asked."""

    def __init__(self, file: GgufFile, config: Config, *, threads: int) -> None:
        self._file, self._config, self._threads = file, config, threads

    def matrix(self, name: str) -> Any:
        heads = 0
        if self._file.arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            mixer = self._config.layers[int(name.split(".")[1])].mixer
            assert isinstance(mixer, Attention)
            heads = mixer.num_heads if "q_proj" in name else mixer.num_kv_heads
        theirs = gguf_model.their_name(name, self._file)
        return self._file.native.matrix(theirs, rotary_heads=heads, threads=self._threads)

    def vector(self, name: str) -> np.ndarray:
        return self._file.native.vector(gguf_model.their_name(name, self._file))

    def norm(self, name: str) -> np.ndarray:
        return self.vector(name)  # files of families with an offset have it added already


class FloatWeights:
    """Float tensors by our names (`read(name)` gives an array), quantized to `formats(name)` on the way in."""

    def __init__(
        self, config: Config, read: Callable[[str], np.ndarray], formats: Callable[[str], str], *, threads: int = 1
    ) -> None:
        self._config, self._read, self._formats, self._threads = config, read, formats, threads

    def matrix(self, name: str) -> Any:
        values = np.ascontiguousarray(self._read(name), dtype=np.float32)
        return _native.Matrix.from_floats(values, self._formats(name), threads=self._threads)

    def vector(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._read(name), dtype=np.float32).reshape(-1)

    def norm(self, name: str) -> np.ndarray:
        return self.vector(name) + np.float32(self._config.norm_offset)


def open_weights(path: Path, formats: str, *, threads: int) -> tuple[Config, Any]:
    """(Config, weights) of a .gguf or .hwp file as it is, or of a directory of safetensors rounded to `formats`.

    Routers and the gates of attention heads stay fp32: they are small and decide much. ValueError when not readable.
    """
    if path.suffix == ".gguf":
        file = GgufFile(path)
        config = gguf_model.read_config(file)
        return config, GgufWeights(file, config, threads=threads)
    if path.suffix == ".hwp":
        mapped = PackedWeights(path, _native.Mapped(os.fspath(path)))
        return mapped.config, mapped
    from headwater import checkpoint
    from headwater.weights import join_expert

    config, sources, _ = checkpoint.read(path)

    def read(name: str) -> np.ndarray:
        if name in sources:
            return sources[name].read().float().numpy()
        experts = [sources[join_expert(name, e)].read().float().numpy() for e in range(num_experts(name))]
        return np.stack(experts)

    def num_experts(name: str) -> int:
        ffn = config.layers[int(name.split(".")[1])].ffn if ".experts." in name else None
        if not isinstance(ffn, Moe):
            raise ValueError(f"{path} holds no tensor {name!r}; is config.json of this model?")
        return ffn.num_experts

    def format_of(name: str) -> str:
        return "F32" if "feed_forward.gate." in name or "g_proj" in name else formats

    return config, FloatWeights(config, read, format_of, threads=threads)


def weight_files(path: Path) -> list[Path]:
    """The files that the weights of a model are in."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def pack(path: Path, target: Path, *, formats: str = "Q8_0", threads: int | None = None) -> None:
    """Write the weights of `path` in the core's own layout to `target` (.hwp), which starts at once."""
    config, weights = open_weights(path, formats, threads=threads or default_threads())
    recorder = Recorder(weights)
    lower(config, recorder)
    write_packed(target, config, recorder, _tokenizer_source(path))


def tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer beside the weights or inside the file, or None when there is none."""
    source = _tokenizer_source(path)
    return None if source is None else Tokenizer.from_pretrained(source)


def _tokenizer_source(path: Path) -> Path | None:
    if path.suffix == ".hwp":
        return PackedWeights(path, None).tokenizer
    inside = path.suffix == ".gguf" and "tokenizer.ggml.tokens" in GgufFile(path).metadata
    beside = path.is_dir() and (path / "tokenizer.json").exists()
    return path if inside or beside else None


def build(
    spec: Spec,
    *,
    capacity: int,
    max_slots: int = 1,
    max_tokens: int = 512,
    max_selected: int = 16,
    ring: int = 16,
    threads: int | None = None,
    cpus: Sequence[int] = (),
) -> Any:
    """A runnable program. capacity: positions a sequence can hold; max_tokens: tokens of one run; ring: how far
    convolution states can be rewound, plus their width; cpus: processor numbers to pin the threads to."""
    return _native.Program(
        **spec.as_arguments(), ring=ring, capacity=capacity, max_slots=max_slots, max_tokens=max_tokens,
        max_selected=max_selected, threads=threads or default_threads(), cpus=list(cpus),
    )  # fmt: skip
