"""Rules: each planted fault is found by its reason; real text of ten languages and real code stay."""

import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.normalise import Normalise
from headwater.data.phrases import BOILERPLATE, OVERUSED, REFUSALS, find_phrases
from headwater.data.rules import Boilerplate, Length, Malformed, OverusedPhrases, PhraseRule, Phrases, Refusals, Shares
from headwater.data.steps import Removed, Text

DATA = Path(__file__).parents[2] / "recipes" / "data"
GOOD = (
    "The river begins in the hills above the town, and it has carried boats to the sea for a thousand years. "
    "Its mills have been silent since the war, but the water that drove them still runs below the old bridge."
)


def reason(step, text, **facts):
    (verdict,) = (Phrases(rules=(step,)) if isinstance(step, PhraseRule) else step)([Text("a", text, "s", facts)])
    return verdict.reason if isinstance(verdict, Removed) else None


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        (Length(), "short", "too_short"),
        (Length(least=0, most=50), GOOD, "too_long"),
        (Length(least=300), "漢字" * 50, None),
        (Length(least=300), "ab" * 50, "too_short"),
        (Malformed(), GOOD.replace("river", "ri\ufffder"), "replacement_characters"),
        (Malformed(), GOOD * 10 + "\ufffd", None),
        (Malformed(), "Le cafÃ© fermÃ© Ã  cÃ´tÃ©", "mojibake"),
        (Malformed(), "Âge, Ãcran, Über: ça va à côté du café", None),
        (Malformed(), GOOD + "QUJD" * 300 + GOOD, "unbroken_run"),
        (Malformed(), GOOD + "あ" * 1500, None),
        (Malformed(), GOOD + "\n```python\nprint()", "unclosed_fence"),
        (Malformed(), GOOD + "\n```\nprint()\n```", None),
        (Malformed(), '<div class="a"><p>text</p></div><br/>' * 5, "markup"),
        (Malformed(), "if a < b and c > d then e < f " * 20, None),
        (Shares(), "1 2 3 4 5 6 7 8 9 0 " * 10, "few_letters"),
        (Shares(), "please call 5551234 or 5559876 now for one more of these", "many_digits"),
        (Shares(), "#one #two #three and more of it", "many_hashes"),
        (Shares(), "so... it was... then... and", "many_ellipses"),
        (Shares(), "\n".join(["* an item of the list that we keep"] * 6), "bullet_lines"),
        (
            Shares(),
            "\n".join(["the rest of this rather long line of text on a page was cut away by the page..."] * 5),
            "ellipsis_lines",
        ),
        (Shares(), "thisisaverylongwordindeed " * 60, "word_length"),
        (Shares(), GOOD, None),
        (Refusals(), "As an AI language model, I do not have feelings.", "refusal"),
        (Refusals(), "Q: how?\n" + "x " * 300 + "\nAssistant: I'm sorry, but I can't do it.", "refusal"),
        (Refusals(), "x " * 300 + "he said that as an AI language model it would not", None),
        (Refusals(), "申し訳ありませんが、そのご質問にはお答えできません。", "refusal"),
        (Refusals(), "抱歉，我无法回答这个问题。", "refusal"),
        (Refusals(), "Lo siento, pero no puedo hacer eso.", "refusal"),
        (OverusedPhrases(), "It's important to note that a rich tapestry can delve into things.", "overused_phrases"),
        (OverusedPhrases(), GOOD * 10 + "It's important to note that a rich tapestry can delve into it.", None),
        (OverusedPhrases(), "The ship is a testament to their skill.", None),
        (Boilerplate(), "Accept cookies\nPrivacy policy\nSkip to content\nHello", "boilerplate"),
        (Boilerplate(), GOOD * 3 + "\nAll rights reserved.", None),
        (Phrases(), "As an AI language model, I cannot.", "refusal"),
        (Phrases(), "Accept cookies\nPrivacy policy", "boilerplate"),
        (Phrases(), GOOD, None),
    ],
)
def test_reasons(step, text, expected):
    assert reason(step, text) == expected


def test_stop_words_are_asked_of_english_alone():
    text = "colourless green ideas sleep furiously " * 12
    assert reason(Shares(), text, language="en") == "few_stop_words"
    assert reason(Shares(), text, language="de") is None
    assert reason(Shares(), text) is None


def test_a_phrase_spans_no_two_texts():
    texts = [Text("a", "as an ai language"), Text("b", "model, we"), Text("c", "İ as an AI language model")]
    assert [isinstance(v, Removed) for v in Phrases()(texts)] == [False, False, True]


ALL = tuple(dict.fromkeys([p for t in (REFUSALS, OVERUSED) for row in t.values() for p in row] + list(BOILERPLATE)))


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([*ALL[::7], " ", "\n", "x", "é", "𝒳"]), max_size=9).map("".join), max_size=5))
def test_the_search_finds_what_plain_search_finds(texts):
    lower = [text.lower() for text in texts]
    found = find_phrases(lower, ALL)
    for number, text in enumerate(lower):
        plain = {(at, p) for p in ALL for at in range(len(text)) if text.startswith(p, at)}
        assert set(found.get(number, [])) == plain


def test_phrases_are_lower_case_and_long_enough():
    for phrase in ALL:
        assert phrase == phrase.lower() and len(phrase.encode()) >= 9, phrase


def removed(texts):
    out = []
    for step in (Normalise(), Length(), Malformed(), Shares(), Phrases()):
        verdicts = step(texts)
        out += [(v.reason, v.detail, t.id) for v, t in zip(verdicts, texts, strict=True) if isinstance(v, Removed)]
        texts = [v for v in verdicts if isinstance(v, Text)]
    return out


def test_real_text_stays():
    texts = []
    for name in ("parallel.jsonl", "wiki_en.jsonl"):
        for line in (DATA / name).read_text().splitlines():
            row = json.loads(line)
            texts.append(Text(row["title"], row["text"], name, {"language": row.get("lang", "en")}))
    lost = removed(texts)
    assert len(texts) > 5000
    assert len(lost) < 0.01 * len(texts), lost


def test_real_code_stays():
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))[:150]
    texts = [Text(f.name, f.read_text("utf-8"), "stdlib", {"kind": "code"}) for f in files if f.stat().st_size > 200]
    lost = removed(texts)
    assert len(texts) > 100 and not lost, lost


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="least is 5 and most 3"):
        Length(least=5, most=3)
