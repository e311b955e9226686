"""Difficulty: measured rates, a predictor on sums whose difficulty is known, saving as JSON, the order."""

import json
import random

import numpy as np
import pytest

from headwater.data.difficulty import Predictor, easy_to_hard, features, measure


def sums(count, seed):
    """Sums of 2 to 9 numbers of 1 to 5 digits; the chance of a solver falls with both."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        terms, digits = rng.randint(2, 9), rng.randint(1, 5)
        numbers = [rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(terms)]
        out.append((f"What is {' + '.join(map(str, numbers))}?", 1 / (1 + np.exp(0.45 * terms + 0.6 * digits - 4))))
    return out


def solver(chances, skill):
    def answer(prompt, number):
        draw = random.Random(f"{prompt} {skill} {number}").random()
        return str(sum(map(int, prompt[8:-1].split(" + ")))) if draw < chances[prompt] ** (1 / skill) else "?"

    return answer


def right(prompt, answer):
    return answer == str(sum(map(int, prompt[8:-1].split(" + "))))


def spearman(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_the_predictor_ranks_prompts_it_has_not_seen(tmp_path):
    known, rest = sums(400, 1), sums(300, 2)
    chances = dict(known + rest)
    models = {"weak": solver(chances, 0.7), "strong": solver(chances, 1.4)}
    measured = list(measure((p for p, _ in known), models, right, samples=6))
    assert spearman([m.rate for m in measured], [c for _, c in known]) > 0.8
    assert all(m.by_model["weak"][1] == 6 for m in measured)
    assert sum(m.by_model["weak"][0] for m in measured) < sum(m.by_model["strong"][0] for m in measured)
    predictor = Predictor.fit([m.prompt for m in measured], [m.rate for m in measured], samples=12)
    predicted = predictor.predict([p for p, _ in rest])
    assert spearman(predicted, [c for _, c in rest]) > 0.7
    predictor.save(tmp_path / "p.json")
    assert np.array_equal(Predictor.load(tmp_path / "p.json").predict([p for p, _ in rest]), predicted)
    ordered = list(easy_to_hard([p for p, _ in rest], predictor.predict))
    assert sorted(ordered) == sorted(p for p, _ in rest)
    assert np.mean([chances[p] for p in ordered[:75]]) > np.mean([chances[p] for p in ordered[-75:]]) + 0.3


def test_the_order_is_stable_and_windowed():
    items = [("a", 0.5), ("b", 0.9), ("c", 0.5), ("d", 0.1), ("e", 1.0)]
    rates = lambda chunk: [rate for _, rate in chunk]  # noqa: E731
    assert "".join(name for name, _ in easy_to_hard(items, rates)) == "ebacd"
    assert "".join(name for name, _ in easy_to_hard(iter(items), rates, window=3)) == "baced"
    with pytest.raises(ValueError, match="window is -1"):
        list(easy_to_hard(items, rates, window=-1))
    with pytest.raises(ValueError, match="one number each"):
        list(easy_to_hard(items, lambda chunk: [0.5]))


def test_features_are_finite_for_any_text():
    texts = ["", "\n", "9" * 5000, "漢字" * 50, "```x```", "-1.5e3, 2,000?"]
    assert np.isfinite(features(texts)).all() and features([]).shape[0] == 0
    assert np.array_equal(features(texts)[3], features(texts[3:4])[0])


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="at least 8"):
        Predictor.fit(["a"], [0.5])
    with pytest.raises(ValueError, match=r"to 1.5"):
        Predictor.fit(["a"] * 8, [1.5] * 8)
    with pytest.raises(ValueError, match="0 models"):
        list(measure(["a"], {}, right))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="no difficulty predictor"):
        Predictor.load(tmp_path / "x.json")
    values = {"format": "headwater difficulty 1", "bias": 0, "mean": [1], "scale": [1], "weights": [1]}
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="damaged"):
        Predictor.load(tmp_path / "x.json")
