"""Decontamination: shipped and own fingerprints against planted items, real text that stays, meaning, damaged files."""

import json
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from headwater.data import decontaminate
from headwater.data.decontaminate import SHIPPED, Decontaminate, SemanticMatch, cut_pieces
from headwater.data.fingerprints import LENGTHS, Fingerprints, lengths_for, runs_of
from headwater.data.steps import Removed, Text
from headwater.data.words import words_of

DATA = Path(__file__).parents[2] / "recipes" / "data"
WIKI = [json.loads(line)["text"] for line in (DATA / "wiki_en.jsonl").read_text().splitlines()]
MANUALS = [json.loads(line) for line in (DATA / "parallel.jsonl").read_text().splitlines()]
QUESTION = (  # the first test question of GSM8K (MIT), as published
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. How much in "
    "dollars does she make every day at the farmers' market?"
)


def reasons(step, texts):
    return [v.reason if isinstance(v, Removed) else None for v in step([Text(str(i), t) for i, t in enumerate(texts)])]


def plain_words(text):
    return re.findall(r"\w+", text.lower().replace("_", " "))


def test_the_shipped_sets_find_a_test_question():
    step = Decontaminate()
    texts = [
        QUESTION,
        f"Here is one.\n\n{QUESTION.upper()}\n\nAnd more.",
        QUESTION.replace(",", ";").replace(" ", "\n  "),
    ]
    verdicts = step([Text("a", text) for text in texts])
    assert all(isinstance(v, Removed) and v.reason == "contaminated" and "gsm8k" in v.detail for v in verdicts)
    assert reasons(step, [" ".join(QUESTION.split()[:10]), QUESTION.replace("ducks", "hens")[:60]]) == [None, None]
    assert reasons(Decontaminate(sets=("ifeval",)), [QUESTION]) == [None]
    assert reasons(Decontaminate(least=1000), [QUESTION]) == [None]


def test_real_text_stays():
    texts = WIKI[:2000] + [row["text"] for row in MANUALS]
    assert sum(r is not None for r in reasons(Decontaminate(), texts)) <= 3


def test_the_file_is_compact_and_holds_hashes_alone():
    prints = Fingerprints.load(SHIPPED)
    assert {"gsm8k", "mgsm", "ifeval", "xquad", "jsquad", "klue-nli", "humaneval", "bfcl"} <= set(prints.names)
    assert SHIPPED.stat().st_size < 6 * len(prints.hashes)
    readme = (SHIPPED.parent / "README.md").read_text()
    for number, name in enumerate(prints.names):
        runs = int((prints.owners == number).sum())
        assert re.search(rf"^\| `{name}` \|.* {prints.items[number]:,} \| .* {runs:,} \|", readme, re.M), name


@pytest.mark.parametrize("language", ["en", "de", "ko", "ja", "zh", "ar"])
def test_planted_items_are_found_in_every_script(language):
    bodies = WIKI[:400] if language == "en" else [r["text"] for r in MANUALS if r["lang"] == language]
    items, others = bodies[: len(bodies) // 2], bodies[len(bodies) // 2 :]
    prints = Fingerprints.build({"own": items}, common=100)
    assert prints.short == (0,)
    words = words_of([f"Before it. {item} After it." for item in items])
    assert set(prints.find(words)[0].tolist()) == set(range(len(items)))
    assert len(set(prints.find(words_of(others))[0].tolist())) <= 0.05 * len(others)


def test_runs_are_those_of_a_plain_count():
    items, texts = WIKI[:40], WIKI[20:80]
    prints = Fingerprints.build({"own": items}, common=100)
    runs = {tuple(w[i : i + 13]) for w in map(plain_words, items) for i in range(len(w) - 12)}
    numbers, owners = prints.find(words_of(texts))[:2]
    for number, text in enumerate(texts):
        w = plain_words(text)
        assert (numbers == number).sum() == sum(tuple(w[i : i + 13]) in runs for i in range(len(w) - 12))
    assert set(owners.tolist()) == {0}


def test_short_items_templates_and_scripts():
    words = [f"word{i}" for i in range(13)]
    for count, found in ((7, False), (8, True), (10, True), (13, True)):
        item = " ".join(words[:count])
        if not found:
            with pytest.raises(ValueError, match="long enough"):
                Fingerprints.build({"own": [item]})
            continue
        assert len(Fingerprints.build({"own": [item]}).find(words_of([f"x {item} y"]))[0]) == 1
    frame = "please write a poem of at least three hundred words about the matter of"
    prints = Fingerprints.build({"own": [f"{frame} subject{i} in the year {i}" for i in range(30)]}, common=10)
    assert len(prints.find(words_of([frame + " something else"]))[0]) == 0
    assert len(prints.find(words_of([f"{frame} subject7 in the year 7"]))[0]) > 0
    assert lengths_for("이 문장은 한국어로 쓰여 있습니다", 5) == (6, 8)
    assert lengths_for("この文は日本語です", 9) == (16, 20, 26)


def test_a_phrase_of_an_own_item_stays_and_the_item_in_a_long_text_leaves(tmp_path):
    """A held-out manual of 120 words, a question of 13: planted whole, in half, cut short, and as one common phrase."""
    rng = random.Random(2)
    words = [f"w{i}" for i in range(4000)]
    phrase = "this package contains the files that are needed to build programs which use it"  # 14 words, 2 runs
    manual, question = (
        " ".join(rng.sample(words, 60)),
        "why does the third heron stand on one leg until the rain has gone",
    )
    other = " ".join(rng.sample(words[2000:], 400))
    items = [f"{manual} {phrase} {' '.join(rng.sample(words, 46))}", question]
    Fingerprints.build({"held out": items}).save(tmp_path / "own.npz")
    step = Decontaminate(files=(str(tmp_path / "own.npz"),), shipped=False)
    texts = [
        items[0], f"{other} {items[0]} {other}", f"{other} {question} {other}", f"{other} {manual} {other}",
        f"{other} {' '.join(manual.split()[:30])} {other}", f"{other} {phrase} {phrase} {other}", other,
    ]  # fmt: skip
    assert reasons(step, texts) == ["contaminated"] * 3 + [None] * 4
    broad = Fingerprints.build({"held out": items}, share=0)
    broad.save(tmp_path / "own.npz")
    decontaminate._gather.cache_clear()
    assert reasons(step, texts) == ["contaminated"] * 6 + [None]
    twice = Decontaminate(files=(str(tmp_path / "own.npz"),), shipped=False, least=3)
    assert reasons(twice, texts) == ["contaminated"] * 2 + [None, "contaminated", "contaminated", None, None]
    with pytest.raises(ValueError, match="share is 2"):
        Fingerprints.build({"a": items}, share=2)


def test_files_are_exact_joined_and_checked(tmp_path):
    one, two = Fingerprints.build({"a": WIKI[:30]}), Fingerprints.build({"b": WIKI[20:50], "c": WIKI[60:70]})
    one.save(tmp_path / "one.npz")
    two.save(tmp_path / "two.npz")
    two.save(tmp_path / "again.npz")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    back = Fingerprints.load(tmp_path / "two.npz")
    assert back.names == two.names and back.items == two.items and np.array_equal(back.hashes, two.hashes)
    assert np.array_equal(back.owners, two.owners)
    step = Decontaminate(files=(str(tmp_path / "one.npz"), str(tmp_path / "two.npz")), shipped=False)
    assert step.fingerprints().names == ("a", "b", "c")
    assert reasons(step, [WIKI[0], WIKI[45], WIKI[65], WIKI[100]]) == ["contaminated"] * 3 + [None]
    assert reasons(Decontaminate(files=(str(tmp_path / "one.npz"),)), [WIKI[0], QUESTION]) == ["contaminated"] * 2
    left = step.fingerprints().without(runs_of([WIKI[0]]))
    assert len(left.find(words_of([WIKI[0]]))[0]) == 0 and len(left.find(words_of([WIKI[45]]))[0]) > 0
    with pytest.raises(ValueError, match="two files have a set 'a'"):
        Fingerprints.join([one, one])
    with pytest.raises(ValueError, match=r"'gsm9k' \(did you mean 'gsm8k'"):
        Decontaminate(sets=("gsm9k",))
    with pytest.raises(ValueError, match="`files` must name some"):
        Decontaminate(shipped=False)
    with pytest.raises(FileNotFoundError):
        Decontaminate(files=(str(tmp_path / "none.npz"),))
    raw = bytearray((tmp_path / "one.npz").read_bytes())
    for damaged in (b"", b"no archive", bytes(raw[: len(raw) // 2])):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="no file of fingerprints"):
            Fingerprints.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    with pytest.raises(ValueError, match="no file of fingerprints of this release"):
        Fingerprints.load(tmp_path / "other.npz")


def test_every_length_of_run_has_a_way_to_be_found():
    assert sorted(LENGTHS) == [6, 8, 10, 13, 16, 20, 26]


def embed(texts):
    """Bags of words as unit vectors: a real, if simple, embedding."""
    out = np.zeros((len(texts), 512), np.float32)
    for row, text in zip(out, texts, strict=True):
        for word in plain_words(text):
            row[zlib.crc32(word.encode()) % 512] += 1
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def test_meaning_finds_what_runs_cannot(tmp_path):
    item = "how many eggs does janet sell at the market when her ducks lay sixteen"
    turned = "At the market, when her ducks lay sixteen eggs, how many does Janet sell?"
    long = WIKI[0] + "\n" + turned + "\n" + WIKI[1]
    step = SemanticMatch.build({"own": [item, WIKI[200]]}, embed, threshold=0.9, piece=200)
    assert Fingerprints.build({"own": [item]}).find(words_of([turned]))[0].size == 0
    assert reasons(step, [turned, long, WIKI[3], ""]) == ["contaminated_meaning"] * 2 + [None, None]
    step.save(tmp_path / "own.npz")
    back = SemanticMatch.load(tmp_path / "own.npz", embed, threshold=0.9, piece=200)
    assert reasons(back, [turned, WIKI[3]]) == ["contaminated_meaning", None]
    with pytest.raises(ValueError, match="of size 512, the model gives 8"):
        SemanticMatch.load(tmp_path / "own.npz", lambda texts: np.ones((len(texts), 8), np.float32))
    with pytest.raises(ValueError, match="no evaluation items"):
        SemanticMatch.build({}, embed)


def test_pieces_hold_everything():
    text = WIKI[0] + "日本語の文です。次の文。" + "x" * 900
    pieces = cut_pieces(text, 100)
    assert max(map(len, pieces)) <= 100
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_file_of_fingerprints_that_is_written_again_counts_as_it_is_now(tmp_path):
    first, second = " ".join(f"stone{i}" for i in range(30)), " ".join(f"river{i}" for i in range(31))
    for item, other in ((first, second), (second, first)):
        Fingerprints.build({"mine": [item]}).save(tmp_path / "mine.npz")
        step = Decontaminate(files=(str(tmp_path / "mine.npz"),), shipped=False)
        assert reasons(step, [item, other]) == ["contaminated", None]
