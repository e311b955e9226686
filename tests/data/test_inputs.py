"""Inputs: every kind of file, units that do not depend on anything else, and every kind of damage by file and line."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from headwater.data import inputs as module
from headwater.data.inputs import Fault, Source, plan_units, read_unit
from headwater.data.steps import Text


def read(*sources, unit_bytes=1 << 20, strict=False):
    """Everything the sources hold, in unit order."""
    found = plan_units(sources, unit_bytes=unit_bytes)
    return [item for unit in found.units for item in read_unit(unit, sources[unit.source], strict=strict)]


def lines(*texts):
    return b"".join(json.dumps({"text": t, "n": i}).encode() + b"\n" for i, t in enumerate(texts))


def ids(items):
    return [item.id for item in items if isinstance(item, Text)]


def faults(items):
    return [(item.reason, item.where.rsplit("/", 1)[-1]) for item in items if isinstance(item, Fault)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "json"])
def test_every_kind_gives_the_same_texts(tmp_path, suffix):
    texts = ["één", "two\nlines", "три"]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts, "n": [0, 1, 2]}), path, row_group_size=2)
    elif suffix == "json":
        path.write_text(json.dumps([{"text": t, "n": i} for i, t in enumerate(texts)]))
    else:
        pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[suffix]
        path.write_bytes(pack(lines(*texts[:2])) + pack(lines(*texts)[len(lines(*texts[:2])) :]))  # two members
    items = read(Source(path=str(path), facts=("n",)))
    assert [(t.text, t.facts) for t in items] == [(t, {"n": i}) for i, t in enumerate(texts)]
    first = 1 if "jsonl" in suffix else 0
    assert ids(items) == [f"a/a.{suffix}:{first + i}" for i in range(3)]


@pytest.mark.parametrize("unit_bytes", [1, 50, 1000, 1 << 20])
def test_ids_and_order_do_not_depend_on_the_cut(tmp_path, unit_bytes):
    (tmp_path / "a.jsonl").write_bytes(lines(*(f"text {i} " * (i % 7) for i in range(1, 300))) + b'{"text":"no end"}')
    items = read(Source(path=str(tmp_path / "a.jsonl")), unit_bytes=unit_bytes)
    assert ids(items)[-1] == "a/a.jsonl:300"
    assert len({item.id if isinstance(item, Text) else item.where for item in items}) == 300
    assert items == read(Source(path=str(tmp_path / "a.jsonl")))


def test_a_folder_is_read_by_name_and_says_what_it_left_out(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / "one.txt").write_text("first")
    (tmp_path / "b" / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "a.md").write_text("# second")
    (tmp_path / "c.bin").write_bytes(b"\1")
    source = Source(path=str(tmp_path), name="docs")
    assert [(t.id, t.text) for t in read(source)] == [("docs/a.md:1", "# second"), ("docs/b/one.txt:1", "first")]
    assert plan_units([source]).left_out == [str(tmp_path / "c.bin")]


def test_names_that_are_no_utf8_broken_links_and_pipes_are_told_and_stop_nothing(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "line\nend.txt").write_text("also good")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    odd = os.fsencode(tmp_path) + b"/odd\xff.txt"
    try:
        Path(os.fsdecode(odd)).write_text("not to be named")
    except OSError:
        pytest.skip("the file system takes no such name")
    source = Source(path=str(tmp_path), name="docs")
    assert [t.text for t in read(source)] == ["good", "also good"]
    names = [name.rsplit("/", 1)[1] for name in plan_units([source]).left_out]
    assert names == ["gone.txt", "odd\\xff.txt", "pipe.txt"]
    with pytest.raises(ValueError, match="no UTF-8"):
        Source(path=os.fsdecode(odd))


BAD = {
    "not_utf8": b'{"text": "caf\xe9"}\n',
    "nul_bytes": b"\0\0\0\0\n",
    "not_json": b'{"text": "torn\n',
    "not_an_object": b"[1]\n",
    "no_text_field": b'{"txt": "x"}\n',
    "text_not_a_string": b'{"text": 3}\n',
    "empty_text": b'{"text": ""}\n',
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_counted_by_line_and_costs_no_other(tmp_path, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines("one") + b"\n" + BAD[reason] + lines("two", "three"))
    items = read(Source(path=str(path)), unit_bytes=8)
    assert faults(items) == [(reason, "a.jsonl:3")]
    assert [t.text for t in items if isinstance(t, Text)] == ["one", "two", "three"]
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*\({reason}\)"):
        read(Source(path=str(path)), strict=True)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "damaged"])
def test_a_broken_archive_gives_everything_before_the_break(tmp_path, suffix, damage):
    plain = lines(*(f"{i} {i * i * 7919 % 100003}" for i in range(30_000)))
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}[suffix](plain)
    at = len(packed) * 2 // 3
    broken = packed[:at] if damage == "truncated" else packed[:at] + b"\xff" * 64 + packed[at + 64 :]
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(broken)
    items = read(Source(path=str(tmp_path / f"a.jsonl.{suffix}")))
    texts = [item for item in items if isinstance(item, Text)]
    assert len(texts) > 10_000
    assert [t.id for t in texts] == [f"a/a.jsonl.{suffix}:{i}" for i in range(1, len(texts) + 1)]
    reason, where = faults(items)[-1]
    assert reason in ("truncated", "damaged")
    assert where == f"a.jsonl.{suffix}:{len(items)}"
    assert len(faults(items)) == 1 or damage == "damaged"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_huge_line_streams_by(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1 << 20)
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(
        pack(lines("one") + b'{"text": "' + b"x" * (200 << 20) + b'"}\n' + lines("two"))
    )
    tracemalloc.start()
    items = read(Source(path=str(tmp_path / f"a.{suffix}")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [t.text for t in items if isinstance(t, Text)] == ["one", "two"]
    assert faults(items) == [("text_too_long", f"a.{suffix}:2")]
    assert peak < 100 << 20


def test_a_bad_string_in_parquet_costs_no_other_text(tmp_path):
    raw = pa.array([b"one", b"caf\xe9", b"three", b"four"], pa.binary())
    texts = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])  # as writers do that never look
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    items = read(Source(path=str(tmp_path / "a.parquet")))
    assert faults(items) == [("not_utf8", "a.parquet:1")]
    assert [(t.id[-1], t.text) for t in items if isinstance(t, Text)] == [("0", "one"), ("2", "three"), ("3", "four")]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_text_above_the_bound_is_a_fault_in_every_kind(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 1000)
    rows = [{"text": text} for text in ("one", "é" * 501, "é" * 400)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        made = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(made) if suffix == "jsonl" else f"[{','.join(made)}]", "utf-8")
    items = read(Source(path=str(path)))
    assert [t.text for t in items if isinstance(t, Text)] == ["one", "é" * 400]
    assert [reason for reason, _ in faults(items)] == ["text_too_long"]


def test_what_cannot_be_stored_is_a_fault_and_not_a_crash_later(tmp_path):
    rows = [{"text": "a\ud800b"}, {"text": "good", "n": 1}, {"text": "x", "n": 2**70}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.table({"text": ["raw", "plain"], "n": [b"\xff", None]}), tmp_path / "b.parquet")
    items = read(Source(path=str(tmp_path), name="s", facts=("n",)))
    assert [(t.text, t.facts) for t in items if isinstance(t, Text)] == [("good", {"n": 1}), ("plain", {"n": None})]
    found = {item.where.rsplit("/", 1)[-1]: item.reason for item in items if isinstance(item, Fault)}
    assert found == {
        "a.json: item 0": "not_utf8", "a.json: item 2": "facts_not_json", "b.parquet:0": "facts_not_json"
    }  # fmt: skip


def test_padding_between_and_behind_the_members_of_gzip_is_no_damage(tmp_path):
    parts = [gzip.compress(lines("one")), bytes(5000), gzip.compress(lines("two")), bytes(3000)]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(parts))
    assert [item.text for item in read(Source(path=str(tmp_path / "a.jsonl.gz")), strict=True)] == ["one", "two"]
    (tmp_path / "b.jsonl.gz").write_bytes(bytes(5000))
    assert faults(read(Source(path=str(tmp_path / "b.jsonl.gz")))) == [("damaged", "b.jsonl.gz:1")]


def test_a_link_to_a_folder_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("first")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.txt").write_text("second")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "far")
    source = Source(path=str(tmp_path / "in"))
    assert [t.text for t in read(source)] == ["first"]
    assert plan_units([source]).left_out == [str(tmp_path / "in" / "more")]


def test_empty_and_foreign_files(tmp_path):
    for name in ("e.jsonl", "e.jsonl.gz", "e.txt", "e.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "l.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "u.txt").write_bytes("utf sixteen".encode("utf-16"))
    (tmp_path / "n.md").write_bytes(b"one\ntw\0o")
    found = {where: reason for reason, where in faults(read(Source(path=str(tmp_path))))}
    assert found == {
        "e.jsonl": "empty_file", "e.jsonl.gz": "empty_file", "e.txt": "empty_file", "e.json": "empty_file",
        "e.parquet:0": "damaged", "l.txt:1": "not_utf8", "u.txt:1": "not_utf8", "n.md:2": "nul_bytes",
    }  # fmt: skip


def test_a_file_that_shrank_since_the_plan_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "two"))
    source = Source(path=str(path))
    unit = plan_units([source]).units[0]
    path.write_bytes(lines("one"))
    assert faults(list(read_unit(unit, source))) == [("file_shrank", "a.jsonl:2")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Source(path=str(p / "none.jsonl")), "no file or folder"),
        (lambda p: Source(path=str(p / "x.csv")), "files of texts end in"),
        (lambda p: Source(path=str(p / "empty")), "no readable file"),
        (lambda p: Source(path=str(p), name="a/b"), "holds '/'"),
        (lambda p: Source(path=str(p), facts="lang"), r"facts is .lang.; a list of fields is needed"),
    ],
)
def test_a_wrong_source_is_named(tmp_path, make, message):
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        plan_units([make(tmp_path)])


def test_two_sources_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="two sources are named 'a'"):
        plan_units([Source(path=str(tmp_path / "a.txt"))] * 2)


def test_a_missing_column_names_the_closest(tmp_path):
    pq.write_table(pa.table({"txt": ["x"]}), tmp_path / "a.parquet")
    (item,) = read(Source(path=str(tmp_path / "a.parquet")))
    assert "did you mean 'txt'" in item.detail


@pytest.mark.slow
def test_a_data_set_of_the_hub_library_offline(tmp_path, monkeypatch):
    """The real library over a folder, by "hf:", in the parts that it has; and what is told where there is none."""
    pytest.importorskip("datasets", reason="the extra [data-hub]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part in range(3):
        rows = (json.dumps({"text": f"part {part} row {row}", "n": row}) for row in range(4))
        (tmp_path / f"set/data/train-{part}.jsonl").write_text("\n".join(rows))
    source = Source(path=f"hf:{tmp_path}/set", facts=("n",))
    assert len(plan_units([source]).units) == 3
    items = read(source)
    assert [t.id for t in items] == [f"set/{part}:{row}" for part in range(3) for row in range(4)]
    assert [t.text for t in items[:2]] == ["part 0 row 0", "part 0 row 1"] and items[5].facts == {"n": 1}
    for path, words in (("set::validation", "validation.*cure: check its name"), ("none", "cannot be opened")):
        with pytest.raises(ValueError, match=words):
            plan_units([Source(path=f"hf:{tmp_path}/{path}")])
    with pytest.raises(ValueError, match="the hub can be reached, or download its files"):
        plan_units([Source(path="hf:nobody/nothing")])
