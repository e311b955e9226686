"""Hugging Face-format directories: config.json <-> Config and the tensor names of each family.

One Dialect per family says how its config.json spells a Config and what its tensors are called. A Config that no
family can express is written in our own plain form (`model_type: headwater`). Every key of a config.json is either
understood, known not to change the computation, or an error. Configs are read and written without torch.
Sources: transformers 5.23 configuration classes, published config.json files; pitfalls C4.1, C4.7-C4.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headwater.checkpoint.keys import Keys, read_ids, read_ropes, rope_parameters
from headwater.checkpoint.names import Names
from headwater.config import Attention, Config, Ffn, Layer, Moe, ShortConv
from headwater.files import atomic_dir, closest, read_json, write_json
from headwater.safetensors_file import Place, places

if TYPE_CHECKING:
    import torch

    from headwater.weights import Source

T = TypeVar("T")
_LLAMA_PARTS = {
    "embedding_norm": "norm",
    "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "out_proj": "o_proj",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
    "feed_forward": "mlp",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
}
_LAYER_TYPES = {"A": "full_attention", "S": "sliding_attention", "C": "conv"}
_GEMMA_PARTS = _LLAMA_PARTS | {
    "post_operator_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}
_LFM3_PARTS = {"self_attn.out_proj": "o_proj", "g_proj": "gate_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def _layer_types(keys: Keys, *, default: Callable[[int], str]) -> list[str]:
    listed = keys.take("layer_types", None)
    depth = keys.take("num_hidden_layers", None if listed is None else len(listed))
    types = listed if listed is not None else [default(i) for i in range(depth)]
    if not isinstance(types, list) or len(types) != depth:
        raise keys.fault("layer_types", types, f"a list of {depth} names, one for each of num_hidden_layers")
    known = list(_LAYER_TYPES.values())
    for i, name in enumerate(types):
        if name not in known:
            raise keys.fault(f"layer_types[{i}]", name, f"{', '.join(known)}{closest(str(name), known)}")
    return types


def _feed_forward_width(keys: Keys) -> int:
    """The effective SwiGLU width: config.json states the width before the two-thirds rule (C4.1)."""
    width = keys.take("block_ff_dim", None)
    stated = keys.take("intermediate_size", width)
    width = stated if width is None else width
    multiplier, multiple = keys.take("block_ffn_dim_multiplier", 1.0), keys.take("block_multiple_of", 256)
    if not keys.take("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    width = width if multiplier is None else int(multiplier * width)
    return multiple * ((width + multiple - 1) // multiple)


def _expect_lfm2_constants(keys: Keys, hidden_size: int, num_heads: int) -> None:
    """Keys of published LFM2 files that restate other keys or that only training used."""
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        keys.expect(name, hidden_size)
    keys.expect("num_heads", num_heads)
    for name in ("block_use_swiglu", "use_pos_enc"):
        keys.expect(name, True)
    keys.ignore(
        "block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init", "theta"
    )


def _read_lfm2(keys: Keys) -> Config:
    hidden_size, num_heads = keys.take("hidden_size"), keys.take("num_attention_heads")
    attention_indices = keys.take("full_attn_idxs", None)
    types = _layer_types(
        keys, default=lambda i: "full_attention" if attention_indices is None or i in attention_indices else "conv"
    )
    stated = [i for i, name in enumerate(types) if name == "full_attention"]
    if attention_indices is not None and sorted(attention_indices) != stated:
        raise keys.fault("full_attn_idxs", attention_indices, f"{stated}, the attention layers of layer_types")
    _expect_lfm2_constants(keys, hidden_size, num_heads)
    sparse = keys.model_type == "lfm2_moe"
    if sparse:
        keys.ignore("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", "output_router_logits")
        dense = Ffn(intermediate_size=keys.take("intermediate_size"))
        routed = Moe(
            num_experts=keys.take("num_experts"),
            num_experts_per_token=keys.take("num_experts_per_tok"),
            intermediate_size=keys.take("moe_intermediate_size"),
            norm_topk_prob=keys.take("norm_topk_prob", True),
            routed_scaling_factor=keys.take("routed_scaling_factor", 1.0),
            expert_bias=keys.take("use_expert_bias", True),
        )
        num_dense = keys.take("num_dense_layers", 2)
    else:
        dense = Ffn(intermediate_size=_feed_forward_width(keys))
    rope = read_ropes(keys, default_theta=1e6)["full_attention"]
    head_dim = keys.take("head_dim", None) or hidden_size // num_heads
    mixers: dict[str, Attention | ShortConv] = {
        "full_attention": Attention(
            num_heads=num_heads, num_kv_heads=keys.take("num_key_value_heads"), head_dim=head_dim, rope=rope
        ),
        "conv": ShortConv(width=keys.take("conv_L_cache", 3), bias=keys.take("conv_bias", False)),
    }
    if "sliding_attention" in types:
        raise keys.fault("layer_types", "sliding_attention", "conv and full_attention in this family")
    norm_eps = keys.take("norm_eps", None)
    block_norm_eps = keys.take("block_norm_eps", norm_eps)
    if norm_eps is not None and block_norm_eps != norm_eps:
        raise keys.fault("block_norm_eps", block_norm_eps, f"the same as norm_eps ({norm_eps})")
    return Config(
        vocab_size=keys.take("vocab_size"),
        hidden_size=hidden_size,
        layers=tuple(
            Layer(mixer=mixers[name], ffn=routed if sparse and i >= num_dense else dense)
            for i, name in enumerate(types)
        ),
        max_positions=keys.take("max_position_embeddings", 128_000),
        norm_eps=1e-5 if block_norm_eps is None else block_norm_eps,
        tie_embeddings=keys.take_alias(("tie_word_embeddings", "tie_embedding"), True),
        **read_ids(keys),
    )


def _write_lfm2(c: Config) -> dict[str, Any]:
    attention = _only(c, Attention)
    conv = _only(c, ShortConv)
    dense = _only_ffn(c, Ffn)
    values = {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": len(c.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "layer_types": [_LAYER_TYPES[letter] for letter in c.pattern()],
        "full_attn_idxs": list(c.attention_layers),
        "conv_L_cache": conv.width,
        "conv_bias": conv.bias,
        "conv_dim": c.hidden_size,
        "block_dim": c.hidden_size,
        "intermediate_size": dense.intermediate_size,
        "rope_parameters": rope_parameters(attention.rope),
        "rope_theta": attention.rope.theta,
        "norm_eps": c.norm_eps,
    }
    if all(isinstance(layer.ffn, Ffn) for layer in c.layers):
        return values | {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": "lfm2",
            "block_ff_dim": dense.intermediate_size,
            "block_auto_adjust_ff_dim": False,
        }
    routed = _only_ffn(c, Moe)
    return values | {
        "architectures": ["Lfm2MoeForCausalLM"],
        "model_type": "lfm2_moe",
        "num_dense_layers": sum(isinstance(layer.ffn, Ffn) for layer in c.layers),
        "num_experts": routed.num_experts,
        "num_experts_per_tok": routed.num_experts_per_token,
        "moe_intermediate_size": routed.intermediate_size,
        "norm_topk_prob": routed.norm_topk_prob,
        "routed_scaling_factor": routed.routed_scaling_factor,
        "use_expert_bias": routed.expert_bias,
    }


def _read_lfm3(keys: Keys) -> Config:
    types = _layer_types(
        keys,
        default=lambda i: "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 and i > 0 else "conv",
    )
    keys.expect("attention_bias", False)
    ropes = read_ropes(keys, default_theta=1e6, local_theta=1e4, partial_default_is_proportional=True)
    window = keys.take("sliding_window", 256)
    shared = {
        "num_heads": keys.take("num_attention_heads"),
        "num_kv_heads": keys.take("num_key_value_heads"),
        "head_dim": keys.take("head_dim", 128),
        "output_gate": keys.take("use_attention_gate", True),
    }
    mixers: dict[str, Attention | ShortConv] = {
        "conv": ShortConv(width=keys.take("conv_L_cache", 7), bias=keys.take("conv_bias", False)),
        "full_attention": Attention(rope=ropes["full_attention"], **shared),
        "sliding_attention": Attention(rope=ropes["sliding_attention"], window=window, **shared),
    }
    ffn, sandwich = Ffn(intermediate_size=keys.take("intermediate_size")), keys.take("use_sandwich_norm", True)
    return Config(
        vocab_size=keys.take("vocab_size"),
        hidden_size=keys.take("hidden_size"),
        layers=tuple(Layer(mixer=mixers[name], ffn=ffn, post_norms=sandwich) for name in types),
        max_positions=keys.take("max_position_embeddings", 128_000),
        norm_eps=keys.take_alias(("norm_eps", "rms_norm_eps"), 1e-5),
        tie_embeddings=keys.take("tie_word_embeddings", True),
        **read_ids(keys),
    )


def _write_lfm3(c: Config) -> dict[str, Any]:
    full, sliding = _full_and_sliding(c)
    conv = _only(c, ShortConv)
    return {
        "architectures": ["Lfm3ForCausalLM"],
        "model_type": "lfm3",
        "hidden_size": c.hidden_size,
        "num_hidden_layers": len(c.layers),
        "num_attention_heads": full.num_heads,
        "num_key_value_heads": full.num_kv_heads,
        "head_dim": full.head_dim,
        "layer_types": [_LAYER_TYPES[letter] for letter in c.pattern()],
        "sliding_window": sliding.window or 4096,  # without such layers: said, not used
        "conv_L_cache": conv.width,
        "conv_bias": conv.bias,
        "intermediate_size": _only_ffn(c, Ffn).intermediate_size,
        "use_attention_gate": full.output_gate,
        "use_sandwich_norm": c.layers[0].post_norms,
        "rope_parameters": {
            "full_attention": rope_parameters(full.rope),
            "sliding_attention": rope_parameters(sliding.rope),
        },
        "norm_eps": c.norm_eps,
    }


def _read_transformer(keys: Keys) -> Config:
    """Llama and Qwen3: attention everywhere, one rope, SwiGLU."""
    for name, value in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("rope_interleaved", False),
    ):
        keys.expect(name, value)
    keys.expect("use_sliding_window", False)
    keys.ignore("sliding_window", "max_window_layers", "pretraining_tp", "is_llama_config")
    types = _layer_types(keys, default=lambda i: "full_attention")
    if set(types) != {"full_attention"}:
        raise keys.fault("layer_types", sorted(set(types)), "full_attention only in this family")
    hidden_size, num_heads = keys.take("hidden_size"), keys.take("num_attention_heads")
    qwen = keys.model_type == "qwen3"
    attention = Attention(
        num_heads=num_heads,
        num_kv_heads=keys.take("num_key_value_heads", None) or num_heads,
        head_dim=keys.take("head_dim", None) or (128 if qwen else hidden_size // num_heads),
        rope=read_ropes(keys, default_theta=1e4)["full_attention"],
        qk_norm=qwen,
    )
    ffn = Ffn(intermediate_size=keys.take("intermediate_size"))
    return Config(
        vocab_size=keys.take("vocab_size"),
        hidden_size=hidden_size,
        layers=tuple(Layer(mixer=attention, ffn=ffn) for _ in types),
        max_positions=keys.take("max_position_embeddings"),
        norm_eps=keys.take("rms_norm_eps", 1e-6),
        tie_embeddings=keys.take("tie_word_embeddings", False),
        **read_ids(keys),
    )


def _write_transformer(c: Config) -> dict[str, Any]:
    attention = _only(c, Attention)
    family = ("Qwen3ForCausalLM", "qwen3") if attention.qk_norm else ("LlamaForCausalLM", "llama")
    return {
        "architectures": [family[0]],
        "model_type": family[1],
        "hidden_size": c.hidden_size,
        "num_hidden_layers": len(c.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": _only_ffn(c, Ffn).intermediate_size,
        "hidden_act": "silu",
        "rope_parameters": rope_parameters(attention.rope),
        "rope_theta": attention.rope.theta,
        "rms_norm_eps": c.norm_eps,
    }


def _read_gemma3(keys: Keys) -> Config:
    for name, value in (("hidden_activation", "gelu_pytorch_tanh"), ("attention_bias", False)):
        keys.expect(name, value)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        keys.expect(name, None)
    keys.expect("use_bidirectional_attention", False)
    period = keys.take_alias(("sliding_window_pattern", "_sliding_window_pattern"), 6)
    types = _layer_types(keys, default=lambda i: "sliding_attention" if (i + 1) % period else "full_attention")
    ropes = read_ropes(keys, default_theta=1e6, local_theta=1e4)
    window, scalar = keys.take("sliding_window", 4096), keys.take("query_pre_attn_scalar", 256)
    shared = {
        "num_heads": keys.take("num_attention_heads"),
        "num_kv_heads": keys.take("num_key_value_heads"),
        "head_dim": keys.take("head_dim", 256),
        "scale": scalar**-0.5,
    }
    mixers = {
        "full_attention": Attention(rope=ropes["full_attention"], **shared),
        "sliding_attention": Attention(rope=ropes["sliding_attention"], window=window, **shared),
    }
    hidden_size = keys.take("hidden_size")
    ffn = Ffn(intermediate_size=keys.take("intermediate_size"), activation="gelu_tanh")
    return Config(
        vocab_size=keys.take("vocab_size"),
        hidden_size=hidden_size,
        layers=tuple(Layer(mixer=mixers[name], ffn=ffn, post_norms=True) for name in types),
        max_positions=keys.take("max_position_embeddings", 131_072),
        norm_eps=keys.take("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        embedding_scale=hidden_size**0.5,
        tie_embeddings=keys.take("tie_word_embeddings", True),
        **read_ids(keys),
    )


def _write_gemma3(c: Config) -> dict[str, Any]:
    full, sliding = _full_and_sliding(c)
    if full.scale is None:
        raise Inexpressible
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": c.hidden_size,
        "num_hidden_layers": len(c.layers),
        "num_attention_heads": full.num_heads,
        "num_key_value_heads": full.num_kv_heads,
        "head_dim": full.head_dim,
        "query_pre_attn_scalar": round(full.scale**-2),
        "layer_types": [_LAYER_TYPES[letter] for letter in c.pattern()],
        "sliding_window": sliding.window or 4096,  # without such layers: said, not used
        "intermediate_size": _only_ffn(c, Ffn).intermediate_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            "full_attention": rope_parameters(full.rope),
            "sliding_attention": rope_parameters(sliding.rope),
        },
        "rms_norm_eps": c.norm_eps,
    }


class Inexpressible(Exception):
    """A family's config.json has no words for this Config."""


def _only(c: Config, kind: type) -> Any:
    """The one mixer of this kind that all such layers share."""
    found = {layer.mixer for layer in c.layers if isinstance(layer.mixer, kind)}
    if len(found) != 1:
        raise Inexpressible
    return found.pop()


def _only_ffn(c: Config, kind: type) -> Any:
    found = {layer.ffn for layer in c.layers if isinstance(layer.ffn, kind)}
    if len(found) != 1:
        raise Inexpressible
    return found.pop()


def _full_and_sliding(c: Config) -> tuple[Attention, Attention]:
    found = {m for layer in c.layers if isinstance(m := layer.mixer, Attention)}
    full, sliding = [m for m in found if m.window is None], [m for m in found if m.window is not None]
    if len(full) > 1 or len(sliding) > 1 or not found:
        raise Inexpressible
    return (full or sliding)[0], (sliding or full)[0]


@dataclass(frozen=True)
class Dialect:
    """One family's spelling of Configs and tensor names."""

    model_types: tuple[str, ...]
    names: Names
    read: Callable[[Keys], Config]
    write: Callable[[Config], dict[str, Any]]


DIALECTS = (
    Dialect(("lfm2", "lfm2_moe"), Names({}), _read_lfm2, _write_lfm2),
    Dialect(("lfm3",), Names(_LFM3_PARTS), _read_lfm3, _write_lfm3),
    Dialect(("llama", "qwen3"), Names(_LLAMA_PARTS), _read_transformer, _write_transformer),
    Dialect(("gemma3_text",), Names(_GEMMA_PARTS), _read_gemma3, _write_gemma3),
)
_OURS = Dialect(("headwater",), Names({}), lambda keys: Config.from_dict(keys.rest()), Config.to_dict)


def _dialect(model_type: object) -> Dialect:
    known = {name: d for d in (*DIALECTS, _OURS) for name in d.model_types}
    if model_type not in known:
        hint = closest(str(model_type), list(known))
        raise ValueError(f"config.json: model_type is {model_type!r}{hint}; understood: {', '.join(known)}")
    return known[str(model_type)]


def parse_config(values: Mapping[str, Any]) -> tuple[Config, Names]:
    """Config and tensor names of a parsed config.json; ValueError names the first key that is not understood."""
    if not isinstance(values, Mapping):
        raise ValueError(f"config.json holds {type(values).__name__}; allowed: an object")
    dialect = _dialect(values.get("model_type"))
    keys = Keys(values)
    try:
        c = dialect.read(keys)
    except (TypeError, ZeroDivisionError, OverflowError, KeyError) as e:
        raise ValueError(f"config.json: a value is missing, zero or of the wrong type ({e!r})") from e
    keys.finish()
    return c, dialect.names


def config_dict(c: Config) -> tuple[dict[str, Any], Names]:
    """config.json of a Config in the first dialect that says exactly this, else in our own form; and its names."""
    common = {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_positions,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": c.bos_id,
        "eos_token_id": c.eos_ids[0] if len(c.eos_ids) == 1 else list(c.eos_ids) or None,
        "pad_token_id": c.pad_id,
    }
    for dialect in DIALECTS:
        try:
            values = dialect.write(c) | common
            if parse_config(values)[0] == c:
                return values, dialect.names
        except (Inexpressible, ValueError):  # a family may refuse to read what it was made to say
            continue
    return {"model_type": "headwater"} | c.to_dict(), _OURS.names


def read_config(directory: Path) -> Config:
    """Config of a directory's config.json."""
    return parse_config(read_json(_config_file(directory)))[0]


def _config_file(directory: Path) -> Path:
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} has no config.json; give a model directory, a .gguf file or a hub id")
    return file


def read(directory: Path) -> tuple[Config, dict[str, Source], torch.dtype]:
    """Config, unread tensors by our names, and the dtype of the embedding in the files."""
    from headwater import weights

    c, names = parse_config(read_json(_config_file(directory)))
    sources = _ours(directory, names, weights.open_safetensors(directory))
    return c, sources, sources["embed_tokens.weight"].dtype


def read_places(directory: Path) -> tuple[Config, dict[str, Place]]:
    """Config, and where each tensor stands, by our names; without torch."""
    c, names = parse_config(read_json(_config_file(directory)))
    return c, _ours(directory, names, places(directory))


def _ours(directory: Path, names: Names, found: Mapping[str, T]) -> dict[str, T]:
    ours = {names.ours(name): it for name, it in found.items() if not name.endswith("rotary_emb.inv_freq")}
    if "embed_tokens.weight" not in ours:
        raise ValueError(f"{directory} holds no embedding named {names.theirs('embed_tokens.weight')!r}")
    return ours


def write(directory: Path, c: Config, tensors: Mapping[str, torch.Tensor], max_shard_bytes: int) -> None:
    """Write config.json and weights, all or nothing. Files of earlier weights go: readers would take them for these."""
    from headwater import weights

    values, names = config_dict(c)
    values["dtype"] = str(tensors["embed_tokens.weight"].dtype).removeprefix("torch.")
    earlier = {file.name for file in directory.glob("model*") if _WEIGHT_FILE.fullmatch(file.name)}
    with atomic_dir(directory) as part:
        write_json(part / "config.json", values)
        renamed = ((names.theirs(name), tensor) for name, tensor in weights.unstack(tensors))
        weights.write_safetensors(part, renamed, max_shard_bytes)
        earlier -= {file.name for file in part.iterdir()}
    for name in earlier:
        (directory / name).unlink(missing_ok=True)
