"""What a GGUF file says of its model: metadata -> Config, and what its tensors are called. No torch.

Both readers of such files build on it: checkpoint.gguf (dequantizes, for the plain engine) and engine.native (repacks).
What no architecture of GGUF can say (LFM3's gates and windows, biases of convolutions) has one of our own, OWN, whose
only fact is the Config as JSON; other programs refuse it by its name.
Sources: the GGUF specification, gguf's name tables; pitfalls C4.2.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from headwater.config import Attention, Config, Ffn, Layer, Moe, Rope, RopeScaling, ShortConv
from headwater.files import closest
from headwater.gguf_file import Described
from headwater.records import replace

if TYPE_CHECKING:
    import numpy as np

TOP = {
    "token_embd.weight": "embed_tokens.weight",
    "token_embd_norm.weight": "embedding_norm.weight",
    "output_norm.weight": "embedding_norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "operator_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "post_attention_norm.weight": "post_operator_norm.weight",
    "post_ffw_norm.weight": "post_ffn_norm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.out_proj.weight",
    "attn_gate.weight": "self_attn.g_proj.weight",
    "attn_q_norm.weight": "self_attn.q_layernorm.weight",
    "attn_k_norm.weight": "self_attn.k_layernorm.weight",
    "shortconv.conv.weight": "conv.conv.weight",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
    "shortconv.conv.bias": "conv.conv.bias",
    "shortconv.in_proj.bias": "conv.in_proj.bias",
    "shortconv.out_proj.bias": "conv.out_proj.bias",
    "ffn_gate.weight": "feed_forward.w1.weight",
    "ffn_down.weight": "feed_forward.w2.weight",
    "ffn_up.weight": "feed_forward.w3.weight",
    "ffn_gate_inp.weight": "feed_forward.gate.weight",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "ffn_gate_exps.weight": "feed_forward.experts.w1",
    "ffn_down_exps.weight": "feed_forward.experts.w2",
    "ffn_up_exps.weight": "feed_forward.experts.w3",
}
SIGMOID_GATING = 2
ARCHITECTURE = "general.architecture"
OWN, _CONFIG = "headwater", "config"


class Tensor(Protocol):
    """A tensor as far as the description needs it: its shape, fastest dimension last, and the values of a small one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def dequantize(self) -> "np.ndarray": ...


class Facts(Described):
    """A described file whose keys carry the architecture's name."""

    tensors: Mapping[str, Tensor]

    @property
    def arch(self) -> str:
        return self.value(ARCHITECTURE, str)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """`value` of an architecture's own key."""
        return self.value(f"{self.arch}.{key}", kind, default)

    def per_layer(self, key: str, depth: int) -> list[int]:
        """A number for every layer, or one number for all."""
        contents = self.find(f"{self.arch}.{key}")
        values: list[Any] = contents if isinstance(contents, list) else [contents] * depth
        if len(values) != depth or not all(isinstance(v, int) for v in values):
            raise ValueError(f"{self.path}: {self.arch}.{key} is {contents!r}; allowed: a number, or {depth} of them")
        return values


def _rope(file: Facts, head_dim: int) -> Rope:
    theta = file.get("rope.freq_base", float, 10_000.0)
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return Rope(theta=theta)
    stated = [float(v) for v in tensor.dequantize()]
    plain = Rope(theta=theta).frequencies(head_dim)
    for factor in (32.0, 8.0):
        rope = Rope(theta=theta, scaling=RopeScaling(kind="llama3", factor=factor))
        told = zip(stated, plain, rope.frequencies(head_dim), strict=True) if len(stated) == len(plain) else ()
        if told and all(math.isclose(f, a / b, rel_tol=1e-4) for f, a, b in told):
            return rope
    raise ValueError(f"{file.path}: rope_freqs.weight is not Llama 3's scaling by 8 or 32, the ones understood")


def _head_dim(file: Facts, num_heads: int) -> int:
    if num_heads < 1:
        raise ValueError(f"{file.path}: attention.head_count is {num_heads}; allowed: 1 and more")
    return int(file.get("attention.key_length", int, file.get("embedding_length", int) // num_heads))


def _attention_only(file: Facts, depth: int, **options: Any) -> list[Attention]:
    num_heads, num_kv_heads = file.get("attention.head_count", int), file.get("attention.head_count_kv", int)
    head_dim = _head_dim(file, num_heads)
    shared = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    if file.arch != "gemma3":
        return [Attention(rope=_rope(file, head_dim), **shared, **options)] * depth
    window = file.get("attention.sliding_window", int)
    wide = Attention(rope=Rope(theta=file.get("rope.freq_base", float, 1e6)), scale=256**-0.5, **shared)
    near = Attention(rope=Rope(theta=1e4), window=window, scale=256**-0.5, **shared)
    return [near if (i + 1) % 6 else wide for i in range(depth)]


def _hybrid(file: Facts, depth: int) -> list[Attention | ShortConv]:
    heads = set(file.per_layer("attention.head_count", depth)) - {0}
    kv_heads = file.per_layer("attention.head_count_kv", depth)
    if len(heads) != 1:
        raise ValueError(f"{file.path}: attention.head_count has the values {sorted(heads)}; allowed: one")
    num_heads = heads.pop()
    head_dim = _head_dim(file, num_heads)
    rope, conv = _rope(file, head_dim), ShortConv(width=file.get("shortconv.l_cache", int))
    return [
        Attention(num_heads=num_heads, num_kv_heads=g, head_dim=head_dim, rope=rope) if g else conv for g in kv_heads
    ]


def _ffns(file: Facts, depth: int) -> list[Ffn | Moe]:
    activation: Literal["gelu_tanh", "silu"] = "gelu_tanh" if file.arch == "gemma3" else "silu"
    widths = file.per_layer("feed_forward_length", depth)
    dense: list[Ffn | Moe] = [Ffn(intermediate_size=w, activation=activation) for w in widths]
    if file.arch != "lfm2moe":
        return dense
    gating = file.get("expert_gating_func", int, SIGMOID_GATING)
    if gating != SIGMOID_GATING:
        raise ValueError(f"{file.path}: expert_gating_func is {gating}; allowed: {SIGMOID_GATING} (sigmoid)")
    routed = Moe(
        num_experts=file.get("expert_count", int),
        num_experts_per_token=file.get("expert_used_count", int),
        intermediate_size=file.get("expert_feed_forward_length", int),
        norm_topk_prob=file.get("expert_weights_norm", bool, True),
        routed_scaling_factor=file.get("expert_weights_scale", float, 1.0),
    )
    num_dense = file.get("leading_dense_block_count", int)
    return [dense[i] if i < num_dense else routed for i in range(depth)]


_ARCHITECTURES: dict[str, Callable[[Facts, int], list[Any]]] = {
    "lfm2": _hybrid,
    "lfm2moe": _hybrid,
    "llama": partial(_attention_only, qk_norm=False),
    "qwen3": partial(_attention_only, qk_norm=True),
    "gemma3": _attention_only,
}


def own_values(c: Config) -> dict[str, Any]:
    """What a file of our own architecture says, by key; the counts are for people and for programs that list files."""
    counts = {"block_count": len(c.layers), "context_length": c.max_positions, "embedding_length": c.hidden_size}
    return counts | {_CONFIG: json.dumps(c.to_dict())}


def _read_own(file: Facts, rows: int) -> Config:
    try:
        c = Config.from_dict(json.loads(file.get(_CONFIG, str)))
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{file.path}: {OWN}.{_CONFIG} is not a configuration of this version: {e}") from e
    if c.vocab_size != rows or c.tie_embeddings != ("output.weight" not in file.tensors):
        raise ValueError(f"{file.path}: {OWN}.{_CONFIG} and the tensors differ in the embedding; write the file again")
    return c


def _ids(file: Facts) -> dict[str, Any]:
    """The special tokens that the vocabulary names."""
    found = (file.value(f"tokenizer.ggml.{k}_token_id", int, -1) for k in ("bos", "eos", "padding"))
    bos, eos, pad = (None if i < 0 else i for i in found)
    return {"bos_id": bos, "eos_ids": () if eos is None else (eos,), "pad_id": pad}


def read_config(file: Facts) -> Config:
    """Config of a file's metadata; ValueError when the architecture or a value is not understood."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{file.path} holds no token_embd.weight")
    if file.arch == OWN:
        return replace(_read_own(file, embedding.shape[0]), **_ids(file))
    if file.arch not in _ARCHITECTURES:
        known = [*_ARCHITECTURES, OWN]
        hint = closest(file.arch, known)
        raise ValueError(f"{file.path}: architecture {file.arch!r}{hint}; understood: {', '.join(known)}")
    depth, hidden_size = file.get("block_count", int), file.get("embedding_length", int)
    if not 1 <= depth <= len(file.tensors):  # before there is a list of so many
        raise ValueError(f"{file.path}: block_count is {depth}; the file holds {len(file.tensors)} tensors in all")
    gemma = file.arch == "gemma3"
    mixers = _ARCHITECTURES[file.arch](file, depth)
    return Config(
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        layers=tuple(Layer(mixer=m, ffn=f, post_norms=gemma) for m, f in zip(mixers, _ffns(file, depth), strict=True)),
        max_positions=file.get("context_length", int),
        norm_eps=round(file.get("attention.layer_norm_rms_epsilon", float), 12),
        norm_offset=1.0 if gemma else 0.0,
        embedding_scale=hidden_size**0.5 if gemma else 1.0,
        tie_embeddings="output.weight" not in file.tensors,
        **_ids(file),
    )


def our_name(name: str) -> str | None:
    """Our name of a file's tensor, or None when it is not one of ours."""
    if name in TOP:
        return TOP[name]
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in LAYER:
        return f"layers.{int(parts[1])}.{LAYER[parts[2]]}"
    return None


def names_of(name: str) -> list[str]:
    """What files may call our tensor: one name, or for the final norm LFM2's and then everybody else's."""
    parts = name.split(".", 2)
    if parts[0] == "layers":
        return [f"blk.{parts[1]}.{theirs}" for theirs, ours in LAYER.items() if ours == parts[2]]
    return [theirs for theirs, ours in TOP.items() if ours == name]


def their_name(name: str, file: Facts) -> str:
    """The file's name of our tensor. ValueError when the file lacks it."""
    names = names_of(name)
    for theirs in names:
        if theirs in file.tensors:
            return theirs
    raise ValueError(f"{file.path}: the tensor {' or '.join(names) or name} is missing; download or convert it again")
