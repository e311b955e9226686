"""GGUF files of exact shapes with random weights: speed does not depend on values, and no download is needed.

Blocks are random bytes under scales that keep every layer's output near one. The vocabulary is all bytes, the special
tokens and made-up words, with one merge. Written a tensor at a time; llama.cpp and our engine run the result. Which
tensor gets which type follows llama-quantize: a tied embedding, or else the head, gets Q6_K in a Q4_0 file.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter

from headwater.bench.build_peer import cache_dir
from headwater.checkpoint import gguf_model
from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, named, stack
from headwater.files import atomic, closest

TYPES = {"q4_0": Type.Q4_0, "q8_0": Type.Q8_0, "f16": Type.F16}
_FILE_TYPE = {"q4_0": 2, "q8_0": 7, "f16": 1}
_PRE = {"lfm2": "lfm2", "lfm2moe": "lfm2", "llama": "llama-bpe", "qwen3": "qwen2", "gemma3": "gpt-2"}
_MERGE = "t h"
_CONTROL = 3


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: the file's name, shape with the fastest dimension last, element type."""

    name: str
    shape: tuple[int, ...]
    type: Type

    @property
    def byte_shape(self) -> tuple[int, ...]:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return (*self.shape[:-1], self.shape[-1] // block * size)


def file_for(name: str, type_: str, *, pure: bool = False) -> Path:
    """The file of that released size and type in the cache, written when it is not there yet."""
    config = named(name)
    if type_ not in TYPES:
        raise ValueError(f"--type is {type_!r}{closest(type_, list(TYPES))}; allowed: {', '.join(TYPES)}")
    path = cache_dir() / f"{name.lower()}-{type_}{'-pure' if pure else ''}.gguf"
    if not path.is_file():
        write(path, config, type_, pure=pure)
    return path


def write(path: Path, c: Config, type_: str, *, pure: bool = False) -> None:
    """Write a random model of shape `c`. ValueError: its parts are not those of a family that GGUF files describe."""
    arch = architecture(c)
    listed = list(tensors(c, arch, type_, pure=pure))
    with atomic(path) as part:
        writer = GGUFWriter(part, arch)
        try:
            _describe(writer, c, arch)
            writer.add_file_type(_FILE_TYPE[type_])
            for t in listed:
                size = math.prod(t.byte_shape)
                writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), size, raw_dtype=t.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for t in listed:
                writer.write_tensor_data(_values(t, c))
        finally:
            writer.close()


def write_tiny(path: Path) -> None:
    """Write a model of a million weights, for finding out whether an engine runs at all."""
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=64, rope=Rope(theta=1e6))
    layers = stack("CA", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=512))
    write(
        path, Config(vocab_size=512, hidden_size=256, layers=layers, max_positions=512, bos_id=1, eos_ids=(7,)), "q4_0"
    )


def architecture(c: Config) -> str:
    """What GGUF calls models with these parts."""
    attention = [la.mixer for la in c.layers if isinstance(la.mixer, Attention)]
    convolves = len(attention) < len(c.layers)
    sparse = any(isinstance(la.ffn, Moe) for la in c.layers)
    if not attention or any(m.output_gate or m.rope.fraction != 1 for m in attention):
        raise ValueError("GGUF files describe no model without attention, with gated heads or with partly turned ones")
    if convolves:
        return "lfm2moe" if sparse else "lfm2"
    if c.norm_offset:
        return "gemma3"
    return "qwen3" if attention[0].qk_norm else "llama"


def tensors(c: Config, arch: str, type_: str, *, pure: bool) -> Iterator[Tensor]:
    """Every tensor of the file, in its order."""
    d, kind = c.hidden_size, TYPES[type_]
    rich = kind
    if kind == Type.Q4_0 and not pure:
        rich = Type.Q6_K if d % 256 == 0 else Type.Q8_0
    yield Tensor("token_embd.weight", (c.vocab_size, d), rich if c.tie_embeddings else kind)
    yield Tensor("token_embd_norm.weight" if arch.startswith("lfm2") else "output_norm.weight", (d,), Type.F32)
    if not c.tie_embeddings:
        yield Tensor("output.weight", (c.vocab_size, d), rich)
    scaled = next((m for la in c.layers if isinstance(m := la.mixer, Attention) and m.rope.scaling), None)
    if scaled is not None:
        yield Tensor("rope_freqs.weight", (scaled.head_dim // 2,), Type.F32)
    theirs = {ours: name for name, ours in gguf_model.LAYER.items()}
    for i, layer in enumerate(c.layers):
        parts: dict[str, tuple[int, ...]] = {"operator_norm.weight": (d,), "ffn_norm.weight": (d,)}
        if layer.post_norms:
            parts |= {"post_operator_norm.weight": (d,), "post_ffn_norm.weight": (d,)}
        parts |= _mixer_shapes(layer.mixer, d) | _ffn_shapes(layer.ffn, d)
        for ours, shape in parts.items():
            small = len(shape) == 1 or ours in ("conv.conv.weight", "feed_forward.gate.weight")
            yield Tensor(f"blk.{i}.{theirs[ours]}", shape, Type.F32 if small else kind)


def _mixer_shapes(m: Attention | ShortConv, d: int) -> dict[str, tuple[int, ...]]:
    if isinstance(m, ShortConv):
        return {"conv.in_proj.weight": (3 * d, d), "conv.conv.weight": (d, m.width), "conv.out_proj.weight": (d, d)}
    q, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{p}_proj.weight": (kv, d) for p in "kv"}
    shapes |= {"self_attn.q_proj.weight": (q, d), "self_attn.out_proj.weight": (d, q)}
    if m.qk_norm:
        shapes |= {f"self_attn.{p}_layernorm.weight": (m.head_dim,) for p in "qk"}
    return shapes


def _ffn_shapes(f: Ffn | Moe, d: int) -> dict[str, tuple[int, ...]]:
    w = f.intermediate_size
    if isinstance(f, Ffn):
        return {f"feed_forward.w{n}.weight": (d, w) if n == 2 else (w, d) for n in (1, 2, 3)}
    shapes: dict[str, tuple[int, ...]] = {"feed_forward.gate.weight": (f.num_experts, d)}
    if f.expert_bias:
        shapes["feed_forward.expert_bias"] = (f.num_experts,)
    experts = {f"feed_forward.experts.w{n}": (f.num_experts, *((d, w) if n == 2 else (w, d))) for n in (1, 2, 3)}
    return shapes | experts


def _describe(writer: GGUFWriter, c: Config, arch: str) -> None:
    attention = next(la.mixer for la in c.layers if isinstance(la.mixer, Attention))
    windows = {m.window for la in c.layers if isinstance(m := la.mixer, Attention)} - {None}
    writer.add_name(f"random {arch}")
    writer.add_block_count(len(c.layers))
    writer.add_context_length(c.max_positions)
    writer.add_embedding_length(c.hidden_size)
    writer.add_vocab_size(c.vocab_size)
    writer.add_feed_forward_length(c.layers[0].ffn.intermediate_size)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_head_count(attention.num_heads)
    kv = [m.num_kv_heads if isinstance(m := la.mixer, Attention) else 0 for la in c.layers]
    writer.add_head_count_kv(kv if arch.startswith("lfm2") else attention.num_kv_heads)
    if not arch.startswith("lfm2"):
        writer.add_key_length(attention.head_dim)
        writer.add_value_length(attention.head_dim)
    thetas = [m.rope.theta for la in c.layers if isinstance(m := la.mixer, Attention) and m.window is None]
    writer.add_rope_freq_base((thetas or [attention.rope.theta])[0])
    if windows:
        writer.add_sliding_window(max(w for w in windows if w))
    convolutions = [la.mixer.width for la in c.layers if isinstance(la.mixer, ShortConv)]
    if convolutions:
        writer.add_shortconv_l_cache(convolutions[0])
    _describe_experts(writer, c)
    _vocabulary(writer, c, arch)


def _describe_experts(writer: GGUFWriter, c: Config) -> None:
    sparse = [i for i, la in enumerate(c.layers) if isinstance(la.ffn, Moe)]
    if not sparse:
        return
    moe = c.layers[sparse[0]].ffn
    assert isinstance(moe, Moe)
    writer.add_leading_dense_block_count(sparse[0])
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.num_experts_per_token)
    writer.add_expert_feed_forward_length(moe.intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(moe.norm_topk_prob)
    writer.add_expert_weights_scale(moe.routed_scaling_factor)


def _vocabulary(writer: GGUFWriter, c: Config, arch: str) -> None:
    """Special ids where the model has them; around them the 256 bytes, one merged pair and made-up words."""
    eos = c.eos_ids or (c.vocab_size - 1,)
    special = {i for i in (c.bos_id, c.pad_id, *eos) if i is not None}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable))), _MERGE.replace(" ", "")]
    if c.vocab_size < len(letters) + len(special):
        raise ValueError(f"vocab_size is {c.vocab_size}; allowed: at least {len(letters) + len(special)}, all bytes")
    rest = iter(letters)
    tokens = [f"<|special_{i}|>" if i in special else next(rest, f"word{i}") for i in range(c.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE[arch])
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if i in special else 1 for i in range(c.vocab_size)])
    writer.add_token_merges([_MERGE])
    writer.add_eos_token_id(eos[0])
    if c.bos_id is not None:
        writer.add_bos_token_id(c.bos_id)
    if c.pad_id is not None:
        writer.add_pad_token_id(c.pad_id)
    writer.add_add_bos_token(c.bos_id is not None)


def _values(t: Tensor, c: Config) -> np.ndarray:
    """The tensor's bytes; the same for the same name."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(t.name.encode())))
    if t.name == "rope_freqs.weight":
        m = next(la.mixer for la in c.layers if isinstance(la.mixer, Attention))
        plain = np.array(Rope(theta=m.rope.theta).frequencies(m.head_dim))
        return (plain / np.array(m.rope.frequencies(m.head_dim))).astype(np.float32)
    if t.type == Type.F32:
        if len(t.shape) > 1:
            return rng.standard_normal(t.shape, np.float32) / np.float32(math.sqrt(t.shape[-1]))
        return np.zeros(t.shape, np.float32) if "bias" in t.name else np.ones(t.shape, np.float32)
    return _FILL[t.type](rng, t)


def _random_bytes(rng: np.random.Generator, t: Tensor) -> np.ndarray:
    return np.frombuffer(rng.bytes(math.prod(t.byte_shape)), np.uint8).reshape(t.byte_shape).copy()


def _scaled(rng: np.random.Generator, t: Tensor, at: int, deviation: float) -> np.ndarray:
    """Random blocks; the half at byte `at` of each is what makes the values' deviation 1 / sqrt(inputs)."""
    values = _random_bytes(rng, t)
    size = gguf.GGML_QUANT_SIZES[t.type][1]
    blocks = values.reshape(-1, size)
    scale = np.float16(1 / (deviation * math.sqrt(t.shape[-1])))
    blocks[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return values


def _q6_k(rng: np.random.Generator, t: Tensor) -> np.ndarray:
    values = _scaled(rng, t, 208, 18.5 * 96)
    scales = values.reshape(-1, 210)[:, 192:208]
    scales[:] = scales % 64 + 64  # signed bytes, 64 to 127
    return values


def _f16(rng: np.random.Generator, t: Tensor) -> np.ndarray:
    """A random sign and mantissa under one exponent: values of 1 to 2 times a power of two."""
    exponent = 15 + math.floor(math.log2(1 / (1.5 * math.sqrt(t.shape[-1]))))
    values = _random_bytes(rng, t)
    halves = values.view(np.uint16)
    halves &= np.uint16(0x83FF)
    halves |= np.uint16(exponent << 10)
    return values


_FILL: dict[Type, Callable[[np.random.Generator, Tensor], np.ndarray]] = {
    Type.Q4_0: lambda rng, t: _scaled(rng, t, 0, 4.6),
    Type.Q8_0: lambda rng, t: _scaled(rng, t, 0, 74.0),
    Type.Q6_K: _q6_k,
    Type.F16: _f16,
}
