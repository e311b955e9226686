"""Same logits as transformers, and the same whatever the path: pitfalls C1, C2, C3.4 and C4 on every family.

TOLERANCE is relative to the largest logit, fp32. Where transformers itself is wrong (right-padded decoding of hybrids
C1.3, packing C2, the label of LFM3's rope C4.9) the oracle is its unpadded run of one sequence, and the test says so.
"""

import pytest
import torch
from families import HYBRIDS, NAMES, VOCAB, pair, rel, tokens

from headwater.checkpoint.huggingface import config_dict

TOLERANCE = 1e-5
LENGTHS = [5, 23, 14]


@pytest.fixture(autouse=True)
def _no_grad(request):
    with torch.set_grad_enabled("grad" in request.node.name):
        yield


def solo(theirs, ids: torch.Tensor) -> torch.Tensor:
    """The reference's logits (t, v) of one unpadded sequence."""
    return theirs(ids[None]).logits[0]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """ids, mask and the unpadded rows; padding is filled with random ids, which must not matter."""
    width = max(LENGTHS)
    ids, mask = tokens(len(LENGTHS), width, seed=9), torch.zeros(len(LENGTHS), width, dtype=torch.long)
    rows = []
    for b, n in enumerate(LENGTHS):
        place = slice(width - n, width) if side == "left" else slice(0, n)
        mask[b, place] = 1
        rows.append(ids[b, place])
    return ids, mask, rows


@pytest.mark.parametrize("name", NAMES)
def test_whole(name):
    theirs, ours = pair(name)
    ids = tokens(2, 37)
    assert rel(ours(ids), theirs(ids).logits) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_equal_their_solo_runs(name, side):
    theirs, ours = pair(name)
    ids, mask, rows = padded(side)
    logits = ours(ids, attention_mask=mask)
    for b, row in enumerate(rows):
        assert rel(logits[b][mask[b].bool()], solo(theirs, row)) < TOLERANCE
        assert not logits[b][~mask[b].bool()].any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_padded_in_chunks_with_cache(name, side):
    theirs, ours = pair(name)
    ids, mask, rows = padded(side)
    cache = ours.new_cache(len(rows))
    pieces = [
        ours(ids[:, s], attention_mask=mask[:, s], cache=cache)
        for s in (slice(0, 4), slice(4, 5), slice(5, 20), slice(20, 23))
    ]
    logits = torch.cat(pieces, dim=1)
    for b, row in enumerate(rows):
        assert rel(logits[b][mask[b].bool()], solo(theirs, row)) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_decoding_after_a_padded_prompt(name, side):
    """C1.3: transformers 5.23 is wrong on right-padded hybrids, so the oracle is one row at a time."""
    theirs, ours = pair(name)
    ids, mask, rows = padded(side)
    more = tokens(len(rows), 8, seed=21)
    cache = ours.new_cache(len(rows))
    ours(ids, attention_mask=mask, cache=cache)
    steps = torch.cat([ours(more[:, t : t + 1], cache=cache) for t in range(8)], dim=1)
    for b, row in enumerate(rows):
        assert rel(steps[b], solo(theirs, torch.cat([row, more[b]]))[-8:]) < TOLERANCE


@pytest.mark.parametrize("split", range(1, 10))
@pytest.mark.parametrize("name", NAMES)
def test_last_tokens_in_one_cached_call(name, split):
    theirs, ours = pair(name)
    ids = tokens(2, 24)
    cache = ours.new_cache(2)
    first = ours(ids[:, :-split], cache=cache)
    logits = torch.cat([first, ours(ids[:, -split:], cache=cache)], dim=1)
    assert rel(logits, theirs(ids).logits) < TOLERANCE


@pytest.mark.parametrize("start", range(1, 8))
@pytest.mark.parametrize("name", NAMES)
def test_stepwise_after_a_prompt_of_any_length(name, start):
    """Prompts shorter than the convolution included (C1.7)."""
    theirs, ours = pair(name)
    ids = tokens(2, 20)
    cache = ours.new_cache(2)
    pieces = [ours(ids[:, :start], cache=cache)]
    pieces += [ours(ids[:, t : t + 1], cache=cache) for t in range(start, 20)]
    assert rel(torch.cat(pieces, dim=1), theirs(ids).logits) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_equal_their_solo_runs(name):
    """C2.1: transformers leaks here (hybrids), so the oracle is one document at a time; padding in front included."""
    theirs, ours = pair(name)
    ids = tokens(2, 40)
    cuts = [(0, [3, 12, 13, 33, 40]), (1, [20, 22, 40])]
    segments, mask = torch.zeros(2, 40, dtype=torch.long), torch.ones(2, 40, dtype=torch.long)
    for b, ends in cuts:
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            segments[b, start:end] = number % 3
    mask[1, :4] = 0
    logits = ours(ids, attention_mask=mask, segment_ids=segments)
    for b, ends in cuts:
        for begin, end in zip([0, *ends], ends, strict=False):
            start = max(begin, 4) if b == 1 else begin
            assert rel(logits[b, start:end], solo(theirs, ids[b, start:end])) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_rewound_tokens_leave_no_trace(name):
    """C3.4: take back k tokens, go on with others."""
    theirs, ours = pair(name)
    ids, others = tokens(2, 30), tokens(2, 12, seed=5)
    for k in range(1, 13):
        cache = ours.new_cache(2, rewindable=12)
        ours(ids[:, :15], cache=cache)
        ours(ids[:, 15:18], cache=cache)
        ours(others[:, :k], cache=cache)
        cache.rewind(k)
        assert rel(ours(ids[:, 18:], cache=cache), theirs(ids).logits[:, 18:]) < TOLERANCE


@pytest.mark.parametrize("name", HYBRIDS)
def test_rewound_ragged_rows(name):
    theirs, ours = pair(name)
    ids, mask, rows = padded("right")
    cache = ours.new_cache(len(rows))
    ours(ids, attention_mask=mask, cache=cache)
    cache.rewind(4)
    assert cache.lengths == [n - 4 for n in LENGTHS]
    again = tokens(len(rows), 6, seed=2)
    logits = ours(again, cache=cache)
    for b, row in enumerate(rows):
        assert rel(logits[b], solo(theirs, torch.cat([row[:-4], again[b]]))[-6:]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_their_neighbours(name):
    _, ours = pair(name)
    ids, mask, _ = padded("left")
    changed_ids, changed_mask = ids.clone(), mask.clone()
    changed_ids[0] = tokens(1, ids.shape[1], seed=77)
    changed_mask[0] = 1
    before, after = ours(ids, attention_mask=mask)[1], ours(changed_ids, attention_mask=changed_mask)[1]
    assert rel(after, before) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_causal_inside_one_call(name):
    _, ours = pair(name)
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % VOCAB
    before, after = ours(ids), ours(changed)
    if "moe" in name:  # the changed token moves to other experts, whose matrices then have other row counts
        assert rel(after[:, :12], before[:, :12]) < 1e-6
    else:
        assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_grad(name):
    theirs, ours = pair(name)
    ids = tokens(2, 19).clamp(min=1)  # transformers drops the embedding gradient of its padding id 0
    weights = torch.randn(2, 19, VOCAB, generator=torch.Generator().manual_seed(1))
    (theirs(ids).logits * weights).sum().backward()
    (ours(ids) * weights).sum().backward()
    expected = {key: p.grad for key, p in theirs.named_parameters()}
    checked = 0
    for key, parameter in ours.named_parameters():
        if ".experts." in key:
            continue
        theirs_key = config_dict(ours.config)[1].theirs(key).replace("self_attn.gate_proj", "self_attn.g_proj")
        assert rel(parameter.grad, expected[theirs_key]) < 1e-4, key
        checked += 1
    assert checked > 20
    for i, layer in enumerate(ours.layers):
        if hasattr(layer.feed_forward, "experts"):
            ours_experts = layer.feed_forward.experts
            gate_up = torch.cat([ours_experts.w1.grad, ours_experts.w3.grad], dim=1)
            prefix = f"model.layers.{i}.feed_forward.experts"
            assert rel(gate_up, expected[f"{prefix}.gate_up_proj"]) < 1e-4
            assert rel(ours_experts.w2.grad, expected[f"{prefix}.down_proj"]) < 1e-4
    for model in (theirs, ours):
        model.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_across_packed_documents_grad(name):
    """C2.3: the loss of the second document does not reach the first one's embeddings."""
    _, ours = pair(name)
    ids = tokens(1, 24)
    segments = (torch.arange(24) >= 11).long()[None]
    embedded = {}
    handle = ours.embed_tokens.register_forward_hook(lambda _m, _i, out: embedded.setdefault("x", out).retain_grad())
    try:
        ours(ids, segment_ids=segments)[:, 11:].square().sum().backward()
    finally:
        handle.remove()
        ours.zero_grad()
    assert not embedded["x"].grad[:, :11].any()
    assert embedded["x"].grad[:, 11:].any()
