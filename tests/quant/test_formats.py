"""Number formats: bytes as the gguf package reads and writes them, errors against plain rounding, odd inputs."""

import gguf
import numpy as np
import pytest

from headwater.quant.formats import FORMATS, dequantize, named, quantize

BLOCKS = [name for name, f in FORMATS.items() if not f.is_float]
KS = [name for name in FORMATS if name.endswith("_k")]
PACKAGE = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


def weights(rows=64, width=1024, seed=0):
    """Rows as weights are: heavy tails, rows of zeros, of one sign, of one value, tiny and large ones."""
    x = np.random.default_rng(seed).standard_t(4, size=(rows, width)) * 0.03
    x[0], x[1, :256], x[2], x[3], x[4], x[5], x[6] = 0, 0, np.abs(x[2]), -np.abs(x[3]), 0.3, x[5] * 1e-7, x[6] * 1e3
    return x.astype(np.float32)


@pytest.mark.parametrize("name", PACKAGE)
def test_bit_equal_with_the_package(name):
    x = weights()
    theirs = gguf.quants.quantize(x, FORMATS[name].type).view(np.uint8)
    assert np.array_equal(quantize(x, FORMATS[name]).reshape(theirs.shape), theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_and_exact_values(name):
    """What a format can say comes back as it was: rounding twice is rounding once, or better."""
    f, x = FORMATS[name], weights(8)
    data = quantize(x, f)
    assert data.shape == (8, f.row_bytes(1024)) == (8, 1024 // f.block * f.block_bytes)
    assert f.bits == pytest.approx({"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.5,
                                    "q4_k": 4.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}[name])  # fmt: skip
    assert np.array_equal(quantize(x, f, threads=2), data)
    assert np.array_equal(dequantize(quantize(np.zeros((1, 512), np.float32), f), f), np.zeros((1, 512)))
    y = dequantize(data, f)
    assert np.array_equal(y, gguf.quants.dequantize(data, f.type)) or name in ("f32", "f16")
    assert np.abs(dequantize(quantize(y, f), f) - y).max() <= np.abs(x - y).max()


def plain(x, name):
    """Rounding with the first scale that comes to mind: the largest value is the largest integer."""
    if name == "q6_k":
        b = x.reshape(-1, 16)
        d = np.abs(b).max(1, keepdims=True) / 31
        return (np.rint(b / np.where(d == 0, 1, d)) * d).reshape(x.shape)
    b, top = x.reshape(-1, 32), {"q4_k": 15, "q5_k": 31}[name]
    low = np.minimum(b.min(1, keepdims=True), 0)
    d = (b.max(1, keepdims=True) - low) / top
    return (np.rint((b - low) / np.where(d == 0, 1, d)) * d + low).reshape(x.shape)


@pytest.mark.parametrize("name", KS)
@pytest.mark.parametrize("seed", range(3))
def test_k_quants_err_less_than_plain_rounding(name, seed):
    """Although their scales are six or eight bits under one half-precision number, and the plain ones are free."""
    x = np.random.default_rng(seed).normal(size=(64, 1024)).astype(np.float32)
    ours, rounded = dequantize(quantize(x, FORMATS[name]), FORMATS[name]), plain(x, name)
    assert np.square(x - ours).mean() < np.square(x - rounded).mean()


@pytest.mark.parametrize("name", BLOCKS)
def test_error_falls_with_bits(name):
    x = weights(32, seed=4)[7:]
    error = np.sqrt(np.square(x - dequantize(quantize(x, FORMATS[name]), FORMATS[name])).mean() / np.square(x).mean())
    assert (
        error
        < {
            "q8_0": 0.01,
            "q6_k": 0.03,
            "q5_k": 0.05,
            "q4_k": 0.09,
            "q5_1": 0.05,
            "q5_0": 0.06,
            "q4_1": 0.1,
            "q4_0": 0.12,
        }[name]
    )


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_said_is_refused(name, bad):
    x = weights(8)
    x[1, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(x, FORMATS[name])
    with pytest.raises(ValueError, match="do not fill"):
        quantize(weights(8, 360)[:, :72], FORMATS[name])


def test_f16_says_when_a_value_is_beyond_it():
    with pytest.raises(ValueError, match="65504"):
        quantize(np.float32([[70_000.0, 1]]), FORMATS["f16"])


@pytest.mark.parametrize("name", BLOCKS)
def test_a_scale_beyond_half_precision_is_refused(name):
    """It was stored as infinity, and zeros of the block came back as NaN."""
    x = weights(8)
    x[1, :2] = 1e10, -1e10
    with pytest.raises(ValueError, match="scale of a block is beyond 65504"):
        quantize(x, FORMATS[name])


def test_names():
    assert named("Q4_K") is FORMATS["q4_k"]
    with pytest.raises(ValueError, match="did you mean 'q4_"):
        named("q4_2")
