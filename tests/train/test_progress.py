"""What a person sees: the plain lines, the log and its pruning on resume, the plot."""

import io

import pytest
from rich.console import Console

from headwater.train.checkpoint import Counters
from headwater.train.loop import Step
from headwater.train.progress import JsonLog, ProgressBar, plot_losses, read_log


def step(n, loss=2.0, steps=100):
    return Step(steps, 1e-3, 0.5, 1000, 0.25, Counters(n, 1000 * n, 0.25 * n, {"loss": loss, "weight": 900.0}))


def test_plain_output_shows_step_loss_speed_and_time_left():
    out = io.StringIO()
    with ProgressBar("pretrain", console=Console(file=out, width=120), every=2) as bar:
        for n in range(1, 5):
            bar(step(n, loss=float(n)))
    lines = out.getvalue().strip().splitlines()
    assert lines == [
        "pretrain  2/100  loss 1.500  4,000 tokens/s  24 s left",
        "pretrain  4/100  loss 2.500  4,000 tokens/s  24 s left",
    ]


def test_terminal_output_is_a_bar():
    out = io.StringIO()
    with ProgressBar("pretrain", console=Console(file=out, width=120, force_terminal=True)) as bar:
        bar(step(50))
    assert "50/100" in out.getvalue()
    assert "4,000 tokens/s" in out.getvalue()


def test_log_appends_and_drops_what_a_resumed_run_does_again(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonLog(path)
    for n in (1, 2, 3, 4):
        first(step(n))
    with path.open("a") as f:
        f.write('{"step": 5, "lo')  # killed in the middle of a line
    second = JsonLog(path)
    for n in (3, 4):
        second(step(n, loss=7.0))
    rows = read_log(path)
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert [r["loss"] for r in rows] == [2.0, 2.0, 7.0, 7.0]
    assert rows[0]["tokens"] == 1000
    with path.open("a") as f:
        f.write('{"step": 5, "lo')
    for _ in range(2):  # two starts whose first update fails
        JsonLog(path).note("no luck")
    assert [r["step"] for r in read_log(path)] == [1, 2, 3, 4, 5, 6]
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl:2"):
        read_log(path)


def test_plot_is_a_png_of_some_size(tmp_path):
    curves = {"a": [{"tokens": i, "loss": 9.0 - i} for i in range(8)], "b": [{"tokens": 3, "loss": 1.0}]}
    plot_losses(curves, tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 5000
