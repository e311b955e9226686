"""What the compiled module is used through: files and tensors become packed weights, a Spec becomes a Program.

Loading imports neither torch nor numpy. GGUF blocks are repacked straight from the file; float tensors are quantized
on the way in.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.checkpoint import gguf_model
from headwater.config import Attention, Config, Moe
from headwater.engine.core import begin, default_threads
from headwater.engine.core import module as _native
from headwater.engine.packed import PackedWeights, Recorder
from headwater.engine.packed import write as write_packed
from headwater.engine.program import Spec, lower
from headwater.files import closest
from headwater.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from headwater.safetensors_file import Place

Mapped = _native.Mapped
Matrix = _native.Matrix
Sampler = _native.Sampler
Program = _native.Program
isa = _native.isa
read_bandwidth = _native.read_bandwidth
peak = _native.peak
cpu_name = _native.cpu_name


class _Metadata(Mapping[str, Any]):
    """Metadata decoded key by key, when asked: vocabularies are long."""

    def __init__(self, file: Any) -> None:
        self._file, self._keys = file, dict.fromkeys(file.keys())

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.value(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Tensor:
    """A tensor of a file by its name: its shape, fastest dimension last."""

    __slots__ = ("file", "name", "shape")

    def __init__(self, file: Any, name: str, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.shape = file, name, shape

    def dequantize(self) -> Any:
        return array("f", self.file.vector(self.name))


class GgufFile(gguf_model.Facts):
    """An open GGUF file, described through the native reader. ValueError when it is damaged or not ours to read.

    native: the same file, where core.begun has opened it. A path to whoever asks for one.
    """

    def __init__(self, path: str | os.PathLike[str], native: Any = None) -> None:
        self.path = Path(path)
        self._begun = native is not None
        self.native = _native.Gguf(os.fspath(path)) if native is None else native
        self.metadata = _Metadata(self.native)
        self.tensors = {
            name: _Tensor(self.native, name, tuple(reversed(dims))) for name, (_, dims) in self.native.tensors().items()
        }

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def texts(self, key: str) -> Any:
        return self.native.texts(key)

    def unusual(self, key: str, usual: int) -> tuple[int, list[tuple[int, int]]] | None:
        return self.native.unusual(key, usual) or super().unusual(key, usual)

    def begin(self, threads: int) -> None:
        """Begin to repack the matrices, unless that has been done."""
        if not self._begun:
            self._begun = True
            begin(self.native, threads)


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

    def vector(self, name: str) -> "array[float]":
        return array("f", self._file.native.vector(gguf_model.their_name(name, self._file)))

    def norm(self, name: str) -> "array[float]":
        return self.vector(name)  # files of families with an offset have it added already


class FloatWeights:
    """Arrays by our names (`read(name)` gives one), quantized to `formats(name)` on the way in."""

    def __init__(
        self, config: Config, read: "Callable[[str], np.ndarray]", formats: Callable[[str], str], *, threads: int = 1
    ) -> None:
        self._config, self._read, self._formats, self._threads = config, read, formats, threads

    def matrix(self, name: str) -> Any:
        values = self._read(name).astype("float32", order="C", copy=False)
        return _native.Matrix.from_floats(values, self._formats(name), threads=self._threads)

    def vector(self, name: str) -> "array[float]":
        return array("f", self._read(name).astype("float32", copy=False).tobytes())

    def norm(self, name: str) -> "array[float]":
        return _plus(self.vector(name), self._config.norm_offset)


class DirectoryWeights:
    """The tensors of safetensors files by our names, read piece by piece and quantized to `formats(name)`.

    places: where each tensor stands; a stack of experts is made of its parts.
    """

    def __init__(
        self, config: Config, places: "Mapping[str, Place]", formats: Callable[[str], str], *, threads: int
    ) -> None:
        self._config, self._places, self._formats, self._threads = config, places, formats, threads
        self._files: dict[Path, Any] = {}

    def matrix(self, name: str) -> Any:
        parts = [self._place(n) for n in self._parts(name)]
        shape, dtype = parts[0].shape, parts[0].dtype
        if len(shape) != 2 or any((p.shape, p.dtype) != (shape, dtype) for p in parts):
            shapes = sorted({f"{p.dtype} {p.shape}" for p in parts})
            raise ValueError(f"{parts[0].path}: {name} is {', '.join(shapes)}; allowed: one shape of two dimensions")
        files = [self._file(p) for p in parts]
        return _native.Matrix.from_files(
            files, [p.offset for p in parts], dtype, rows=shape[0], k=shape[1], format=self._formats(name),
            threads=self._threads,
        )  # fmt: skip

    def vector(self, name: str) -> "array[float]":
        p = self._place(name)
        return array("f", self._file(p).floats(offset=p.offset, count=prod(p.shape), format=p.dtype))

    def norm(self, name: str) -> "array[float]":
        return _plus(self.vector(name), self._config.norm_offset)

    def _parts(self, name: str) -> list[str]:
        if name in self._places or ".experts." not in name:
            return [name]
        ffn = self._config.layers[int(name.split(".")[1])].ffn
        assert isinstance(ffn, Moe), name
        stem, _, matrix = name.rpartition(".")
        return [f"{stem}.{e}.{matrix}.weight" for e in range(ffn.num_experts)]

    def _place(self, name: str) -> "Place":
        if name not in self._places:
            hint = closest(name, list(self._places))
            raise ValueError(f"the directory holds no tensor {name!r}{hint}; is config.json of this model?")
        return self._places[name]

    def _file(self, place: "Place") -> Any:
        if place.path not in self._files:
            self._files[place.path] = _native.Mapped(os.fspath(place.path))
        return self._files[place.path]


def _plus(values: "array[float]", offset: float) -> "array[float]":
    return array("f", [v + offset for v in values]) if offset else values


def opened(path: Path) -> Path | GgufFile:
    """A .gguf file opened, once for all that is read from it; other paths as they are."""
    return GgufFile(path) if path.suffix == ".gguf" else path


def open_weights(path: Path | GgufFile, formats: str | None, *, threads: int) -> tuple[Config, Any]:
    """(Config, weights) of a .gguf or .hwp file as it is, or of a directory of safetensors rounded to `formats` (None:
    the number format of its embedding). Those of a .gguf file are repacked while the caller goes on.

    Routers and the gates of attention heads stay fp32: they are small and decide much. ValueError when not readable.
    """
    path = opened(path) if isinstance(path, Path) else path
    if isinstance(path, GgufFile):
        config = gguf_model.read_config(path)
        path.begin(threads)
        return config, GgufWeights(path, config, threads=threads)
    if path.suffix == ".hwp":
        mapped = PackedWeights(path, _native.Mapped(os.fspath(path)))
        return mapped.config, mapped
    from headwater.checkpoint import huggingface

    config, places = huggingface.read_places(path)
    wanted = formats or places["embed_tokens.weight"].dtype

    def format_of(name: str) -> str:
        return "F32" if "feed_forward.gate." in name or "g_proj" in name else wanted

    return config, DirectoryWeights(config, places, format_of, threads=threads)


def weight_files(path: Path) -> list[Path]:
    """The files that the weights of a model are in."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def pack(path: Path, target: Path, *, formats: str | None = "Q8_0", threads: int | None = None) -> None:
    """Write the weights of `path` in the core's own layout to `target` (.hwp), which starts at once."""
    config, weights = open_weights(path, formats, threads=threads or default_threads())
    recorder = Recorder(weights)
    lower(config, recorder)
    words = tokenizer(path)
    write_packed(target, config, recorder, None if words is None else words.to_dict())


def tokenizer(path: Path | GgufFile) -> Tokenizer | None:
    """The tokenizer beside the weights or inside the file, or None when there is none."""
    path = opened(path) if isinstance(path, Path) else path
    if isinstance(path, GgufFile):
        return Tokenizer.from_gguf(path.path, path) if "tokenizer.ggml.tokens" in path.metadata else None
    if path.suffix == ".hwp":
        values = PackedWeights(path, _native.Mapped(os.fspath(path))).tokenizer()
        try:
            return None if values is None else Tokenizer(**values, source=str(path))
        except TypeError as e:
            raise ValueError(f"{path}: the tokenizer is damaged ({e}); pack it again") from e
    return Tokenizer.from_pretrained(path) if (path / "tokenizer.json").exists() else None


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


def planned_memory(spec: Spec, *, max_tokens: int, max_selected: int, threads: int) -> int:
    """Bytes of buffers and scratch that `build` of this spec takes. Its matrices may be shapes: none is looked at."""
    return _native.planned_memory(
        buffers=spec.buffers, ops=spec.ops, attention=spec.attention, convolution=spec.convolution, logits=spec.logits,
        max_tokens=max_tokens, max_selected=max_selected, threads=threads,
    )  # fmt: skip
