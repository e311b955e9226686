"""gguf_file.py against what the `gguf` package writes and reads, and against damaged files."""

import random

import gguf
import numpy as np
import pytest

from headwater.gguf_file import GgufFile

KINDS = [gguf.GGMLQuantizationType[k] for k in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0")]


@pytest.fixture
def path(tmp_path):
    w = gguf.GGUFWriter(tmp_path / "a.gguf", "lfm2")
    w.add_uint8("u8", 255)
    w.add_int8("i8", -1)
    w.add_uint16("u16", 65535)
    w.add_int32("i32", -5)
    w.add_uint64("u64", 1 << 63)
    w.add_int64("i64", -(1 << 62))
    w.add_float32("f32", 0.5)
    w.add_float64("f64", 1e300)
    w.add_bool("yes", True)
    w.add_string("text", "é漢👍")
    w.add_array("ints", [1, 2, 3])
    w.add_array("texts", ["", "Ġa", "x" * 300])
    w.add_array("nested", [[1, 2], [3]])
    for kind in KINDS:
        values = np.random.default_rng(kind.value).normal(size=(3, 5, 64)).astype(np.float32)
        w.add_tensor(f"t.{kind.name}", gguf.quants.quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return tmp_path / "a.gguf"


def test_reads_what_the_package_wrote(path):
    ours = GgufFile(path).metadata
    assert ours["nested"] == [[1, 2], [3]]
    theirs = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"nested"}:
        assert ours[key] == theirs[key] and type(ours[key]) is type(theirs[key]), key


def test_tensors_equal_what_the_package_reads(path):
    ours = GgufFile(path).tensors
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type).reshape(3, 5, 64)
        assert tensor.shape == (3, 5, 64)
        assert np.array_equal(tensor.dequantize(), expected)
        assert np.array_equal(tensor.dequantize(1), expected[1])


def test_damage_is_a_value_error(path, tmp_path):
    whole, rng = path.read_bytes(), random.Random(0)
    broken = tmp_path / "b.gguf"
    for cut in [*range(0, len(whole) - 32, 97), *range(300)]:  # the last bytes may be filling
        broken.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"b\.gguf"):
            GgufFile(broken)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(2000)] = rng.choice([0, 1, 255, rng.randrange(256)])
        broken.write_bytes(data)
        try:
            assert isinstance(GgufFile(broken).metadata, dict)
        except ValueError as e:
            assert "b.gguf" in str(e)
