"""What recipes that distil read: sequences kept on disk, a teacher's word on packed groups, stops, held-out texts."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from headwater.data.capture import fingerprint
from headwater.data.teacher_store import Card, TeacherStore
from headwater.engine.engine import Engine
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer
from recipes import lessons

LINES = [f"The river number {i} runs to the sea, and boat {i * i} is on the water." * (1 + i % 4) for i in range(40)]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return path


@pytest.fixture
def tokenizer(tiny_model):
    return Tokenizer.from_pretrained(tiny_model)


def made(path, texts, tokenizer, **more):
    options = {"wanted": 600, "length": 48, "seed": 0, "share": 0.2, **more}
    return lessons.sequences(path, [texts], tokenizer, **options)


def test_sequences_are_shuffled_cut_kept_and_without_what_is_held_out(tmp_path, texts, tokenizer):
    found = made(tmp_path / "a.npz", texts, tokenizer)
    assert 600 <= sum(map(len, found)) < 600 + 48
    assert max(map(len, found)) <= 48
    again = made(tmp_path / "a.npz", tmp_path / "not there.jsonl", tokenizer)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True)), "read back, not made again"
    other = made(tmp_path / "b.npz", texts, tokenizer, seed=1)
    assert [s.tolist() for s in other] != [s.tolist() for s in found]
    whole = made(tmp_path / "c.npz", texts, tokenizer, wanted=10**9, length=500)
    said = {tokenizer.decode(ids.tolist()) for ids in whole}
    (held,) = lessons.read_held([texts], 0.2).values()
    assert 0 < len(held) < len(LINES)
    assert len(whole) == len(LINES) - len(held)
    assert not any(text in some for text in held for some in said)


def test_texts_to_measure_on_end_after_so_many_bytes(texts):
    (all_,) = lessons.read_scored([texts]).values()
    (few,) = lessons.read_scored([texts], 200).values()
    assert len(all_) == len(LINES)
    assert few == all_[: len(few)]
    assert sum(len(t) for t in few[:-1]) < 200 <= sum(len(t) for t in few)


def card_of(tiny_model, tokenizer):
    return Card("tiny", fingerprint(tokenizer), Lfm2.from_pretrained(tiny_model).config.vocab_size, 8)


def test_the_teacher_says_of_packed_sequences_what_it_says_of_each_alone(tmp_path, texts, tiny_model, tokenizer):
    teacher = Lfm2.from_pretrained(tiny_model, dtype=torch.float32)
    some = made(tmp_path / "a.npz", texts, tokenizer)
    lessons.capture(tmp_path / "store", card_of(tiny_model, tokenizer), some, teacher, autocast=None)
    store = TeacherStore(tmp_path / "store")
    assert len(store) == len(some)
    for i, ids in enumerate(some):
        said = store[i]
        assert np.array_equal(said.input_ids, ids)
        with torch.no_grad():
            alone = teacher(torch.from_numpy(ids.astype(np.int64))[None])[0].log_softmax(-1)
        top, picked = alone.topk(8)
        assert np.array_equal(np.sort(said.ids[:, :2]), np.sort(picked[:, :2].numpy()))
        np.testing.assert_allclose(said.mass, top.exp().sum(-1).numpy(), rtol=2e-3)


def test_the_native_engine_reads_as_torch_does(tmp_path, texts, tiny_model, tokenizer):
    some, card = made(tmp_path / "a.npz", texts, tokenizer), card_of(tiny_model, tokenizer)
    on_torch = Lfm2.from_pretrained(tiny_model, dtype=torch.float32)
    native = Engine.from_pretrained(tiny_model, weights=None, max_sequences=1, logits_at_once=64)
    for name, teacher in (("torch", on_torch), ("native", native)):
        lessons.capture(tmp_path / name, card, some, teacher, autocast=None)
    one, other = (TeacherStore(tmp_path / name) for name in ("torch", "native"))
    assert [s.tolist() for s in one.sequences()] == [s.tolist() for s in other.sequences()]
    a, b = (store.range(0, store.tokens) for store in (one, other))
    assert (a.ids[:, 0] == b.ids[:, 0]).mean() > 0.99
    np.testing.assert_allclose(a.mass, b.mass, atol=2e-3)


def test_a_stopped_capture_goes_on_with_the_same_bytes(tmp_path, texts, tiny_model, tokenizer, monkeypatch):
    monkeypatch.setattr(lessons, "GROUP", 100)
    teacher, card = Lfm2.from_pretrained(tiny_model, dtype=torch.float32), card_of(tiny_model, tokenizer)
    some = made(tmp_path / "a.npz", texts, tokenizer)
    lessons.capture(tmp_path / "whole", card, some, teacher, autocast=None)
    real, added = lessons.Writer.add, []

    def dies(writer, *row):
        if len(added) in (3, 8):
            added.append(None)
            raise KeyboardInterrupt
        added.append(row)
        real(writer, *row)

    with monkeypatch.context() as m:
        m.setattr(lessons.Writer, "add", dies)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                lessons.capture(tmp_path / "parts", card, some, teacher, autocast=None)
    heard = []
    lessons.capture(
        tmp_path / "parts", card, some, teacher, autocast=None, on_tokens=lambda *counts: heard.append(counts)
    )
    total = sum(map(len, some))
    assert heard[-1][0] == total > heard[-1][1] > 0
    for name in ("shard-00000.safetensors", "store.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_progress_is_told_and_time_ends():
    said = io.StringIO()
    told = lessons.Told("teacher", 100, Console(file=said, width=120), lessons.Deadline(), every=0.0)
    told(40, 10)
    told(100, 70)
    assert "teacher  40/100 tokens" in said.getvalue()
    assert "0 s left" in said.getvalue()
    late = lessons.Told("teacher", 100, Console(file=said), lessons.Deadline(1e-9))
    with pytest.raises(lessons.OutOfTime):
        late(40, 10)
    late(100, 70)
    with pytest.raises(ValueError, match="--minutes is 0"):
        lessons.Deadline(0)


def test_settings_that_differ_are_named(tmp_path):
    lessons.same_settings(tmp_path, {"steps": 3, "seed": 0})
    lessons.same_settings(tmp_path, {"steps": 3, "seed": 0})
    with pytest.raises(ValueError, match="holds a run with other settings \\(steps 3, now 4\\)"):
        lessons.same_settings(tmp_path, {"steps": 4, "seed": 0})
