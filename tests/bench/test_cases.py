"""Names of cases and rows."""

import pytest

from headwater.bench import cases


def test_names_say_what_is_run():
    assert cases.named("prefill_512") == cases.Case("prefill_512", "prefill", 512)
    assert cases.named("decode_128@4096") == cases.Case("decode_128@4096", "decode", 128, 4096)
    assert cases.named("decode_7").depth == 0
    assert [cases.named(n).name for n in cases.DEFAULT] == list(cases.DEFAULT)


def test_long_cases_run_once_without_a_warm_up():
    assert [c.repetitions for c in map(cases.named, ("prefill_512", "prefill_4096", "decode_128@4096"))] == [2, 1, 1]


@pytest.mark.parametrize(
    "name", ["prefil_512", "prefill_0", "decode_128@", "decode_-1", "prefill_512@5", "", "memory "]
)
def test_an_unknown_name_is_refused_with_the_closest(name):
    with pytest.raises(ValueError, match="no case"):
        cases.named(name)


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'prefill_512'"):
        cases.named("prefil_512")


def test_choices_are_checked():
    with pytest.raises(ValueError, match="stands twice"):
        cases.chosen(["memory", "memory"], 4096)
    with pytest.raises(ValueError, match="decode_128@4096 needs 4224 tokens; the model's context is 2048"):
        cases.chosen(["decode_128@4096"], 2048)
    with pytest.raises(ValueError, match="names no case"):
        cases.chosen([], 2048)


def test_rows():
    assert cases.rows_of(cases.MEMORY) == ("peak_memory", "peak_anonymous")
    assert cases.row("decode_128").more_is_better
    assert not cases.row("load").more_is_better
