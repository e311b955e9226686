"""The recipe that tests the claim about distillation: every loss on a tiny teacher, resumed cells, the statistics."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from headwater.evals.calibration import Calibration
from headwater.files import read_json
from recipes import ablate_distillation as recipe
from recipes import smoke


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    with (smoke.DATA / "wiki_en.jsonl").open(encoding="utf-8") as f:
        lines = [line for line, _ in zip(f, range(60), strict=False)]
    (folder / "a.jsonl").write_text("".join(lines[:30]), encoding="utf-8")
    (folder / "b.jsonl").write_text("".join(lines[30:]), encoding="utf-8")
    return folder


def go(teacher, texts, out, *more):
    sizes = {"steps": 4, "rows": 1, "length": 32, "held-tokens": 64, "held-share": 0.2, "threads": 1, "seeds": 2}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    console = Console(file=io.StringIO(), width=200)
    report = recipe.main([str(teacher), str(texts), f"--out={out}", *flags, *more], console)
    return report, console.file.getvalue()


@pytest.mark.slow
def test_every_loss_is_measured_once_and_reported(tiny_model, texts, tmp_path, monkeypatch):
    report, shown = go(tiny_model, texts, tmp_path)
    assert report["finished"]
    assert list(report["methods"]) == list(recipe.METHODS)
    for name, row in report["methods"].items():
        assert name in shown
        assert 0 < row["loss"][0] < 7
        assert row["loss"][1] > 0
        assert 0 <= row["ece"][0] <= 1
        assert row["kl"][0] > 0
        assert row["gradient_norm"][0] > 0
    bytes_of = {name: row["bytes_per_token"][0] for name, row in report["methods"].items()}
    assert bytes_of["next token"] == 0.0
    assert bytes_of["full KL"] == 48.0, "24 values of 16 bits"
    assert bytes_of["decoupled, tau 1"] == bytes_of["bucket, tau 2"] > 10
    losses = {name: row["loss"][0] for name, row in report["methods"].items()}
    assert len(set(losses.values())) == len(losses), "each loss trains another student"
    assert report["methods"]["next token"]["from_base"] == (0.0, 0.0)
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)

    monkeypatch.setattr(recipe, "train", lambda *a, **k: pytest.fail("a cell was done again"))
    again, _ = go(tiny_model, texts, tmp_path)
    assert recipe._plain(again) == recipe._plain(report)


@pytest.mark.slow
def test_a_run_that_dies_goes_on_with_the_same_numbers(tiny_model, texts, tmp_path, monkeypatch):
    names = ("--methods", "decoupled, tau 2; sampled; full KL", "--seeds", "1")
    whole, _ = go(tiny_model, texts, tmp_path / "whole", *names)

    def dies(writer, sequences, teacher, **more):
        real(writer, list(sequences)[:3], teacher, **more)
        raise RuntimeError("power cut")

    real = recipe.capturing.capture
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(recipe.capturing, "capture", dies)
        go(tiny_model, texts, tmp_path / "parts", *names)
    go(tiny_model, texts, tmp_path / "parts", "--methods", "decoupled, tau 2", "--seeds", "1")
    assert len(list((tmp_path / "parts" / "cells").glob("*.json"))) == 1
    parts, _ = go(tiny_model, texts, tmp_path / "parts", *names)
    for name, row in whole["methods"].items():
        for measure in ("loss", "ece", "kl", "gradient_norm", "bytes_per_token"):
            assert parts["methods"][name][measure][0] == row[measure][0], (name, measure)


def test_faults_are_named(tiny_model, texts, tmp_path):
    with pytest.raises(ValueError, match="the texts lack"):
        go(tiny_model, texts, tmp_path / "a", "--steps", "100000")
    go(tiny_model, texts, tmp_path / "b", "--methods", "next token", "--seeds", "1")
    with pytest.raises(ValueError, match="holds a run with"):
        go(tiny_model, texts, tmp_path / "b", "--steps", "7")
    with pytest.raises(SystemExit):
        go(tiny_model, texts, tmp_path / "c", "--methods", "decoupled, tau 3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no \.jsonl file"):
        next(recipe.texts_of([tmp_path / "empty"]))


def test_draws_are_counted_and_free_places_are_other_ids():
    ids, counts = recipe.counted(np.array([[5, 5, 2, 5], [0, 1, 2, 3]]))
    assert counts.tolist() == [[1, 3, 0, 0], [1, 1, 1, 1]]
    assert ids[0, :2].tolist() == [2, 5]
    assert all(len(set(row)) == 4 for row in ids.tolist())


def test_the_interval_is_students():
    mean, half = recipe.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(recipe.interval([1.0])[1])
    cells = [{"method": m, "seed": s, **dict.fromkeys(recipe.MEASURES, float(v + 10 * s))}
             for m, v in (("a", 1), ("b", 3)) for s in (0, 1)]  # fmt: skip
    assert recipe.summary(cells, "a")["b"]["from_base"] == (2.0, 0.0), "paired: what the seeds share cancels"


def test_calibration_by_hand():
    c = Calibration(bins=2)
    c.add(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([False, True, True]))
    c.add(torch.tensor([0.7]), torch.tensor([True]))
    # lower bin: confidence 0.6, right 1; upper bin: confidence 1.6, right 2
    assert c.error() == pytest.approx((0.4 + 0.4) / 4)
    sure = Calibration()
    sure.add(torch.ones(5), torch.ones(5, dtype=torch.bool))
    assert sure.error() == 0.0
    with pytest.raises(ValueError, match="nothing was added"):
        Calibration().error()
    with pytest.raises(ValueError, match="between 0 and 1"):
        c.add(torch.tensor([1.5]), torch.tensor([True]))
    with pytest.raises(ValueError, match="confidence has shape"):
        c.add(torch.tensor([0.5]), torch.tensor([True, False]))


def test_a_cell_file_says_what_it_is(tiny_model, texts, tmp_path):
    go(tiny_model, texts, tmp_path, "--methods", "bucket, tau 2", "--seeds", "1")
    cell = read_json(tmp_path / "cells" / "bucket-tau-2-0.json")
    assert (cell["method"], cell["seed"]) == ("bucket, tau 2", 0)
    assert cell["gradient_norm_95"] >= cell["gradient_norm"] * 0.5
