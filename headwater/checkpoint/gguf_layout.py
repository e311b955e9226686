"""What a GGUF file will say of a Config, and where each of our tensors goes in it: the inverse of gguf_model. No torch.

Every description is read back by `gguf_model.read_config` before it is given out, so the two cannot drift apart. The
container's conventions stand here: interleaved Q/K rows (llama), norms with the one added (gemma3), flat convolutions,
stacked experts. Sources: the GGUF specification, llama.cpp's reading of it (pitfalls C4.1, C4.2).
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headwater.checkpoint import gguf_model
from headwater.config import Attention, Config, Ffn, Moe, ShortConv


def _as_is(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class Place:
    """A tensor of the file: its name and shape, and our tensors it is made of, one, or the experts in order.

    turn: our fp32 values -> the file's. constant: the values of a tensor that the Config alone determines.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    turn: Callable[[np.ndarray], np.ndarray] = _as_is
    constant: np.ndarray | None = None

    def dequantize(self) -> np.ndarray:
        assert self.constant is not None, self.name
        return self.constant


class _Inexpressible(Exception):
    """An architecture has no words for this Config."""


class Description(gguf_model.Facts):
    """Metadata and tensor places of a file that is not written yet."""

    tensors: dict[str, Place]

    def __init__(self, arch: str, values: dict[str, Any], places: list[Place]) -> None:
        self.path = Path(f"a file of architecture {arch}")
        self.metadata = {gguf_model.ARCHITECTURE: arch, **{f"{arch}.{key}": value for key, value in values.items()}}
        self.tensors = {place.name: place for place in places}


def describe(c: Config) -> Description:
    """The description of a Config: the first architecture of GGUF that says exactly this, else our own."""
    stated = dataclasses.replace(c, bos_id=None, eos_ids=(), pad_id=None)  # ids are the tokenizer's to write
    for arch, write in _WRITERS.items():
        try:
            description = Description(arch, _common(c) | write(c), list(_places(c, arch)))
            if gguf_model.read_config(description) == stated:
                return description
        except (_Inexpressible, ValueError):
            continue
    own = gguf_model.OWN
    description = Description(own, gguf_model.own_values(stated), list(_places(c, own)))
    assert gguf_model.read_config(description) == stated, c
    return description


def unsayable(c: Config) -> str | None:
    """What of a Config the architectures of GGUF have no words for; None where one of them has."""
    if describe(c).arch != gguf_model.OWN:
        return None
    attentions, hybrid = _attentions(c), any(isinstance(layer.mixer, ShortConv) for layer in c.layers)
    reasons = {
        "a model without attention": not attentions,
        "gated attention heads (LFM3)": any(a.output_gate for a in attentions),
        "heads that are turned in part (LFM3)": any(a.rope.fraction != 1 for a in attentions),
        "biases of convolutions": any(isinstance(layer.mixer, ShortConv) and layer.mixer.bias for layer in c.layers),
        "norms behind the branches of a hybrid (LFM3)": hybrid and any(layer.post_norms for layer in c.layers),
        "windows of attention in a hybrid (LFM3)": hybrid and any(a.window is not None for a in attentions),
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds) or "this mix of layers"


def _one(values: list[Any]) -> Any:
    """The value that all share."""
    if len(set(values)) != 1:
        raise _Inexpressible
    return values[0]


def _attentions(c: Config) -> list[Attention]:
    return [layer.mixer for layer in c.layers if isinstance(layer.mixer, Attention)]


def _common(c: Config) -> dict[str, Any]:
    attentions = _attentions(c)
    if not attentions:
        raise _Inexpressible
    head_dim = _one([a.head_dim for a in attentions])
    dense = [layer.ffn.intermediate_size for layer in c.layers if isinstance(layer.ffn, Ffn)]
    return {
        "block_count": len(c.layers),
        "context_length": c.max_positions,
        "embedding_length": c.hidden_size,
        "vocab_size": c.vocab_size,
        "feed_forward_length": _one(dense),
        "attention.head_count": _one([a.num_heads for a in attentions]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.dimension_count": head_dim,
    }


def _hybrid(c: Config) -> dict[str, Any]:
    mixers = [layer.mixer for layer in c.layers]
    return {
        "attention.head_count_kv": [m.num_kv_heads if isinstance(m, Attention) else 0 for m in mixers],
        "rope.freq_base": _one([a.rope.theta for a in _attentions(c)]),
        "shortconv.l_cache": _one([m.width for m in mixers if isinstance(m, ShortConv)]),
    }


def _hybrid_moe(c: Config) -> dict[str, Any]:
    moe = _one([layer.ffn for layer in c.layers if isinstance(layer.ffn, Moe)])
    return _hybrid(c) | {
        "expert_count": moe.num_experts,
        "expert_used_count": moe.num_experts_per_token,
        "expert_feed_forward_length": moe.intermediate_size,
        "expert_weights_norm": moe.norm_topk_prob,
        "expert_weights_scale": float(moe.routed_scaling_factor),
        "expert_gating_func": gguf_model.SIGMOID_GATING,
        "leading_dense_block_count": sum(isinstance(layer.ffn, Ffn) for layer in c.layers),
    }


def _attention_only(c: Config) -> dict[str, Any]:
    one = _one(_attentions(c))
    return {"attention.head_count_kv": one.num_kv_heads, "rope.freq_base": one.rope.theta}


def _gemma3(c: Config) -> dict[str, Any]:
    attentions = _attentions(c)
    wide = [a for a in attentions if a.window is None]
    return {
        "attention.head_count_kv": _one([a.num_kv_heads for a in attentions]),
        "attention.sliding_window": _one([a.window for a in attentions if a.window is not None]),
        "rope.freq_base": _one([a.rope.theta for a in wide]) if wide else 1e6,
    }


_WRITERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "lfm2": _hybrid,
    "lfm2moe": _hybrid_moe,
    "llama": _attention_only,
    "qwen3": _attention_only,
    "gemma3": _gemma3,
}


def _interleave(num_heads: int, rows: np.ndarray) -> np.ndarray:
    """Rows of half-split rotary pairs (i, i + n / 2) as interleaved ones (2 i, 2 i + 1), head by head."""
    halves = rows.reshape(num_heads, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _shapes(c: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our names of every tensor and their shapes, experts stacked."""
    d = c.hidden_size
    yield "embed_tokens.weight", (c.vocab_size, d)
    yield "embedding_norm.weight", (d,)
    if not c.tie_embeddings:
        yield "lm_head.weight", (c.vocab_size, d)
    for i, layer in enumerate(c.layers):
        for name, shape in {"operator_norm.weight": (d,), "ffn_norm.weight": (d,), **_mixer(layer.mixer, d)}.items():
            yield f"layers.{i}.{name}", shape
        if layer.post_norms:
            yield f"layers.{i}.post_operator_norm.weight", (d,)
            yield f"layers.{i}.post_ffn_norm.weight", (d,)
        for name, shape in _ffn(layer.ffn, d).items():
            yield f"layers.{i}.feed_forward.{name}", shape


def _mixer(m: Attention | ShortConv, d: int) -> dict[str, tuple[int, ...]]:
    if isinstance(m, ShortConv):
        weights: dict[str, tuple[int, ...]] = {
            "conv.conv.weight": (d, m.width), "conv.in_proj.weight": (3 * d, d), "conv.out_proj.weight": (d, d),
        }  # fmt: skip
        return weights | {f"{n.rpartition('.')[0]}.bias": s[:1] for n, s in weights.items()} if m.bias else weights
    wide, narrow = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    projections: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (wide, d), "self_attn.k_proj.weight": (narrow, d),
        "self_attn.v_proj.weight": (narrow, d), "self_attn.out_proj.weight": (d, wide),
    }  # fmt: skip
    norms = {"self_attn.q_layernorm.weight": (m.head_dim,), "self_attn.k_layernorm.weight": (m.head_dim,)}
    gate = {"self_attn.g_proj.weight": (m.num_heads, d)} if m.output_gate else {}
    return projections | (norms if m.qk_norm else {}) | gate


def _ffn(f: Ffn | Moe, d: int) -> dict[str, tuple[int, ...]]:
    n = f.intermediate_size
    if isinstance(f, Ffn):
        return {"w1.weight": (n, d), "w2.weight": (d, n), "w3.weight": (n, d)}
    e = f.num_experts
    experts: dict[str, tuple[int, ...]] = {
        "gate.weight": (e, d), "experts.w1": (e, n, d), "experts.w2": (e, d, n), "experts.w3": (e, n, d),
    }  # fmt: skip
    return experts | {"expert_bias": (e,)} if f.expert_bias else experts


def _places(c: Config, arch: str) -> Iterator[Place]:
    for name, shape in _shapes(c):
        theirs = gguf_model.names_of(name)
        file_name = theirs[0] if len(theirs) == 1 or arch.startswith("lfm2") else theirs[-1]
        sources: tuple[str, ...] = (name,)
        if ".experts." in name:
            stem, _, matrix = name.rpartition(".")
            sources = tuple(f"{stem}.{e}.{matrix}.weight" for e in range(shape[0]))
        yield Place(file_name, shape, sources, _turn(c, arch, name))
    if arch == gguf_model.OWN:  # which says its ropes itself
        return
    rope = _attentions(c)[0].rope
    if rope.scaling is not None and rope.scaling.kind == "llama3":
        head_dim = _attentions(c)[0].head_dim
        plain = np.array(dataclasses.replace(rope, scaling=None).frequencies(head_dim))
        factors = (plain / np.array(rope.frequencies(head_dim))).astype(np.float32)
        yield Place("rope_freqs.weight", factors.shape, (), constant=factors)


def _turn(c: Config, arch: str, name: str) -> Callable[[np.ndarray], np.ndarray]:
    if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        mixer = c.layers[int(name.split(".")[1])].mixer
        assert isinstance(mixer, Attention)
        return partial(_interleave, mixer.num_heads if "q_proj" in name else mixer.num_kv_heads)
    if c.norm_offset and "norm" in name:
        return partial(np.add, np.float32(c.norm_offset))
    return _as_is
