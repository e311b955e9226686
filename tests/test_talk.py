"""A conversation in a slot: what it reuses, where it can go back to, what it promises, and its state in files."""

import dataclasses
import os
import shutil

import pytest
import torch

from headwater import Engine, SamplingParams
from headwater.completion import Writer
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.engine import state_file
from headwater.engine.talk import Talk
from headwater.model import Lfm2
from headwater.sampling import ThinkBudget

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model without words, wide enough for every number format, seven inputs to a convolution."""
    path = tmp_path_factory.mktemp("talk") / "model"
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=64, rope=Rope(theta=1e4))
    config = Config(
        vocab_size=300, hidden_size=256, max_positions=1024, bos_id=1, eos_ids=(7,), pad_id=0,
        layers=stack("CACA", {"C": ShortConv(width=7), "A": attention}, Ffn(intermediate_size=256)),
    )  # fmt: skip
    Lfm2(config, generator=torch.Generator().manual_seed(2)).save_pretrained(path)
    return path


def ids(count, seed=0):
    return torch.randint(8, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def talk(directory, weights="F32", **options):
    return Talk(
        Engine.from_pretrained(directory, threads=1, max_sequences=1, weights=weights, chunk_size=96, **options)
    )


@pytest.mark.parametrize("weights", ["F32", "Q8_0"])
def test_a_loaded_state_goes_on_as_the_saved_one(directory, tmp_path, weights):
    """Also where answers take other kernels than prompts: what the file holds is bytes, not tokens read again."""
    first = talk(directory, weights)
    prompt = ids(150)
    answer, _ = first.answer(prompt, GREEDY)
    first.save(tmp_path / "a.state")
    turn = [*prompt, *answer.ids, *ids(30, seed=1)]
    other = talk(directory, weights)
    assert other.load(tmp_path / "a.state") == len(prompt) + len(answer.ids) - 1
    (want, past), (got, loaded) = first.answer(turn, GREEDY), other.answer(turn, GREEDY)
    assert got.ids == want.ids
    assert loaded == past == len(prompt) + len(answer.ids) - 1


def test_states_need_no_prefix_cache_and_never_name_a_file_that_changed(directory, tmp_path):
    model = shutil.copytree(directory, tmp_path / "model")
    t, changed = talk(model, cache_bytes=0), talk(model, cache_bytes=0)
    prompt = ids(60)
    for each in (t, changed):
        each.answer(prompt, GREEDY)
    t.save(tmp_path / "a.state")
    os.utime(model / "model.safetensors", ns=(1, 1))
    with pytest.raises(ValueError, match="changed since it was loaded"):
        changed.save(tmp_path / "b.state")
    assert not (tmp_path / "b.state").exists()
    with pytest.raises(ValueError, match="another model"):
        talk(model).load(tmp_path / "a.state")


def test_later_turns_are_those_of_a_fresh_reading_where_the_core_has_one_arithmetic(directory):
    held = talk(directory)
    assert held._core.one_arithmetic
    turn = ids(70)
    for seed in range(1, 5):
        answer, _ = held.answer(turn, GREEDY)
        assert answer.ids == talk(directory).answer(turn, GREEDY)[0].ids
        turn = [*turn, *answer.ids, *ids(31 * seed, seed=seed)]


def test_a_prompt_read_in_turns_has_the_bits_of_one_read_at_once(directory):
    """In every number format: turns end anywhere, and the second piece then begins inside a block."""
    for weights in ("F32", "Q8_0", "BF16"):
        whole, parts = talk(directory, weights), talk(directory, weights)
        prompt = ids(200)
        for end in (1, 47, 70, 145):
            parts.answer(prompt[:end], dataclasses.replace(GREEDY, max_tokens=1))
        assert parts._held == prompt[:145]
        got, past = parts.answer(prompt, GREEDY)
        assert (past, got.ids) == (145, whole.answer(prompt, GREEDY)[0].ids)
        for t in (whole, parts):
            t._core.rewind(t._slot, 200)
        assert parts._core.save_keys(parts._slot, 0, 208) == whole._core.save_keys(whole._slot, 0, 208)


def test_a_style_that_drops_old_reasoning_goes_back_to_the_end_of_the_prompt(directory):
    t = talk(directory)
    prompt = ids(100)
    long = dataclasses.replace(GREEDY, max_tokens=150)
    t.answer(prompt, long)
    second = [*prompt, *ids(40, seed=3)]
    answer, past = t.answer(second, long)
    assert past == 100
    assert answer.ids == talk(directory).answer(second, long)[0].ids
    third = [*prompt[:60], *ids(20, seed=4)]
    answer, past = t.answer(third, GREEDY)
    assert past == 0
    assert answer.ids == talk(directory).answer(third, GREEDY)[0].ids


def test_a_stopped_answer_is_not_read_again(directory, tmp_path, monkeypatch):
    want = talk(directory).answer(ids(80), GREEDY)[0].ids
    t, prompt, push = talk(directory), ids(80), Writer.push

    def stopping(writer, token, logprob):
        push(writer, token, logprob)
        if len(writer.completion.ids) == 4:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Writer, "push", stopping)
        t.answer(prompt, GREEDY)
    t.save(tmp_path / "stopped.state")
    assert t._held == [*prompt, *want[:3]]
    turn = [*prompt, *want[:3], *ids(20, seed=6)]
    again = talk(directory)
    again.load(tmp_path / "stopped.state")
    fresh = talk(directory).answer(turn, GREEDY)[0].ids
    for kept in (t, again):
        answer, past = kept.answer(turn, GREEDY)
        assert past == 83
        assert answer.ids == fresh


def test_budgets_and_least_lengths_are_the_engines(directory):
    prompt = ids(20)
    free = talk(directory).answer(prompt, GREEDY)[0].ids
    thought = dataclasses.replace(GREEDY, think=ThinkBudget(tokens=4, end=(9, 8)))
    assert talk(directory).answer(prompt, thought)[0].ids[:6] == [*free[:4], 9, 8]
    t = talk(directory)
    t._engine.config = dataclasses.replace(t.config, eos_ids=(free[2],))
    assert t.answer(prompt, SamplingParams(max_tokens=12))[0].ids == free[:3]
    longer = t.answer(prompt, SamplingParams(max_tokens=12, min_tokens=8))[0].ids
    assert free[2] not in longer[:8]
    assert longer[:2] == free[:2]


def test_files_of_others_are_refused_and_change_nothing(directory, tmp_path):
    t, prompt = talk(directory), ids(60)
    with pytest.raises(ValueError, match="no state to save"):
        t.save(tmp_path / "none.state")
    answer, _ = t.answer(prompt, GREEDY)
    t.save(tmp_path / "a.state")
    other = shutil.copytree(directory, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 64
    (other / "model.safetensors").write_bytes(weights)
    for stranger in (talk(other), talk(directory, "Q8_0")):
        with pytest.raises(ValueError, match="another model"):
            stranger.load(tmp_path / "a.state")
    with pytest.raises(ValueError, match="context is 64"):
        talk(directory, context=64).load(tmp_path / "a.state")
    damaged = (tmp_path / "a.state").read_bytes()[:-50]
    (tmp_path / "a.state").write_bytes(damaged)
    part = state_file.State(t._engine.model, 16, 32, (), bytes(16 * t._core.bytes_per_token), None)
    state_file.write(tmp_path / "part.state", part)
    for name, words in (("a", "damaged"), ("part", "whole conversation")):
        with pytest.raises(ValueError, match=words):
            t.load(tmp_path / f"{name}.state")
    turn = [*prompt, *answer.ids, 9]
    assert t.answer(turn, GREEDY)[1] == 60 + len(answer.ids) - 1


def test_a_row_without_a_word_is_no_text(tiny_model):
    """Embeddings are padded; whoever draws such a row must not take the other answers down."""
    engine = Engine.from_pretrained(tiny_model, threads=1, weights="F32")
    unused = engine.tokenizer.vocab_size
    assert unused < engine.config.vocab_size
    asked = SamplingParams(max_tokens=3, logit_bias=((unused, 1000.0),))
    answers = engine.generate(["The river", "The sea"], [asked, SamplingParams(max_tokens=3)])
    assert (answers[0].ids, answers[0].text) == ([unused] * 3, "")
    assert answers[1].text
