"""The mixture: shares, scarce and abundant groups, the same choice for any split of the input."""

from itertools import pairwise

import numpy as np
import pytest

from headwater.data.corpus import Batch
from headwater.data.mix import PRESETS, Mix, copies_of, plan_mix
from headwater.data.steps import Text


def corpus(counts):
    """{language or "code": texts}, each of 100 bytes."""
    texts = []
    for group, count in counts.items():
        facts = {"kind": "code"} if group == "code" else {"language": group}
        texts += [Text(f"{group}/{i}", "x" * 100, "s", facts) for i in range(count)]
    return texts


class Held:
    """Columns in memory."""

    scratch = None

    def __init__(self, parts):
        self.parts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.num_documents = len(self.parts["size"])

    def load(self, name):
        return self.parts[name]

    mapped = load


def mixed(step, texts, pieces=1, alive=None):
    cuts = np.linspace(0, len(texts), pieces + 1).astype(int).tolist()
    parts = [step.columns(Batch(texts[a:b]), {}) for a, b in pairwise(cuts)]
    alive = np.ones(len(texts), bool) if alive is None else alive
    return step.decide(Held(parts), alive, {})


def kept(decision, texts):
    sizes: dict[str, int] = {}
    for text, times in zip(texts, decision.copies, strict=True):
        group = text.id.split("/")[0]
        sizes[group] = sizes.get(group, 0) + len(text.text) * int(times)
    return sizes


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_give_their_shares(preset):
    texts = corpus({"en": 20_000, "ja": 3000, "de": 3000, "ko": 500, "code": 3000})
    decision = mixed(Mix(preset=preset), texts)
    sizes = kept(decision, texts)
    total = sum(sizes.values())
    wanted = dict(zip(("english", "multilingual", "code"), map(int, preset.split("/")), strict=True))
    assert PRESETS[preset] == wanted
    assert sizes["en"] / total == pytest.approx(wanted["english"] / 100, abs=0.01)
    assert sizes["code"] / total == pytest.approx(wanted["code"] / 100, abs=0.01)
    assert sizes["ja"] / sizes["ko"] == pytest.approx((3000 / 500) ** 0.3, rel=0.1)
    assert set(decision.removed["mixed_out"]) == set(np.flatnonzero(decision.copies == 0))
    facts = decision.facts["groups"]
    assert facts["en"]["kept_bytes"] == sizes["en"] and facts["ja"]["bytes"] == 300_000


def test_the_scarce_is_repeated_and_held_at_the_most():
    rates = plan_mix(
        {"en": 7500, "ja": 1000, "ar": 10, "code": 100}, PRESETS["75/20/5"], temperature=0.3, most_repeats=4
    )
    assert rates["ar"].rate == 4 and rates["code"].rate == 4
    wanted = {g: rate.wanted for g, rate in rates.items()}
    total = sum(wanted.values())
    assert wanted["code"] / total == pytest.approx(0.05) and wanted["en"] / total == pytest.approx(0.75)
    assert wanted["ja"] + wanted["ar"] == pytest.approx(0.2 * total)
    assert max(rate.rate for rate in rates.values()) <= 4
    exact = plan_mix(
        {"en": 7500, "ja": 2000, "code": 500}, PRESETS["75/20/5"], temperature=1, most_repeats=4, total=5000
    )
    assert {g: r.rate for g, r in exact.items()} == {"en": 0.5, "ja": 0.5, "code": 0.5}


def test_what_has_no_share_makes_nothing_else_repeat():
    rates = plan_mix(
        {"en": 1000, "code": 9000, "ja": 500}, {"english": 1, "multilingual": 0}, temperature=0.3, most_repeats=4
    )
    assert {g: r.rate for g, r in rates.items()} == {"en": pytest.approx(1.0), "ja": 0.0, "code": 0.0}


def test_the_choice_is_of_the_text_alone():
    texts = corpus({"en": 3000, "ja": 800, "code": 150})
    one = mixed(Mix(), texts)
    for pieces in (3, 8):
        assert np.array_equal(mixed(Mix(), texts, pieces).copies, one.copies)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.array_equal(mixed(Mix(), [texts[i] for i in order], 5).copies, one.copies[order])
    assert not np.array_equal(mixed(Mix(salt="2"), texts).copies, one.copies)
    alive = np.arange(len(texts)) % 2 == 0
    assert not mixed(Mix(), texts, alive=alive).copies[~alive].any()


def test_a_higher_rate_keeps_the_same_and_more():
    ids = [f"doc{i}" for i in range(4000)]
    low, high = copies_of(0.3, ids), copies_of(1.7, ids)
    assert sum(low) / len(ids) == pytest.approx(0.3, abs=0.03)
    assert sum(high) / len(ids) == pytest.approx(1.7, abs=0.03) and set(high) == {1, 2}
    assert all(b >= a for a, b in zip(copies_of(0.3, ids), copies_of(0.6, ids), strict=True))


def test_faults_are_named():
    for options, words in (
        ({"preset": "75/20"}, r"no preset '75/20' \(did you mean '75/20/5'"),
        ({"preset": ""}, "needs a preset"),
        ({"shares": (("english", 1),)}, "not both"),
        ({"preset": "", "shares": (("klingon", 1),)}, "klingon"),
        ({"preset": "", "shares": (("english", 0),)}, "all 0"),
        ({"temperature": 2}, "temperature is 2"),
    ):
        with pytest.raises(ValueError, match=words):
            Mix(**options)
    words = "5 parts of code and there is no such text, but of en, ja; cure: the step language"
    with pytest.raises(ValueError, match=words):
        plan_mix({"en": 10, "ja": 10}, PRESETS["75/20/5"], temperature=0.3, most_repeats=4)
    with pytest.raises(ValueError, match="total is 1000000"):
        plan_mix({"en": 10, "ja": 10, "code": 1}, PRESETS["75/20/5"], temperature=0.3, most_repeats=4, total=10**6)
