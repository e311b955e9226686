"""bpe.py against the library it stands in for: the same ids, or None."""

import json
import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import bpe, tokenizer_json
from headwater.tokenizer import Tokenizer

TEXT = (
    "the river runs to the sea and they're 1234567 we'll DON'T 3.14 def f(x): return x**2 -> {'a': [1, 2]}\n\n \t end"
)
SPLITS = {
    "lfm2": (bpe.WORDS % r"\p{N}{1,3}", {"whole_words": True}),
    "merges alone": (bpe.WORDS % r"\p{N}{1,3}", {}),
    "qwen2": (bpe.WORDS % r"\p{N}", {"nfc": True}),
    "smollm": (None, {"digits": True}),
    "gpt-2": (None, {}),
}
ASCII = st.text(st.characters(max_codepoint=127), max_size=60) | st.lists(
    st.sampled_from(
        ["the", " river", "'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "12", "9", "!?", " (", "_"]
    ),
    max_size=20,
).map("".join)


@pytest.fixture(scope="module")
def files():
    trained = Tokenizer.train([TEXT * 20, TEXT.upper() * 5, TEXT[::-1]], 700).to_dict()["spec"]
    model = trained["model"]
    return {
        name: tokenizer_json.spec(model["vocab"], model["merges"], trained["added_tokens"], pattern, **options)
        for name, (pattern, options) in SPLITS.items()
    }


@pytest.mark.parametrize("name", SPLITS)
def test_every_known_split_gives_the_librarys_ids(files, name):
    library = tokenizers.Tokenizer.from_str(json.dumps(files[name]))
    library.encode_special_tokens = True
    direct = bpe.direct(files[name], [])
    rng = random.Random(3)
    texts = [TEXT, "", *(chr(i) for i in range(128)), *("".join(rng.choices(TEXT, k=50)) for _ in range(200))]
    for text in texts:
        assert direct.encode(text) == library.encode(text, add_special_tokens=False).ids, repr(text)

    @settings(max_examples=200, deadline=None)
    @given(ASCII)
    def any_text(text):
        assert direct.encode(text) in (None, library.encode(text, add_special_tokens=False).ids)

    any_text()


def test_merges_may_be_pairs_or_texts(files):
    file = files["lfm2"]
    texts = {**file, "model": {**file["model"], "merges": [" ".join(m) for m in file["model"]["merges"]]}}
    assert isinstance(file["model"]["merges"][0], list)
    assert bpe.direct(texts, []).encode(TEXT) == bpe.direct(file, []).encode(TEXT)


def test_what_only_the_library_knows_is_left_to_it(files):
    direct = bpe.direct(files["lfm2"], [{"content": "river", "normalized": False}])
    for text in ("é", "a river", "x" * 65, "x " * 9000):
        assert direct.encode(text) is None
    assert direct.encode("a brook") is not None
    assert bpe.direct(files["lfm2"], [{"content": "\u212a", "normalized": True}]) is None
    for part, value in (
        ("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"}), ("pre_tokenizer", None),
    ):  # fmt: skip
        assert bpe.direct(files["lfm2"] | {part: value}, []) is None
    for key, value in (("dropout", 0.1), ("continuing_subword_prefix", "##"), ("byte_fallback", True)):
        assert bpe.direct(files["lfm2"] | {"model": files["lfm2"]["model"] | {key: value}}, []) is None


def test_a_letter_that_is_no_token_is_left_to_the_library(files):
    model = files["gpt-2"]["model"]
    poor = {**files["gpt-2"], "model": {**model, "vocab": {t: i for t, i in model["vocab"].items() if t != "q"}}}
    assert bpe.direct(poor, []).encode("a q") is None


def test_the_library_is_built_only_when_needed(files):
    tok = Tokenizer(files["lfm2"], bos_id=1, eos_ids=(7,))
    ids = tok.encode(TEXT, bos=True)
    assert tok.decode(ids[1:]) == TEXT
    assert "_plain" not in vars(tok)
    assert tok.encode("é" + TEXT)
    assert "_plain" in vars(tok)
    assert tok.encode(TEXT, bos=True) == ids


def test_ids_that_the_library_would_count_otherwise_are_asked_of_it(files):
    file = json.loads(json.dumps(files["lfm2"]))
    size = len(file["model"]["vocab"])
    token = {"id": size + 5, "content": "<new>", "special": True, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}  # fmt: skip
    file["added_tokens"] = [*file["added_tokens"], token]
    assert tokenizer_json.ids_of(file) is None
    assert Tokenizer(file).id_of("<new>") == tokenizers.Tokenizer.from_str(json.dumps(file)).token_to_id("<new>")
    token["id"] = size
    assert tokenizer_json.ids_of(file) == tokenizers.Tokenizer.from_str(json.dumps(file)).get_vocab()


@pytest.mark.parametrize("place", [None, 0, 1])
def test_whether_bos_comes_first(files, place):
    processor = {None: None, 0: tokenizer_json.bos_first("<|startoftext|>", 1)}.get(place, {"type": "ByteLevel"})
    assert tokenizer_json.puts_first(processor, 1) is (place == 0)
    assert tokenizer_json.puts_first({"type": "Sequence", "processors": []}, 1) is None
    assert Tokenizer(files["lfm2"] | {"post_processor": processor}, bos_id=1).add_bos is (place == 0)
    assert tokenizer_json.puts_first({"type": "TemplateProcessing"}, 1) is None
