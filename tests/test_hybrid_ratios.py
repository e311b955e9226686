"""The recipe that compares how many layers keep attention, and the one that measures what a distillation loss costs."""

import io
import json

import pytest
import torch
from rich.console import Console

from headwater.config import Attention, Config, Ffn, Rope, stack
from headwater.files import read_json
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer
from recipes import head_speed, hybrid_ratios, smoke


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """(a transformer of four layers, texts to learn from, texts to be measured on)"""
    out = tmp_path_factory.mktemp("ratios")
    with (smoke.DATA / "wiki_en.jsonl").open(encoding="utf-8") as f:
        lines = [line for line, _ in zip(f, range(60), strict=False)]
    (out / "train.jsonl").write_text("".join(lines[12:]), encoding="utf-8")
    (out / "held.jsonl").write_text("".join(lines[:12]), encoding="utf-8")
    tokenizer = Tokenizer.train([json.loads(line)["text"] for line in lines], 512, pad_to=512)
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(theta=1e4), qk_norm=False)
    c = Config(
        vocab_size=512, hidden_size=64, layers=stack("AAAA", {"A": attention}, Ffn(intermediate_size=96)),
        max_positions=300, bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(c, generator=torch.Generator().manual_seed(3)).save_pretrained(out / "teacher")
    tokenizer.save(out / "teacher")
    return out / "teacher", out / "train.jsonl", out / "held.jsonl"


def test_each_choice_is_measured_once_beside_the_teacher(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid_ratios, "LENGTHS", (128,))
    teacher, train, held = map(str, lesson)
    call = [teacher, train, "--score", held, "--out", str(tmp_path), "--every", "2,4", "--steps", "4,2,2"]
    call += ["--rows", "2", "--length", "64"]
    said = io.StringIO()
    report = hybrid_ratios.main(call, Console(file=said, width=220))
    assert report["finished"]
    found = report["choices"]
    assert [of["layers"] for of in found.values()] == ["AAAA", "CACA", "CCCA"]
    assert [of["kv_bytes"] for of in found.values()] == [4 * 128, 2 * 128, 128]
    assert found["every 2"]["tokens"] == found["every 4"]["tokens"] == 8 * 128
    for of in found.values():
        assert list(of["recalled"]) == ["128"]
        assert of["speed"]["decode_128"] > 0
        assert list(of["bits_per_byte"]) == ["held"]
    assert "every 4: 1 of 4" in said.getvalue()
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(hybrid_ratios.hybridize, "main", lambda *a, **k: pytest.fail("a choice was made again"))
    assert hybrid_ratios.main(call, Console(file=io.StringIO())) == report == read_json(tmp_path / "report.json")


def test_the_time_of_a_call_ends_it_and_the_hours_are_shared(lesson, tmp_path):
    teacher, train, held = map(str, lesson)
    call = [teacher, train, "--score", held, "--out", str(tmp_path), "--every", "2,4", "--hours", "0.004"]
    call += ["--rows", "2", "--length", "64", "--minutes", "0.00001"]
    assert hybrid_ratios.main(call, Console(file=io.StringIO())) == {"finished": False, "done": []}


@pytest.mark.parametrize("side", head_speed.SIDES)
def test_every_loss_is_measured_and_costs_are_told(side):
    found = head_speed.main(
        ["--tokens", "40", "--words", "512", "--width", "16", "--steps", "1", "--threads", "1", "--side", side]
    )
    assert found["seconds"] > 0
    assert found["memory"] >= 0


def test_sides_agree_on_the_cross_entropy():
    head, batch = head_speed.made(40, 512, 16)
    fused, plain = (head_speed.step_of(side)(head, batch).item() for side in ("cross-entropy", "all logits"))
    assert fused == pytest.approx(plain, rel=1e-3)
    kd = head_speed.step_of("decoupled")(head, batch)
    assert kd.item() != pytest.approx(plain, rel=1e-3)
    kd.backward()
    assert head.weight.grad.abs().sum() > 0
