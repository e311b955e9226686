"""The recipes hybridize and nano on a tiny transformer and real text: what is learnt, stops, saves and faults."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from headwater import Engine, SamplingParams, Tokenizer
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.teacher_store import TeacherStore
from headwater.files import read_json
from headwater.model import Lfm2
from headwater.train.progress import read_log
from recipes import hybridize, lessons, nano, smoke

LINES = 80


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "wiki.jsonl"
    with (smoke.DATA / "wiki_en.jsonl").open(encoding="utf-8") as f:
        path.write_text("".join(line for line, _ in zip(f, range(LINES), strict=False)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher(texts, tmp_path_factory):
    """A Llama-shaped transformer of four layers with a tokenizer of its own."""
    out = tmp_path_factory.mktemp("teacher")
    tokenizer = Tokenizer.train([json.loads(t)["text"] for t in texts.read_text().splitlines()], 512, pad_to=512)
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(theta=1e4), qk_norm=False)
    c = Config(
        vocab_size=512, hidden_size=64, layers=stack("AAAA", {"A": attention}, Ffn(intermediate_size=96)),
        max_positions=256, bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(c, generator=torch.Generator().manual_seed(3)).save_pretrained(out)
    tokenizer.save(out)
    return out


def run(teacher, texts, out, *more):
    text = io.StringIO()
    arguments = [str(teacher), str(texts), "--out", str(out), "--keep", "2", "--length", "64", "--rows", "2"]
    call = [*arguments, "--steps", "30,12,6", "--held-out", "0.1", *more]
    return hybridize.main(call, console=Console(file=text, width=200)), text.getvalue()


def weights(path):
    return Lfm2.from_pretrained(path / "model").state_dict()


def test_the_whole_way(teacher, texts, tmp_path):
    report, said = run(teacher, texts, tmp_path)
    assert report["finished"]
    assert report["layers"] == "CCAC"
    assert report["kv_share"] == 0.25
    assert "AAAA become CCAC" in said
    assert report == read_json(tmp_path / "report.json")
    scores = report["bits_per_byte"]
    assert list(scores) == ["teacher", "transplanted", "fit", "mixers", "all"]
    assert all(list(of) == ["held-out"] for of in scores.values())
    fitted = [json.loads(line)["loss"] for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    assert fitted[-1] < 0.8 * fitted[0]
    assert (tmp_path / "loss.png").stat().st_size > 1000
    hybrid, before = weights(tmp_path), Lfm2.from_pretrained(teacher).state_dict()
    assert "layers.0.conv.in_proj.weight" in hybrid
    assert "layers.0.self_attn.q_proj.weight" not in hybrid
    assert not torch.equal(hybrid["layers.2.self_attn.q_proj.weight"], before["layers.2.self_attn.q_proj.weight"])


def test_what_stays_is_untouched_until_the_last_stage(teacher, texts, tmp_path):
    run(teacher, texts, tmp_path, "--steps", "4,4,0")
    hybrid, before = weights(tmp_path), Lfm2.from_pretrained(teacher).state_dict()
    shared = hybrid.keys() & before.keys()
    assert len(shared) > 20
    assert all(torch.equal(hybrid[name], before[name]) for name in shared)


def test_qk_norm_makes_a_checkpoint_of_the_lfm2_family(teacher, texts, tmp_path):
    run(teacher, texts, tmp_path, "--qk-norm", "--steps", "4,0,0")
    assert read_json(tmp_path / "model" / "config.json")["model_type"] == "lfm2"
    assert all(layer.mixer == ShortConv(width=3) or layer.mixer.qk_norm for layer in Lfm2.from_pretrained(
        tmp_path / "model").config.layers)  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "step"),
    [pytest.param("fit", 7, marks=pytest.mark.slow), ("mixers", 5), pytest.param("all", 3, marks=pytest.mark.slow)],
)
def test_a_stop_changes_nothing(teacher, texts, tmp_path, monkeypatch, stage, step):
    straight, _ = run(teacher, texts, tmp_path / "straight")
    real = hybridize.Follow.__call__

    def call(follow, event):
        real(follow, event)
        if follow.title == stage and event.done.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(hybridize.Follow, "__call__", call)
    stopped, _ = run(teacher, texts, tmp_path / "stopped")
    assert stopped == {"finished": False, "stage": stage, "step": step}
    monkeypatch.setattr(hybridize.Follow, "__call__", real)
    again, _ = run(teacher, texts, tmp_path / "stopped")
    assert again.pop("seconds") > 0 and straight.pop("seconds") > 0  # the one thing a stop may change
    assert again == straight
    for name, value in weights(tmp_path / "straight").items():
        assert torch.equal(value, weights(tmp_path / "stopped")[name]), name


def test_named_texts_are_measured_apart_and_nothing_is_held_out(teacher, texts, tmp_path):
    lines = texts.read_text().splitlines(keepends=True)
    for name, some in (("train", lines[8:]), ("one", lines[:4]), ("two", lines[4:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))
    files = [str(tmp_path / "train.jsonl"), "--score", *(str(tmp_path / f"{name}.jsonl") for name in ("one", "two"))]
    call = [str(teacher), *files, "--out", str(tmp_path / "run"), "--length", "64", "--rows", "2", "--steps", "2,0,0"]
    report = hybridize.main(call, console=Console(file=io.StringIO()))
    assert all(list(of) == ["one", "two"] for of in report["bits_per_byte"].values())
    with pytest.raises(ValueError, match="two files to be measured on are named 'wiki'"):
        lessons.read_scored([texts, texts])


def test_faults_are_named(teacher, texts, tmp_path):
    with pytest.raises(ValueError, match="--keep names layer 4; the teacher has layers 0 to 3"):
        run(teacher, texts, tmp_path / "a", "--keep", "4")
    run(teacher, texts, tmp_path / "b", "--steps", "1,0,0")
    with pytest.raises(ValueError, match="cure: the same, or another --out"):
        run(teacher, texts, tmp_path / "b", "--steps", "1,0,0", "--seed", "5")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match="neither 'text' nor 'messages'"):
        run(teacher, bad, tmp_path / "c")


def test_nano_compares_two_routes_at_equal_time_and_ships_the_better_one(teacher, texts, tmp_path):
    lines = texts.read_text().splitlines(keepends=True)
    for name, some in (("train", lines[8:]), ("one", lines[:4]), ("two", lines[4:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))
    score = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    call = [str(teacher), str(tmp_path / "train.jsonl"), "--score", *score, "--out", str(tmp_path / "nano")]
    call += ["--keep", "2", "--length", "64", "--rows", "2", "--steps", "10,4,2", "--type", "q8_0"]
    said = io.StringIO()
    report = nano.main(call, console=Console(file=said, width=200))
    routes = report["routes"]
    assert set(routes) == {"hybrid", "scratch"}
    assert routes["scratch"]["layers"] == nano.LAYERS
    best = min(routes, key=lambda name: sum(routes[name]["bits_per_byte"].values()))
    assert report["chosen"] == best
    engine = Engine.from_pretrained(tmp_path / "nano" / "headwater-nano.gguf", threads=1, context=64)
    assert engine.config.pattern() == routes[best]["layers"]
    assert engine.generate(["The"], SamplingParams(max_tokens=3))[0].ids
    card = (tmp_path / "nano" / "CARD.md").read_text()
    assert card in said.getvalue()
    for name, route in routes.items():
        assert f"| {name} | {route['tokens']:,} |" in card
    assert nano.main(call, console=Console(file=io.StringIO())) == report


def test_equal_time_goes_over_stages(tmp_path):
    logs = [tmp_path / "fit.jsonl", tmp_path / "mixers.jsonl"]
    for log, score in zip(logs, (2.0, 1.0), strict=True):
        rows = [{"step": n, "seconds": 10.0 * n, "tokens": 100 * n, "bits_per_byte/en": score - n / 8} for n in (1, 2)]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert nano.by_then(logs, 5.0) is None
    assert nano.by_then(logs, 20.0) == {"en": 1.75, "seconds": 20.0, "tokens": 200}
    assert nano.by_then(logs, 31.0) == {"en": 0.875, "seconds": 30.0, "tokens": 300}


def test_a_call_of_some_minutes_goes_on_in_the_next(teacher, texts, tmp_path):
    """Time that is over at once: each call ends with what is done kept, whatever part it was in."""
    straight, _ = run(teacher, texts, tmp_path / "straight", "--steps", "6,3,2")
    stages = []
    for _ in range(60):
        report, said = run(teacher, texts, tmp_path / "parts", "--steps", "6,3,2", "--minutes", "0.004")
        if report["finished"]:
            break
        assert "the same command goes on from there" in said
        stages.append(report["stage"])
    else:
        report, _ = run(teacher, texts, tmp_path / "parts", "--steps", "6,3,2")
    assert stages
    assert {k: v for k, v in report.items() if k != "seconds"} == {k: v for k, v in straight.items() if k != "seconds"}
    assert "finished, 6 of 6 updates" in (tmp_path / "parts" / "fit.html").read_text(), "a later call leaves the page"


def test_hours_become_updates_once(teacher, texts, tmp_path):
    report, said = run(teacher, texts, tmp_path, "--hours", "0.0008", "--epochs", "2", "--evaluate-bytes", "500")
    assert report["finished"]
    assert "seconds an update: capture" in said
    plan = read_json(tmp_path / "steps.json")["steps"]
    assert list(plan) == list(hybridize.STAGES)
    assert report["tokens"] == sum(plan.values()) * 2 * 64
    assert not (tmp_path / "probe").exists()
    distilled = (plan["mixers"] + plan["all"]) * 2 * 64
    assert TeacherStore(tmp_path / "lessons" / "teacher").tokens <= max(distilled // 2, plan["fit"] * 2 * 64) + 64


KILLED = """
import io, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from rich.console import Console
from recipes import hybridize
hybridize.SAVE_EVERY = 2
hybridize.main(sys.argv[2:], console=Console(file=io.StringIO()))
"""


@pytest.mark.slow
def test_killed_at_twenty_points_of_all_stages(teacher, texts, tmp_path):
    """kill -9 while the teacher reads, parts are fitted, the whole is trained: as if nothing had happened."""
    chance = random.Random(7)

    def start(out):
        call = [str(teacher), str(texts), "--out", str(out), "--keep", "2", "--length", "64", "--rows", "2"]
        call += ["--steps", "30,12,6", "--held-out", "0.1"]
        root = Path(hybridize.__file__).parents[1]
        return subprocess.Popen([sys.executable, "-c", KILLED, str(root), *call], start_new_session=True)

    begun = time.monotonic()
    assert start(tmp_path / "straight").wait() == 0
    whole, killed = time.monotonic() - begun, 0
    for _ in range(20):
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=whole * (0.3 + 0.7 * chance.random()))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        if process.wait() == 0:
            break
    assert killed >= 3
    assert start(tmp_path / "killed").wait() == 0
    one, other = (read_json(tmp_path / name / "report.json") for name in ("straight", "killed"))
    assert one.pop("seconds") > 0 and other.pop("seconds") > 0
    assert one == other
    for name, value in weights(tmp_path / "straight").items():
        assert torch.equal(value, weights(tmp_path / "killed")[name]), name
    for stage in hybridize.STAGES:
        rows = [read_log(tmp_path / name / f"{stage}.jsonl") for name in ("straight", "killed")]
        assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
