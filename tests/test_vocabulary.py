"""A vocabulary that is searched in its file says what dictionaries of it say, for every way a tokenizer is used."""

import json
import os
import struct
from pathlib import Path

import pytest
from bench_models import tiny

from headwater.bench import synthetic
from headwater.engine import native
from headwater.tokenizer import Tokenizer
from headwater.vocabulary import Merges, Vocabulary

TEXTS = ("", "Hello there", "it's 1234  é漢字\n", "<|im_end|> x", "a" * 200)
SMOLLM2 = os.environ.get("HEADWATER_SMOLLM2")


@pytest.fixture(scope="module", params=["lfm2", "qwen3", "smollm2"])
def file(request, tmp_path_factory):
    if request.param != "smollm2":
        path = tmp_path_factory.mktemp("vocabulary") / "m.gguf"
        synthetic.write(path, tiny(request.param), "q8_0")
        return path
    if SMOLLM2 is None:
        pytest.skip("HEADWATER_SMOLLM2 names no file")
    return Path(SMOLLM2)


def same(one: Tokenizer, other: Tokenizer, tmp_path: Path) -> None:
    assert (one.vocab_size, one.special_tokens) == (other.vocab_size, other.special_tokens)
    for text in TEXTS:
        for special in (False, True):
            assert one.encode(text, special=special) == other.encode(text, special=special)
    for i in range(one.vocab_size):
        assert one.token_bytes(i) == other.token_bytes(i)
        assert one.is_special(i) == other.is_special(i)
    with pytest.raises(ValueError, match="uses 0 to"):
        one.token_bytes(one.vocab_size)
    assert one.markup_id("nothing") is None
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "one" / name).read_text()) == json.loads((tmp_path / "other" / name).read_text())


def test_a_gguf_file_searched_is_a_gguf_file_read(file, tmp_path):
    searched, read = native.tokenizer(file), Tokenizer.from_gguf(file)
    assert isinstance(searched._ids, Vocabulary)
    assert not isinstance(read._ids, Vocabulary)
    assert searched.gguf_metadata(rows=searched.padded_vocab_size) == read.gguf_metadata(rows=read.padded_vocab_size)
    same(searched, read, tmp_path)


def test_a_packed_file_keeps_it(tmp_path):
    path, packed = tmp_path / "m.gguf", tmp_path / "m.hwp"
    synthetic.write(path, tiny("lfm2"), "q8_0")
    native.pack(path, packed)
    kept = native.tokenizer(packed)
    assert isinstance(kept._ids, Vocabulary)
    assert kept.to_dict() == native.tokenizer(path).to_dict()
    same(kept, Tokenizer.from_gguf(path), tmp_path)


def blob(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(t)) + t for t in texts)


def mapped(path: Path, data: bytes, **options):
    path.write_bytes(bytes(64) + data)
    return native.Mapped(str(path)).texts(**({"offset": 64, "bytes": len(data)} | options))


def test_texts_are_found_and_the_last_of_equals_counts(tmp_path):
    texts = mapped(tmp_path / "f", blob(b"a", b"", b"a b", b"a", b"\xff"))
    vocabulary = Vocabulary(texts, frozenset({2}))
    assert vocabulary.whole() == dict(vocabulary.items()) == {"a": 3, "": 1, "\ufffd": 4}
    assert [vocabulary.name(i) for i in (-1, 0, 2, 4, 5)] == [None, "a", None, "\ufffd", None]
    assert [vocabulary.find(t) for t in ("a", "a b", "b", "\ud800")] == [3, None, None, None]
    assert vocabulary.size == 5
    assert Vocabulary(texts, frozenset({3, 4})).size == 3
    merges = Merges(texts)
    assert (merges.rank("a b"), merges.rank("b a"), len(merges), merges[1:3]) == (2, None, 5, ["", "a b"])
    with pytest.raises(IndexError):
        texts[5]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (blob(b"abc")[:-1], {}),
        (blob(b"abc")[:5], {}),
        (struct.pack("<Q", 1 << 63), {}),
        (blob(b"abc"), {"bytes": 1 << 40}),
        (blob(b"abc"), {"offset": 1 << 40}),
    ],
)
def test_a_damaged_list_is_refused(data, options, tmp_path):
    with pytest.raises(ValueError, match="reaches outside its place"):
        mapped(tmp_path / "f", data, **options)
