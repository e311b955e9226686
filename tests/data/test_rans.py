"""Entropy coding: what goes in comes out, near the entropy, and damaged bytes are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data import rans
from headwater.data.rans import Frequencies, decode, encode


def skewed(rows, symbols, seed=0):
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(0.05, (rows, 3)) - 1, symbols - 1)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 129, 1000])
def test_round_trip_at_every_number_of_rows(rows):
    table = skewed(rows, 70)
    columns = [Frequencies.of(np.bincount(c, minlength=70)) for c in table.T]
    assert (decode(encode(table, columns), rows, columns) == table).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=200))
def test_any_symbols(values):
    table = np.array(values)[:, None]
    columns = [Frequencies.of(np.bincount(values))]
    assert (decode(encode(table, columns), len(table), columns) == table).all()


def test_size_is_the_entropy():
    table = skewed(20_000, 200)
    columns = [Frequencies.of(np.bincount(c)) for c in table.T]
    bits = sum(-np.log2(np.bincount(c)[c] / len(c)).sum() for c in table.T)
    assert bits / 8 < len(encode(table, columns)) < 1.001 * bits / 8 + 8 * rans.LANES


def test_a_symbol_that_the_frequencies_do_not_know_is_refused():
    columns = [Frequencies.of(np.array([3, 0, 5]))]
    with pytest.raises(ValueError, match="column 0 holds a symbol"):
        encode(np.array([[0], [1]]), columns)


def test_frequencies_must_add_up():
    with pytest.raises(ValueError, match="add up to 7; they must be 1048576"):
        Frequencies(np.array([3, 4]))
    with pytest.raises(ValueError, match="0 different symbols"):
        Frequencies.of(np.zeros(4, np.int64))


def test_damage_never_passes_and_never_crashes():
    """Any one byte changed, any end cut off: a ValueError, or another table; never another kind of error."""
    table = skewed(100, 50)
    columns = [Frequencies.of(np.bincount(c, minlength=50)) for c in table.T]
    good, rng = encode(table, columns), np.random.default_rng(1)
    noticed = 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
        bad = bytes(bad) if rng.random() < 0.5 else bytes(bad)[: rng.integers(len(bad))]
        try:
            assert decode(bad, 100, columns).shape == table.shape
        except ValueError:
            noticed += 1
    assert noticed > 190
