"""The loop on a real small hybrid model: exact resume, accumulation, health, the packing probe, a clean stop."""

import math
import os
import resource
import signal
import time

import pytest
import torch
from torch import nn

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.model import Lfm2
from headwater.objectives.next_token import next_token
from headwater.train.loop import Plan, Unhealthy, run_head, train
from headwater.train.optim import adamw
from headwater.train.probe import check_packing
from headwater.train.schedule import Cosine

SCHEDULE = Cosine(steps=12, warmup=2)


def make_model(seed=0):
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(theta=1e4))
    layers = stack("CAC", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=48))
    config = Config(vocab_size=61, hidden_size=32, layers=layers, max_positions=64)
    return Lfm2(config, generator=torch.Generator().manual_seed(seed))


def make_batches(rows=4, *, seed=0):
    generator = torch.Generator().manual_seed(7)
    documents = [Document(torch.randint(1, 61, (n,), generator=generator).tolist()) for n in (9, 14, 5, 21, 11, 8, 17)]
    return PackedBatches(documents, rows=rows, length=16, seed=seed, pad_id=0)


class Losses(list):
    def __call__(self, step):
        self.append((step.done.step, step.done.metrics["loss"], step.gradient_norm, step.lr))


def run(steps, *, model=None, batches=None, checkpoint=None, hooks=(), **plan):
    model = model or make_model()
    losses = Losses()
    result = train(
        model,
        batches or make_batches(),
        next_token,
        adamw(model, lr=1e-2),
        SCHEDULE,
        plan=Plan(steps=steps, **plan),
        hooks=[losses, *hooks],
        checkpoint=checkpoint,
    )
    return model, losses, result


def test_training_learns_and_counts():
    _, losses, result = run(12)
    assert losses[-1][1] < losses[0][1] - 0.5
    assert result.finished
    assert result.done.step == 12
    assert result.done.tokens == 12 * 4 * 16
    assert [lr for *_, lr in losses] == pytest.approx([1e-2 * SCHEDULE(s) for s in range(12)])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_exact(tmp_path, accumulate):
    """Pitfall C9.8: 2N steps and N + a fresh process + N give the same losses and weights, bit for bit."""
    straight_model, straight, _ = run(12, accumulate=accumulate)
    path = tmp_path / "run.checkpoint"
    _, first, _ = run(5, accumulate=accumulate, checkpoint=path)
    torch.rand(3)  # the generator's state comes from the file
    model, second, result = run(12, model=make_model(seed=9), accumulate=accumulate, checkpoint=path)
    assert result.resumed_at == 5
    assert first + second == straight
    for (name, a), b in zip(model.state_dict().items(), straight_model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    _, none, again = run(12, checkpoint=path)
    assert again.finished
    assert again.resumed_at == 12
    assert not none


def test_resume_restores_the_random_generator(tmp_path):
    """Dropout draws from torch's generator: without its state a resumed run would draw other masks."""

    def make():
        torch.manual_seed(0)
        layers = [nn.Embedding(61, 16), nn.Dropout(0.5), nn.Linear(16, 61)]
        return nn.Sequential(*layers)

    def go(steps, path):
        model, losses = make(), Losses()
        train(
            model, make_batches(), next_token, adamw(model, lr=1e-2), SCHEDULE, plan=Plan(steps=steps),
            forward=lambda m, batch: m(batch["input_ids"]), hooks=[losses], checkpoint=path,
        )  # fmt: skip
        return losses

    # no layer of this model mixes positions, so the packing probe lets it pass
    straight = go(8, None)
    assert go(4, tmp_path / "c") + go(8, tmp_path / "c") == straight


def test_accumulated_micro_batches_equal_one_large_batch():
    """Also when they have very different numbers of targets: the mean is over targets, not over micro-batches."""

    class Fixed:
        def __init__(self, batches):
            self.batches = iter(batches)

        def __next__(self):
            return next(self.batches)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    large = next(make_batches(rows=4))
    large["loss_mask"][0, 2:] = False
    large["loss_mask"][1, 5:] = False
    rows = [{k: v[i : i + 1] for k, v in large.items()} for i in range(4)]
    whole, whole_losses, _ = run(1, batches=Fixed([large]))
    parts, parts_losses, _ = run(1, batches=Fixed(rows), accumulate=4)
    assert parts_losses[0][1:] == pytest.approx(whole_losses[0][1:], rel=1e-5)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
    model = make_model()
    seen = []
    optimizer = adamw(model, lr=1e-3)
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
    )
    norms = Losses()
    plan = Plan(steps=3, clip=0.05)
    train(model, make_batches(), next_token, optimizer, SCHEDULE, plan=plan, hooks=[norms])
    assert all(norm > 0.05 for _, _, norm, _ in norms)
    assert seen == pytest.approx([0.05] * 3, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights():
    model = make_model()
    with torch.no_grad():
        model.embedding_norm.weight[0] = math.inf
    before = [p.clone() for p in model.layers.parameters()]
    with pytest.raises(Unhealthy, match=r"step 1: the loss is (nan|inf)"):
        train(model, _unpacked(make_batches()), next_token, adamw(model, lr=1e-2), SCHEDULE, plan=Plan(steps=1))
    assert all(torch.equal(a, b) for a, b in zip(before, model.layers.parameters(), strict=True))


def test_a_gradient_of_zero_or_none_stops():
    model = make_model()

    def flat(logits, batch):
        return (logits * 0.0).sum() + 1.0, {"weight": torch.tensor(1.0)}

    def unrelated(logits, batch):
        return torch.ones((), requires_grad=True) * 2.0, {"weight": torch.tensor(1.0)}

    for objective, message in ((flat, r"gradient norm is 0\.0"), (unrelated, "no parameter got a gradient")):
        with pytest.raises(Unhealthy, match=message):
            train(model, make_batches(), objective, adamw(model, lr=1e-2), SCHEDULE, plan=Plan(steps=1))


def test_an_empty_mask_stops_and_names_the_step():
    class Masked(PackedBatches):
        def __next__(self):
            batch = super().__next__()
            batch["loss_mask"].zero_()
            return batch

    batches = Masked([Document(list(range(1, 30)))], rows=2, length=16, seed=0, pad_id=0)
    with pytest.raises(ValueError, match="step 1: no position of this batch has a target"):
        run(3, batches=batches)


class Leaky(nn.Module):
    """Honours segment_ids in attention and positions but lets the convolution read on, as real trainers did (C2.1)."""

    def __init__(self):
        super().__init__()
        self.inner = make_model()
        for block in self.inner.layers:
            if hasattr(block, "conv"):
                block.conv.register_forward_pre_hook(self._hide_segments)

    @staticmethod
    def _hide_segments(_module, arguments):
        layout = arguments[1]
        hidden = type("Hidden", (), {"__getattr__": lambda _, name: getattr(layout, name)})()
        hidden.segments_after = lambda count: None
        return (arguments[0], hidden, *arguments[2:])

    def forward(self, input_ids, segment_ids=None):
        return self.inner(input_ids, segment_ids=segment_ids)


def test_the_probe_lets_the_real_model_pass_and_refuses_a_leak():
    ids = torch.arange(1, 33)

    def forward(model, batch):
        return model(batch["input_ids"], segment_ids=batch["segment_ids"])

    assert check_packing(make_model(), forward, ids) < 1e-5
    with pytest.raises(ValueError, match="packing probe"):
        check_packing(Leaky(), forward, ids)
    with pytest.raises(ValueError, match="packing probe"):
        check_packing(make_model(), lambda model, batch: model(batch["input_ids"]), ids)
    with pytest.raises(ValueError, match="at least 8 ids"):
        check_packing(make_model(), forward, ids[:7])


def test_the_loop_refuses_to_train_a_leaking_model_on_packed_batches():
    model = Leaky()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="packing probe"):
        run(3, model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training, "the probe leaves the mode as it was"


def _unpacked(batches):
    """Batches of one document a row: without segment_ids the probe has nothing to check."""

    class Plain:
        def __next__(self):
            return {"input_ids": next(batches)["input_ids"]}

        state_dict, load_state_dict = batches.state_dict, batches.load_state_dict

    return Plain()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_update_and_the_run_goes_on_exactly(tmp_path, number):
    _, straight, _ = run(12)
    path = tmp_path / "c"
    before = signal.getsignal(number)

    def interrupt(step):
        if step.done.step == 4:
            os.kill(os.getpid(), number)

    _, first, result = run(12, checkpoint=path, hooks=[interrupt])
    assert not result.finished
    assert result.done.step == len(first)
    assert 4 <= len(first) <= 5
    assert signal.getsignal(number) == before
    _, second, result = run(12, checkpoint=path)
    assert result.finished
    assert first + second == straight


def test_weights_that_are_not_finite_are_named_before_training():
    model = make_model()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="not finite before any training"):
        run(2, model=model)


def test_products_of_a_fused_head_have_the_dtype_that_is_asked_for():
    seen = []

    def objective(outputs, batch):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return next_token(outputs, batch)

    for autocast in (torch.bfloat16, None):
        model = make_model()
        train(
            model, make_batches(), objective, adamw(model, lr=1e-3), SCHEDULE, plan=Plan(steps=1, autocast=autocast),
            forward=run_head,
        )  # fmt: skip
    assert seen[0] == (True, torch.bfloat16)
    assert not seen[1][0]


def test_a_call_whose_time_is_over_saves_and_the_run_goes_on_exactly(tmp_path):
    _, straight, _ = run(12)
    path, calls = tmp_path / "c", []
    while not calls or not calls[-1][1].finished:
        calls.append(run(12, checkpoint=path, seconds=0.2, hooks=[lambda _: time.sleep(0.3)])[1:])
        assert len(calls[-1][0]) <= 1
    assert [step for losses, _ in calls for step in losses] == straight
    assert run(12, seconds=1e-9)[2].done.step == 0


def test_a_full_disk_ends_a_run_that_goes_on_from_its_last_save(tmp_path):
    _, straight, _ = run(12)
    first = run(4, checkpoint=tmp_path / "c")[1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(OSError, match="c: a checkpoint was not written, the one before it stays"):
            run(12, checkpoint=tmp_path / "c", save_every=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    _, rest, result = run(12, checkpoint=tmp_path / "c")
    assert result.resumed_at == 4
    assert first + rest == straight


def test_a_run_that_dies_goes_on_from_its_last_save(tmp_path):
    _, straight, _ = run(12)

    def die(step):
        if step.done.step == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(12, checkpoint=tmp_path / "c", save_every=3, hooks=[die])
    _, rest, result = run(12, checkpoint=tmp_path / "c", save_every=3)
    assert result.resumed_at == 6
    assert rest == straight[6:]


def test_evaluation_runs_when_due_and_at_the_end_in_eval_mode():
    seen = []
    model = make_model()

    def evaluate(m):
        assert not m.training
        assert not torch.is_grad_enabled()
        return {"bits": 1.0}

    train(
        model, make_batches(), next_token, adamw(model, lr=1e-3), SCHEDULE, plan=Plan(steps=5, evaluate_every=2),
        evaluate=evaluate, hooks=[lambda s: seen.append(s.evaluation)],
    )  # fmt: skip
    assert seen == [{}, {"bits": 1.0}, {}, {"bits": 1.0}, {"bits": 1.0}]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate is 0"),
        ({"steps": 1, "clip": 0}, "clip is 0"),
        ({"steps": 1, "seconds": 0}, "seconds is 0"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        Plan(**plan)
