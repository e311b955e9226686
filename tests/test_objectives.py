"""next_token: what is a target, that the mean is the right one, that nothing crosses a document boundary."""

import math

import pytest
import torch
import torch.nn.functional as F

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.model import Lfm2
from headwater.objectives.next_token import IGNORE, next_token, next_token_targets

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def test_targets_are_the_next_ids_and_the_last_position_has_none():
    assert next_token_targets({"input_ids": IDS}).tolist() == [[6, 7, 8, 9, 10, IGNORE]]


def test_no_target_crosses_a_document_boundary():
    batch = {"input_ids": IDS, "segment_ids": torch.tensor([[0, 0, 1, 1, 1, 2]])}
    assert next_token_targets(batch).tolist() == [[6, IGNORE, 8, 9, IGNORE, IGNORE]]


def test_loss_mask_marks_the_predicted_token_not_the_position_before_it():
    batch = {"input_ids": IDS, "loss_mask": torch.tensor([[1, 0, 0, 1, 0, 0]]).bool()}
    assert next_token_targets(batch).tolist() == [[IGNORE, IGNORE, 8, IGNORE, IGNORE, IGNORE]]


def test_padding_is_neither_predicted_nor_predicts():
    batch = {"input_ids": IDS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 0]])}
    assert next_token_targets(batch).tolist() == [[IGNORE, IGNORE, 8, 9, IGNORE, IGNORE]]


def test_loss_is_the_mean_over_targets_and_stays_fp32_for_bf16_logits():
    logits = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    batch = {"input_ids": IDS, "loss_mask": torch.tensor([[0, 1, 1, 0, 0, 1]]).bool()}
    loss, metrics = next_token(logits, batch)
    log_p = logits[0].double().log_softmax(-1)
    expected = -(log_p[0, 6] + log_p[1, 7] + log_p[4, 10]) / 3
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["weight"].item() == 3


def test_z_loss_adds_the_squared_log_partition_of_target_positions_only():
    logits = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": IDS, "segment_ids": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    plain, _ = next_token(logits, batch)
    loss, metrics = next_token(logits, batch, z_loss=0.1)
    z = logits.logsumexp(-1)[0, [0, 1, 3, 4]].square().mean()
    assert metrics["z"].item() == pytest.approx(z.item(), rel=1e-6)
    assert (loss - plain).item() == pytest.approx(0.1 * z.item(), rel=1e-4)
    assert metrics["nll"].item() == plain.item()


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": IDS, "loss_mask": torch.zeros_like(IDS).bool()},
        {"input_ids": IDS, "segment_ids": torch.arange(6)[None]},
        {"input_ids": IDS[:, :1]},
    ],
)
def test_a_batch_without_any_target_is_an_error(batch):
    with pytest.raises(ValueError, match="no position of this batch has a target"):
        next_token(torch.zeros(*batch["input_ids"].shape, 50), batch)


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"segment_ids has shape \(1, 5\)"):
        next_token_targets({"input_ids": IDS, "segment_ids": torch.zeros(1, 5)})
    with pytest.raises(ValueError, match="logits have rows"):
        next_token(torch.zeros(1, 5, 50), {"input_ids": IDS})


def test_packed_loss_is_the_token_weighted_mean_of_solo_losses():
    """Pitfall C2.5, on a real mixed model whose weights are large enough to show a leak."""
    generator = torch.Generator().manual_seed(2)
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(theta=1e4))
    layers = stack("CAC", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=48))
    model = Lfm2(Config(vocab_size=61, hidden_size=32, layers=layers, max_positions=64))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.15, generator=generator)
    lengths = [7, 2, 12, 5]
    documents = [torch.randint(0, 61, (n,), generator=generator) for n in lengths]
    packed = {
        "input_ids": torch.cat(documents)[None],
        "segment_ids": torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None],
    }
    together, metrics = next_token(model(packed["input_ids"], segment_ids=packed["segment_ids"]), packed)
    solo = [next_token(model(d[None]), {"input_ids": d[None]})[0].item() * (len(d) - 1) for d in documents]
    assert metrics["weight"].item() == sum(lengths) - 4
    assert together.item() == pytest.approx(math.fsum(solo) / (sum(lengths) - 4), rel=1e-5)
    leaking, _ = next_token(model(packed["input_ids"]), packed)
    assert abs(leaking.item() - together.item()) > 1e-3, "the test must be able to see a leak"


def test_gradient_equals_that_of_plain_cross_entropy():
    logits = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(3), requires_grad=True)
    (ours,) = torch.autograd.grad(next_token(logits, {"input_ids": IDS})[0], logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits[0, :-1], IDS[0, 1:]), logits)
    torch.testing.assert_close(ours, plain)
