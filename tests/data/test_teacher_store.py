"""The teacher store: what is kept and how exactly, size, kills, damage, other tokenizers, batches for training."""

import json
import shutil

import numpy as np
import pytest
import torch

from headwater.data.capture import by_logits, capture, truncate
from headwater.data.pack import Document, PackedBatches
from headwater.data.teacher_store import BLOCK, Card, TeacherStore, Writer

WORDS, K = 500, 32
CARD = Card("a teacher", "abc", WORDS, K)


def sequences(count=12, longest=900, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, WORDS, rng.integers(2, longest)) for _ in range(count)]


def teacher(ids):
    """Logits that depend on the id read, with the spread of a language model's."""
    rng = np.random.default_rng(7)
    rows = rng.normal(0, 2.5, (WORDS, WORDS)).astype(np.float32)
    return rows[np.asarray(ids)]


def written(path, **options):
    with Writer(path, CARD, **options) as writer:
        capture(writer, sequences(), by_logits(teacher, WORDS))
    return TeacherStore(path)


def kl(p_log, q_log):
    return (np.exp(p_log) * (p_log - q_log)).sum(-1)


@pytest.mark.parametrize("shard_tokens", [1000, 1 << 20])
def test_what_was_written_is_read(tmp_path, shard_tokens):
    store = written(tmp_path, shard_tokens=shard_tokens)
    assert len(list(tmp_path.glob("shard-*"))) == len(store._shards) >= (3 if shard_tokens == 1000 else 1)
    assert len(store) == 12
    for number, ids in enumerate(sequences()):
        got = store[number]
        top, logprobs, mass = truncate(teacher(ids), K)
        assert (got.input_ids == ids).all()
        assert (got.ids == top).all()
        np.testing.assert_allclose(got.mass / (1 - got.mass), mass / (1 - mass), rtol=4e-4)
        np.testing.assert_allclose(np.exp(got.logprobs).sum(1), got.mass, rtol=1e-5)
        inside = logprobs - np.log(mass)[:, None]
        assert kl(inside, got.logprobs - np.log(got.mass)[:, None]).mean() < 1e-3
    assert [list(s) for s in store.sequences()] == [list(s) for s in sequences()]


def test_ranges_cross_blocks_shards_and_sequences(tmp_path):
    store = written(tmp_path, shard_tokens=BLOCK + 100)
    whole = store.range(0, store.tokens)
    for start, stop in ((0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK + 50, BLOCK + 900), (store.tokens - 1, store.tokens)):
        for part, all_of_it in zip(store.range(start, stop), whole, strict=True):
            assert (part == all_of_it[start:stop]).all()
    for bad in ((0, 0), (5, store.tokens + 1), (-1, 3)):
        with pytest.raises(IndexError):
            store.range(*bad)


def test_a_kill_loses_the_unwritten_record_alone(tmp_path):
    """Cut the waiting file at any byte: whole records stay, the torn one is captured again, the store is the same."""
    whole = written(tmp_path / "whole", shard_tokens=1000)
    writer = Writer(tmp_path / "cut", CARD, shard_tokens=1000)
    capture(writer, sequences()[:11], by_logits(teacher, WORDS))
    pending = writer._pending
    size = pending.stat().st_size
    assert size
    for cut in (0, 5, size // 2, size - 1):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(tmp_path / "cut", tmp_path / "again")
        with (tmp_path / "again" / pending.name).open("r+b") as f:
            f.truncate(cut)
        with Writer(tmp_path / "again", CARD, shard_tokens=1000) as again:
            assert again.sequences < 11
            capture(again, sequences(), by_logits(teacher, WORDS))
        store = TeacherStore(tmp_path / "again")
        for a, b in zip(store.range(0, store.tokens), whole.range(0, whole.tokens), strict=True):
            assert (a == b).all()


def test_a_kill_between_shard_and_card_doubles_nothing(tmp_path):
    """The shard is there and listed, its waiting file not yet gone."""
    writer = Writer(tmp_path, CARD, shard_tokens=10_000)
    capture(writer, sequences(), by_logits(teacher, WORDS))
    left = writer._pending.read_bytes()
    name = writer._pending.name
    writer.close()
    (tmp_path / name).write_bytes(left)
    with Writer(tmp_path, CARD) as again:
        assert again.sequences == 12
        capture(again, sequences(), by_logits(teacher, WORDS))
    assert len(TeacherStore(tmp_path)) == 12


def test_another_tokenizer_teacher_or_k_is_refused(tmp_path):
    store = written(tmp_path)
    store.check("abc", WORDS)
    with pytest.raises(ValueError, match="needs one tokenizer"):
        store.check("abd", WORDS)
    with pytest.raises(ValueError, match="needs one tokenizer"):
        store.check("abc", WORDS + 1)
    with pytest.raises(ValueError, match="whose top_k is 32, not 16"):
        Writer(tmp_path, Card("a teacher", "abc", WORDS, 16))
    with pytest.raises(ValueError, match="allowed: 1 to the vocabulary's 500"):
        Card("a teacher", "abc", WORDS, 501)


def test_damage_is_named(tmp_path):
    written(tmp_path, shard_tokens=1000)
    shard = sorted(tmp_path.glob("shard-*"))[1]
    good = shard.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
        shard.write_bytes(bytes(bad) if rng.random() < 0.7 else bytes(bad)[: rng.integers(len(bad))])
        with pytest.raises(ValueError, match=shard.name):
            store = TeacherStore(tmp_path)
            store.range(0, store.tokens)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        TeacherStore(tmp_path)
    with pytest.raises(ValueError, match=r"no store\.json"):
        TeacherStore(tmp_path / "elsewhere")
    card = json.loads((tmp_path / "store.json").read_text())
    card["shards"][0]["name"] = "../outside"
    (tmp_path / "store.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="outside its own directory"):
        TeacherStore(tmp_path)


def test_a_teacher_that_breaks_down_is_named(tmp_path):
    writer = Writer(tmp_path, CARD)
    with pytest.raises(ValueError, match="not finite"):
        capture(writer, sequences(), by_logits(lambda ids: teacher(ids) * np.nan, WORDS))
    with pytest.raises(ValueError, match=r"logits of shape .* 500 words"):
        capture(writer, sequences(), by_logits(lambda ids: teacher(ids)[:, 1:], WORDS))


def test_packed_batches_carry_the_teacher_of_each_token(tmp_path):
    store = written(tmp_path, shard_tokens=1000)

    def columns(start, stop):
        t = store.range(start, stop)
        return {"teacher_ids": torch.from_numpy(t.ids), "teacher_mass": torch.from_numpy(t.mass)}

    documents = [Document(ids.tolist()) for ids in store.sequences()]
    batches = PackedBatches(documents, rows=2, length=300, seed=1, pad_id=0, columns=columns)
    for _ in range(8):
        batch = next(batches)
        expected, _, mass = truncate(teacher(batch["input_ids"].flatten()), K)
        assert (batch["teacher_ids"].flatten(0, 1).numpy() == expected).all()
        np.testing.assert_allclose(batch["teacher_mass"].flatten().numpy(), mass, rtol=1e-3)


@pytest.mark.parametrize("closed", [False, True])
def test_other_texts_are_not_taken_for_a_capture_that_goes_on(tmp_path, closed):
    """Counted by number alone, the first of them would be missing, and nothing would say so."""
    writer = Writer(tmp_path, CARD)
    capture(writer, sequences()[:6], by_logits(teacher, WORDS))
    if closed:
        writer.close()
    for others, says in ((sequences(seed=1), "its sequence 6 is another one"), (sequences()[:5], "holds 6 sequences")):
        with pytest.raises(ValueError, match=says), Writer(tmp_path, CARD) as again:
            capture(again, others, by_logits(teacher, WORDS))
    with Writer(tmp_path, CARD) as again:
        capture(again, sequences(), by_logits(teacher, WORDS))
    assert [list(s) for s in TeacherStore(tmp_path).sequences()] == [list(s) for s in sequences()]
