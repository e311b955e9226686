"""The block formats of 256 values: small blocks with integer scales under one half-precision scale.

Q6_K: 16 blocks of 16, x = d s q, q in -32..31. Q4_K and Q5_K: 8 blocks of 32, x = d s q - m_d m, q in 0..15 or 0..31.
Each small block's scale is searched: several step sizes are tried, the integers they give are fitted by weighted least
squares, and the best fit stays; then the integers are chosen again under the scales as stored.
Byte layout: ggml's block_q4_K, block_q5_K, block_q6_K. Arrays: n blocks of 256, b small blocks, v values.
"""

import numpy as np

_TINY = 1e-15
_SIGNED_STEPS = np.arange(-9, 10) * 0.1
"""Offsets added to the largest integer to get the step sizes that are tried, with a sign."""
_OFFSET_STEPS = {15: -1.0 + 0.1 * np.arange(21), 31: -0.5 + 0.1 * np.arange(16)}
"""The same for blocks with an offset, by the largest integer."""


def _weights(x_nbv: np.ndarray) -> np.ndarray:
    """What an error counts: large weights meet large activations' products, so they count more."""
    return np.sqrt(np.mean(x_nbv * x_nbv, axis=-1, keepdims=True)) + np.abs(x_nbv)


def half(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A scale as stored (n, 2 bytes), and as fp32. ValueError where it is beyond half precision: infinity times zero
    would come back as NaN."""
    with np.errstate(over="ignore"):
        stored = d.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ValueError(
            "values are so large that the scale of a block is beyond 65504, the largest in f16; allowed: bf16 or f32"
        )
    return stored.reshape(-1, 1).view(np.uint8), stored.astype(np.float32)


def _divide(a: np.ndarray | np.float32, b: np.ndarray) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), b.shape), np.float32), where=np.abs(b) > _TINY)


def _signed_scales(x: np.ndarray, top: int) -> np.ndarray:
    """The scale (n, b, 1) of each small block for integers in -top..top - 1."""
    w = _weights(x)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
    best = np.full(extreme.shape, -1, np.float32)
    scale = np.zeros(extreme.shape, np.float32)
    wx = w * x
    for offset in _SIGNED_STEPS:
        q = np.rint(x * _divide(np.float32(-(top + offset)), extreme)).clip(-top, top - 1)
        products = np.einsum("nbv,nbv->nb", wx, q)[..., None]
        squares = np.einsum("nbv,nbv,nbv->nb", w, q, q, optimize=False)[..., None]
        fit = _divide(products, squares)
        gain = fit * products
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fit, scale)
    return scale


def _offset_scales(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset (n, b, 1), both >= 0, of each small block: x = scale q - offset, q in 0..top."""
    w = _weights(x)
    low, high = np.minimum(x.min(axis=-1, keepdims=True), 0), x.max(axis=-1, keepdims=True)
    sum_w, wx = w.sum(axis=-1, keepdims=True), w * x
    sum_x = wx.sum(axis=-1, keepdims=True)
    span = high - low
    scale, offset = span / np.float32(top), -low
    best = _error(x, w, np.rint((x - low) * _divide(np.float32(1), scale)).clip(0, top), scale, offset)
    for step in _OFFSET_STEPS[top]:
        q = np.rint((x - low) * _divide(np.float32(top + step), span)).clip(0, top)
        wq = w * q
        sum_q, sum_qq = wq.sum(axis=-1, keepdims=True), np.einsum("nbv,nbv->nb", wq, q)[..., None]
        sum_qx = np.einsum("nbv,nbv->nb", wx, q)[..., None]
        determinant = sum_w * sum_qq - sum_q * sum_q
        fit = _divide(sum_w * sum_qx - sum_x * sum_q, determinant)
        floor = _divide(sum_qq * sum_x - sum_q * sum_qx, determinant)
        above = floor > 0  # an offset cannot be negative: fit the scale alone
        fit, floor = np.where(above, _divide(sum_qx, sum_qq), fit), np.minimum(floor, 0)
        error = _error(x, w, q, fit, -floor)
        better = (error < best) & (determinant > 0)
        best = np.where(better, error, best)
        scale, offset = np.where(better, fit, scale), np.where(better, -floor, offset)
    return scale, offset


def _error(x: np.ndarray, w: np.ndarray, q: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    difference = scale * q - offset - x
    return np.einsum("nbv,nbv->nb", w * difference, difference)[..., None]


def q6_k(x: np.ndarray) -> np.ndarray:
    """fp32 (n, 256) -> uint8 (n, 210)."""
    n = len(x)
    x = x.reshape(n, 16, 16)
    scales = _signed_scales(x, 32)
    extreme = np.take_along_axis(scales, np.abs(scales).argmax(axis=1, keepdims=True), axis=1)
    d_bytes, d = half(extreme[:, 0, 0] / np.float32(-128))
    d = d[:, None, None]
    s = np.rint(_divide(scales, d)).clip(-128, 127)
    q = (np.rint(_divide(x, d * s)).clip(-32, 31) + 32).astype(np.uint8).reshape(n, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    s_bytes = s.astype(np.int8).reshape(n, 16).view(np.uint8)
    return np.concatenate([ql.reshape(n, 128), qh.reshape(n, 64), s_bytes, d_bytes], axis=1)


def _with_offsets(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(16 bytes of d, m_d and the 6-bit scales, integers (n, 8, 32)) of blocks with offsets."""
    n = len(x)
    x = x.reshape(n, 8, 32)
    scale, offset = _offset_scales(x, top)
    d_bytes, d = half(scale[..., 0].max(axis=1) / np.float32(63))
    m_bytes, m_d = half(offset[..., 0].max(axis=1) / np.float32(63))
    s = np.rint(_divide(scale[..., 0], d[:, None])).clip(0, 63).astype(np.uint8)
    m = np.rint(_divide(offset[..., 0], m_d[:, None])).clip(0, 63).astype(np.uint8)
    step = (d[:, None] * s)[..., None]
    q = np.rint(_divide(x + (m_d[:, None] * m)[..., None], step)).clip(0, top).astype(np.uint8)
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    third = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return np.concatenate([d_bytes, m_bytes, first, second, third], axis=1), q


def _nibbles(q: np.ndarray) -> np.ndarray:
    pairs = (q & 15).reshape(len(q), 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(q), 128)


def q4_k(x: np.ndarray) -> np.ndarray:
    """fp32 (n, 256) -> uint8 (n, 144)."""
    head, q = _with_offsets(x, 15)
    return np.concatenate([head, _nibbles(q)], axis=1)


def q5_k(x: np.ndarray) -> np.ndarray:
    """fp32 (n, 256) -> uint8 (n, 176)."""
    head, q = _with_offsets(x, 31)
    fifth = np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return np.concatenate([head, fifth, _nibbles(q)], axis=1)
