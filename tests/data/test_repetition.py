"""Repetition against a plain count with tuples and dictionaries, on random and on real text."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.ngrams import Runs, count_covered, count_repeats
from headwater.data.repetition import Repetition
from headwater.data.steps import Removed, Text
from headwater.data.words import words_of

DATA = Path(__file__).parents[2] / "recipes" / "data"
STEP = Repetition()


def plain_runs(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def plain_again(words, n):
    seen, covered = set(), set()
    for i, run in enumerate(plain_runs(words, n)):
        if run in seen:
            covered.update(range(i, i + n))
        seen.add(run)
    return len(covered)


def plain_reason(text):
    """Whether the rule on runs objects, said plainly (spaced scripts)."""
    words = text.split()
    if len(words) < STEP.from_words:
        return False
    for n, bound in STEP.top:
        most = max(Counter(plain_runs(words, n)).values(), default=0)
        if most > 1 and most * n > bound * len(words):
            return True
    return any(plain_again(words, n) > bound * len(words) for n, bound in STEP.again)


texts = st.lists(
    st.lists(st.sampled_from(["river", "stone", "bridge", "water", "mill"]), max_size=90).map(" ".join), max_size=6
)


@settings(deadline=None)
@given(texts, st.integers(1, 12))
def test_counts_are_those_of_tuples(bodies, n):
    runs = Runs(words_of(bodies))
    most, again = count_repeats(runs, n)
    for number, body in enumerate(bodies):
        plain = Counter(plain_runs(body.split(), n))
        assert most[number] == max(plain.values(), default=0)
        assert again[number] == sum(plain.values()) - len(plain)
        assert count_covered(Runs(words_of([body])), n, np.ones(1, bool)).item() == plain_again(body.split(), n)


vocabulary = [f"{a}{b}" for a in "bcdfghjklm" for b in ("ar", "en", "il", "or", "us")]
phrase = st.lists(st.sampled_from(vocabulary), min_size=1, max_size=14)


@settings(deadline=None)
@given(st.lists(st.tuples(phrase, st.integers(1, 5)), min_size=4, max_size=12))
def test_the_short_cut_changes_nothing(pieces):
    body = " ".join(word for words, times in pieces for word in words * times)
    (verdict,) = STEP([Text("a", body)])
    assert isinstance(verdict, Removed) == plain_reason(body)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one line\n" * 5, "repeated_lines"),
        ("a first line\nb\nc\nd\ne\nf\ng\n" + "a much longer line that stands here twice\n" * 2, "repeated_lines"),
        ("\n\n".join(["one\ntwo" + str(i % 2) for i in range(2)] + ["x\ny"] * 2), "repeated_lines"),
        (" ".join(f"w{i} buy now" for i in range(40)), "top_run"),
        (" ".join(f"w{i}" for i in range(60)) + " and again " + " ".join(f"w{i}" for i in range(20)), "repeated_runs"),
        ("買一送一。" * 30, "top_run"),
        (" ".join(f"word{i}" for i in range(200)), None),
        ("short short short", None),
    ],
)
def test_reasons(text, reason):
    (verdict,) = STEP([Text("a", text)])
    assert (verdict.reason if isinstance(verdict, Removed) else None) == reason


def test_real_text_stays_and_planted_repetition_goes():
    bodies = [json.loads(line)["text"] for line in (DATA / "wiki_en.jsonl").read_text().splitlines()[:800]]
    bodies += [json.loads(line)["text"] for line in (DATA / "parallel.jsonl").read_text().splitlines()]
    lost = [v for v in STEP([Text(str(i), b) for i, b in enumerate(bodies)]) if isinstance(v, Removed)]
    assert len(lost) <= 0.005 * len(bodies), lost
    planted = [Text(str(i), b + " " + b) for i, b in enumerate(bodies) if len(b) > 600]
    assert len(planted) > 100
    assert all(isinstance(v, Removed) for v in STEP(planted))


def test_code_stays_and_batches_do_not_matter():
    line = Text("a", "x = 1\n" * 50, "s", {"kind": "code"})
    assert STEP([line]) == [line]
    bodies = [Text(str(i), "the mill by the river " * (i % 3 + 1) + f"{i} stones") for i in range(50)]
    assert STEP(bodies) == [STEP([b])[0] for b in bodies]


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="again is"):
        Repetition(again=((6, 0.1), (5, 0.1)))
    with pytest.raises(ValueError, match="top is"):
        Repetition(top=((2, 0.0),))
