"""Language id on real text: the repository's slices, in ten languages; short texts; no download."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from headwater.data.language import Language, _piece, languages
from headwater.data.steps import Removed, Text

DATA = Path(__file__).parents[2] / "recipes" / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_real_paragraphs_of_ten_languages():
    wanted = [(row["lang"], row["text"]) for row in rows("parallel.jsonl")]
    wanted += [("en", row["text"]) for row in rows("wiki_en.jsonl")[:300]]
    assert {language for language, _ in wanted} == {"en", "ar", "ja", "ko", "de", "fr", "es", "it", "pt", "zh"}
    verdicts = Language()([Text(str(i), text) for i, (_, text) in enumerate(wanted)])
    right, total = Counter(), Counter()
    for (language, _), verdict in zip(wanted, verdicts, strict=True):
        total[language] += 1
        right[language] += verdict.facts["language"] == language
        assert 0.0 < verdict.facts["language_confidence"] <= 1.0
    assert sum(right.values()) / sum(total.values()) > 0.995
    assert all(right[language] / total[language] > 0.95 for language in total), (right, total)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Guten Morgen, wie geht es dir?", "de"), ("おはよう。", "ja"), ("안녕하세요", "ko"), ("今天天气很好。", "zh"),
        ("Как дела?", "ru"), ("صباح الخير", "ar"), ("", "und"), ("12 + 30 = 42", "und"), ("\n\n", "und"),
    ],
)  # fmt: skip
def test_short_texts(text, language):
    assert Language().detect(text)[0] == language


def test_an_unsure_sample_is_looked_at_again():
    """The sample is a listing; the text around it is French."""
    french = "Le chat dort sur le canapé pendant que la pluie tombe doucement sur le toit de la maison. "
    text = french * 2 + "foo.bar(baz=1) x86_64 qux " * 6 + french * 4
    assert Language().detect(text)[0] == "fr"
    assert Language(sure=0.0).detect(text)[1] < Language().detect(text)[1]


def test_unwanted_unsure_and_code():
    step = Language(keep=("en",), least_confidence=0.4)
    texts = [
        Text("a", "This is a plain English sentence about the weather.", "s", {"x": 1}),
        Text("b", "Dies ist ein deutscher Satz über das Wetter von morgen."),
        Text("c", "int main(void) { return 0; }", "s", {"kind": "code"}),
    ]
    kept, german, code = pickle.loads(pickle.dumps(step))(texts)
    assert kept.facts["x"] == 1 and kept.facts["language"] == "en" and kept.id == "a"
    assert isinstance(german, Removed) and german.reason == "language_unwanted" and german.detail.startswith("de")
    assert code is texts[2]
    assert Language(least_confidence=1.0)([Text("d", "Nescafé 3 in 1")])[0].reason == "language_unsure"


def test_options_are_checked():
    with pytest.raises(ValueError, match="xx, which the model does not know"):
        Language(keep=("en", "xx"))
    with pytest.raises(ValueError, match=r"least_confidence is 1.5"):
        Language(least_confidence=1.5)
    with pytest.raises(ValueError, match="sample is 0"):
        Language(sample=0)
    assert {"en", "ar", "ja", "ko", "de", "fr", "es", "it", "pt", "zh", "ru"} < languages()


def test_nothing_is_downloaded():
    code = (
        "import socket\ndef no(*a, **k): raise AssertionError('network')\nsocket.socket.connect = no\n"
        "from headwater.data.language import Language\nassert Language().detect('Buongiorno a tutti')[0] == 'it'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parents[2])


def test_a_piece_begins_at_a_word_and_loses_no_clause():
    chinese = "水" * 310 + " Python " + "水" * 282
    assert _piece(chinese, 120) == chinese[200:320]  # and not the foreign word behind its only space
    english = "a river runs to the sea " * 50
    assert _piece(english, 120)[0] == " " and len(_piece(english, 120)) > 110
