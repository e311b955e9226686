"""The state file of a run: refused when it is another run's, damaged or hostile; never half-written."""

import os
import pickle

import pytest
import torch
from torch import nn

from headwater.data.pack import Document, PackedBatches
from headwater.files import atomic
from headwater.train import checkpoint
from headwater.train.checkpoint import Counters
from headwater.train.optim import adamw


def parts(width=4):
    model = nn.Linear(3, width)
    batches = PackedBatches([Document([1, 2, 3, 4])], rows=1, length=4, seed=0, pad_id=0)
    return model, adamw(model, lr=1e-3), batches


def saved(path, identity=None):
    things = parts()
    checkpoint.save(path, *things, counters=Counters(3, 12, 0.5, {"loss": 2.0}), identity=identity or {"seed": 1})
    return things


def test_round_trip(tmp_path):
    model, _, batches = saved(tmp_path / "c")
    next(batches)
    other, optimizer, fresh = parts()
    counters = checkpoint.load(tmp_path / "c", other, optimizer, fresh, identity={"seed": 1})
    assert counters == Counters(3, 12, 0.5, {"loss": 2.0})
    assert torch.equal(other.weight, model.weight)
    assert os.listdir(tmp_path) == ["c"]


def test_another_identity_or_shape_is_named_and_nothing_is_loaded(tmp_path):
    saved(tmp_path / "c")
    things = parts()
    with pytest.raises(ValueError, match="seed: 1 then, 2 now"):
        checkpoint.load(tmp_path / "c", *things, identity={"seed": 2})
    things = parts(width=5)
    before = things[0].weight.clone()
    with pytest.raises(ValueError, match=r"tensor 'bias' is \(4,\) in the file and \(5,\) in the model"):
        checkpoint.load(tmp_path / "c", *things, identity={"seed": 1})
    assert torch.equal(things[0].weight, before)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "foreign"])
def test_a_damaged_file_is_a_clear_error(tmp_path, damage):
    path = tmp_path / "c"
    saved(path)
    content = path.read_bytes()
    if damage == "foreign":
        torch.save({"some": "thing"}, path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"not a checkpoint", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"is not a (readable )?checkpoint.*delete it and start over"):
        checkpoint.load(path, *parts(), identity={"seed": 1})


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, write):
    trap = tmp_path / "ran"
    if write == "torch":
        torch.save({"format": 1, "x": Hostile(trap)}, tmp_path / "c")
    else:
        (tmp_path / "c").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        checkpoint.load(tmp_path / "c", *parts(), identity={})
    assert not trap.exists()


def test_a_failing_save_keeps_the_last_file(tmp_path):
    path = tmp_path / "c"
    model, optimizer, batches = saved(path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="local"):
        checkpoint.save(path, model, optimizer, batches, counters=Counters(), identity={"not plain": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c"]


def test_what_a_kill_left_beside_the_file_is_removed(tmp_path):
    """Each would be as large as the checkpoint; a file that is being written for another one stays."""
    killed, writing = atomic(tmp_path / "c"), atomic(tmp_path / "c.2")
    left, others = killed.__enter__(), writing.__enter__()
    left.write_bytes(b"half a checkpoint")
    saved(tmp_path / "c")
    assert not left.exists()
    assert others.exists()
