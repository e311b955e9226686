"""Token shards: every token of every text, any number of shards, exact resume, damage by name; and training on them."""

import json
from collections import Counter

import numpy as np
import pytest
import safetensors.numpy
import torch

from headwater import Tokenizer, cli
from headwater.data.plan import Plan
from headwater.data.run import run
from headwater.data.stream import ShardBatches, open_shard, permuted
from headwater.files import read_json

TEXTS = [f"The river {i} runs to the sea. " * (1 + i % 9) + "é水" * (i % 3) for i in range(120)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


@pytest.fixture(scope="module")
def packed(source, tiny_model, tmp_path_factory):
    """A folder of three token shards."""
    out = tmp_path_factory.mktemp("packed") / "out"
    run(plan(source, tiny_model), out, workers=0, shards=3)
    return out


def plan(source, tiny_model, **changes):
    output = {"form": "tokens", "tokenizer": str(tiny_model)}
    return Plan.from_dict({"sources": [str(source)], "output": output, "unit_bytes": 2000} | changes)


def documents(folder):
    """The ids of every document, in order."""
    found = []
    for file in sorted((folder / "shards").iterdir()):
        shard = open_shard(file)
        found += [shard.ids[a:b].tolist() for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)]
    return found


def test_shards_hold_every_text_between_its_marks(packed, tiny_model):
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    wanted = [[tokenizer.bos_id, *tokenizer.encode(t), tokenizer.eos_ids[0]] for t in TEXTS]
    assert documents(packed) == wanted
    report = read_json(packed / "report.json")
    assert report["tokens"] == sum(map(len, wanted))
    assert report["documents"] == len(TEXTS)


def test_a_shard_is_a_plain_safetensors_file(packed):
    file = packed / "shards" / "shard-00001-of-00003.safetensors"
    tables, mine = safetensors.numpy.load_file(file), open_shard(file)
    assert tables["ids"].dtype == np.uint16
    assert all(np.array_equal(tables[name], getattr(mine, name)) for name in ("ids", "offsets", "documents"))


@pytest.mark.parametrize("shards", [1, 8])
def test_any_number_of_shards_holds_the_same(packed, source, tiny_model, tmp_path, shards):
    run(plan(source, tiny_model), tmp_path / "out", workers=0, shards=shards)
    assert documents(tmp_path / "out") == documents(packed)


def test_what_dedup_drops_is_not_tokenised(source, tiny_model, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text(source.read_text() * 2)
    run(plan(twice, tiny_model, steps=["exact"]), tmp_path / "out", workers=0)
    assert len(documents(tmp_path / "out")) == len(TEXTS)


def test_marks_of_filling_in_are_control_tokens_and_other_text_is_not(tmp_path, tiny_model):
    code = [f"def f{i}(x):\n    return x + {i}  # <|fim_pre|>" if i == 3 else f"def f{i}(x):\n    return x + {i}\n" * 3
            for i in range(8)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in code))
    values = {"sources": [{"path": str(tmp_path / "a.jsonl"), "add": {"kind": "code"}}], "unit_bytes": 1 << 20}
    run(
        plan(tmp_path / "a.jsonl", tiny_model, steps=[{"step": "fim", "share": 1.0}], **values),
        tmp_path / "o",
        workers=0,
    )
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    marks = [tokenizer.id_of(f"<|fim_{name}|>") for name in ("pre", "mid", "suf")]
    for number, (ids, text) in enumerate(zip(documents(tmp_path / "o"), code, strict=True)):
        counts = [ids.count(mark) for mark in marks]
        if number == 3:
            assert counts == [0, 0, 0]
            assert tokenizer.decode(ids) == text
        else:
            assert counts == [1, 1, 1]
            assert sorted(tokenizer.decode(ids)) == sorted(text)


def test_an_epoch_gives_every_token_once_and_keeps_documents_together(packed):
    batches = ShardBatches(packed, rows=1, length=50, seed=4, verify=True)
    wanted = Counter(map(tuple, documents(packed)))
    flat = []
    while batches.epoch == 0:
        batch = next(batches)
        assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
            "input_ids": ((1, 50), torch.int64), "segment_ids": ((1, 50), torch.int64),
            "loss_mask": ((1, 50), torch.bool),
        }  # fmt: skip
        flat += batch["input_ids"][0].tolist()
        segments = batch["segment_ids"][0]
        assert segments[0] == 0
        assert set(segments.diff().tolist()) <= {0, 1}
        begins = torch.cat([torch.tensor([True]), segments.diff() == 1])
        assert all(batch["input_ids"][0][1:][begins[1:]] == flat_bos(packed))
    bos = flat_bos(packed)
    starts = [i for i, token in enumerate(flat) if token == bos]
    found = Counter(tuple(flat[a:b]) for a, b in zip(starts, [*starts[1:], len(flat)], strict=True))
    assert sum((wanted & found).values()) >= len(TEXTS) - 1  # the last may be cut by the next epoch


def flat_bos(folder):
    return documents(folder)[0][0]


def test_resume_is_exact_and_refuses_other_data(packed, source, tiny_model, tmp_path):
    def fresh(**changes):
        return ShardBatches(packed, **{"rows": 2, "length": 33, "seed": 7} | changes)

    one = fresh()
    for _ in range(250):
        next(one)
    assert one.epoch > 0
    state = json.loads(json.dumps(one.state_dict()))
    other = fresh()
    other.load_state_dict(state)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(next(one).values(), next(other).values(), strict=True))
    with pytest.raises(ValueError, match="seed 7, these shards 8"):
        fresh(seed=8).load_state_dict(state)
    assert not torch.equal(next(fresh())["input_ids"], next(fresh(seed=8))["input_ids"])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
def test_the_order_is_a_permutation_that_seed_and_epoch_choose(size):
    orders = [[permuted(i, size, seed, epoch) for i in range(size)] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 60:
        assert orders[0] != orders[1] != orders[2]
        assert abs(np.corrcoef(orders[0], range(size))[0, 1]) < 0.4


def test_damage_is_named(packed, source, tiny_model, tmp_path):
    out = tmp_path / "out"
    run(plan(source, tiny_model), out, workers=0)
    file = out / "shards" / "shard-00000-of-00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ShardBatches(out, rows=1, length=8, seed=0)
    with pytest.raises(ValueError, match="damaged: not what the manifest says"):
        ShardBatches(out, rows=1, length=8, seed=0, verify=True)
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        ShardBatches(out, rows=1, length=8, seed=0)
    with pytest.raises(ValueError, match="cut short"):
        open_shard(file)
    file.write_bytes(b"\x10\0\0\0\0\0\0\0no json here at all")
    with pytest.raises(ValueError, match="no token shard"):
        open_shard(file)
    file.unlink()
    with pytest.raises(ValueError, match="is gone"):
        ShardBatches(out, rows=1, length=8, seed=0)
    with pytest.raises(ValueError, match="no finished run"):
        ShardBatches(tmp_path, rows=1, length=8, seed=0)


def test_the_loop_trains_on_shards_and_resumes(packed, tiny_model, tmp_path):
    from headwater import Lfm2
    from headwater.objectives.next_token import next_token
    from headwater.train.loop import Plan as Steps
    from headwater.train.loop import train
    from headwater.train.optim import adamw
    from headwater.train.schedule import Cosine

    def go(steps, checkpoint):
        torch.manual_seed(0)
        model = Lfm2.from_pretrained(tiny_model)
        batches = ShardBatches(packed, rows=2, length=32, seed=1)
        return train(
            model, batches, next_token, adamw(model, lr=1e-2), Cosine(steps=6), plan=Steps(steps=steps),
            checkpoint=checkpoint,
        ).done.metrics["loss"]  # fmt: skip

    go(3, tmp_path / "half.checkpoint")
    assert go(6, tmp_path / "half.checkpoint") == go(6, tmp_path / "whole.checkpoint")


def test_the_command_packs(source, tiny_model, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.run(["data", "pack", str(source), "--tokenizer", str(tiny_model), "--out", out, "--workers", "0"]) == 0
    assert "tokens in 1 shards" in capsys.readouterr().out
    assert cli.run(["data", "show", out]) == 2
    assert "holds tokens" in capsys.readouterr().err
