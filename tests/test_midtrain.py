"""The mid-training recipe on a tiny model and real text; a branch off a run; long packed rows without a square mask."""

import io
import itertools
import os
import signal
import sys

import pytest
import torch
from rich.console import Console
from tiny_runs import make_batches, make_model

from headwater.objectives.next_token import next_token
from headwater.ops import attention
from headwater.train.checkpoint import branch
from headwater.train.loop import Plan, train
from headwater.train.optim import adamw
from headwater.train.progress import read_log
from recipes import midtrain, smoke

LINES = 60


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "wiki.jsonl"
    with (smoke.DATA / "wiki_en.jsonl").open(encoding="utf-8") as f:
        path.write_text("".join(line for line, _ in zip(f, range(LINES), strict=False)), encoding="utf-8")
    return path


def go(model, texts, out, **more):
    options = {"length": 256, "rows": 1, "steps": 6, "held-out": 0.2, "trials": 1, "measured-rows": 2, **more}
    flags = [f"--{name}={value}" for name, value in options.items()]
    return midtrain.main([str(model), str(texts), f"--out={out}", *flags], Console(file=io.StringIO(), width=120))


def test_the_stage_runs_measures_and_is_done_once(tiny_model, texts, tmp_path):
    report = go(tiny_model, texts, tmp_path / "run", **{"evaluate-bytes": 4000})
    assert report["finished"]
    assert report["tokens"] == 6 * 256
    assert report["after"]["bits_per_byte/en"] < report["before"]["bits_per_byte/en"]
    assert report["bytes_per_token"] >= 0
    assert [n["length"] for n in report["after"]["needles"]] == [128] * 3 + [256] * 3
    assert [s["stop"] for s in report["after"]["by_position"]] == [256]
    rates = [row["lr"] for row in read_log(tmp_path / "run" / "midtrain.jsonl")]
    falls = [a - b for a, b in itertools.pairwise(rates)]
    assert falls == sorted(falls, reverse=True), "the decay is fastest at its start"
    assert rates[-1] == 0.0
    assert (tmp_path / "run" / "midtrain.html").exists()
    again = go(tiny_model, texts, tmp_path / "run", **{"evaluate-bytes": 4000})
    assert again["after"]["bits_per_byte/en"] == report["after"]["bits_per_byte/en"]
    with pytest.raises(ValueError, match="holds a run with"):
        go(tiny_model, texts, tmp_path / "run", steps=9)


@pytest.mark.skipif(sys.platform != "linux", reason="a peak is forgotten on Linux alone")
def test_memory_of_a_stage_is_not_hidden_by_what_was_measured_before():
    torch.ones(100_000_000)  # 400 MB at once, and given back
    peak = midtrain._peak()
    assert midtrain.Memory()._before < peak - 300_000_000


def test_a_stopped_stage_goes_on(tiny_model, texts, tmp_path, monkeypatch):
    class Stop(midtrain.Memory):
        def __call__(self, step):
            super().__call__(step)
            if step.done.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as m:
        m.setattr(midtrain, "Memory", Stop)
        assert go(tiny_model, texts, tmp_path / "run") == {"finished": False, "step": 3}
    assert go(tiny_model, texts, tmp_path / "run")["finished"]
    assert [row["step"] for row in read_log(tmp_path / "run" / "midtrain.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_texts_too_few_or_too_short_are_refused(tiny_model, texts, tmp_path):
    with pytest.raises(ValueError, match="held out; both are needed"):
        go(tiny_model, texts, tmp_path / "a", **{"held-out": 0.0})
    with pytest.raises(ValueError, match="no text has --least 1000000 tokens"):
        go(tiny_model, texts, tmp_path / "b", least=1_000_000)


def test_a_branch_takes_weights_and_moments_and_leaves_the_rest(tmp_path):
    model = make_model()
    optimizer = adamw(model, lr=1e-2)
    path = tmp_path / "run.checkpoint"
    train(
        model, make_batches(), next_token, optimizer, lambda _: 1.0, plan=Plan(steps=5), checkpoint=path,
        identity={"stage": "pretrain"},
    )  # fmt: skip
    fresh = make_model()
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    other = adamw(fresh, lr=3e-4, weight_decay=0.05)
    state = torch.get_rng_state()
    assert branch(path, fresh, other).step == 5
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.state[a]["exp_avg_sq"], other.state[b]["exp_avg_sq"])
    assert {g["initial_lr"] for g in other.param_groups} == {3e-4}
    assert other.param_groups[0]["weight_decay"] == 0.05
    seen = []
    train(
        fresh, make_batches(), next_token, other, lambda _: 1.0, plan=Plan(steps=2),
        hooks=[lambda s: seen.append((s.done.step, s.lr))],
    )  # fmt: skip
    assert seen == [(1, 3e-4), (2, 3e-4)]
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        branch(path, fresh, other)


@pytest.mark.parametrize("recompute", [False, True])
def test_long_packed_rows_attend_by_document_with_the_same_result(monkeypatch, recompute):
    batch = next(make_batches())
    found = []
    for form, limit in (("native", 1), ("torch", attention.MASK_VALUES), ("torch", 1)):
        if form == "torch":
            monkeypatch.setattr(attention.fused, "attends", lambda *_: False)
        monkeypatch.setattr(attention, "MASK_VALUES", limit)
        model = make_model()
        model.recompute = recompute
        logits = model(batch["input_ids"], segment_ids=batch["segment_ids"])
        loss, _ = next_token(logits, batch)
        found.append((logits, *torch.autograd.grad(loss, list(model.parameters()))))
    for native, square, by_document in zip(*found, strict=True):
        torch.testing.assert_close(by_document, square, rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(native, square, rtol=1e-4, atol=2e-6)
