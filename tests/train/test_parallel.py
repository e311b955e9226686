"""THE loop over real gloo processes: as one process computes it, however ranks, rows and experts are spread."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from ranked import Job, launch, make_batches, make_model, row_hashes, run, run_all, taught

from headwater.objectives.distill import distill
from headwater.objectives.next_token import next_token
from headwater.train.follow import Follow
from headwater.train.health import Health
from headwater.train.loop import Plan, Unhealthy, run_head, train
from headwater.train.optim import adamw
from headwater.train.parallel import Ranks
from headwater.train.schedule import Cosine

KD = Job(distilled=True, plan={"steps": 3})
EXPERTS = Job(model={"experts": 8}, balanced=True)
UNEVEN = Job(model={"width": 7}, batches={"length": 33}, plan={"steps": 3})
GRADIENTS = Job(model={"dtype": torch.float64}, plain_steps=True, plan={"steps": 1})
RAGGED = Job(batches={"rows": 2}, empty_rows=(1,), plan={"steps": 2, "accumulate": 2})
DENSE = Job()
ROUNDED = Job(products=torch.bfloat16, plan={"steps": 2})

CASES = {
    2: {
        "sharded": (DENSE, {}),
        "replicated": (DENSE, {"replicas": 2}),
        "distilled": (KD, {}),
        "context": (DENSE, {"context": 2}),
        "context, distilled": (KD, {"context": 2}),
        "context, width 7, 33 positions": (UNEVEN, {"context": 2}),
        "context, gradients": (GRADIENTS, {"context": 2}),
        "experts": (EXPERTS, {"experts": 2}),
        "a rank without a target": (RAGGED, {}),
    },
    4: {
        "sharded": (DENSE, {}),
        "hybrid, accumulated": (dataclasses.replace(DENSE, plan={"steps": 3, "accumulate": 2}), {"replicas": 2}),
        "whole micro-batches": (Job(batches={"rows": 1}, plan={"steps": 3, "accumulate": 4}), {}),
        "context": (DENSE, {"context": 4}),
        "context, width 7, gradients": (
            dataclasses.replace(GRADIENTS, model={"width": 7, "experts": 4, "dtype": torch.float64}),
            {"context": 2, "replicas": 2, "experts": 2},
        ),
        "experts, recomputed": (dataclasses.replace(EXPERTS, recompute=True), {"experts": 2}),
        "experts, one or two a rank": (EXPERTS, {"experts": 4, "context": 2}),
    },
}
NAMED = [(world, name) for world, cases in CASES.items() for name in cases]


@pytest.fixture(scope="module")
def results():
    """{(ranks, case): what each rank found}: one launch for each number of ranks."""
    found = {}
    for world, cases in CASES.items():
        jobs = [dataclasses.replace(job, mesh=mesh) for job, mesh in cases.values()]
        if world == 2:
            jobs.append(dataclasses.replace(ROUNDED, mesh={}))
        ranks = launch(world, run_all, jobs)
        for i, name in enumerate([*cases, "rounded"][: len(jobs)]):
            found[world, name] = [rank[i] for rank in ranks]
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process finds, by job."""
    found = {}

    def of(job):
        if repr(job) not in found:
            found[repr(job)] = run(job)
        return found[repr(job)]

    return of


@pytest.mark.parametrize(("world", "name"), NAMED)
def test_losses_norms_and_weights_are_those_of_one_process(results, alone, world, name):
    """To 1e-6 of the loss in fp32: cross-entropy and distillation, clipped and accumulated, balanced experts."""
    job, _ = CASES[world][name]
    one, many = alone(job), results[world, name]
    assert len(one["steps"]) == job.plan["steps"]
    for (a, norm_a, tokens_a), (b, norm_b, tokens_b) in zip(many[0]["steps"], one["steps"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6, abs=1e-6)
        assert a == pytest.approx(b, rel=1e-5)
        assert norm_a == pytest.approx(norm_b, rel=1e-5)
        assert tokens_a == tokens_b
    assert not many[1]["steps"], "hooks report on the first rank alone"
    tolerance = 1e-6 if job.plain_steps else 2e-4  # Adam turns the rounding of tiny gradients into steps
    start = make_model(**job.model).state_dict()
    for key, after in one["weights"].items():
        step = np.abs(after - start[key].numpy()).max()
        assert np.abs(many[0]["weights"][key] - after).max() <= tolerance * max(step, 1e-2 if job.plain_steps else 1), (
            key
        )


@pytest.mark.parametrize(("world", "name"), [(w, n) for w, n in NAMED if "context" not in CASES[w][n][1]])
def test_every_row_is_read_once_by_one_rank(results, world, name):
    """Pitfall C9.6: the union over ranks is the stream of one process, without a row twice."""
    job, _ = CASES[world][name]
    stream = make_batches(**job.batches)
    for at in range(job.plan["steps"]):
        count = job.plan.get("accumulate", 1)
        wanted = [row for _ in range(count) for row in row_hashes(next(stream))]
        each = len(results[world, name][0]["rows"]) // job.plan["steps"]
        read = [row for rank in results[world, name] for rows in rank["rows"][at * each :][:each] for row in rows]
        assert sorted(read) == sorted(wanted)


def test_products_in_bf16_train_fp32_weights(results, alone):
    rounded, one = results[2, "rounded"][0], alone(DENSE)
    assert rounded["weights"]["embed_tokens.weight"].dtype == np.float32
    for (a, *_), (b, *_) in zip(rounded["steps"], one["steps"], strict=False):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
        assert a["loss"] != b["loss"]


def test_a_convolution_exchanges_no_more_than_its_columns(results):
    """Bytes of a rank in one update: (width - 1) columns a convolution, keys and values of its run, both ways."""
    job, _ = CASES[2]["context, gradients"]
    rows, run_length, hidden, kv = 4, 16, 32, 2 * 2 * 8
    halo = rows * (2 + 6 + 2) * hidden * 8
    attention = 2 * rows * run_length * kv * 8
    probe_halo, probe_attention = halo // rows, attention // rows
    first, second = (rank["bytes"] for rank in results[2, "context, gradients"])
    assert job.plan == {"steps": 1}
    assert first == halo + probe_halo + 2 * attention + probe_attention  # to the right, forward
    assert second == halo + 2 * attention + probe_attention  # to the left, backward


def test_what_cannot_be_spread_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        Ranks()
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for option in ("replicas", "context", "experts"):
        with pytest.raises(ValueError, match=f"{option} is 3; it must divide the 2 ranks"):
            Ranks(**{option: 3})


FAULTS = {
    "experts=1": Job(mesh={"experts": 2}),
    "3 experts do not divide over 2 ranks": Job(mesh={"experts": 2}, model={"experts": 3}),
    "let rows or accumulate be a multiple": Job(mesh={}, batches={"rows": 3}),
    "longer rows or fewer context ranks": Job(mesh={"context": 2}, model={"width": 7}, batches={"length": 9}),
    "no position of this batch|no rank had a target": Job(mesh={}, empty_rows=(0, 1, 2, 3)),
}


def find_faults():
    torch.distributed.init_process_group("gloo")
    found = []
    for job in FAULTS.values():
        try:
            run(job)
        except ValueError as e:
            found.append(str(e))
    found.append(run_spoilt())
    return found


def run_spoilt():
    """The last rank's loss is not finite: every rank must stop, and say where it was."""
    rank = torch.distributed.get_rank()

    def spoil(outputs, batch):
        loss, metrics = next_token(outputs, batch)
        return loss * (math.nan if rank else 1.0), metrics

    try:
        run(Job(mesh={}), objective=spoil)
    except Unhealthy as e:
        return str(e)
    return "nothing was raised"


def test_a_fault_is_the_same_on_every_rank():
    """No rank waits for another that has left; the message names the cure, or the rank with the bad loss."""
    first, second = launch(2, find_faults)
    assert first == second
    *messages, spoilt = first
    for message, wanted in zip(messages, FAULTS, strict=True):
        assert any(part in message for part in wanted.split("|")), message
    assert "the loss is nan on rank 1" in spoilt


def metrics_of(objectives, *, experts):
    """Names of what each update of some runs reports, one run after the other over the same ranks."""
    seen = []
    with Ranks(experts=experts) as ranks:
        model = ranks.shard(make_model(experts=4 if experts > 1 else 0))
        optimizer = adamw(model, lr=1e-3)
        for objective in objectives:
            hooks = [Health(model), lambda s: seen.append(sorted(s.done.metrics))]
            train(
                model, make_batches(columns=taught), objective, optimizer, Cosine(steps=4), plan=Plan(steps=2),
                forward=run_head, hooks=hooks, ranks=ranks,
            )  # fmt: skip
    return seen


def test_a_second_run_over_the_same_ranks_reports_what_its_own_objective_does():
    first, second = launch(2, functools.partial(metrics_of, (next_token, distill, next_token), experts=1))
    labels, both = ["loss", "nll", "weight"], ["kd", "loss", "nll", "weight"]
    assert first == [labels] * 2 + [both] * 2 + [labels] * 2
    assert second == []


def test_the_first_rank_watches_experts_without_the_others():
    """Nobody balances here, so no other rank would take part in summing up the loads."""
    first, second = launch(2, functools.partial(metrics_of, (next_token,), experts=2))
    assert first == [["load_cv", "load_idle", "load_max", "loss", "nll", "weight"]] * 2
    assert second == []


def follow_with_samples(folder):
    with Ranks() as ranks:
        model = ranks.shard(make_model())
        Follow(folder, "quiet", model=model)
        try:
            Follow(folder, "x", model=model, samples=dict)
        except ValueError as e:
            return str(e)
    return "nothing was raised"


def test_samples_of_a_model_spread_over_ranks_are_refused(tmp_path):
    """One rank would wait for the others for ever: each layer is gathered from all of them."""
    first, second = launch(2, follow_with_samples, tmp_path)
    assert first == second
    assert "samples are written on the first rank alone" in first
