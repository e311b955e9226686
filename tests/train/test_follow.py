"""Following a real tiny run: log, page, samples and trackers, over a stop and a failure; the page in a real browser."""

import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from tiny_runs import make_batches, make_model

from headwater.objectives.next_token import next_token
from headwater.train import follow as module
from headwater.train.checkpoint import Counters
from headwater.train.follow import Follow, thinned
from headwater.train.health import Health
from headwater.train.lines import Line, chart, short, ticks
from headwater.train.loop import Plan, Step, Unhealthy, train
from headwater.train.optim import adamw
from headwater.train.page import write_page
from headwater.train.progress import read_log
from headwater.train.trackers import TensorBoard, WeightsAndBiases

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def go(directory, steps, *, model=None, stop_at=None, total=None, **options):
    """A run followed in `directory`; `stop_at` raises after that update, as a power cut would."""
    model = model or make_model()

    def evaluate(m):
        return {"bits_per_byte/en": 2.0, "bits_per_byte/de": 3.0}

    def die(step):
        if step.done.step == stop_at:
            raise RuntimeError("power cut")

    with (
        (directory / "console.txt").open("a") as file,
        Follow(
            directory, "pretrain", model=model, console=Console(file=file, width=160), every=0.0, **options
        ) as follow,
    ):
        return train(
            model, make_batches(), next_token, adamw(model, lr=1e-2), lambda _: 1.0, evaluate=evaluate,
            plan=Plan(steps=steps, evaluate_every=5, save_every=4), hooks=[follow, die],
            checkpoint=directory / "checkpoint",
        )  # fmt: skip


class Text(HTMLParser):
    """Refuses what the page must not have: a script, or anything from elsewhere."""

    def __init__(self):
        super().__init__()
        self.words, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert tag != "script"
        for name, value in attributes:
            if name in ("src", "href"):
                assert value.startswith("data:")
            assert not name.startswith("on")

    def handle_data(self, data):
        self.words.append(data)


def words_of(page):
    parser = Text()
    parser.feed(page.read_text())
    return " ".join(parser.words), parser.tags


def test_a_run_leaves_log_page_and_samples(tmp_path):
    go(tmp_path, 10, samples=lambda: {"The river": " <b>runs</b> & runs"})
    rows = read_log(tmp_path / "pretrain.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["step"] for row in rows if "bits_per_byte/de" in row] == [5, 10]
    samples = read_log(tmp_path / "pretrain.samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in samples] == [(5, "The river"), (10, "The river")]
    words, tags = words_of(tmp_path / "pretrain.html")
    assert "finished, 10 of 10 updates" in words
    assert "healthy" in words
    assert "Held-out bits per byte" in words
    assert "<b>runs</b> & runs" in words, "a text is shown as it is, not as markup"
    assert tags.count("svg") == 5
    assert 'http-equiv="refresh"' not in (tmp_path / "pretrain.html").read_text()


def test_a_stopped_run_is_followed_from_where_it_goes_on(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        go(tmp_path, 12, stop_at=7, samples=lambda: {"a": "b"})
    assert "stopped, 7 of 12 updates" in words_of(tmp_path / "pretrain.html")[0]
    result = go(tmp_path, 12, samples=lambda: {"a": "c"})
    assert result.resumed_at == 4
    assert [row["step"] for row in read_log(tmp_path / "pretrain.jsonl")] == list(range(1, 13))
    assert [(r["step"], r["text"]) for r in read_log(tmp_path / "pretrain.samples.jsonl")] == [
        (5, "c"), (10, "c"), (12, "c"),
    ]  # fmt: skip
    assert "finished, 12 of 12 updates" in words_of(tmp_path / "pretrain.html")[0]


def test_following_changes_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    torch.manual_seed(0)
    followed = make_model()
    go(tmp_path / "a", 8, model=followed, samples=lambda: {"a": "b"})
    alone = make_model()
    train(alone, make_batches(), next_token, adamw(alone, lr=1e-2), lambda _: 1.0, plan=Plan(steps=8))
    for a, b in zip(followed.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_failure_is_in_the_log_and_on_the_page(tmp_path):
    model = make_model()

    def spoil(step):
        if step.done.step == 2:
            with torch.no_grad():
                model.layers[1].feed_forward.w2.weight[0, 0] = math.nan

    with (
        pytest.raises(Unhealthy, match="step 3"),
        Follow(tmp_path, "sft", model=model, console=Console(file=io.StringIO())) as follow,
    ):
        train(
            model, make_batches(), next_token, adamw(model, lr=1e-3), lambda _: 1.0, plan=Plan(steps=5),
            hooks=[follow, spoil],
        )  # fmt: skip
    *_, row = read_log(tmp_path / "sft.jsonl")
    assert row["step"] == 3
    assert row["health"].startswith("step 3: the loss is nan")
    words, _ = words_of(tmp_path / "sft.html")
    assert "step 3: the loss is nan" in words
    assert "failed, 2 of 5 updates" in words


def test_data_that_cannot_be_read_is_in_the_log_and_on_the_page(tmp_path):
    batches = make_batches()

    class Damaged:
        whole = 2

        def __next__(self):
            self.whole -= 1
            if self.whole < 0:
                raise ValueError("shard-00001.safetensors: block 7 is damaged")
            return next(batches)

        state_dict, load_state_dict = batches.state_dict, batches.load_state_dict

    model = make_model()
    with (
        pytest.raises(ValueError, match=r"step 3: shard-00001\.safetensors: block 7 is damaged"),
        Follow(tmp_path, "sft", model=model, console=Console(file=io.StringIO())) as follow,
    ):
        train(
            model, Damaged(), next_token, adamw(model, lr=1e-3), lambda _: 1.0, plan=Plan(steps=5), hooks=[follow]
        )  # fmt: skip
    assert read_log(tmp_path / "sft.jsonl")[-1]["health"] == "step 3: shard-00001.safetensors: block 7 is damaged"
    words, _ = words_of(tmp_path / "sft.html")
    assert "block 7 is damaged" in words
    assert "failed, 2 of 5 updates" in words


def test_what_is_wrong_is_told_once_on_the_console(tmp_path):
    model = make_model()
    model.layers[0].conv.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    go(tmp_path, 10, model=model, health=Health(model, window=20, every=3))
    told = [line for line in (tmp_path / "console.txt").read_text().splitlines() if "no gradient reaches" in line]
    assert len(told) == 1
    assert "class='health bad'" in (tmp_path / "pretrain.html").read_text()


def test_tensorboard_has_every_number(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go(tmp_path, 6, trackers=[TensorBoard(tmp_path / "tb")], samples=lambda: {"p": "text"})
    events = accumulators.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in read_log(tmp_path / "pretrain.jsonl")], rel=1e-6)
    assert [event.step for event in events.Scalars("bits_per_byte/en")] == [5, 6]


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WeightsAndBiases("headwater", mode="offline", dir=str(tmp_path))
    go(tmp_path, 6, trackers=[tracker], samples=lambda: {"p": "text"})
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"bits_per_byte/en" in file.read_bytes()


def test_a_long_log_is_thinned_but_keeps_its_events(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 100)
    rows = [{"step": i, "loss": 1.0} | ({"bits_per_byte": 2.0} if i % 50 == 0 else {}) for i in range(1, 202)]
    kept = thinned(rows)
    assert len(kept) < 140
    assert [r["step"] for r in kept if "bits_per_byte" in r] == [50, 100, 150, 200]
    assert [r["step"] for r in kept[-50:]] == list(range(152, 202))


def test_a_page_of_many_updates_stays_small(tmp_path):
    rows = [
        {
            "step": n,
            "tokens": 1000 * n,
            "seconds": 0.5 * n,
            "lr": 1e-3,
            "gradient_norm": 1.0 + n % 7,
            "loss": 9 / n**0.2,
        }
        for n in range(1, 8001)
    ]
    write_page(tmp_path / "p.html", rows, [], title="long", state="running", steps=9000, every=7)
    text = (tmp_path / "p.html").read_text()
    assert len(text) < 150_000
    assert '<meta http-equiv="refresh" content="7">' in text
    assert "8,000 of 9,000" in text
    assert ">8:20<" in text, "a thousand updates of half a second are left"


def test_charts_leave_out_what_cannot_be_drawn_and_are_not_flattened_by_one_spike():
    nan = float("nan")
    assert "nothing finite" in chart([Line("a", [1, 2], [nan, nan])])
    one = chart([Line("a", [1], [5.0])])
    assert one.count("<circle") == 2
    assert "nan" not in chart([Line("a", [1, 2, 3], [1.0, nan, 2.0])])
    spike = chart([Line("a", list(range(200)), [1.0 + 0.001 * i for i in range(199)] + [1e6])])
    heights = [float(y) for y in re.findall(r"L[\d.]+,([\d.]+)", spike)]
    assert max(heights[:-1]) - min(heights[:-1]) > 60
    assert "a &lt;b&gt;" in chart([Line("a <b>", [1, 2], [1.0, 2.0])])


def test_ticks_and_numbers_are_round():
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert ticks(1.83, 4.2) == pytest.approx([2.0, 3.0, 4.0])
    assert [short(v) for v in (0, 0.00012, 3.14159, 12345, 2.5e6)] == ["0", "1.2e-04", "3.142", "12.3k", "2.5M"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(tmp_path, scheme):
    """It draws without the network and without an error, and fits a phone."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed; one of {', '.join(BROWSERS)} is needed")
    go(tmp_path, 30, samples=lambda: {"The river": " runs"})
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.goto((tmp_path / "pretrain.html").as_uri())
        assert page.locator("svg").count() == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(18, 23, 29)") == (scheme == "dark")
        assert all(url.startswith(("file:", "data:")) for url in asked)
        assert not errors
        browser.close()


def test_json_of_a_row_is_strict(tmp_path):
    """Every line of the log parses as JSON of any reader."""
    go(tmp_path, 5)
    for line in (tmp_path / "pretrain.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_step_without_tokens_learnt_is_drawn(tmp_path):
    step = Step(3, 1e-3, 1.0, 100, 0.0, Counters(1, 100, 0.0, {"loss": 1.0}))
    with Follow(tmp_path, "x", console=Console(file=io.StringIO())) as follow:
        follow(step)
    assert "1 of 3 updates" in words_of(tmp_path / "x.html")[0]
