"""tokenizer.py against `transformers`, setups built by hand from the published patterns, and hostile text."""

import json
import random
from pathlib import Path

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from headwater.tokenizer import LFM2_SPECIAL, Tokenizer

# The pattern as the released LFM2 tokenizer.json has it, written out again so that a slip in the module shows.
PUBLISHED_LFM2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = (
    "the river runs down to the sea 1234567 3.14 it's we'RE don't  two  spaces\t\ttabs\n\n lines\r\n"
    " 你好世界 今天天气 東京タワー مرحبا بالعالم ١٢٣٤ 👩‍👩‍👧 "
    "🇫🇷 naïve café Ω≈ç √∫ def f(x): return x**2 -> {'a': [1, 2]} ___ --- ... ½ Ⅻ"
)


def corpus() -> list[str]:
    rng = random.Random(0)
    words = WORDS.split(" ")
    return [" ".join(rng.choices(words, k=40)) for _ in range(400)]


def golden_strings(n: int = 500) -> list[str]:
    rng = random.Random(7)
    pieces = [
        *WORDS.split(" "),
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "0",
        "12",
        "999",
        "1234567890",
        "٣٤٥",
        "你",
        "ー",
        "ﷺ",
        "\u200d",
    ]
    pieces += ["é", "e\u0301", "'S", "'ll", "!", "?!\n", "ﬁ", "𝔘", "\x00", "\u3000", "\xa0"]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 30))) for _ in range(n)]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(corpus(), 1200, pad_to=2048)


def rebuild(
    vocab: dict[str, int], merges: list, pattern: str | None, *, digits: bool = False, nfc: bool = False
) -> tokenizers.Tokenizer:
    """The same vocabulary in a tokenizer assembled here, without the module under test."""
    ref = tokenizers.Tokenizer(models.BPE(vocab, [tuple(m) for m in merges]))
    steps = [pre_tokenizers.Digits(True)] if digits else []
    if pattern:
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    else:
        steps += [pre_tokenizers.ByteLevel(False)]
    if nfc:
        ref.normalizer = normalizers.NFC()
    ref.pre_tokenizer, ref.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    return ref


def saved_spec(tok: Tokenizer, tmp_path: Path) -> dict:
    tok.save(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))


# -- ids ---------------------------------------------------------------------------------------------------------


def test_ids_equal_an_independent_setup_on_500_strings(tok, tmp_path):
    spec = saved_spec(tok, tmp_path)
    ref = rebuild(spec["model"]["vocab"], spec["model"]["merges"], PUBLISHED_LFM2)
    strings = golden_strings()
    assert tok.encode_batch(strings) == [ref.encode(s).ids for s in strings]
    assert [tok.encode(s) for s in strings] == tok.encode_batch(strings)
    assert [tok.decode(ids) for ids in tok.encode_batch(strings)] == strings


def test_ids_equal_transformers_after_save(tok, tmp_path):
    tok.save(tmp_path)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    for s in [*golden_strings(100), "<|im_start|>user\nhi<|im_end|>"]:
        assert tok.encode(s, bos=True, special=True) == hf(s).input_ids, s
        assert tok.encode(s, special=True) == hf(s, add_special_tokens=False).input_ids, s
    assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (tok.bos_id, tok.eos_ids[0], tok.pad_id)
    ids = [random.Random(1).randrange(tok.vocab_size) for _ in range(3000)]
    for skip in (True, False):
        assert tok.decode(ids, skip_special=skip) == hf.decode(ids, skip_special_tokens=skip)


def test_digits_come_in_groups_of_three(tok):
    assert all(len(tok.token_bytes(i)) <= 3 for i in tok.encode("123456789012"))


def test_special_ids_are_lfm2s(tok):
    assert [tok.id_of(t) for t in LFM2_SPECIAL] == list(range(14))
    assert tok.id_of("<|reserved_4|>") == 14
    assert (tok.bos_id, tok.eos_ids, tok.pad_id) == (1, (7,), 0)
    full = Tokenizer.train(["ab"], 65_536)
    assert full.id_of("<|reserved_490|>") == 500
    assert len(full.special_tokens) == 501


def test_training_is_deterministic_and_padded(tok, tmp_path):
    again = Tokenizer.train(corpus(), 1200, pad_to=2048)
    assert saved_spec(again, tmp_path / "a") == saved_spec(tok, tmp_path / "b")
    assert tok.vocab_size <= 1200 < tok.padded_vocab_size == 2048
    with pytest.raises(ValueError, match="must be at least"):
        Tokenizer.train(["ab"], 600, pad_to=100)
    with pytest.raises(ValueError, match="does not fit"):
        Tokenizer.train(["ab"], 260)


def test_named_tokens_take_reserved_ids():
    tok = Tokenizer.train(corpus(), 600, extra_special=["<image>", "<think>"])
    assert (tok.id_of("<image>"), tok.id_of("<think>")) == (14, 15)
    with pytest.raises(ValueError, match="repeats"):
        Tokenizer.train(corpus(), 600, extra_special=["<|pad|>"])


# -- what text may become ----------------------------------------------------------------------------------------


def test_typed_markup_stays_text(tok):
    for name in tok.special_tokens:
        ids = tok.encode(f"a {name} b")
        assert not any(tok.is_special(i) for i in ids), name
        assert tok.decode(ids) == f"a {name} b"
        marked = tok.encode(f"a {name} b", special=True)
        assert [i for i in marked if tok.is_special(i)] == [tok.id_of(name)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*LFM2_SPECIAL, "<|", "|>", "<|im_", "end|>", "x", "\n"]), max_size=8).map("".join))
def test_no_text_becomes_a_control_token(text):
    tok = shared()
    assert not any(tok.is_special(i) for i in tok.encode(text, bos=False))


def test_markup_not_marked_special_in_the_file_stays_text_too(tok, tmp_path):
    spec = saved_spec(tok, tmp_path)
    token = next(t for t in spec["added_tokens"] if t["content"] == "<|reserved_4|>")
    token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.id_of("<|reserved_4|>") not in loaded.encode("<|reserved_4|>")
    assert loaded.encode("<|reserved_4|>", special=True) == [14]


def test_bos_once(tok):
    assert tok.encode("hi") == tok.encode("hi", bos=True)[1:]
    assert tok.encode("hi", bos=True).count(tok.bos_id) == 1
    assert tok.encode("<|startoftext|>hi", bos=True, special=True) == tok.encode("hi", bos=True)
    assert tok.encode("<|startoftext|>hi", bos=True).count(tok.bos_id) == 1
    assert tok.encode("", bos=True) == [tok.bos_id]
    assert tok.add_bos


def test_offsets_point_at_the_source(tok):
    text = "the river 1234 世界"
    ids, spans = tok.encode_offsets(text)
    assert ids == tok.encode(text)
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    for token_id, (a, b) in zip(ids, spans, strict=True):
        whole, part = text[a:b].encode(), tok.token_bytes(token_id)
        assert part in whole and (part == whole or not text[a:b].isascii())


# -- back to text ------------------------------------------------------------------------------------------------

_shared: list[Tokenizer] = []


def shared() -> Tokenizer:
    if not _shared:
        _shared.append(Tokenizer.train(corpus(), 900))
    return _shared[0]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_round_trip_of_any_text_streamed(text, bos):
    tok = shared()
    ids = tok.encode(text, bos=bos)
    stream = tok.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tok.decode(ids) == text
    assert "\ufffd" in text or not any("\ufffd" in p for p in pieces)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_ids_stream_to_their_decoding(data, skip):
    tok = shared()
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1) | st.integers(23, 285), max_size=60))
    stream = tok.stream(skip_special=skip)
    streamed = "".join(stream.push(i) for i in ids) + stream.finish()
    raw = b"".join(tok.token_bytes(i) for i in ids if not (skip and tok.is_special(i)))
    assert streamed == tok.decode(ids, skip_special=skip) == raw.decode("utf-8", "replace")


def test_half_characters_wait_and_broken_ones_do_not():
    tok = shared()
    byte = {tok.token_bytes(i): i for i in range(tok.vocab_size)}
    stream = tok.stream()
    assert [stream.push(byte[bytes([b])]) for b in "é👍".encode()] == ["", "é", "", "", "", "👍"]
    assert [stream.push(byte[b"\xe2"]), stream.push(byte[b"A"])] == ["", "\ufffdA"]
    assert [stream.push(byte[b"\xff"]), stream.push(byte[b"\xf0"]), stream.finish()] == ["\ufffd", "", "\ufffd"]
    assert stream.finish() == ""


# -- files -------------------------------------------------------------------------------------------------------


def test_save_load_keeps_everything(tok, tmp_path):
    tok.chat_template = "{{ bos_token }}\r\n{# kept byte for byte #}"
    try:
        tok.save(tmp_path)
    finally:
        tok.chat_template, expected = None, tok.chat_template
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == expected
    for field in ("vocab_size", "padded_vocab_size", "bos_id", "eos_ids", "pad_id", "add_bos", "special_tokens"):
        assert getattr(loaded, field) == getattr(tok, field), field
    assert loaded.encode(WORDS) == tok.encode(WORDS)
    assert Tokenizer.from_pretrained(tmp_path / "tokenizer.json").encode(WORDS) == tok.encode(WORDS)


def test_eos_may_be_a_list(tok, tmp_path):
    tok.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 2, "vocab_size": 4096}')
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_ids, loaded.padded_vocab_size) == ((7, 2), 4096)
    loaded.save(tmp_path / "again")
    assert Tokenizer.from_pretrained(tmp_path / "again").eos_ids == (7, 2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 99999]}')
    with pytest.raises(ValueError, match="99999"):
        Tokenizer.from_pretrained(tmp_path)


def test_chat_template_in_either_place(tok, tmp_path):
    tok.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for value in ("T", [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "T"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        assert Tokenizer.from_pretrained(tmp_path).chat_template == "T"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("tokenizer.json", {"added_tokens": None}, "'added_tokens' must be"),
        ("tokenizer.json", {"added_tokens": [{"id": 0}]}, "'added_tokens' must be"),
        ("tokenizer.json", {"added_tokens": [{"id": "0", "content": "<|pad|>"}]}, "'added_tokens' must be"),
        ("tokenizer_config.json", {"bos_token": ["<s>"]}, "bos_token is"),
        ("tokenizer_config.json", {"padded_vocab_size": "many"}, "padded vocabulary size is 'many'"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat template is a int"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": {}}]}, "chat template is a dict"),
    ],
)
def test_values_of_the_wrong_type_are_named(tok, tmp_path, file, change, said):
    tok.save(tmp_path)
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=said):
        Tokenizer.from_pretrained(tmp_path)


def test_a_list_in_the_place_of_a_template_file_is_read(tok, tmp_path):
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    for value, template in (([{"name": "default", "template": "T"}], "T"), (["x"], None), ({}, None)):
        (tmp_path / "chat_template.json").write_text(json.dumps(value))
        assert Tokenizer.from_pretrained(tmp_path).chat_template == template


def test_faults_say_what_and_the_cure(tok, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {')
    with pytest.raises(ValueError, match="not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)
    for text in ("[]", "{}", '{"model": {"type": "Unigram", "vocab": []}}', '{"model": {"type": "BPE", "vocab": 3}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            Tokenizer.from_pretrained(tmp_path)
    spec = saved_spec(tok, tmp_path)
    spec["model"]["merges"].append(["no such", "tokens"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="not a readable"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean '<\|im_end\|>'"):
        tok.id_of("<|im_endd|>")
    for bad in (-1, tok.vocab_size, tok.padded_vocab_size):
        with pytest.raises(ValueError, match=f"token id is {bad}"):
            tok.decode([5, bad])
    with pytest.raises(ValueError, match="lone surrogate"):
        tok.encode("ab\ud800")
    with pytest.raises(ValueError, match="no such file"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


# -- GGUF --------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, spec: dict, pre: str, model: str = "gpt2", **extra) -> None:
    vocab = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    special = {t["content"] for t in spec["added_tokens"]}
    w = gguf.GGUFWriter(path, "lfm2")
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(vocab)
    w.add_token_types([3 if t in special else 1 for t in vocab])
    w.add_token_merges([" ".join(m) for m in spec["model"]["merges"]])
    w.add_bos_token_id(extra.get("bos", 1))
    w.add_eos_token_id(7)
    w.add_pad_token_id(0)
    if extra.get("template"):
        w.add_chat_template(extra["template"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


@pytest.mark.parametrize(
    ("pre", "pattern", "options"),
    [
        ("lfm2", PUBLISHED_LFM2, {}),
        ("llama-bpe", PUBLISHED_LFM2, {}),
        ("qwen2", PUBLISHED_LFM2.replace(r"\p{N}{1,3}", r"\p{N}"), {"nfc": True}),
        ("smollm", None, {"digits": True}),
        ("gpt-2", None, {}),
    ],
)
def test_gguf_pre_tokenizers(tok, tmp_path, pre, pattern, options):
    spec = saved_spec(tok, tmp_path)
    write_gguf(tmp_path / "m.gguf", spec, pre, template="{{ x }}")
    loaded = Tokenizer.from_pretrained(tmp_path / "m.gguf")
    ref = rebuild(spec["model"]["vocab"], spec["model"]["merges"], pattern, **options)
    strings = golden_strings()
    assert loaded.encode_batch(strings) == [ref.encode(s).ids for s in strings]
    assert (loaded.bos_id, loaded.eos_ids, loaded.pad_id) == (1, (7,), 0)
    assert loaded.add_bos == (pre in ("lfm2", "llama-bpe"))
    assert loaded.chat_template == "{{ x }}"
    assert loaded.encode("<|im_end|>", special=True) == [7] != loaded.encode("<|im_end|>")


def test_gguf_of_our_own_vocabulary_gives_our_ids(tok, tmp_path):
    write_gguf(tmp_path / "m.gguf", saved_spec(tok, tmp_path), "lfm2")
    loaded = Tokenizer.from_gguf(tmp_path / "m.gguf")
    assert loaded.encode_batch(golden_strings()) == tok.encode_batch(golden_strings())
    loaded.save(tmp_path / "hf")
    hf = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert hf(WORDS).input_ids == tok.encode(WORDS, bos=True)


def test_gguf_refusals(tok, tmp_path):
    spec = saved_spec(tok, tmp_path)
    write_gguf(tmp_path / "a.gguf", spec, "qwen3")
    with pytest.raises(ValueError, match=r"'qwen3'.*did you mean 'qwen2'"):
        Tokenizer.from_pretrained(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", spec, "lfm2", model="llama")
    with pytest.raises(ValueError, match="model 'llama'"):
        Tokenizer.from_pretrained(tmp_path / "b.gguf")
    write_gguf(tmp_path / "d.gguf", spec, "lfm2", bos=99_999)
    with pytest.raises(ValueError, match="99999"):
        Tokenizer.from_pretrained(tmp_path / "d.gguf")
    (tmp_path / "c.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(ValueError, match="not a whole GGUF"):
        Tokenizer.from_pretrained(tmp_path / "c.gguf")


def test_added_tokens_of_an_unusual_file():
    """A control token whose letters are also byte letters, and one that is a whole word."""
    spec = json.loads(
        rebuild({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [], None).to_str()
    )
    ref = tokenizers.Tokenizer.from_str(json.dumps(spec))
    ref.add_special_tokens([AddedToken("é", special=True, normalized=False)])
    tok = Tokenizer(json.loads(ref.to_str()))
    assert tok.token_bytes(tok.id_of("é")) == "é".encode()
    assert tok.encode("é") == [tok.id_of("Ã"), tok.id_of("©")]
