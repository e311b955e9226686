"""The health line on real tiny runs: silent on a sound one, and each fault, planted, is named."""

import math

import pytest
import torch
from tiny_runs import MOE, make_batches, make_model

from headwater.data.pack import Document, PackedBatches
from headwater.objectives.next_token import next_token
from headwater.train.balance import Balance
from headwater.train.checkpoint import Counters
from headwater.train.health import FINE, Health
from headwater.train.loop import Plan, Step, Unhealthy, train
from headwater.train.optim import adamw


def lines(model, steps=40, *, lr=3e-3, schedule=lambda step: 1.0, batches=None, hooks=(), **options):
    """The health line after each update of a run."""
    health = Health(model, **{"window": 20, "every": 5, **options})
    seen = []
    train(
        model, batches or make_batches(), next_token, adamw(model, lr=lr), schedule, plan=Plan(steps=steps),
        hooks=[*hooks, health, lambda step: seen.append(health.line)],
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("ffn", [None, MOE])
def test_a_sound_run_is_silent(ffn):
    assert set(lines(make_model(ffn), 80)) == {FINE}


def test_a_loss_that_does_not_move_is_stuck():
    """Planted: the learning rate is zero after ten updates, as a schedule that ends too early leaves it."""
    seen = lines(make_model(), 80, schedule=lambda step: 1.0 if step < 10 else 0.0)
    assert set(seen[:25]) == {FINE}
    stuck = [line for line in seen if line.startswith("the loss is stuck: ")]
    assert stuck
    assert stuck[0].endswith("no better since")


def test_a_loss_that_rises_is_named():
    """Planted: a learning rate that throws the weights about from update 20 on."""
    seen = lines(make_model(), 60, schedule=lambda step: 1.0 if step < 20 else 60.0)
    assert set(seen[:20]) == {FINE}
    assert any("the loss rises: " in line for line in seen[20:])


def test_an_exploding_gradient_is_named():
    """Planted: the final norm's gain is raised a thousandfold behind the back of the optimizer."""
    model = make_model()

    def spoil(step):
        if step.done.step == 30:
            with torch.no_grad():
                model.embedding_norm.weight *= 1000.0

    seen = lines(model, 31, hooks=[spoil])
    assert seen[29] == FINE
    assert seen[30].startswith("the gradient explodes: norm ")


def test_a_gradient_that_reaches_some_tensors_only_is_named():
    """Planted: the convolution's outcome is thrown away, so all that stands before it learns nothing."""
    model = make_model()
    model.layers[0].conv.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    seen = lines(model, 12)
    assert seen[0] == FINE, "one look is not enough: the first gradient of an adapter is zero"
    assert seen[-1].startswith("no gradient reaches 4 tensors (layers.0.conv.conv.weight, ")


def test_a_gradient_of_zero_everywhere_ends_the_run_and_is_named():
    model = make_model()
    model.embedding_norm.register_forward_hook(lambda module, given, out: out * 0.0)
    health = Health(model)
    with pytest.raises(Unhealthy, match=r"gradient norm is 0\.0"):
        train(
            model, make_batches(), next_token, adamw(model, lr=1e-3), lambda _: 1.0, plan=Plan(steps=3), hooks=[health]
        )
    assert "step 1: the gradient norm is 0.0" in health.line


def test_a_loss_that_is_not_finite_ends_the_run_and_is_named():
    model, health = make_model(), Health()

    def spoil(step):
        if step.done.step == 3:
            with torch.no_grad():
                model.layers[1].feed_forward.w2.weight[0, 0] = math.nan

    with pytest.raises(Unhealthy):
        train(
            model, make_batches(), next_token, adamw(model, lr=1e-3), lambda _: 1.0, plan=Plan(steps=9),
            hooks=[spoil, health],
        )  # fmt: skip
    assert health.line.startswith("step 4: the loss is nan")


def test_few_targets_are_named_and_none_end_the_run():
    assert set(lines(make_model(), 4, batches=make_batches(0.5))) == {FINE}

    class Sparse(PackedBatches):
        learnt = 2

        def __next__(self):
            batch = super().__next__()
            batch["loss_mask"] &= torch.arange(64) == 9
            batch["loss_mask"][self.learnt :] = False
            return batch

    def sparse(learnt):
        batches = Sparse([Document(list(range(1, 61)))], rows=4, length=64, seed=0, pad_id=0)
        batches.learnt = learnt
        return batches

    seen = lines(make_model(), 3, batches=sparse(2))
    assert seen[0] == "the loss mask is nearly empty: 2 targets in 256 tokens"
    model, health = make_model(), Health()
    with pytest.raises(ValueError, match="no position of this batch has a target"):
        train(
            model, sparse(0), next_token, adamw(model, lr=1e-3), lambda _: 1.0, plan=Plan(steps=3), hooks=[health]
        )  # fmt: skip
    assert "no position of this batch has a target" in health.line


@pytest.mark.parametrize("balanced", [False, True])
def test_a_collapsed_router_is_named_with_and_without_balancing(balanced):
    """Planted: a bias that sends every token to the same two of eight experts."""
    model = make_model(MOE)
    for layer in model.layers:
        layer.feed_forward.expert_bias[:2] = 5.0
    hooks = [Balance(model, rate=1e-6)] if balanced else []
    seen = lines(model, 8, hooks=hooks)
    assert "a router collapsed: 75% of the experts of a layer get no token" in seen[-1]
    assert all(layer.feed_forward.load is None for layer in model.layers)


def test_a_loss_that_falls_slowly_is_not_stuck_however_long_the_run():
    """A power law with noise, the shape of a long run: late on, the best is often hundreds of updates old."""
    health, noise = Health(window=50), torch.randn(6000, generator=torch.Generator().manual_seed(0))
    for n in range(1, 6001):
        loss = 2.0 + 4.0 * n**-0.3 + 0.05 * noise[n - 1].item()
        health(Step(6000, 1e-3, 1.0, 1000, 0.1, Counters(n, n, n, {"loss": loss, "weight": 900.0})))
        assert health.line == FINE, n


def test_impossible_windows_are_refused():
    with pytest.raises(ValueError, match="window is 1"):
        Health(window=1)
