"""Normalising: equal text gets one form, text that is clean is not touched, code keeps what a compiler reads."""

import subprocess
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.normalise import Normalise, find_unusual, normalise_blanks, normalise_characters
from headwater.data.steps import Removed, Step, Text


def one(text, *, code=False, **options):
    step: Step = Normalise(**options)
    (verdict,) = step([Text("a", text, "s", {"kind": "code"} if code else {})])
    return verdict if isinstance(verdict, Removed) else verdict.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b\x07c\x7f", "abc"),
        ("cafe\u0301", "café"),
        ("\u1112\u1161\u11ab", "한"),
        ("10\xa0km\u2009a", "10 km a"),
        ("一\u3000二", "一\u3000二"),
        ("a\ufeffb\xadc\u202ed", "abcd"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a \t\nb\n\n\n\nc", "a\nb\n\nc"),
        ("\n\n    indented\n", "    indented"),
        ("a\u2028b\x0cc", "a\nb\nc"),
        ("x\ud800y", "x\ufffdy"),
        ("smile \U0001f600\u200d\U0001f4bb", "smile \U0001f600\u200d\U0001f4bb"),
    ],
)
def test_one_form(old, new):
    assert one(old) == new
    assert one(new) == new


def test_nothing_left_is_removed():
    assert one("\x00 \n\t").reason == one("\x00", code=True).reason == "empty"


def test_code_keeps_its_characters():
    source = "s = 'e\u0301\xa0\u202e'  \n\n\n\n\x0cdef f():\n\tpass  \n"
    assert one(source, code=True) == source
    assert one("\ufeffa\r\nb\x00\ud800", code=True) == "a\nb\ufffd"


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec=None)), max_size=8))
def test_the_fast_look_misses_nothing(texts):
    """A text that is not called unusual is one that the slow way would not change; and the result is stable."""
    for text, unusual in zip(texts, find_unusual(texts), strict=True):
        assert unusual or normalise_characters(text) == text
    for verdict in Normalise()([Text(str(i), t) for i, t in enumerate(texts)]):
        if isinstance(verdict, Text):
            assert verdict.text == normalise_blanks(verdict.text)
            assert unicodedata.is_normalized("NFC", verdict.text)
            verdict.text.encode()
            assert one(verdict.text) == verdict.text


def test_every_code_point_alone():
    points = [chr(p) for p in range(0x110000)]
    clean = [c for c, unusual in zip(points, find_unusual(points), strict=True) if not unusual]
    assert 180_000 < len(clean) < 210_000
    assert all(normalise_characters(c) == c for c in clean)


def test_mojibake_is_repaired_on_request():
    broken = "Le cafÃ© est fermÃ© aujourdâ€™hui."
    assert one(broken) == broken
    assert one(broken, mojibake=True) == "Le café est fermé aujourd’hui."
    assert one("Das kostet 5 € für Ä und Ö.", mojibake=True) == "Das kostet 5 € für Ä und Ö."


def test_the_step_does_not_need_the_repair_library():
    code = "import sys; sys.modules['ftfy'] = None\nfrom headwater.data.normalise import Normalise\nNormalise()([])\n"
    code += "try: Normalise(mojibake=True)([])\nexcept ImportError as e: assert 'headwater[data]' in str(e)\n"
    code += "else: sys.exit(1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_long_row_of_blanks_takes_no_longer_than_other_text():
    """Tried from each blank, this row takes minutes."""
    started = time.perf_counter()
    assert one("a \nb" + " " * 300_000 + "c \t\nd\t") == "a\nb" + " " * 300_000 + "c\nd"
    assert time.perf_counter() - started < 10
