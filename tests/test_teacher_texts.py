"""Texts that a model writes itself: a real, tiny chat model on the native engine."""

import json
from pathlib import Path

import pytest
import torch

from headwater import Tokenizer
from headwater.chat import Chat
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.model import Lfm2
from recipes import smoke, teacher_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "wiki.jsonl"
    with (smoke.DATA / "wiki_en.jsonl").open(encoding="utf-8") as f:
        path.write_text("".join(line for line, _ in zip(f, range(40), strict=False)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(texts, tmp_path_factory):
    """Random weights; a tokenizer with the marks of chat."""
    out = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([json.loads(t)["text"] for t in texts.read_text().splitlines()], 320, pad_to=320)
    attention = Attention(num_heads=2, num_kv_heads=1, head_dim=16, rope=Rope(theta=1e4))
    c = Config(
        vocab_size=320, hidden_size=32, max_positions=4096,
        layers=stack("CA", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=64)),
        bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(c, generator=torch.Generator().manual_seed(3)).save_pretrained(out)
    tokenizer.save(out)
    template = Path(__file__).parent / "golden" / "smollm2_chat_template.jinja"
    (out / "chat_template.jinja").write_text(template.read_text())
    return out


def write(model, texts, out, *more):
    call = [str(model), "--out", str(out), "--conversations", "40", "--continuations", "35", "--threads", "1"]
    return teacher_texts.main([*call, "--beginnings", str(texts), *more])


def rows(out, kind):
    return [json.loads(line) for f in sorted(out.glob(f"{kind}-*.jsonl")) for line in f.read_text().splitlines()]


def test_conversations_and_continuations(model, texts, tmp_path):
    counts = write(model, texts, tmp_path)
    said, went_on = rows(tmp_path, "conversations"), rows(tmp_path, "continuations")
    assert counts == {"conversations": len(said), "continuations": len(went_on)}
    assert counts["continuations"] == 35
    assert 5 < counts["conversations"] <= 40  # random weights end a turn now and then
    for row in said:
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() for m in row["messages"])
    assert max(len(row["messages"]) for row in said) > 2
    starts = list(teacher_texts.read_beginnings([str(texts)]))
    assert all(row["text"].startswith(start) for row, start in zip(went_on, starts, strict=False))
    assert all(len(row["text"]) > len(start) for row, start in zip(went_on, starts, strict=False))

    # A run that lost its last files writes the same ones again, and keeps the others.
    files = sorted(tmp_path.glob("*.jsonl"))
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    lost = files[1], files[-1]
    for f in lost:
        f.unlink()
    assert write(model, texts, tmp_path) == counts
    assert all(f.read_bytes() == content for f, (content, _) in before.items())
    assert all(f.stat().st_mtime_ns == time for f, (_, time) in before.items() if f not in lost)
    with pytest.raises(ValueError, match="cure: another --out"):
        write(model, texts, tmp_path, "--seed", "1")


def test_a_question_is_asked_behind_the_opening_of_a_users_turn(model):
    chat = Chat(Tokenizer.from_pretrained(model), "smollm2")
    ids = teacher_texts.question_prompt(
        chat, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    )
    assert chat.tokenizer.decode(ids, skip_special=False).endswith("assistant\nHo<|im_end|>\n<|im_start|>user\n")


def test_too_few_beginnings(model, texts, tmp_path):
    with pytest.raises(ValueError, match="100 continuations are asked for, the texts give 40 beginnings"):
        write(model, texts, tmp_path, "--continuations", "100")
