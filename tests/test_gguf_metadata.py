"""gguf_metadata.py against what the `gguf` package writes and reads, and against damaged files."""

import random

import gguf
import pytest

from headwater import gguf_metadata


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
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return tmp_path / "a.gguf"


def test_reads_what_the_package_wrote(path):
    ours = gguf_metadata.read(path)
    assert ours["nested"] == [[1, 2], [3]]
    theirs = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"nested"}:
        assert ours[key] == theirs[key] and type(ours[key]) is type(theirs[key]), key


def test_damage_is_a_value_error(path, tmp_path):
    whole, rng = path.read_bytes(), random.Random(0)
    broken = tmp_path / "b.gguf"
    for cut in range(len(whole)):
        broken.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"b\.gguf"):
            gguf_metadata.read(broken)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        broken.write_bytes(data)
        try:
            assert isinstance(gguf_metadata.read(broken), dict)
        except ValueError as e:
            assert "b.gguf" in str(e)
