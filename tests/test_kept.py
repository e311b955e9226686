"""Packed copies in the cache: made after an answer, found by the same file alone, refused and replaced when damaged."""

import json
import os

import pytest
from test_cli import headwater  # noqa: F401 (a fixture)
from test_cli_engines import small

from headwater.engine import kept, native


@pytest.fixture
def gguf(tmp_path, monkeypatch, headwater):  # noqa: F811
    """A small .gguf file with a vocabulary, a cache of its own, and copies of files however small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(kept.SWITCH, raising=False)
    monkeypatch.setattr(kept, "LEAST", 1)
    path = tmp_path / "m.gguf"
    code, _, err = headwater("export", "gguf", small(tmp_path / "model"), path)
    assert code == 0, err
    return path


def generate(headwater, path):  # noqa: F811
    code, out, err = headwater("generate", path, "The river", "--max-tokens", 6, "--json", "--engine", "native")
    assert code == 0, err
    return json.loads(out)["ids"], err


def test_the_second_run_maps_what_the_first_one_kept(headwater, gguf, monkeypatch):  # noqa: F811
    first, err = generate(headwater, gguf)
    copy = kept.find(gguf)
    assert str(copy) in err
    assert kept.SWITCH in err
    assert copy.parent == kept.folder()
    opened = []
    real = native.open_weights
    monkeypatch.setattr(native, "open_weights", lambda p, *a, **k: opened.append(p) or real(p, *a, **k))
    second, err = generate(headwater, gguf)
    assert opened == [copy]
    assert second == first
    assert "kept" not in err


def test_a_file_that_changed_has_no_copy(headwater, gguf):  # noqa: F811
    copy = kept.keep(gguf)
    assert kept.find(gguf) == copy
    data = gguf.read_bytes()
    gguf.write_bytes(data[:-1] + b"\1")  # the same inode and length
    os.utime(gguf, ns=(0, 0))
    assert kept.find(gguf) is None
    assert kept.wanted(gguf)


def test_a_damaged_copy_is_deleted_and_done_without(headwater, gguf):  # noqa: F811
    want, _ = generate(headwater, gguf)
    copy = kept.find(gguf)
    copy.write_bytes(copy.read_bytes()[:300])
    ids, err = generate(headwater, gguf)
    assert ids == want
    assert "it was deleted" in err
    ids, err = generate(headwater, gguf)  # the one before left a new copy
    assert (ids, kept.find(gguf)) == (want, copy)
    assert "deleted" not in err


def test_what_leaves_no_copy(headwater, gguf, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(kept.SWITCH, "0")
    _, err = generate(headwater, gguf)
    assert "kept" not in err
    monkeypatch.delenv(kept.SWITCH)
    assert kept.wanted(gguf)
    monkeypatch.setattr(kept, "MOST", gguf.stat().st_size - 1)
    assert not kept.wanted(gguf)
    monkeypatch.setattr(kept, "MOST", 1 << 30)
    monkeypatch.setattr(kept, "_FREE", 1 << 60)
    assert not kept.wanted(gguf)
    code, _, err = headwater("pack", gguf)
    assert code == 2
    assert "make room" in err
    assert not kept.folder().exists()
    assert not kept.wanted(tmp_path / "model")


def test_the_oldest_copies_go(tmp_path, monkeypatch, gguf):
    first = kept.keep(gguf)
    os.utime(first, ns=(1, 1))
    others = []
    for name in ("b.gguf", "c.gguf"):
        (tmp_path / name).write_bytes(gguf.read_bytes())
        others.append(tmp_path / name)
    monkeypatch.setattr(kept, "TOTAL", int(2.5 * first.stat().st_size))
    second = kept.keep(others[0])
    os.utime(second, ns=(2, 2))
    assert kept.find(gguf) == first  # used again, and now newer than the second
    third = kept.keep(others[1])
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_what_a_killed_run_left_is_deleted(gguf):
    kept.folder().mkdir(parents=True)
    left, growing = kept.folder() / ".m.hwp.x.part", kept.folder() / ".n.hwp.y.part"
    for part in (left, growing):
        part.write_bytes(b"half")
    os.utime(left, (1, 1))
    kept.keep(gguf)
    assert (left.exists(), growing.exists()) == (False, True)


def test_pack_writes_a_whole_file(headwater, gguf, tmp_path):  # noqa: F811
    want, _ = generate(headwater, gguf)
    target = tmp_path / "m.hwp"
    code, out, err = headwater("pack", gguf, target)
    assert (code, out.strip()) == (0, str(target)), err
    assert generate(headwater, target)[0] == want
    for arguments, said in [
        ((gguf, target), "--force"),
        ((gguf, tmp_path / "m.bin"), ".hwp"),
        ((target, tmp_path / "n.hwp"), "packed already"),
        ((gguf, tmp_path / "n.hwp", "--type", "q8_0"), "as they are"),
        ((gguf, "--force"), "TARGET"),
        ((tmp_path / "model",), "SRC DST"),
        ((gguf, "--threads", 0), "--threads is 0"),
    ]:
        code, _, err = headwater("pack", *arguments)
        assert code == 2, arguments
        assert said in err
    code, _, err = headwater("pack", tmp_path / "model", tmp_path / "d.hwp", "--type", "f16")
    assert code == 0, err
    assert native.open_weights(tmp_path / "d.hwp", None, threads=1)[1].described("embed_tokens.weight")[0] == "F16"
