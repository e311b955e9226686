"""The compiled counting gives the very numbers of its twins in numpy, `rensa` and `fasttext`, in many scripts."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from headwater.data import embed, fast
from headwater.data.cminhash import signatures
from headwater.data.fingerprints import Fingerprints
from headwater.data.language import Language, languages
from headwater.data.meaning import SHIPPED, Bags
from headwater.data.ngrams import Runs, count_covered, count_repeats
from headwater.data.normalise import find_unusual
from headwater.data.repetition import Repetition
from headwater.data.rules import Shares
from headwater.data.steps import Text
from headwater.data.words import Words, _find, words_of

core = pytest.importorskip("headwater.data._text")
DATA = Path(__file__).parents[2] / "recipes" / "data"
ODD = [
    "", " ", ".", "a", "A b", "\u4e09 \u56db\u4e94", "\ud800x \ufb00 \u0130", "e\u0301te\u0301",
    "\U0001f44d\U0001f3fd \U000e0100 x", "\ufeffa\u00a0b\r\nc", "x" * 3000, "to be or not " * 90, "\u6f22\u5b57" * 200,
    "\u0e2a\u0e27\u0e31\u0e2a", "1 2 3 " * 60, "# # #" * 9, "end... " * 40,
    "\u2026" * 30, "</s> hello", "12", "- a\n" * 9, "\n".join("abcd"),
]  # fmt: skip


@pytest.fixture(scope="module")
def texts():
    rows = [json.loads(line) for line in (DATA / "parallel.jsonl").open(encoding="utf-8")]
    rows += [json.loads(line) for line in (DATA / "wiki_en.jsonl").open(encoding="utf-8")]
    bodies = [row["text"] for row in rows]
    code = Path(__file__).read_text(encoding="utf-8")
    return [*ODD, *bodies[:: max(1, len(bodies) // 500)], code, "".join(bodies[:40])]


@pytest.fixture
def both(monkeypatch):
    """A function's results with the compiled core and without."""

    def run(function):
        monkeypatch.setattr(fast, "core", core)
        compiled = function()
        monkeypatch.setattr(fast, "core", None)
        return compiled, function()

    return run


def same(pair):
    one, two = pair
    assert type(one) is type(two)
    for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def test_words(texts, both):
    one, two = both(lambda: words_of(list(texts)))
    assert one is two or np.array_equal(one.hashes, two.hashes)  # the last answer is remembered
    plain = _find(texts)
    np.testing.assert_array_equal(one.hashes, plain.hashes)
    np.testing.assert_array_equal(one.starts, plain.starts)
    np.testing.assert_array_equal(one.alone, plain.alone)
    assert one.counts[0] == 0 and one.counts[3] == 1


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_runs_that_repeat(texts, both, n):
    words = _find(texts)
    chosen = np.arange(len(texts)) % 3 != 1
    same(both(lambda: count_repeats(Runs(words), n, chosen)))
    same(both(lambda: count_covered(Runs(words), n, chosen)))
    assert count_covered(Runs(words), n, chosen).max() > 100


def test_runs_of_evaluation_items(texts, both):
    prints = Fingerprints.build({"half": [t for t in texts[::2] if len(t) > 60]})
    one, two = both(lambda: prints.find(_find(texts)))
    assert sorted(zip(*one, strict=True)) == sorted(zip(*two, strict=True))
    assert set(range(0, len(texts), 2)) & set(one.texts.tolist())


@pytest.mark.parametrize(("width", "slots", "seed"), [(5, 128, 1), (1, 1, 0), (3, 37, 7), (8, 64, (1 << 64) - 1)])
def test_signatures(texts, both, width, slots, seed):
    words = _find(texts)
    same(both(lambda: signatures(words, width, slots, seed)))


def test_sums_of_vectors(texts, both):
    words = _find(texts)
    learnt = embed.learn_static(texts, ["en", "ja"] * (len(texts) // 2) + ["en"] * (len(texts) % 2), 24, 3)
    same(both(lambda: embed.static(words, learnt)))


def test_steps(texts, both):
    made = [Text(str(at), text, facts={"language": "en"} if at % 2 else {}) for at, text in enumerate(texts)]
    for step in (Shares(), Shares(letters=0.9, word=(4.0, 5.0), hashes=0.001), Repetition(), Repetition(from_words=5)):
        one, two = both(lambda step=step: step(made))
        assert one == two
    one, two = both(lambda: find_unusual(texts))
    assert one == two and any(one) and not all(one)


def test_languages(texts, both):
    known = [text for text in texts if not any("\ud800" <= c < "\ue000" for c in text)]
    for step in (Language(), Language(sample=20, more=900, sure=0.99)):
        one, two = both(lambda step=step: step.detect_all(known))
        assert one == two
    one, two = both(languages)
    assert one == two and len(one) == 176
    assert len({language for language, _ in step.detect_all(known)}) > 5


def test_wrong_arguments_are_errors(tmp_path):
    words = Words(np.zeros(3, np.uint64), np.array([0, 9]))
    with pytest.raises(ValueError, match="starts ends at 9, but there are 3 words"):
        core.repeats(words.hashes, words.starts, 2, np.ones(1, bool))
    with pytest.raises(ValueError, match="does not ascend"):
        core.signatures(words.hashes, np.array([0, 2, 1]), 5, 8, 1, 2)
    with pytest.raises(ValueError, match="names row 4 of 2 vectors"):
        core.sums(words.hashes, np.array([0, 3]), np.full(8, 4, np.int32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="no string"):
        core.counts(["a", 3])
    bags = Bags.load(SHIPPED)
    with pytest.raises(ValueError, match="needed has one entry an item"):
        bags._compiled.find(words.hashes, np.array([0, 3]), np.zeros(2, np.int32), 0.5)
    with pytest.raises(ValueError, match="differ in length"):
        core.Bags(bags.keys, bags.shares, bags.vectors[1:], bags.lengths, np.zeros(1 << 16, np.uint8))
    with pytest.raises(ValueError, match="cannot open"):
        core.LanguageModel(str(tmp_path / "none"))


def test_a_damaged_model_is_an_error_and_no_crash(tmp_path):
    from headwater.data.language import _place

    whole = Path(_place()).read_bytes()
    rng = np.random.default_rng(3)
    for size in (0, 7, 60, 200, 90_000, 500_000, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="language model"):
            core.LanguageModel(str(tmp_path / "cut"))
    for _ in range(60):
        bad = bytearray(whole)
        bad[int(rng.integers(0, 100))] ^= int(rng.integers(1, 256))
        (tmp_path / "bad").write_bytes(bad)
        with contextlib.suppress(ValueError, MemoryError):
            core.LanguageModel(str(tmp_path / "bad")).guess(["Guten Tag"])


def test_matches_of_bags_of_words(texts, both):
    """Long texts of several chunks too; at a low threshold, so that there are many."""
    bags = Bags.join([Bags.load(SHIPPED), Bags.build({"own": texts[30:200:3]})])
    words = words_of([*texts, " ".join(texts[30:130])])
    for threshold in (0.4, 0.75):
        compiled, plain = both(lambda threshold=threshold: bags.find(words, threshold))
        assert len(plain.texts) > 40
        same((tuple(compiled), tuple(plain)))


def test_matches_of_bags_of_few_different_words(both):
    """Words that many items share, equal items, texts of every length around those of chunks: ties and edges."""
    rng = np.random.default_rng(5)
    names = [f"word{number}" for number in range(60)]

    def text(count):
        return " ".join(rng.choice(names, count))

    items = [text(int(count)) for count in rng.integers(9, 140, 80)]
    bags = Bags.build({"one": items, "two": [items[3], text(20)], "three": [items[3] + " " + text(3)]})
    counts = [0, 1, 7, 8, 9, 383, 384, 385, 511, 512, 513, 895, 896, 897, 1281]
    words = words_of([*items, *map(text, counts), *(f"{text(700)} {item}" for item in items[:9])])
    for threshold in (0.05, 0.5, 0.9, 1.0):
        compiled, plain = both(lambda threshold=threshold: bags.find(words, threshold))
        assert threshold == 1.0 or len(plain.texts) >= len(items)
        same((tuple(compiled), tuple(plain)))
