"""The number formats of weights: one row each, name -> (GGUF type, rounding of fp32 rows into its bytes).

`quantize` turns rows of fp32 values into the bytes that GGUF files hold; `dequantize` is the inverse. The block formats
of 256 values are in k_quants.py. Not for choosing which tensor gets which format (export/gguf.py).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import gguf
import numpy as np

from headwater.files import closest
from headwater.quant import k_quants

_CHUNK = 1 << 17
"""Values rounded at a time: working arrays of this size stay in the second-level cache."""


@dataclass(frozen=True)
class Format:
    """One row. file_type: what GGUF calls a file of mostly this.

    pack: fp32 (blocks, values of a block) -> uint8 (blocks, bytes of a block).
    """

    name: str
    type: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    pack: Callable[[np.ndarray], np.ndarray]

    @property
    def block(self) -> int:
        """Values of a block."""
        return gguf.GGML_QUANT_SIZES[self.type][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return gguf.GGML_QUANT_SIZES[self.type][1]

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block

    @property
    def is_float(self) -> bool:
        """Whether every value stands for itself, without a block scale."""
        return self.block == 1

    def fits(self, width: int) -> bool:
        """Whether rows of `width` values consist of whole blocks."""
        return width % self.block == 0

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` values."""
        return width // self.block * self.block_bytes


def _f32(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint8)


def _f16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(x)):
        raise ValueError("a value is beyond 65504, the largest that f16 holds; allowed: bf16 or f32")
    return half.view(np.uint8)


def _bf16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; a NaN keeps its sign and becomes quiet."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(x), nan, rounded).astype(np.uint16).view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _q4_0(x: np.ndarray) -> np.ndarray:
    """d = the value of largest magnitude / -8; q = x / d + 8 in 0..15. Sums in fp64, so no processor differs."""
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1) / np.float32(-8)
    q = np.trunc(x.astype(np.float64) * _inverse(d) + 8.5).clip(0, 15).astype(np.uint8)
    return np.concatenate([k_quants.half(d)[0], q[:, :16] | q[:, 16:] << 4], axis=1)


def _q4_1(x: np.ndarray) -> np.ndarray:
    """d = (largest - least) / 15; q = (x - least) / d in 0..15."""
    q, scales = _from_least(x, 15)
    return np.concatenate([*scales, q[:, :16] | q[:, 16:] << 4], axis=1)


def _q5_0(x: np.ndarray) -> np.ndarray:
    """As q4_0, by -16; q in 0..31, whose highest bits stand together."""
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1) / np.float32(-16)
    q = np.trunc(x.astype(np.float64) * _inverse(d) + 16.5).clip(0, 31).astype(np.uint8)
    return np.concatenate([k_quants.half(d)[0], *_five_bits(q)], axis=1)


def _q5_1(x: np.ndarray) -> np.ndarray:
    """As q4_1, with 31 steps."""
    q, scales = _from_least(x, 31)
    return np.concatenate([*scales, *_five_bits(q)], axis=1)


def _from_least(x: np.ndarray, most: int) -> tuple[np.ndarray, list[np.ndarray]]:
    least = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - least) / np.float32(most)
    q = np.trunc((x - least) * _inverse(d) + np.float32(0.5)).clip(0, most).astype(np.uint8)
    return q, [k_quants.half(v)[0] for v in (d, least)]


def _five_bits(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest bits of 32 values in 4 bytes, and the low ones in pairs."""
    return np.packbits(q >> 4, axis=1, bitorder="little"), q[:, :16] & 15 | (q[:, 16:] & 15) << 4


def _q8_0(x: np.ndarray) -> np.ndarray:
    """d = largest magnitude / 127; q = x / d, halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    size = np.abs(scaled)
    whole = np.floor(size)
    q = (np.sign(scaled) * (whole + np.floor(2 * (size - whole)))).astype(np.int8)
    return np.concatenate([k_quants.half(d)[0], q.view(np.uint8)], axis=1)


_TYPES, _FILES = gguf.GGMLQuantizationType, gguf.LlamaFileType
FORMATS = {
    f.name: f
    for f in (
        Format("f32", _TYPES.F32, _FILES.ALL_F32, _f32),
        Format("f16", _TYPES.F16, _FILES.MOSTLY_F16, _f16),
        Format("bf16", _TYPES.BF16, _FILES.MOSTLY_BF16, _bf16),
        Format("q8_0", _TYPES.Q8_0, _FILES.MOSTLY_Q8_0, _q8_0),
        Format("q6_k", _TYPES.Q6_K, _FILES.MOSTLY_Q6_K, k_quants.q6_k),
        Format("q5_k", _TYPES.Q5_K, _FILES.MOSTLY_Q5_K_S, k_quants.q5_k),
        Format("q4_k", _TYPES.Q4_K, _FILES.MOSTLY_Q4_K_S, k_quants.q4_k),
        Format("q5_1", _TYPES.Q5_1, _FILES.MOSTLY_Q5_1, _q5_1),
        Format("q5_0", _TYPES.Q5_0, _FILES.MOSTLY_Q5_0, _q5_0),
        Format("q4_1", _TYPES.Q4_1, _FILES.MOSTLY_Q4_1, _q4_1),
        Format("q4_0", _TYPES.Q4_0, _FILES.MOSTLY_Q4_0, _q4_0),
    )
}


BY_TYPE = {f.type: f for f in FORMATS.values()}
"""The rows by GGUF's type."""


def named(name: str) -> Format:
    """The row of FORMATS called `name` (case-insensitive); ValueError lists the closest."""
    if name.lower() not in FORMATS:
        raise ValueError(f"type is {name!r}{closest(name.lower(), list(FORMATS))}; allowed: {', '.join(FORMATS)}")
    return FORMATS[name.lower()]


def quantize(values: np.ndarray, form: Format, *, threads: int = 1) -> np.ndarray:
    """fp32 values (..., width) -> uint8 (..., bytes of a row).

    ValueError when width is no multiple of the block, a value is not finite (block formats cannot say it) or too large
    for the format.
    """
    width = values.shape[-1]
    if not form.fits(width):
        raise ValueError(f"rows of {width} values do not fill {form.name} blocks of {form.block}")
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, form.block)
    out = np.empty((len(flat), form.block_bytes), dtype=np.uint8)
    step = max(1, _CHUNK // form.block)

    def chunk(start: int) -> None:
        x = flat[start : start + step]
        if not form.is_float and not np.isfinite(x).all():
            raise ValueError(f"a value is NaN or infinite, which {form.name} cannot hold; the weights are damaged")
        out[start : start + step] = form.pack(x).reshape(len(x), -1)

    starts = range(0, len(flat), step)
    if threads == 1:
        for start in starts:
            chunk(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(chunk, starts))
    return out.reshape(*values.shape[:-1], form.row_bytes(width))


def dequantize(data: np.ndarray, form: Format) -> np.ndarray:
    """uint8 (..., bytes of a row) -> fp32 (..., width)."""
    if form.type == _TYPES.F32:
        return data.view(np.float32)
    if form.type == _TYPES.F16:
        return data.view(np.float16).astype(np.float32)
    return gguf.quants.dequantize(data, form.type)
