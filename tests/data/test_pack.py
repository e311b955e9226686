"""PackedBatches: every token once an epoch, boundaries kept, exact resume, clear errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.pack import Document, PackedBatches

PAD = 0


def documents(lengths):
    """Documents whose ids are all different, so that a lost, doubled or misplaced token shows."""
    start, out = 1, []
    for n in lengths:
        out.append(Document(list(range(start, start + n))))
        start += n
    return out


def pieces(batch):
    """The segments of a batch as lists of ids, row by row."""
    out = []
    for ids, segments in zip(batch["input_ids"].tolist(), batch["segment_ids"].tolist(), strict=True):
        for s in range(max(segments) + 1):
            out.append([i for i, k in zip(ids, segments, strict=True) if k == s])
    return out


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=12),
    rows=st.integers(1, 4),
    length=st.integers(2, 17),
    seed=st.integers(0, 9),
)
def test_cut_rows_are_full_and_an_epoch_has_every_token_once(lengths, rows, length, seed):
    docs = documents(lengths)
    batches = PackedBatches(docs, rows=rows, length=length, seed=seed, pad_id=PAD)
    stream = []
    while len(stream) < 2 * batches.tokens:
        batch = next(batches)
        assert batch["loss_mask"].all()
        for piece in pieces(batch):
            assert piece == list(range(piece[0], piece[0] + len(piece))), "a segment holds pieces of two documents"
        stream += batch["input_ids"].flatten().tolist()
    everything = sorted(i for d in docs for i in d.ids)
    assert sorted(stream[: batches.tokens]) == everything
    assert sorted(stream[batches.tokens : 2 * batches.tokens]) == everything


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=12), rows=st.integers(1, 3), seed=st.integers(0, 9))
def test_whole_documents_are_never_cut_and_padding_is_a_segment_without_loss(lengths, rows, seed):
    docs = documents(lengths)
    batches = PackedBatches(docs, rows=rows, length=16, seed=seed, pad_id=PAD, whole=True)
    known = {tuple(d.ids) for d in docs}
    seen = []
    while len(seen) < 2 * len(docs):
        batch = next(batches)
        assert torch.equal(batch["loss_mask"], batch["input_ids"] != PAD)
        for piece in pieces(batch):
            if set(piece) == {PAD}:
                continue
            assert tuple(piece) in known
            seen.append(tuple(piece))
    assert set(seen[: len(docs)]) == known


def test_masks_travel_with_their_tokens():
    docs = [Document([1, 2, 3], [False, True, False]), Document([4, 5], [True, True])]
    batch = next(PackedBatches(docs, rows=1, length=5, seed=0, pad_id=PAD, whole=True))
    learnt = batch["input_ids"][batch["loss_mask"]].tolist()
    assert sorted(learnt) == [2, 4, 5]


@pytest.mark.parametrize("whole", [False, True])
def test_resume_gives_the_same_batches_across_an_epoch_end(whole):
    def make():
        return PackedBatches(documents([5, 9, 3, 8, 2, 7]), rows=2, length=10, seed=3, pad_id=PAD, whole=whole)

    straight = make()
    expected = [next(straight) for _ in range(9)]
    assert straight.epoch >= 2
    for stop in range(9):
        first = make()
        for _ in range(stop):
            next(first)
        second = make()
        second.load_state_dict(first.state_dict())
        for batch in expected[stop:]:
            now = next(second)
            assert all(torch.equal(batch[k], now[k]) for k in batch)


def test_seeds_and_epochs_shuffle_differently():
    def stream(seed):
        batches = PackedBatches(documents([1] * 40), rows=1, length=40, seed=seed, pad_id=PAD)
        return [next(batches)["input_ids"].tolist() for _ in range(2)]

    assert stream(0) == stream(0)
    assert stream(0)[0] != stream(0)[1]
    assert stream(0) != stream(1)


def test_an_order_that_is_kept_is_that_of_the_documents_in_every_epoch():
    batches = PackedBatches(documents([3, 4, 5]), rows=1, length=12, seed=3, pad_id=PAD, shuffle=False)
    assert [next(batches)["input_ids"].tolist() for _ in range(2)] == [[list(range(1, 13))]] * 2
    shuffled = PackedBatches(documents([3, 4, 5]), rows=1, length=12, seed=3, pad_id=PAD)
    with pytest.raises(ValueError, match="shuffle True, these batches False"):
        batches.load_state_dict(shuffled.state_dict())
    older = {name: value for name, value in shuffled.state_dict().items() if name != "shuffle"}
    shuffled.load_state_dict(older)


def test_a_position_of_other_data_or_settings_is_refused():
    state = PackedBatches(documents([4, 4]), rows=1, length=4, seed=0, pad_id=PAD).state_dict()
    with pytest.raises(ValueError, match="seed 0, these batches 1"):
        PackedBatches(documents([4, 4]), rows=1, length=4, seed=1, pad_id=PAD).load_state_dict(state)
    with pytest.raises(ValueError, match="tokens 8, these batches 9"):
        PackedBatches(documents([4, 5]), rows=1, length=4, seed=0, pad_id=PAD).load_state_dict(state)


@pytest.mark.parametrize(
    ("docs", "whole", "message"),
    [
        ([], False, "no documents to pack"),
        ([Document([1]), Document([])], False, "document 1 is empty"),
        ([Document([1, 2], [True])], False, "2 ids but a mask of 1"),
        ([Document([1] * 5)], True, "document 0 has 5 tokens, a row 4"),
    ],
)
def test_bad_documents_are_named(docs, whole, message):
    with pytest.raises(ValueError, match=message):
        PackedBatches(docs, rows=1, length=4, seed=0, pad_id=PAD, whole=whole)
