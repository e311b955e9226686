"""Random files: they say what their Config says, hold what it counts, and both readers and the engine take them."""

import dataclasses
import math

import numpy as np
import pytest
from bench_models import SHAPES, tiny
from gguf import GGMLQuantizationType as Type

from headwater.bench import limits, synthetic
from headwater.chat import style_of
from headwater.checkpoint import gguf_model
from headwater.config import MODELS, Moe
from headwater.engine.engine import Engine
from headwater.gguf_file import GgufFile
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer


class Described(gguf_model.Facts, GgufFile):
    """Metadata and tensors without the native core."""


@pytest.mark.parametrize("type_", list(synthetic.TYPES))
@pytest.mark.parametrize("name", list(SHAPES))
def test_the_file_is_the_config(name, type_, tmp_path):
    c = tiny(name)
    path = tmp_path / "m.gguf"
    synthetic.write(path, c, type_)
    file = Described(path)
    assert gguf_model.read_config(file) == dataclasses.replace(c, eos_ids=c.eos_ids[:1])
    for t in file.tensors.values():
        values = t.dequantize()
        assert np.isfinite(values).all()
        if len(t.shape) > 1 and "conv.weight" not in t.name:
            assert 0.4 < values.std() * math.sqrt(t.shape[-1]) < 2.5, t.name
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("name", list(SHAPES))
def test_our_engine_runs_it(name, tmp_path):
    path = tmp_path / "m.gguf"
    synthetic.write(path, tiny(name), "q4_0")
    engine = Engine.from_pretrained(path, threads=1, context=64)
    answer = engine.generate(["the boat"], SamplingParams(max_tokens=4, ignore_eos=True))[0]
    assert len(answer.ids) == 4
    assert np.isfinite(engine.logits([1, 2, 3])).all()


def test_the_vocabulary_takes_any_text(tmp_path):
    path = tmp_path / "m.gguf"
    synthetic.write(path, tiny("lfm2"), "q8_0")
    tokenizer = Tokenizer.from_pretrained(path)
    text = "a tea é ☃\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # a space and a letter are one token
    assert style_of(tokenizer.chat_template) == "lfm2"


def test_the_vocabulary_is_as_long_to_read_as_a_real_one():
    """Every token but bytes and special ones has the merge that makes it, of tokens that come before it."""
    said = synthetic._vocabulary(dataclasses.replace(tiny("qwen3"), vocab_size=8192), "qwen3")
    tokens, merges = (said[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    assert len(set(tokens)) == len(tokens) == 8192
    assert len(merges) == 8192 - 256 - 2
    place = {t: i for i, t in enumerate(tokens)}
    for merge in merges:
        left, right = merge.split(" ")
        assert max(place[left], place[right]) < place[left + right]
    assert 5 < sum(map(len, tokens)) / len(tokens) < 9
    assert synthetic._pieces(40) == synthetic._pieces(50)[:40]


GGUF_ROWS = {n: c for n, c in MODELS.items() if not any(getattr(la.mixer, "output_gate", False) for la in c.layers)}


@pytest.mark.parametrize("name", list(GGUF_ROWS))
def test_every_released_size_is_complete(name):
    c = GGUF_ROWS[name]
    listed = synthetic.items(c, "q4_0")
    extra = sum(math.prod(t.shape) for t in listed if t.name == "rope_freqs.weight" or t.name.endswith(".bias"))
    assert sum(math.prod(t.shape) for t in listed) - extra == c.num_parameters()
    assert len({t.name for t in listed}) == len(listed)


def test_types_follow_llama_quantize():
    def of(name, tensor, **options):
        c = MODELS[name]
        return {t.name: t.form.type for t in synthetic.items(c, "q4_0", **options)}[tensor]

    assert of("LFM2-350M", "token_embd.weight", pure=False) == Type.Q6_K
    assert of("LFM2-350M", "token_embd.weight", pure=True) == Type.Q4_0
    assert of("Gemma-3-1B", "token_embd.weight", pure=False) == Type.Q8_0
    assert of("LFM2-8B-A1B", "blk.5.ffn_gate_inp.weight", pure=True) == Type.F32


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean 'q4_0'"):
        synthetic.file_for("LFM2-350M", "q4_1")
    with pytest.raises(ValueError, match="did you mean 'LFM2-350M'"):
        synthetic.file_for("LFM2-35M", "q4_0")
    with pytest.raises(ValueError, match="vocab_size is 100; allowed: at least 270"):
        synthetic.write(tmp_path / "m.gguf", dataclasses.replace(tiny("lfm2"), vocab_size=100), "q4_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(SHAPES))
def test_bytes_of_a_decoded_token(name, tmp_path):
    """All bytes of the tensors, but one row of an embedding that is not the head, and the chosen experts alone."""
    path = tmp_path / "m.gguf"
    c = tiny(name)
    synthetic.write(path, c, "q8_0")
    sizes = {t.name: t.data.nbytes for t in GgufFile(path).tensors.values()}
    moe = next((la.ffn for la in c.layers if isinstance(la.ffn, Moe)), None)
    rest = sum(size for n, size in sizes.items() if "_exps" not in n)
    experts = sum(size for n, size in sizes.items() if "_exps" in n)
    if not c.tie_embeddings:
        rest -= sizes["token_embd.weight"] * (1 - 1 / c.vocab_size)
    chosen = experts * moe.num_experts_per_token / moe.num_experts if moe else 0
    work = limits.work_of(path)
    assert work.weight_bytes == pytest.approx(rest + chosen)
    embeddings = c.vocab_size * c.hidden_size * (2 - c.tie_embeddings)
    assert work.macs == c.num_parameters(active=True) - embeddings


def test_the_work_of_a_real_size():
    c = MODELS["LFM2-350M"]
    assert c.num_parameters() - c.vocab_size * c.hidden_size == pytest.approx(287e6, rel=0.01)
