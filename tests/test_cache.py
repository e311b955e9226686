"""What a model remembers (pitfalls C1.8-C1.11, C3.4, C3.5): lengths, rows, files, long decodes."""

import pytest
import torch
from families import HYBRIDS, NAMES, pair, rel, tokens

from headwater.cache import AttentionState, Cache
from headwater.config import Config, Ffn, Layer, ShortConv
from headwater.model import Lfm2


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def conv_only() -> Lfm2:
    layer = Layer(mixer=ShortConv(width=4), ffn=Ffn(intermediate_size=24))
    return Lfm2(Config(vocab_size=50, hidden_size=16, layers=(layer,) * 3, max_positions=512))


@pytest.mark.parametrize("name", HYBRIDS)
def test_every_row_knows_its_length(name):
    _, ours = pair(name)
    cache = ours.new_cache(3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    ours(tokens(3, 4), attention_mask=mask, cache=cache)
    ours(tokens(3, 2), cache=cache)
    assert cache.lengths == [4, 6, 3]


def test_a_model_without_attention_decodes():
    model, ids = conv_only(), torch.arange(12)[None]
    cache = model.new_cache()
    pieces = [model(ids[:, t : t + 1], cache=cache) for t in range(12)]
    assert rel(torch.cat(pieces, 1), model(ids)) < 1e-5
    assert cache.lengths == [12]
    assert cache.device.type == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    _, ours = pair(name)
    cache = ours.new_cache(2)
    ours(tokens(2, 9), attention_mask=torch.tensor([[1] * 9, [0] * 5 + [1] * 4]), cache=cache)
    cache.save(tmp_path / "slot.safetensors")
    restored = Cache.load(tmp_path / "slot.safetensors", ours.config)
    assert restored.lengths == cache.lengths == [9, 4]
    more = tokens(2, 5, seed=8)
    assert torch.equal(ours(more, cache=restored), ours(more, cache=cache))
    restored.rewind(5)
    assert restored.lengths == [9, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["slot.safetensors"]


def test_a_damaged_or_foreign_file_restores_nothing(tmp_path):
    _, ours = pair("lfm2-k3")
    cache = ours.new_cache()
    ours(tokens(1, 9), cache=cache)
    path = tmp_path / "slot"
    cache.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="not a readable cache file"):
        Cache.load(path, ours.config)
    path.write_bytes(whole.replace(b'"0.conv"', b'"9.conv"'))
    with pytest.raises(ValueError, match=r"0\.conv is missing"):
        Cache.load(path, ours.config)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="another model"):
        Cache.load(path, pair("lfm2-k7")[1].config)
    with pytest.raises(ValueError, match="not a readable"):
        Cache.load(tmp_path / "absent", ours.config)


def test_clone_and_select_are_independent():
    theirs, ours = pair("lfm3-k7")
    ids = tokens(2, 12)
    cache = ours.new_cache(2)
    ours(ids[:, :7], cache=cache)
    branches = cache.select([1, 1, 0])
    ours(tokens(2, 3, seed=6), cache=cache)
    logits = ours(ids[[1, 1, 0], 7:], cache=branches)
    assert rel(logits, theirs(ids[[1, 1, 0]]).logits[:, 7:]) < 1e-5


def test_rewind_says_how_far_it_reaches():
    _, ours = pair("lfm2-k3")
    cache = ours.new_cache(1, rewindable=4)
    ours(tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="from 0 to 3 tokens"):
        cache.rewind(4)
    cache.rewind(3)
    ours(tokens(1, 2), cache=cache)
    with pytest.raises(ValueError, match="from 0 to 2 tokens"):
        cache.rewind(3)
    ours(tokens(1, 9), cache=cache)
    with pytest.raises(ValueError, match="from 0 to 4 tokens"):
        cache.rewind(5)
    cache.rewind(4)
    with pytest.raises(ValueError, match="from 0 to 0 tokens"):
        cache.rewind(1)
    assert cache.lengths == [7]


def test_rewinding_in_turns_never_uses_forgotten_columns():
    theirs, ours = pair("lfm2-k7")
    ids = tokens(1, 40)
    cache, generator = ours.new_cache(1, rewindable=5), torch.Generator().manual_seed(0)
    fed = 0
    for _ in range(60):
        step = int(torch.randint(1, 6, (), generator=generator))
        step = min(step, 40 - fed)
        if step:
            logits = ours(ids[:, fed : fed + step], cache=cache)
            fed += step
            assert rel(logits, theirs(ids[:, :fed]).logits[:, fed - step :]) < 1e-5
        back = int(torch.randint(0, 8, (), generator=generator))
        try:
            cache.rewind(back)
            fed -= back
        except ValueError:
            pass
    assert cache.lengths == [fed]


def test_rewind_behind_a_sliding_window():
    """C3.5: after 14 tokens behind a window of 9, keys that had left the window are back."""
    theirs, ours = pair("lfm3-k3")
    ids, others = tokens(1, 30), tokens(1, 14, seed=4)
    cache = ours.new_cache(1, rewindable=14)
    ours(ids[:, :16], cache=cache)
    ours(others, cache=cache)
    cache.rewind(14)
    assert rel(ours(ids[:, 16:], cache=cache), theirs(ids).logits[:, 16:]) < 1e-5


def test_unwritten_room_cannot_poison_attention():
    """New room is zero: masked slots multiply a weight of zero, which NaN would survive."""
    state = AttentionState(pair("lfm2-k3")[1].config.layers[1].mixer, 1, torch.float32, "cpu")
    state.reserve(100)
    assert not state.k.any()
    assert not state.v.any()
    assert state.k.shape[2] >= 100


def test_bytes_are_counted():
    _, ours = pair("lfm2-k3")
    cache = ours.new_cache(1, rewindable=0)
    cache.reserve(100)
    expected = ours.config.kv_bytes(100, bytes_per_value=4) + ours.config.conv_state_bytes(bytes_per_value=4)
    assert cache.nbytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "same", "off"), [(torch.float32, 0.995, 1e-5), (torch.bfloat16, 0.985, 0.03)])
def test_two_thousand_steps_do_not_drift(dtype, same, off):
    """C1.11: decoding agrees with the whole run in the same dtype and gets no worse with time. bf16 rounds otherwise in
    one-row matrices, which swaps near ties of these random logits in under 1 % of the steps, early and late alike."""
    model = Lfm2(pair("lfm2-k3")[1].config, dtype=dtype)
    model.load_state_dict(pair("lfm2-k3")[1].state_dict())
    ids = tokens(1, 2000)
    cache = model.new_cache()
    steps = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(2000)], dim=1).float()
    whole = model(ids).float()
    assert (steps.argmax(-1) == whole.argmax(-1)).float().mean() >= same
    assert rel(steps, whole) < off
    assert rel(steps[:, 1500:], whole[:, 1500:]) < 2 * rel(steps[:, :500], whole[:, :500])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m(torch.zeros(1, 0, dtype=torch.long)), "at least one token"),
        (lambda m: m(tokens(2, 3), cache=m.new_cache(1)), "2 rows, the cache 1"),
        (lambda m: m(tokens(1, 3), segment_ids=torch.zeros(1, 3), cache=m.new_cache()), "segment_ids and cache"),
        (lambda m: m(tokens(1, 3), segment_ids=torch.zeros(1, 4)), "segment_ids has shape"),
        (lambda m: m(tokens(1, 3), attention_mask=torch.ones(1, 2)), "attention_mask has shape"),
        (lambda m: m(tokens(1, 3), attention_mask=torch.zeros(1, 3)), "hides every token"),
        (lambda m: m.new_cache(0), "allowed: >= 1"),
    ],
)
def test_arguments_that_disagree(call, said):
    with pytest.raises(ValueError, match=said):
        call(pair("lfm2-k3")[1])
