"""Checkpoints of runs over ranks: killed at any point, resumed on any number of ranks, damaged, on a full disk."""

import json
import pickle
import random
import re
import resource
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranked import Job, launch, make_batches, row_hashes, run

from headwater.train import dcp

STEADY = Job(mesh={}, lr=1e-3, plan={"steps": 8, "save_every": 2})
SPARSE = Job(mesh={"experts": 2}, model={"experts": 4}, balanced=True, plan={"steps": 3, "save_every": 2})


def lines(log):
    """Every line that any rank wrote, in order: what a kill cut short is left out."""
    found = []
    for path in log.parent.glob(f"{log.stem}.*"):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                assert line == path.read_text().splitlines()[-1]
    return found


def losses(log):
    """{step: every loss that was computed for it}"""
    found = {}
    for line in lines(log):
        found.setdefault(line["step"], set()).add(float.fromhex(line["loss"]))
    return found


def endure(job, worlds, kills, seed, folder):
    """Kill the run `kills` times at random points of training and saving, and let it end. (times resumed, log)."""
    chance, log, resumed = random.Random(seed), folder / "log.x", 0
    log.parent.mkdir()
    for _ in range(kills):
        world = chance.choice(worlds)
        enough = len(lines(log)) + world * chance.randint(0, 6)
        delay, seen = chance.random() * 0.15, []

        def due(enough=enough, delay=delay, seen=seen):
            if not seen and len(lines(log)) >= enough:
                seen.append(time.monotonic() + delay)
            return bool(seen) and time.monotonic() >= seen[0]

        assert launch(world, run, job, folder / "kept", (), None, log, kill=due) is None
        for path in log.parent.glob("log.*"):  # a line that a kill cut short would swallow the next one
            path.write_text("".join(x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")))
        resumed += any((folder / "kept").glob("step-*"))
    last = launch(worlds[0], run, job, folder / "kept", (), None, log)
    return resumed, log, last[0]["weights"]


def hold_to(job, log):
    """Each update of each attempt read the rows of one process's stream."""
    stream, wanted = make_batches(**job.batches), {}
    for step in range(1, job.plan["steps"] + 1):
        wanted[step] = set(row_hashes(next(stream)))
    read = {}
    for line in lines(log):
        assert set(line["rows"]) <= wanted[line["step"]]
        read.setdefault(line["step"], set()).update(line["rows"])
    assert read == wanted


def check_kills(tmp_path, kills):
    """kill -9 and resume on two ranks: the same losses and weights to the last bit as if nothing had happened."""
    job = replace(STEADY, plan={"steps": 6 * kills + 2, "save_every": 2})
    (tmp_path / "straight").mkdir()
    straight = launch(2, run, job, None, (), None, tmp_path / "straight" / "log.x")
    resumed, log, weights = endure(job, [2], kills, 1, tmp_path / "killed")
    assert resumed >= kills // 3
    assert losses(log) == losses(tmp_path / "straight" / "log.x")
    hold_to(job, log)
    for name, tensor in straight[0]["weights"].items():
        assert np.array_equal(weights[name], tensor), name
    return job


def check_elastic(tmp_path, job, kills):
    """The same on 1, 2 or 4 ranks, another number after each kill: the same rows, losses to 1e-6."""
    resumed, log, _ = endure(job, [1, 2, 4], kills, 2, tmp_path / "elastic")
    assert resumed >= kills // 3
    hold_to(job, log)
    (tmp_path / "one").mkdir()
    run(replace(job, mesh=None), None, (), None, tmp_path / "one" / "log.x")
    one = losses(tmp_path / "one" / "log.x")
    for step, found in losses(log).items():
        for loss in found:
            assert loss == pytest.approx(*one[step], rel=1e-6, abs=1e-6), step


def test_killed_runs_go_on_as_if_nothing_had_happened(tmp_path):
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_killed_at_twenty_points(tmp_path):
    job = check_kills(tmp_path, 20)
    check_elastic(tmp_path, job, 20)


def save_late(folder):
    """Training goes on while step 2 is being written, and what is written is step 2. Then the disk is full."""
    done, save = threading.Event(), dcp.torch_dcp.save

    def late(*arguments, **options):
        assert done.wait(900)
        return save(*arguments, **options)

    def hook(step):
        if step.done.step == 3:
            done.set()

    hook.every_rank = True
    dcp.torch_dcp.save = late
    first = run(SPARSE, folder, [hook])
    dcp.torch_dcp.save = save
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return first


def go_on(folder, job, limit=None):
    """Resume; the result, or what was raised. limit: bytes that a file may have, as on a full disk."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        return run(job, folder)
    except (ValueError, OSError) as e:
        return f"{type(e).__name__}: {e}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def go_on_each(cases):
    torch.distributed.init_process_group("gloo")
    return [go_on(*case) for case in cases]


class Bomb:
    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_step(path):
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))


DAMAGE = {
    "shard .*__1_0.distcp is damaged.*remove .*step-00000003: the run goes on from step-00000002":
        lambda d: flip(d / "__1_0.distcp"),
    "shard .*__0_0.distcp is missing.*bring the file back": lambda d: (d / "__0_0.distcp").unlink(),
    "run.json is damaged": lambda d: other_step(d / "run.json"),
    "run.json is missing": lambda d: (d / "run.json").unlink(),
    ".metadata is damaged .*builtins.print": lambda d: (d / ".metadata").write_bytes(pickle.dumps(Bomb())),
    r".metadata is damaged \(": lambda d: (d / ".metadata").write_bytes(b"\x80"),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dcp") / "kept"
    launch(2, save_late, folder)
    return folder


def test_damage_is_named_on_every_rank_and_the_checkpoint_before_it_serves(kept, tmp_path, capfd):
    longer = replace(SPARSE, plan={"steps": 6, "save_every": 2})
    cases = []
    for i, spoil in enumerate(DAMAGE.values()):
        shutil.copytree(kept, tmp_path / str(i))
        spoil(tmp_path / str(i) / "step-00000003")
        cases.append((tmp_path / str(i), longer))
    others = {
        "tensor .* is .* there, .* here": replace(longer, model={"experts": 2}),
        "was made with another optimizer": replace(longer, plain_steps=True),
        "other data or settings": replace(longer, batches={"seed": 1}),
    }
    cases += [(kept, job) for job in others.values()]
    full = tmp_path / "full"
    shutil.copytree(kept, full)
    cases.append((full, longer, 30_000))
    for name in ("step-00000003", "stale"):
        shutil.copytree(kept, tmp_path / name)
    shutil.rmtree(tmp_path / "step-00000003" / "step-00000003")
    for step in (4, 5):
        (tmp_path / "stale" / f".step-0000000{step}.part").mkdir()
        (tmp_path / "stale" / f".step-0000000{step}.part" / "junk").write_text("a kill left this")
    cases += [(tmp_path / "step-00000003", longer), (tmp_path / "stale", longer)]
    first, second = launch(2, go_on_each, cases)
    *faults, full_disk, from_two, from_three = first
    assert faults == second[: len(faults)]
    for found, pattern in zip(faults, [*DAMAGE, *others], strict=True):
        assert isinstance(found, str), f"{pattern}: nothing was raised"
        assert found.startswith("ValueError")
        assert re.search(pattern, found), f"{pattern}: {found}"
    assert "a checkpoint ran code" not in capfd.readouterr().out
    assert full_disk.startswith("OSError")
    assert "the one before it stays" in full_disk
    assert sorted(p.name for p in full.glob("step-*")) == ["step-00000002", "step-00000003"]
    assert [from_two["resumed_at"], from_three["resumed_at"]] == [2, 3]
    assert from_two["steps"][1:] == from_three["steps"]
    assert not list((tmp_path / "stale").glob(".step*"))


@pytest.mark.parametrize("mesh", [{"experts": 4}, {"replicas": 2, "context": 2}])
def test_a_run_with_experts_goes_on_with_other_ranks(kept, tmp_path, mesh):
    """Two ranks with two experts each, then four: the losses of one process that was never stopped."""
    shutil.copytree(kept, tmp_path / "kept")
    longer = replace(SPARSE, mesh=mesh, plan={"steps": 5})
    one = run(replace(longer, mesh=None))
    many = launch(4, run, longer, tmp_path / "kept")[0]
    assert many["resumed_at"] == 3
    for (a, *_), (b, *_) in zip(many["steps"], one["steps"][3:], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6, abs=1e-6)


def test_one_process_refuses_a_directory(kept):
    with pytest.raises(ValueError, match="cure: go on with torchrun"):
        run(replace(SPARSE, mesh=None), kept)


def save_where_the_card_has_no_room(folder):
    """The disk is full when the first rank, which alone does it, comes to write run.json."""

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    dcp.write_json = full
    return go_on(folder, replace(STEADY, plan={"steps": 2}))


def test_what_one_rank_cannot_write_is_an_error_on_every_rank(tmp_path):
    first, second = launch(2, save_where_the_card_has_no_room, tmp_path / "kept")
    assert first == second
    assert first.startswith("OSError")
    assert "the one before it stays" in first
    assert "No space left on device" in first
    assert not list((tmp_path / "kept").glob("step-*"))


def go_twice(folder):
    torch.distributed.init_process_group("gloo")
    job = replace(STEADY, plan={"steps": 2}, identity={"layers": (1, 2), "widths": {3: 7}})
    run(job, folder)
    return run(replace(job, plan={"steps": 3}), folder)["resumed_at"], go_on(folder, replace(job, identity={}))


def test_settings_are_compared_as_they_come_back_from_the_disk(tmp_path):
    (resumed_at, other), _ = launch(2, go_twice, tmp_path / "kept")
    assert resumed_at == 2
    assert "belongs to a run with other settings" in other
