"""The smoke recipe end to end on the first lines of its own data: a few steps, every stage, stopped and resumed."""

import io
import itertools
import os
import signal

import pytest
import torch
from rich.console import Console

from headwater.files import read_json
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer
from recipes import smoke

STEPS = 6


@pytest.fixture(autouse=True)
def one_thread():
    """Steps this small gain nothing from a second thread, and on a busy machine the threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def little_data(tmp_path_factory, monkeypatch):
    data = tmp_path_factory.mktemp("data")
    for name in (*smoke.TEXTS, *smoke.CHATS):
        with (smoke.DATA / name).open(encoding="utf-8") as f:
            (data / name).write_text("".join(itertools.islice(f, 60)), encoding="utf-8")
    monkeypatch.setattr(smoke, "DATA", data)
    monkeypatch.setattr(smoke, "HELD_OUT", 0.1)
    monkeypatch.setattr(smoke, "SFT_STEPS", smoke.STEPS // 2)
    monkeypatch.setattr(smoke, "ROWS", 2)


def run(out, **arguments):
    text = io.StringIO()
    report = smoke.main(out, steps=STEPS, console=Console(file=text, width=200), **arguments)
    return report, text.getvalue()


def timeless(report):
    return {k: v for k, v in report.items() if k not in ("seconds", "tokens_per_second")}


def stop_at(monkeypatch, stage, step):
    """Ctrl-C during the given update."""
    real = smoke.Follow.__call__

    def call(follow, event):
        real(follow, event)
        if follow.title == stage and event.done.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(smoke.Follow, "__call__", call)


def test_the_whole_life_and_the_same_again_after_two_stops(tmp_path, monkeypatch):
    report, text = run(tmp_path / "a")
    assert report["finished"]
    assert report["tokens"] == 9 * 2 * smoke.LENGTH
    assert report["bits_per_byte"]["pretrain"]["English"] < report["bits_per_byte"]["start"]["English"]
    assert set(report["answers"]) == {*smoke.PROMPTS, *smoke.QUESTIONS}
    assert "held-out bits per byte after sft" in text
    assert (tmp_path / "a" / "loss.png").stat().st_size > 5000
    assert "finished, 6 of 6 updates" in (tmp_path / "a" / "pretrain.html").read_text()
    assert timeless(read_json(tmp_path / "a" / "report.json")) == timeless(report)
    model = Lfm2.from_pretrained(tmp_path / "a" / "model")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "a" / "model")
    assert model.config.pattern() == smoke.LAYERS
    assert tokenizer.eos_ids == model.config.eos_ids

    with monkeypatch.context() as patch:
        stop_at(patch, "pretrain", 2)
        first, text = run(tmp_path / "b")
        assert first == {"finished": False, "stage": "pretrain", "step": 2}
        assert "the same command goes on from there" in text
    with monkeypatch.context() as patch:
        stop_at(patch, "sft", 1)
        second, text = run(tmp_path / "b")
        assert "going on from" in text
        assert second["stage"] == "sft"
    third, _ = run(tmp_path / "b")
    assert timeless(third) == timeless(report)
    assert (tmp_path / "b" / "pretrain.jsonl").read_text().count("\n") == STEPS


def test_other_settings_in_the_same_place_need_fresh(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    first, _ = run(tmp_path)
    with pytest.raises(ValueError, match=r"holds a run with .*'seed': 0.*--fresh"):
        run(tmp_path, seed=1)
    other, _ = run(tmp_path, seed=1, fresh=True)
    assert other["loss"] != first["loss"]
    assert (tmp_path / "mine.txt").exists()
