"""GGUF files that llama.cpp and the native engine run: written tensor by tensor, all or nothing.

`write` makes one from a Config and float tensors, `requantize` rounds the tensors of another GGUF file. What the file
says of the model is checkpoint/gguf_layout's, the rounding quant/'s; here is which tensor gets which format. Values go
through fp32, so bf16 keeps its range (pitfalls C4.12).
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np

from headwater.checkpoint.gguf_layout import Place, describe
from headwater.checkpoint.gguf_model import ARCHITECTURE
from headwater.config import Config
from headwater.files import atomic, closest
from headwater.gguf_file import GgufFile, GgufTensor
from headwater.quant.formats import BY_TYPE, FORMATS, Format, named, quantize
from headwater.tokenizer import Tokenizer

_HEADS = ("output.weight", "token_embd.weight")
_KEPT_WHOLE = (
    "_norm.weight", "shortconv.conv.weight", "ffn_gate_inp.weight", "attn_gate.weight", "exp_probs_b.bias",
    "rope_freqs.weight",
)  # fmt: skip
"""Endings of tensors that stay fp32: small, and much depends on them."""

_INSTEAD = {"q5_k": "q5_1", "q4_k": "q5_0"}
"""What takes the place of a format of longer blocks; of others q8_0."""

OnTensor = Callable[[int, int, str], None]
"""Called with (tensors written, of how many, name) as each one is written."""


class Tensor(Protocol):
    """A float tensor that is read when asked, as an array that numpy turns into fp32."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Written:
    """What a finished file holds: its size, weights, tensors by format, and those whose rows did not fit `type`."""

    num_bytes: int
    num_weights: int
    tensors: Mapping[str, int]
    misfits: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits of the tensors' data per weight; the vocabulary's bytes do not count."""
        return 8 * self.num_bytes / self.num_weights


@dataclass(frozen=True)
class Item:
    """A tensor of a file to be: its name and shape there, its format, what reads its bytes (..., bytes of a row)."""

    name: str
    shape: tuple[int, ...]
    form: Format
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.form.row_bytes(self.shape[-1])


def head_format(form: Format, *, pure: bool = False, wanted: str | None = None) -> Format:
    """The format of what gives the logits in a file of type `form`: `wanted`, else Q6_K unless `pure` or the type is no
    coarser, as llama-quantize does, because every error in it is an error of a logit. ValueError: both are asked for.
    """
    if wanted is not None and pure:
        raise ValueError(f"a pure file and a head of type {wanted!r} are asked for; one of them")
    if wanted is not None:
        return named(wanted)
    finer = FORMATS["q6_k"]
    return form if pure or form.bits >= finer.bits else finer


def choose(name: str, shape: Sequence[int], form: Format, *, head: str, head_form: Format) -> Format:
    """The format of a tensor in a file of type `form`. head: the tensor that gives the logits.

    Norms, convolutions and routers stay fp32. Rows that are not whole blocks get what llama-quantize gives them: Q5_1
    for Q5_K, Q5_0 for Q4_K, else Q8_0; F16 where no block fits.
    """
    if len(shape) == 1 or name.endswith(_KEPT_WHOLE):
        return FORMATS["f32"]
    form = head_form if name == head else form
    ways = (form.name, _INSTEAD.get(form.name, "q8_0"), "f16")
    return next(f for f in map(FORMATS.__getitem__, ways) if f.fits(shape[-1]))


def write(
    path: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    *,
    type: str,
    pure: bool = False,
    head: str | None = None,
    name: str = "",
    pre: str | None = None,
    threads: int = 1,
    on_tensor: OnTensor | None = None,
) -> Written:
    """Write a GGUF file of `type` (a row of quant.formats.FORMATS) from unread float tensors by our names, experts one
    by one; never more than one tensor of the file is in memory.

    pure, head: see head_format. name: what the file calls the model; pre: the pre-tokenizer's name where it cannot be
    found out. A model that no architecture of GGUF can say gets our own, which nobody else reads
    (gguf_layout.unsayable). ValueError when tensors are missing, extra or misshaped; OSError when the file cannot be
    written.
    """
    form = named(type)
    description = describe(config)
    places = list(description.tensors.values())
    _check(places, tensors)
    metadata: dict[str, Any] = dict(description.metadata)
    metadata |= {"general.type": "model"} | ({"general.name": name} if name else {})
    metadata |= (
        {"tokenizer.ggml.model": "none"}
        if tokenizer is None
        else tokenizer.gguf_metadata(rows=config.vocab_size, pre=pre)
    )
    logits, head_form = _HEADS[config.tie_embeddings], head_format(form, pure=pure, wanted=head)
    items = []
    for place in places:
        chosen = choose(place.name, place.shape, form, head=logits, head_form=head_form)
        items.append(Item(place.name, place.shape, chosen, partial(_round, place, chosen, tensors, threads)))
    return write_file(Path(path), typed(metadata), items, form, on_tensor)


def requantize(
    path: str | Path,
    source: GgufFile,
    *,
    type: str,
    pure: bool = False,
    head: str | None = None,
    threads: int = 1,
    on_tensor: OnTensor | None = None,
) -> Written:
    """Write `source` with its matrices rounded to `type`; everything else it says is kept, tensors of the chosen format
    are copied. ValueError when a matrix is already as coarse as `type` or coarser.
    """
    form = named(type)
    logits, head_form = _HEADS["output.weight" not in source.tensors], head_format(form, pure=pure, wanted=head)
    items = []
    for tensor in source.tensors.values():
        have = BY_TYPE.get(tensor.type)
        if have is None:
            raise ValueError(f"{source.path}: {tensor.name} has type {tensor.type.name}, which is not rounded here")
        kept = len(tensor.shape) == 1 or tensor.name.endswith(_KEPT_WHOLE)
        chosen = have if kept else choose(tensor.name, tensor.shape, form, head=logits, head_form=head_form)
        if not kept and not have.is_float and chosen != have:
            if have.bits <= form.bits:
                raise ValueError(
                    f"{source.path}: {tensor.name} is {have.name} ({have.bits:.4g} bits a weight); {form.name} "
                    f"({form.bits:.4g}) would add a second rounding and win nothing. Cure: quantize the original "
                    "(a directory, or a GGUF file in f32, bf16, f16 or more bits than the target)"
                )
            if chosen.bits >= have.bits:
                chosen = have
        items.append(Item(tensor.name, tensor.shape, chosen, partial(_reround, tensor, chosen, threads)))
    metadata = {k: (v, source.kinds[k]) for k, v in source.metadata.items() if k != "general.alignment"}
    return write_file(Path(path), metadata, items, form, on_tensor)


def _check(places: Iterable[Place], tensors: Mapping[str, Tensor]) -> None:
    wanted = {s: p for p in places for s in p.sources}
    missing, extra = [n for n in wanted if n not in tensors], [n for n in tensors if n not in wanted]
    if missing:
        hint = closest(missing[0], extra)
        raise ValueError(f"{len(missing)} tensors are missing, first {missing[0]}{hint}; is config.json of this model?")
    if extra:
        raise ValueError(f"{len(extra)} tensors have no place in the model, first {', '.join(extra[:3])}")
    for name, place in wanted.items():
        shape = place.shape if len(place.sources) == 1 else place.shape[1:]
        if math.prod(tensors[name].shape) != math.prod(shape) or tensors[name].shape[:1] != shape[:1]:
            raise ValueError(f"{name} has shape {tensors[name].shape}; the configuration asks for {shape}")


def _round(place: Place, form: Format, tensors: Mapping[str, Tensor], threads: int) -> np.ndarray:
    """The file's bytes of a tensor; of a stack of experts, one at a time is in memory as floats."""
    if place.constant is not None:
        return quantize(place.constant, form)
    if len(place.sources) == 1:
        values = np.asarray(tensors[place.sources[0]].read(), dtype=np.float32)
        return _named_fault(place.name, place.turn(values).reshape(place.shape), form, threads)
    out = np.empty((*place.shape[:-1], form.row_bytes(place.shape[-1])), dtype=np.uint8)
    for e, name in enumerate(place.sources):
        values = np.asarray(tensors[name].read(), dtype=np.float32)
        out[e] = _named_fault(name, place.turn(values).reshape(place.shape[1:]), form, threads)
    return out


def _reround(tensor: GgufTensor, form: Format, threads: int) -> np.ndarray:
    if tensor.type == form.type:
        return np.ascontiguousarray(tensor.data)
    parts = [None] if len(tensor.shape) < 3 else range(tensor.shape[0])
    rows = [_named_fault(tensor.name, tensor.dequantize(part), form, threads) for part in parts]
    return rows[0] if len(rows) == 1 else np.stack(rows)


def _named_fault(name: str, values: np.ndarray, form: Format, threads: int) -> np.ndarray:
    try:
        return quantize(values, form, threads=threads)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


_V = gguf.GGUFValueType
_KIND_OF: dict[type, gguf.GGUFValueType] = {bool: _V.BOOL, int: _V.UINT32, float: _V.FLOAT32, str: _V.STRING}
_ITEM_KIND: dict[type, gguf.GGUFValueType] = _KIND_OF | {int: _V.INT32}


def _kinds(value: Any) -> tuple[int, ...]:
    """GGUF types of a value as llama.cpp expects them: counts unsigned, lists of numbers signed."""
    if isinstance(value, list):
        return (_V.ARRAY, _ITEM_KIND[value[0].__class__])
    return (_KIND_OF[value.__class__],)


def typed(metadata: Mapping[str, Any]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Values with the GGUF types that llama.cpp expects of them."""
    return {key: (value, _kinds(value)) for key, value in metadata.items()}


def write_file(
    path: Path,
    metadata: Mapping[str, tuple[Any, tuple[int, ...]]],
    items: Sequence[Item],
    form: Format,
    on_tensor: OnTensor | None = None,
) -> Written:
    """Write a file of (value, GGUF types) by key and `items` in order, all or nothing. form: what it is named after."""
    total = sum(item.num_bytes for item in items)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise OSError(f"{path} needs {total / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free there; nothing was written")
    with atomic(path) as part:
        writer = gguf.GGUFWriter(part, metadata[ARCHITECTURE][0])
        try:
            _fill(writer, metadata, items, form, on_tensor)
        except OSError as e:
            raise OSError(f"{path} cannot be written ({e}); is the disk full? nothing was kept") from e
        finally:
            _close(writer)
    misfits = [
        i.name
        for i in items
        if i.form.name in ("q5_1", "q5_0", "q8_0", "f16") and i.form != form and not form.fits(i.shape[-1])
    ]
    return Written(
        num_bytes=total,
        num_weights=sum(math.prod(item.shape) for item in items),
        tensors=dict(Counter(item.form.name for item in items).most_common()),
        misfits=tuple(misfits),
    )


def _fill(
    writer: gguf.GGUFWriter,
    metadata: Mapping[str, tuple[Any, tuple[int, ...]]],
    items: Sequence[Item],
    form: Format,
    on_tensor: OnTensor | None,
) -> None:
    stated = {"general.file_type": int(form.file_type), "general.quantization_version": gguf.GGML_QUANT_VERSION}
    for key, (value, kinds) in ({**metadata} | typed(stated)).items():
        if key != ARCHITECTURE and value != []:  # the writer adds the first itself and cannot say the second
            of = _V(kinds[1]) if len(kinds) > 1 and kinds[1] != _V.ARRAY else None
            writer.add_key_value(key, value, _V(kinds[0]), of)
    for item in items:
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.num_bytes, item.form.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, item in enumerate(items):
        if on_tensor is not None:
            on_tensor(done, len(items), item.name)
        writer.write_tensor_data(item.read())
    if on_tensor is not None:
        on_tensor(len(items), len(items), "")
    for file in writer.fout or ():
        file.flush()


def _close(writer: gguf.GGUFWriter) -> None:
    """Close without a second complaint: what could not be flushed was reported, or the file is thrown away."""
    for file in writer.fout or ():
        try:
            file.close()
        except OSError:
            continue
