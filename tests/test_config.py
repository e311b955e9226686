"""The shapes of released models, and every spelling of config.json (pitfalls C4.1, C4.8, C4.9, C4.14-C4.16)."""

import dataclasses
import json

import pytest
import torch
import transformers
from families import BUILDERS

from headwater.checkpoint.huggingface import config_dict, parse_config
from headwater.config import MODELS, Attention, Config, Ffn, Layer, Moe, Rope, RopeScaling, ShortConv, named, stack
from headwater.model import Lfm2

PUBLISHED = {
    "LFM2-350M": 354_483_968,
    "LFM2-700M": 742_489_344,
    "LFM2-1.2B": 1_170_340_608,
    "LFM2-2.6B": 2_569_272_320,
    "LFM2-8B-A1B": 8_339_929_856,
    "LFM2-24B-A2B": 23_843_659_008,
    "LFM2.5-230M": 229_693_184,
    "LFM2.5-350M": 354_483_968,
    "LFM2.5-1.2B": 1_170_340_608,
    "LFM2.5-2.6B": 2_697_198_592,
    "LFM2.5-8B-A1B": 8_467_856_128,
    "LFM3-1.7B": 1_728_801_536,
    "SmolLM2-135M": 134_515_008,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Gemma-3-1B": 999_885_952,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_equal_the_published_ones(name):
    model = Lfm2(MODELS[name], device="meta")
    counted = sum(p.numel() for p in model.parameters())
    assert counted == MODELS[name].num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", MODELS)
def test_same_count_in_transformers(name):
    """config.json that we write, read by transformers: the same model."""
    values = config_dict(MODELS[name])[0]
    reference = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(reference)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_expert_biases_are_beside_the_count():
    model = Lfm2(MODELS["LFM2-8B-A1B"], device="meta")
    assert sum(b.numel() for b in model.buffers()) == 704
    assert MODELS["LFM2-8B-A1B"].num_parameters(active=True) == 1_557_740_288


def test_cache_sizes():
    assert MODELS["LFM2-1.2B"].kv_bytes_per_token() == 12 * 1024
    assert MODELS["LFM2-2.6B"].kv_bytes_per_token() == 16 * 1024
    assert MODELS["LFM2-1.2B"].conv_state_bytes() == 10 * 2 * 2048 * 2
    lfm3 = MODELS["LFM3-1.7B"]
    assert lfm3.kv_bytes(10_000) == (10_000 * 6 + 256 * 5) * 2 * 4 * 128 * 2


@pytest.mark.parametrize("name", MODELS)
def test_plain_form_round_trip(name):
    c = MODELS[name]
    assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize("name", MODELS)
def test_config_json_round_trip(name):
    values, _ = config_dict(MODELS[name])
    assert values["model_type"] != "headwater"
    assert parse_config(json.loads(json.dumps(values)))[0] == MODELS[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_what_transformers_writes_is_read(name, tmp_path):
    reference = BUILDERS[name]()
    reference.config.save_pretrained(tmp_path)
    c, _ = parse_config(json.loads((tmp_path / "config.json").read_text()))
    assert c.num_parameters() == sum(p.numel() for p in reference.parameters())


OFFICIAL_1_2B = {
    "architectures": ["Lfm2ForCausalLM"], "block_auto_adjust_ff_dim": True, "block_dim": 2048, "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True, "bos_token_id": 1,
    "conv_L_cache": 3, "conv_bias": False, "conv_dim": 2048, "conv_dim_out": 2048, "conv_use_xavier_init": True,
    "eos_token_id": 7, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "hidden_size": 2048, "initializer_range": 0.02,
    "max_position_embeddings": 128000, "model_type": "lfm2", "norm_eps": 1e-05, "num_attention_heads": 32,
    "num_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pad_token_id": 0, "rope_theta": 1000000.0,
    "theta": 1000000.0, "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0", "use_cache": True,
    "use_pos_enc": True, "vocab_size": 65536,
}  # fmt: skip
LAYER_TYPES = ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)]
SPELLINGS = {
    "official": {},
    "layer_types": {"full_attn_idxs": None, "layer_types": LAYER_TYPES},
    "both": {"layer_types": LAYER_TYPES},
    "flat rope": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    "nested rope": {"rope_theta": None, "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
    "old rope scaling": {"rope_scaling": None},
    "intermediate_size": {"block_ff_dim": None, "intermediate_size": 12288},
    "no adjustment": {"block_ff_dim": 8192, "block_auto_adjust_ff_dim": False},
    "tie_embedding": {"tie_embedding": True},
    "tie_word_embeddings": {"tie_word_embeddings": True},
    "eos list": {"eos_token_id": [7]},
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_config(spelling):
    values = OFFICIAL_1_2B | SPELLINGS[spelling]
    keep_null = {"rope_scaling"}
    values = {k: v for k, v in values.items() if v is not None or k in keep_null}
    assert parse_config(values)[0] == MODELS["LFM2-1.2B"]


@pytest.mark.parametrize(("ff", "width"), [(6656, 4608), (10240, 6912), (12288, 8192), (100, 256)])
def test_feed_forward_rule(ff, width):
    c, _ = parse_config(OFFICIAL_1_2B | {"block_ff_dim": ff})
    assert c.layers[0].ffn == Ffn(intermediate_size=width)


BAD = {
    "unknown key": ({"conv_dilation": 2}, "conv_dilation"),
    "misspelt key": ({"conv_L_cach": 3}, "did you mean 'conv_L_cache'"),
    "other width": ({"conv_dim": 1024}, "conv_dim"),
    "contradiction": ({"tie_embedding": False, "tie_word_embeddings": True}, "contradict"),
    "two ropes": ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
    "strange rope": ({"rope_parameters": {"rope_type": "yarn", "factor": 4}, "rope_theta": 1e6}, "yarn"),
    "layer kind": ({"layer_types": ["mamba"] * 16}, "mamba"),
    "layer count": ({"layer_types": ["conv"] * 15}, "16 names"),
    "attention indices": ({"layer_types": ["conv"] * 16}, "full_attn_idxs"),
    "family": ({"model_type": "lfm22"}, "did you mean 'lfm2'"),
    "no swiglu": ({"block_use_swiglu": False}, "block_use_swiglu"),
    "type": ({"num_hidden_layers": "many"}, "wrong type"),
    "zero heads": ({"num_attention_heads": 0, "num_heads": 0}, "zero"),
    "bad id": ({"eos_token_id": 70000}, "eos_ids"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_key_that_changes_the_computation_is_an_error_that_names_it(fault):
    change, said = BAD[fault]
    with pytest.raises(ValueError, match=said):
        parse_config(OFFICIAL_1_2B | change)


def test_missing_key_is_named():
    with pytest.raises(ValueError, match="'vocab_size' is missing"):
        parse_config({k: v for k, v in OFFICIAL_1_2B.items() if k != "vocab_size"})


def test_lfm3_published_rope_label_is_proportional():
    """C4.9: `default` with a partial factor means 32 of 64 pairs turn, at theta^(-2 i / 128)."""
    values, _ = config_dict(MODELS["LFM3-1.7B"])
    values["rope_parameters"]["full_attention"]["rope_type"] = "default"
    c, _ = parse_config(values)
    assert c == MODELS["LFM3-1.7B"]
    rope = next(layer.mixer.rope for layer in c.layers if layer.mixer.kind == "attention" and not layer.mixer.window)
    frequencies = rope.frequencies(128)
    assert frequencies[:32] == tuple(1e6 ** (-2 * i / 128) for i in range(32))
    assert frequencies[32:] == (0.0,) * 32


def test_llama3_scaling_equals_the_reference():
    values, _ = config_dict(MODELS["Llama-3.2-1B"])
    reference = transformers.AutoConfig.for_model(**values)
    init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    rope = MODELS["Llama-3.2-1B"].layers[0].mixer.rope
    assert torch.allclose(torch.tensor(rope.frequencies(64)), init(reference, "cpu")[0], rtol=1e-6)


def test_a_mixed_network_is_written_in_the_plain_form():
    """What no published family can express (here: two widths of convolution) still saves and loads."""
    c = Config(
        vocab_size=99, hidden_size=16, max_positions=64,
        layers=(
            Layer(mixer=ShortConv(width=3), ffn=Ffn(intermediate_size=24)),
            Layer(mixer=ShortConv(width=5, bias=True), ffn=Ffn(intermediate_size=32)),
        ),
    )  # fmt: skip
    values, _ = config_dict(c)
    assert values["model_type"] == "headwater"
    assert parse_config(json.loads(json.dumps(values)))[0] == c


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ShortConv(width=0), "ShortConv.width is 0"),
        (lambda: Attention(num_heads=6, num_kv_heads=4, head_dim=8, rope=Rope(theta=1e4)), "num_heads is 6"),
        (lambda: Attention(num_heads=6, num_kv_heads=2, head_dim=7, rope=Rope(theta=1e4)), "head_dim is 7"),
        (lambda: Rope(theta=0), "Rope.theta is 0"),
        (lambda: Rope(theta=1e4, fraction=1.5), "fraction is 1.5"),
        (lambda: RopeScaling(kind="yarn", factor=2), "kind is 'yarn'"),
        (lambda: Moe(num_experts=4, num_experts_per_token=5, intermediate_size=8), "at most num_experts = 4"),
        (lambda: Ffn(intermediate_size=8, activation="relu"), "activation is 'relu'"),
        (lambda: dataclasses.replace(MODELS["LFM2-350M"], layers=()), "at least one layer"),
        (lambda: dataclasses.replace(MODELS["LFM2-350M"], bos_id=65536), "bos_id is 65536"),
        (lambda: Config.from_dict(MODELS["LFM2-350M"].to_dict() | {"hidden": 3}), "did you mean 'hidden_size'"),
        (lambda: Config.from_dict({"layers": 3}), "a list of layers"),
        (lambda: named("LFM2-350"), "did you mean 'LFM2-350M'"),
    ],
)
def test_values_out_of_range_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_stack_and_pattern_are_inverse():
    c = MODELS["LFM3-1.7B"]
    mixers = {letter: layer.mixer for letter, layer in zip(c.pattern(), c.layers, strict=True)}
    assert stack(c.pattern(), mixers, c.layers[0].ffn, post_norms=True) == c.layers


@pytest.mark.parametrize("name", ["LFM3-1.7B", "Gemma-3-1B"])
def test_families_without_their_windows_round_trip(name):
    c = MODELS[name]
    wide = next(layer.mixer for layer in c.layers if layer.mixer.kind == "attention" and not layer.mixer.window)
    mixers = [wide if getattr(layer.mixer, "window", None) else layer.mixer for layer in c.layers]
    layers = tuple(dataclasses.replace(layer, mixer=m) for layer, m in zip(c.layers, mixers, strict=True))
    windowless = dataclasses.replace(c, layers=layers)
    assert parse_config(json.loads(json.dumps(config_dict(windowless)[0])))[0] == windowless
