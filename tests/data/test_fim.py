"""Fill-in-the-middle: no code is lost, the same for any batch, shares as asked, marks of a tokenizer."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.fim import KNOWN, PSM, SPM, Fim, Marks, marks_of, restore, transform
from headwater.data.steps import Text
from headwater.tokenizer import Tokenizer

CODE = {"kind": "code"}
FILES = [p for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if p.stat().st_size > 200]
TEXTS = [Text(f"stdlib/{p.name}", p.read_text("utf-8"), "stdlib", CODE) for p in FILES[:160]]


@settings(deadline=None)
@given(st.text(), st.integers(0, 50), st.integers(0, 50), st.sampled_from([PSM, SPM]))
def test_nothing_is_lost(code, a, b, form):
    start, end = sorted((min(a, len(code)), min(b, len(code))))
    for marks in KNOWN:
        if not any(mark in code for mark in (marks.prefix, marks.middle, marks.suffix)):
            assert restore(transform(code, start, end, form, marks), form, marks) == code


def test_real_files():
    step = Fim()
    out = step(TEXTS)
    changed = [(old, new) for old, new in zip(TEXTS, out, strict=True) if new is not old]
    assert 0.35 * len(TEXTS) < len(changed) < 0.65 * len(TEXTS)
    forms = [new.facts["fim"] for _, new in changed]
    assert 0.3 * len(changed) < forms.count(SPM) < 0.7 * len(changed)
    for old, new in changed:
        assert restore(new.text, new.facts["fim"], Marks()) == old.text
        assert new.text.count("<|fim_mid|>") == 1 and new.text.startswith("<|fim_pre|>")
    assert [step([text])[0] for text in TEXTS] == out
    assert Fim(salt="2")(TEXTS) != out
    assert all(new is not old for old, new in zip(TEXTS, Fim(share=1.0)(TEXTS), strict=True))


def test_prose_short_and_marked_texts_stay():
    texts = [Text("a", "prose " * 50), Text("b", "x = 1", "s", CODE), Text("c", "s = '<|fim_mid|>'" * 5, "s", CODE)]
    assert Fim(share=1.0)(texts) == texts


def test_the_marks_are_control_tokens(tmp_path):
    tokenizer = Tokenizer.train([text.text for text in TEXTS[:10]], vocab_size=1000)
    marks = marks_of(tokenizer)
    assert marks == Marks()
    (text,) = Fim(share=1.0, spm=0.0)(TEXTS[:1])
    ids = tokenizer.encode(text.text, special=True)
    assert ids[0] == 3 and ids.count(4) == ids.count(5) == 1
    assert 3 not in tokenizer.encode(text.text)


def test_options_are_checked():
    with pytest.raises(ValueError, match="share is 2"):
        Fim(share=2)
    with pytest.raises(ValueError, match="all must differ"):
        Fim(prefix="<a>", middle="<a>")
