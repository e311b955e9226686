"""Router balancing: the load evens out, nothing else moves, resuming goes on with the same biases."""

import pytest
import torch

from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.model import Lfm2
from headwater.objectives.next_token import next_token
from headwater.train.balance import Balance
from headwater.train.loop import Plan, train
from headwater.train.optim import adamw

MOE = Moe(num_experts=8, num_experts_per_token=2, intermediate_size=16)


def made(seed=0, ffn=MOE):
    attention = Attention(num_heads=2, num_kv_heads=1, head_dim=8, rope=Rope(theta=1e4))
    layers = stack("CAC", {"C": ShortConv(width=3), "A": attention}, ffn)
    c = Config(vocab_size=64, hidden_size=16, layers=layers, max_positions=64)
    return Lfm2(c, generator=torch.Generator().manual_seed(seed))


def batches():
    g = torch.Generator().manual_seed(1)
    documents = [Document(torch.randint(64, (40,), generator=g).tolist()) for _ in range(20)]
    return PackedBatches(documents, rows=4, length=32, seed=0, pad_id=0)


def run(model, steps, hooks, **more):
    return train(
        model, batches(), next_token, adamw(model, lr=1e-4), lambda _: 1.0, plan=Plan(steps=steps), hooks=hooks, **more
    )


def test_the_load_evens_out_and_is_reported():
    seen = []
    model = made()
    for layer in model.layers:  # two experts that everyone wants
        layer.feed_forward.expert_bias[:2] = 2.0
    run(model, 120, [Balance(model, rate=0.05), lambda s: seen.append(dict(s.done.metrics))])
    assert seen[0]["load_max"] > 3
    assert seen[0]["load_idle"] > 0.5
    assert seen[-1]["load_max"] < 0.5 * seen[0]["load_max"]
    assert seen[-1]["load_idle"] == 0
    assert seen[-1]["load_cv"] < 0.5 * seen[0]["load_cv"]


def test_without_it_the_bias_stays_and_evaluation_counts_nothing():
    model = made()
    run(model, 3, [])
    assert all(not layer.feed_forward.expert_bias.any() for layer in model.layers)
    for layer in model.layers:
        layer.feed_forward.load = None
    model.eval()
    model(torch.zeros(1, 4, dtype=torch.int64))
    model.train()
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert all(layer.feed_forward.load is None for layer in model.layers)


def test_resumed_equals_straight(tmp_path):
    straight = made()
    run(straight, 8, [Balance(straight)])
    halves = made()
    run(halves, 4, [Balance(halves)], checkpoint=tmp_path / "c")
    again = made(seed=9)
    run(again, 8, [Balance(again)], checkpoint=tmp_path / "c")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_faults_are_named():
    with pytest.raises(ValueError, match="nothing to balance"):
        Balance(made(ffn=Ffn(intermediate_size=32)))
    with pytest.raises(ValueError, match="rate is 0"):
        Balance(made(), rate=0)


def test_recomputed_layers_give_the_same_loss_and_gradients():
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "segment_ids": (torch.arange(24) > 9).long().expand(2, 24)}
    found = []
    for recompute in (False, True):
        model = made(ffn=Ffn(intermediate_size=32)).double().train()
        model.recompute = recompute
        loss, _ = next_token(model(ids, segment_ids=batch["segment_ids"]), batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_scores_of_the_router_are_not_rounded_under_autocast():
    """In bf16 a score of 0.5 has steps of 0.002, more than the bias moves in an update."""
    part, x = made().layers[1].feed_forward, torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    chosen, weights = part.route(x)
    with torch.autocast("cpu", torch.bfloat16):
        chosen_there, weights_there = part.route(x)
    assert weights_there.dtype == torch.float32
    assert torch.equal(chosen_there, chosen)
    assert torch.equal(weights_there, weights)
