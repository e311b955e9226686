"""Needles and perplexity by position: oracles whose answers are known, and a real tiny hybrid."""

import math

import pytest
import torch
from tiny_runs import make_model

from headwater.evals.needle import grid
from headwater.evals.positions import by_position
from headwater.ops.head_loss import Head


class Letters:
    """One id a character, the id its code; BOS 1."""

    def encode(self, text, *, bos):
        return [1] * bos + [ord(c) for c in text]


def copier(window):
    """Knows of the last `window` ids what followed the longest run that ends the text so far; else all are alike."""

    def forward(ids):
        row = ids[0].tolist()
        rows = []
        for t in range(len(row)):
            start, best, after = max(0, t + 1 - window), 4, None
            for i in range(start, t):
                n = 0
                while n < 24 and i - n >= start and row[i - n] == row[t - n]:
                    n += 1
                if n > best:
                    best, after = n, row[i + 1]
            scores = torch.zeros(128)
            if after is not None:
                scores[after] = 20.0
            rows.append(scores)
        return Head(torch.stack(rows)[None], torch.eye(128))

    return forward


FILLER = "".join(chr(97 + (i * i * 7 + i // 3) % 26) for i in range(900))


def test_a_copier_recalls_what_lies_in_its_window_and_nothing_else():
    depths = (0.0, 0.5, 1.0)
    seen = []
    whole = grid(copier(1000), Letters(), FILLER, lengths=[150, 400], depths=depths, trials=2, on_cell=seen.append)
    assert seen == whole
    assert [(f.length, f.depth) for f in whole] == [(n, d) for n in (150, 400) for d in depths]
    assert all(f.recalled == 1.0 for f in whole)
    assert all(f.nats < 0.5 < f.lift for f in whole)
    near = grid(copier(150), Letters(), FILLER, lengths=[400], depths=depths, trials=2)
    assert [f.recalled for f in near] == [0.0, 0.0, 1.0]
    assert near[0].lift == pytest.approx(0.0, abs=1e-6)


def test_needles_need_room_and_hay():
    with pytest.raises(ValueError, match="length is 40; needle, question and answer take"):
        grid(copier(9), Letters(), FILLER, lengths=[40])
    with pytest.raises(ValueError, match="the filler has 901 tokens"):
        grid(copier(9), Letters(), FILLER, lengths=[2000])
    with pytest.raises(ValueError, match="depths are"):
        grid(copier(9), Letters(), FILLER, lengths=[200], depths=[1.5])


def test_positions_of_a_model_that_knows_more_the_longer_it_reads():
    """p = 1/2 before position 4 and 1 - 1/8 from there, over two words: the stretches are those logarithms."""

    def forward(ids):
        t = ids.shape[1]
        sure = torch.where(torch.arange(t) < 3, 0.0, math.log(7.0))
        following = torch.roll(ids[0], -1)
        return Head((torch.nn.functional.one_hot(following, 2) * sure[:, None])[None], torch.eye(2))

    rows = [[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0], [1]]
    first, second = by_position(forward, rows, edges=[1, 4, 8, 100])[:2]
    assert (first.start, first.stop, first.tokens) == (1, 4, 6)
    assert first.perplexity == pytest.approx(2.0)
    assert second.nats == pytest.approx(-math.log(7 / 8))
    assert second.tokens == 5
    assert second.error == pytest.approx(0.0, abs=1e-6)
    assert len(by_position(forward, rows, edges=[1, 4, 8, 100])) == 2


def test_positions_equal_the_plain_loss_whatever_the_chunk(monkeypatch):
    from headwater.evals import positions

    model = make_model()
    row = torch.randint(64, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([row])
    plain = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).item()
    for chunk in (7, 256):
        monkeypatch.setattr(positions, "CHUNK", chunk)
        (whole,) = by_position(lambda x: model(x, project=False), [row], edges=[1, 64])
        assert whole.nats == pytest.approx(plain, rel=1e-5)
        assert whole.tokens == 49


@pytest.mark.parametrize("edges", [[5], [4, 2], [0, 4], [2, 2]])
def test_edges_must_rise(edges):
    with pytest.raises(ValueError, match="edges are"):
        by_position(lambda ids: None, [[1, 2, 3]], edges=edges)


def test_rows_too_short_to_score_are_an_error():
    with pytest.raises(ValueError, match="no row is long enough"):
        by_position(lambda ids: None, [[1]], edges=[1, 4])
