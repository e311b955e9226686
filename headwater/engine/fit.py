"""Will it fit? Memory of an engine from headers alone: weights, states of sequences, scratch. No weight is read.

The program is lowered over shapes instead of matrices, so layers, fusions and buffers are those that will run. A file
on the hub is asked for its header by a range request. Not a promise about other processes on the machine.
"""

import contextlib
import dataclasses
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater import hub
from headwater.checkpoint import gguf_model, huggingface
from headwater.checkpoint.huggingface import parse_config
from headwater.config import Attention, Config, Moe, ShortConv
from headwater.engine import native
from headwater.engine.engine import DEFAULT_CONTEXT, ring_of
from headwater.engine.packed import PackedWeights
from headwater.engine.program import lower
from headwater.engine.scheduler import BLOCK
from headwater.files import read_json

_PACKED = {
    "F32": (1, 64), "F16": (1, 32), "BF16": (1, 32), "Q4_0": (32, 288), "Q8_0": (32, 544),
    "Q4_1": (32, 320), "Q5_0": (32, 352), "Q5_1": (32, 384),
    "Q4_K": (256, 2368), "Q5_K": (256, 2880), "Q6_K": (256, 3360),
}  # fmt: skip
"""Format of the core: inputs a block, bytes of 16 rows of one (docs/native.md, section 4)."""
_FLOATS = ("F32", "F16", "BF16")
_NAMED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_PROCESS, _WORD = 70 << 20, 288
"""A server's process: Python and its libraries, and each word of the vocabulary (recipes/fit_measured.py)."""
PARTS = ("weights", "states", "scratch", "cache", "process")
"""Of a Fit: what adds up to its total."""
_SHORT = 2048
"""Tokens that a context should have at least before it is shortened to fit."""
_GROUPS = {
    ".": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Folder of a control group: its limit, what it uses, and what of that can be dropped."""
_MOST_CACHE = 2 << 30
_FIRST_RANGE, _MOST_RANGE = 1 << 22, 1 << 28


@dataclass(frozen=True)
class Fit:
    """Bytes of an engine when all `slots` sequences are `context` tokens long."""

    weights: int
    states: int
    scratch: int
    cache: int
    process: int
    context: int
    slots: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True)
class _Shape:
    """A matrix that is not there."""

    format: str
    rows: int
    k: int
    experts: int = 1

    @property
    def int8(self) -> bool:
        return self.format not in _FLOATS

    @property
    def nbytes(self) -> int:
        block, size = _PACKED[self.format]
        return self.experts * -(-self.rows // 16) * -(-self.k // block) * size


class _Shapes:
    """The Weights protocol over shapes. `shape(name)`: of a matrix."""

    def __init__(self, config: Config, shape: Callable[[str], _Shape]) -> None:
        self._config, self.matrix, self.used = config, self._counted, dict[str, _Shape]()
        self._shape = shape

    def _counted(self, name: str) -> _Shape:
        self.used[name] = self._shape(name)
        return self.used[name]

    def vector(self, name: str) -> "array[float]":
        layer = self._config.layers[int(name.split(".")[1])] if name.startswith("layers.") else None
        if layer is not None and isinstance(layer.mixer, ShortConv) and name.endswith("conv.conv.weight"):
            return array("f", bytes(4 * self._config.hidden_size * layer.mixer.width))
        return array("f", bytes(4 * self._config.hidden_size))

    norm = vector


def shapes_of(config: Config, formats: str) -> Callable[[str], _Shape]:
    """The matrices of a model whose weights are rounded to `formats` on the way in, by our names."""
    if formats not in _PACKED:
        raise ValueError(f"number format {formats!r} is unknown; allowed: {', '.join(_PACKED)}")
    d = config.hidden_size

    def shape(name: str) -> _Shape:
        if not name.startswith("layers."):
            return _Shape(formats, config.vocab_size, d)
        _, index, rest = name.split(".", 2)
        layer = config.layers[int(index)]
        if isinstance(layer.mixer, Attention) and rest.startswith("self_attn."):
            m = layer.mixer
            rows = {"q": m.num_heads * m.head_dim, "o": d, "g": m.num_heads}.get(rest[10], m.num_kv_heads * m.head_dim)
            return _Shape(
                "F32" if rest[10] == "g" else formats, rows, m.num_heads * m.head_dim if rest[10] == "o" else d
            )
        if rest.startswith("conv."):
            return _Shape(formats, 3 * d if "in_proj" in rest else d, d)
        f = layer.ffn
        if rest.startswith("feed_forward.gate."):
            assert isinstance(f, Moe)
            return _Shape("F32", f.num_experts, d)
        down, experts = ".w2" in rest, f.num_experts if isinstance(f, Moe) else 1
        rows, k = (d, f.intermediate_size) if down else (f.intermediate_size, d)
        return _Shape(formats, rows, k, experts)

    return shape


def _kept_format(directory: Path, values: dict[str, Any]) -> str:
    """The number format of a directory's embedding; where its weights are not here, what config.json (values) says."""
    if any(directory.glob("*.safetensors")):
        return huggingface.read_places(directory)[1]["embed_tokens.weight"].dtype
    named = values.get("dtype") or values.get("torch_dtype")
    if str(named) not in _NAMED:
        raise ValueError(
            f"{directory} has no weights here, and the dtype of its config.json is {named!r}; say it with --weights"
        )
    return _NAMED[str(named)]


def header(path: Path, formats: str | None) -> tuple[Config, Callable[[str], _Shape]]:
    """Configuration and shapes of a .gguf or .hwp file, or of a directory to be rounded to `formats` (None: kept in the
    number format of its embedding). ValueError."""
    if path.suffix == ".hwp":
        packed = PackedWeights(path, None)
        return packed.config, lambda name: _Shape(*packed.described(name))
    if path.suffix != ".gguf":
        values = read_json(path / "config.json")
        config = parse_config(values)[0]
        return config, shapes_of(config, _kept_format(path, values) if formats is None else formats)
    file = native.GgufFile(path)
    config = gguf_model.read_config(file)
    kinds = file.native.tensors()

    def shape(name: str) -> _Shape:
        theirs = gguf_model.their_name(name, file)
        if theirs not in kinds:
            raise ValueError(f"{path}: the tensor {theirs} is missing")
        kind, dims = kinds[theirs]
        if kind not in _PACKED:
            raise ValueError(f"{path}: {theirs} has number format {kind}; the native engine runs {', '.join(_PACKED)}")
        return _Shape(kind, dims[1], dims[0], dims[2] if len(dims) > 2 else 1)

    return config, shape


def estimate(
    config: Config,
    shape: Callable[[str], _Shape],
    *,
    context: int,
    slots: int,
    chunk_size: int = 10 * BLOCK,
    threads: int = 1,
    cache_bytes: int = 0,
) -> Fit:
    """What Engine.from_pretrained with these arguments takes when it is full. ValueError for numbers out of range."""
    if not 1 <= context <= config.max_positions:
        raise ValueError(f"the context is {context}; allowed: 1 to {config.max_positions}, the model's")
    if slots < 1:
        raise ValueError(f"slots are {slots}; allowed: 1 or more")
    weights = _Shapes(config, shape)
    spec = lower(config, weights)
    vectors = sum(4 * len(v) for v in spec.vectors)
    rows = -(-context // 16) * 16
    state = sum(4 * heads * dim * rows for heads, dim in spec.attention) + sum(
        4 * ring_of(config) * d for d, _ in spec.convolution
    )
    return Fit(
        weights=sum(m.nbytes for m in weights.used.values()) + vectors, states=slots * state,
        scratch=native.planned_memory(spec, max_tokens=chunk_size, max_selected=max(16, slots), threads=threads),
        cache=cache_bytes, process=_PROCESS + _WORD * config.vocab_size, context=context, slots=slots,
    )  # fmt: skip


def most_context(limit: int, fit: Callable[[int], Fit], longest: int) -> int:
    """The longest context, in steps of 256 tokens, whose Fit stays within `limit` bytes; 0 when none does."""
    low, high = 0, longest // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(middle * 256).total <= limit else (low, middle - 1)
    return low * 256


def choose(limit: int, fit: Callable[[int, int], Fit], context: int | None, slots: int, longest: int) -> Fit:
    """As `check`; without a context the longest that fits, up to 32,768, but no less than a short conversation."""
    if context is None:
        context = min(longest, DEFAULT_CONTEXT)
        most = most_context(limit, lambda c: fit(c, slots), context)
        if _SHORT <= most < context and fit(context, slots).total > limit:
            context = most
    return check(limit, fit, context, slots, longest)


def check(limit: int, fit: Callable[[int, int], Fit], context: int, slots: int, longest: int) -> Fit:
    """The Fit of (context, slots); ValueError, with what would fit, when it exceeds `limit` bytes."""
    asked = fit(context, slots)
    if asked.total <= limit:
        return asked
    cures = []
    for n in dict.fromkeys((slots, max(1, slots // 2), 1)):
        if (tokens := most_context(limit, lambda c, n=n: fit(c, n), longest)) > 0:  # type: ignore[misc]
            cures.append(f"--slots {n} --ctx {min(tokens, context)}")
    raise ValueError(
        f"{slots} slots of {context} tokens need {_mib(asked.total)} MiB, of which weights {_mib(asked.weights)} and "
        f"sequences {_mib(asked.states)}; {_mib(limit)} MiB are available. "
        + (f"What fits: {'; '.join(cures)}" if cures else "Even one short sequence does not fit: take fewer bits")
    )


def cache_share(limit: int) -> int:
    """Bytes of a prefix cache where nobody has said how many: an eighth of what there is, up to two GiB."""
    return min(_MOST_CACHE, limit // 8)


def available_bytes() -> int:
    """Memory that the system could still give, within the limit of this process's control group (containers)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) << 10, *_left_in_groups(Path("/sys/fs/cgroup")))
    raise ValueError("/proc/meminfo does not say what is available; give a limit")


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left under the limits of control groups, version 2 and 1; page cache that can be dropped counts as left."""
    left = [1 << 62]
    for folder, names in _GROUPS.items():
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limit, used = (int((root / folder / n).read_text(encoding="ascii")) for n in names[:2])
            lines = (root / folder / "memory.stat").read_text(encoding="ascii").splitlines()
            left.append(max(0, limit - used + int(dict(line.split() for line in lines).get(names[2], 0))))
    return left


def _mib(n: int) -> str:
    return f"{n / (1 << 20):,.0f}"


def remote(repo_id: str, name: str, formats: str | None) -> tuple[Config, Callable[[str], _Shape]]:
    """As `header`, of a file on the hub, of which its first megabytes alone are fetched, or none if it is in the cache.
    ValueError."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache, utils

    cached = try_to_load_from_cache(repo_id, name)
    if isinstance(cached, str):
        return header(Path(cached), formats)
    url, length = hf_hub_url(repo_id, name), _FIRST_RANGE
    try:
        while length <= _MOST_RANGE:
            reply = utils.get_session().get(
                url,
                headers={**utils.build_hf_headers(), "Range": f"bytes=0-{length - 1}"},
                follow_redirects=True,
                timeout=30,
            )
            utils.hf_raise_for_status(reply)
            size = int(reply.headers.get("content-range", f"/{len(reply.content)}").rsplit("/", 1)[1])
            try:
                return _sparse(reply.content, size, Path(name), formats)
            except ValueError:
                if len(reply.content) >= size:
                    raise
            length *= 4
    except ValueError:
        raise
    except Exception as e:  # the hub's client has changed its library, and with it its exceptions, before
        raise ValueError(f"{repo_id}/{name} cannot be read from the hub: {e}; go online, or give a local file") from e
    raise ValueError(f"{repo_id}/{name}: no header within {_MOST_RANGE >> 20} MiB; is it a GGUF file?")


def _sparse(start: bytes, size: int, name: Path, formats: str | None) -> tuple[Config, Callable[[str], _Shape]]:
    """The header of a file of which only the start is known: the rest is a hole."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name.name
        with path.open("wb") as f:
            f.write(start)
            f.truncate(max(size, len(start)))
        return header(path, formats)


def of(model: str, *, weights: str | None = "Q8_0", **options: Any) -> tuple[Config, Callable[[int, int], Fit]]:
    """(Config, Fit of a context and slots) of a path or hub id, or of owner/name/file.gguf on the hub."""
    path = Path(model).expanduser()
    if not path.exists() and (found := hub.gguf(model)) is not None:
        config, shape = remote(*found, weights)
    else:
        config, shape = header(hub.resolve(path, ["config.json"]), weights)
    return config, lambda context, slots: estimate(config, shape, context=context, slots=slots, **options)


def as_dict(fit: Fit) -> dict[str, int]:
    """JSON-ready, with the total."""
    return dataclasses.asdict(fit) | {"total": fit.total}
