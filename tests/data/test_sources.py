"""Reading rows, choosing columns, holding out: right values, and faults named by file and line."""

import gzip

import pytest

from headwater.data.sources import column, files_of, read_rows
from headwater.data.split import held_out, split


def test_each_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "één"}\n\n{"text": "two\u2028lines"}\n', encoding="utf-8")
    (tmp_path / "b.json").write_text('[{"text": "x"}]', encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(b"all of it\nis one\r\n")
    assert [r["text"] for r in read_rows(tmp_path / "a.jsonl")] == ["één", "two\u2028lines"]
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as f:
        f.write((tmp_path / "a.jsonl").read_bytes())
    assert list(read_rows(tmp_path / "a.jsonl.gz")) == list(read_rows(tmp_path / "a.jsonl"))
    assert list(read_rows(tmp_path / "b.json")) == [{"text": "x"}]
    assert list(read_rows(tmp_path / "c.txt")) == [{"text": "all of it\nis one\r\n"}]
    (tmp_path / ".settings.json").write_text("{}")
    assert [p.name for p in files_of([tmp_path])] == ["a.jsonl", "a.jsonl.gz", "b.json", "c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: a JSON list"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl:1: not UTF-8 text \(byte 7 is 0xff\)"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not valid JSON"),
        ("a.json", b'{"a": 1}', "holds a JSON dict; an array"),
        ("a.json", b"[1]", "item 0: a JSON int"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz:\d+: .*truncated"),
        ("a.txt", b"ab\xff", r"a\.txt: not UTF-8 text \(byte 2"),
        ("a.csv", b"", r"end in \.jsonl, .*\.md, not '\.csv'"),
    ],
)
def test_faults_name_file_and_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_column_names_the_closest_field_and_the_wrong_type():
    with pytest.raises(ValueError, match=r"row 1 has no field 'text' \(did you mean 'texts'\?\)"):
        list(column([{"text": "a"}, {"texts": "b"}], "text"))
    with pytest.raises(ValueError, match="row 0: field 'text' is a int, not a str"):
        list(column([{"text": 3}], "text"))


def test_split_holds_out_by_key_whatever_the_order():
    rows = [f"title {i}" for i in range(4000)]
    train, held = split(rows, str, 0.1)
    assert 300 < len(held) < 500
    assert sorted(train + held) == sorted(rows)
    assert set(split(reversed(rows), str, 0.1)[1]) == set(held)
    assert set(held) < set(split(rows, str, 0.2)[1])
    assert not held_out("x", 0.0)
    assert held_out("x", 1.0)
    with pytest.raises(ValueError, match="share is 2"):
        held_out("x", 2)


def test_folders_give_their_files_by_name(tmp_path):
    (tmp_path / "f").mkdir()
    for name in ("b.jsonl", "a.txt", "left.csv"):
        (tmp_path / "f" / name).write_text("x")
    assert [p.name for p in files_of([tmp_path / "f", tmp_path / "named.csv"])] == ["a.txt", "b.jsonl", "named.csv"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no file that ends in"):
        list(files_of([tmp_path / "none"]))
