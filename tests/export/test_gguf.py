"""Directories to GGUF and back: the same values, bit by bit, the same ids; what is chosen, kept and refused."""

import dataclasses

import numpy as np
import pytest
import torch
from families import pair

from headwater import checkpoint
from headwater.checkpoint.gguf_layout import describe, unsayable
from headwater.checkpoint.gguf_model import Facts, read_config
from headwater.config import MODELS, Config
from headwater.export import gguf
from headwater.gguf_file import GgufFile
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer
from headwater.weights import unstack

NAMES = ["lfm2-k3", "lfm2-k7", "lfm2_moe-k3", "lfm3-k3", "lfm3-k7", "llama", "qwen3"]
TEXTS = ["The river é 12345", "漢字 مرحبا 👍👍", "  a\n\n b\tc ", "e\u0301 <|im_end|> [PAD330]"]


class Array:
    def __init__(self, tensor):
        self._tensor, self.shape = tensor, tuple(tensor.shape)

    def read(self):
        return self._tensor.float().numpy()


def tensors(model):
    return {name: Array(t) for name, t in unstack(model.state_dict())}


def sayable(name):
    """The tiny model of a family with what GGUF has no key for set as its files imply it."""
    model = pair(name)[1]
    if name == "llama":
        layers = tuple(
            dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, rope=dataclasses.replace(
                layer.mixer.rope, scaling=dataclasses.replace(layer.mixer.rope.scaling, original_max_positions=8192)
            ))) for layer in model.config.layers
        )  # fmt: skip
        return dataclasses.replace(model.config, layers=layers), model
    return model.config, model


@pytest.mark.parametrize("name", NAMES)
def test_every_family_comes_back_bit_equal(name, tmp_path):
    config, model = sayable(name)
    gguf.write(tmp_path / "m.gguf", config, tensors(model), None, type="f32")
    back, sources, _ = checkpoint.read(tmp_path / "m.gguf")
    assert back == dataclasses.replace(config, bos_id=None, eos_ids=(), pad_id=None)
    ours = {n: t.float() for n, t in unstack(model.state_dict())}
    assert sources.keys() == ours.keys()
    assert all(torch.equal(sources[n].read(), ours[n]) for n in ours)


@pytest.mark.parametrize("name", MODELS)
def test_released_models_are_described(name):
    """LFM3 in our own words, since GGUF has none for it; everything else in those that others read."""
    config = MODELS[name]
    description: Facts = describe(config)
    assert sum(int(np.prod(p.shape)) for p in description.tensors.values() if p.sources) >= config.num_parameters()
    assert (description.arch == "headwater") == name.startswith("LFM3")
    assert ("gated attention heads" in (unsayable(config) or "")) == name.startswith("LFM3")


@pytest.mark.parametrize("damage", [
    {"headwater.config": "{"}, {"headwater.config": "[]"}, {"headwater.config": '{"layers": [{}]}'},
    {"headwater.config": "[" * 10_000}, {"headwater.config": 3}, {"tensors": "output.weight"},
    {"tensors": "token_embd.weight"},
])  # fmt: skip
def test_damaged_words_of_our_own_are_refused(damage):
    description = describe(MODELS["LFM3-1.7B"])
    if name := damage.pop("tensors", None):
        description.tensors[name] = dataclasses.replace(description.tensors["token_embd.weight"], shape=(3, 2))
    description.metadata |= damage
    with pytest.raises(ValueError, match=r"headwater\.config"):
        read_config(description)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS[:3], 330)


@pytest.fixture(scope="module")
def config(tokenizer):
    small = MODELS["LFM2-350M"].to_dict()
    layers = [layer | {"ffn": layer["ffn"] | {"intermediate_size": 512}} for layer in small["layers"][1:4]]
    for layer in layers:
        if layer["mixer"]["kind"] == "attention":
            layer["mixer"] |= {"num_heads": 4, "num_kv_heads": 2}
    return Config.from_dict(small | {"layers": layers, "hidden_size": 256, "vocab_size": 340})


def test_the_vocabulary_comes_back(tokenizer, config, tmp_path):
    tokenizer = Tokenizer.from_pretrained(_saved(tokenizer, tmp_path))
    gguf.write(tmp_path / "m.gguf", config, tensors(Lfm2(config)), tokenizer, type="f32", name="tiny")
    back = Tokenizer.from_pretrained(tmp_path / "m.gguf")
    for special in (False, True):
        ids = [tokenizer.encode(t, special=special, bos=True) for t in TEXTS]
        assert [back.encode(t, special=special, bos=True) for t in TEXTS] == ids
        assert [back.decode(i) for i in ids] == [tokenizer.decode(i) for i in ids]
    assert (back.vocab_size, back.padded_vocab_size) == (tokenizer.vocab_size, 340)
    assert (back.bos_id, back.eos_ids, back.pad_id, back.add_bos) == (1, (7,), 0, True)
    assert back.special_tokens == tokenizer.special_tokens
    assert back.chat_template == "{{ messages }}"
    file = GgufFile(tmp_path / "m.gguf")
    assert (file.metadata["tokenizer.ggml.pre"], file.metadata["general.name"]) == ("lfm2", "tiny")


def _saved(tokenizer, directory):
    tokenizer.save(directory / "t")
    (directory / "t" / "chat_template.jinja").write_text("{{ messages }}")
    return directory / "t"


@pytest.mark.parametrize(("options", "head"), [({}, "Q6_K"), ({"pure": True}, "Q4_0"), ({"head": "q5_1"}, "Q5_1")])
def test_the_default_mix(config, tmp_path, options, head):
    gguf.write(tmp_path / "m.gguf", config, tensors(Lfm2(config)), None, type="q4_0", **options)
    types = {n: t.type.name for n, t in GgufFile(tmp_path / "m.gguf").tensors.items()}
    assert types.pop("token_embd.weight") == head
    for name, kind in types.items():
        assert kind == ("F32" if "norm" in name or "shortconv.conv" in name else "Q4_0"), name


def test_requantizing_is_quantizing_the_original(config, tokenizer, tmp_path):
    whole, direct, twice = (tmp_path / f"{n}.gguf" for n in ("whole", "direct", "twice"))
    values = tensors(Lfm2(config))
    gguf.write(whole, config, values, tokenizer, type="f32")
    gguf.write(direct, config, values, tokenizer, type="q4_k")
    done = gguf.requantize(twice, GgufFile(whole), type="q4_k")
    assert direct.read_bytes() == twice.read_bytes()
    assert done.bits_per_weight < 5.5
    with pytest.raises(ValueError, match="second rounding"):
        gguf.requantize(tmp_path / "no.gguf", GgufFile(twice), type="q8_0")
    assert not (tmp_path / "no.gguf").exists()


def test_bf16_keeps_its_range_and_f16_says_where_it_cannot(config, tmp_path):
    """C4.12: a value that bf16 holds and f16 does not."""
    model = Lfm2(config, dtype=torch.bfloat16)
    with torch.no_grad():
        model.state_dict()["layers.0.conv.in_proj.weight"][3, 5] = 1e20
    gguf.write(tmp_path / "m.gguf", config, tensors(model), None, type="bf16")
    back = checkpoint.read(tmp_path / "m.gguf")[1]["layers.0.conv.in_proj.weight"].read()
    assert torch.equal(back, model.state_dict()["layers.0.conv.in_proj.weight"].float())
    with pytest.raises(ValueError, match=r"blk\.0\.shortconv\.in_proj\.weight: a value is beyond 65504"):
        gguf.write(tmp_path / "h.gguf", config, tensors(model), None, type="f16")
    assert not (tmp_path / "h.gguf").exists()


def test_missing_and_extra_tensors_are_named(config, tmp_path):
    values = tensors(Lfm2(config))
    with pytest.raises(ValueError, match=r"missing, first embedding_norm\.weight.*did you mean 'embeding_norm"):
        wrong = values | {"embeding_norm.weight": values["embedding_norm.weight"]}
        gguf.write(
            tmp_path / "m.gguf",
            config,
            {k: v for k, v in wrong.items() if k != "embedding_norm.weight"},
            None,
            type="f32",
        )
    with pytest.raises(ValueError, match="no place in the model, first x"):
        gguf.write(tmp_path / "m.gguf", config, values | {"x": values["embedding_norm.weight"]}, None, type="f32")
