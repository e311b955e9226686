"""Lowering: (Config, weights) -> the flat program that the native core runs. The order of layers stands here alone.

An op reads and writes named buffers (one row per token); see docs/native.md for the ops. Fusion happens here: the three
projections of attention are one matmul, the gate of a feed-forward is the epilogue of its first two matrices, residuals
are added by the matmul that produces them. Not for reading files (weights come through the Weights protocol).
"""

from array import array
from typing import Any, Protocol

from headwater.config import Attention, Config, Ffn, Layer, Moe, Rope, ShortConv
from headwater.records import field, record


class Matrix(Protocol):
    """Packed weights as the native core holds them; `int8`: they meet int8 activations, else float ones."""

    rows: int
    k: int
    int8: bool


class Weights(Protocol):
    """Where the program gets its weights, by the names of weights.py."""

    def matrix(self, name: str) -> Any:
        """A packed matrix (experts stacked)."""

    def vector(self, name: str) -> "array[float]":
        """A flat fp32 vector as the file holds it."""

    def norm(self, name: str) -> "array[float]":
        """What a norm multiplies by: its weight, the family's offset included."""


@record
class Spec:
    """A program before it is built: the lists that native.Program takes."""

    buffers: list[dict[str, Any]] = field(default_factory=list)
    ops: list[dict[str, Any]] = field(default_factory=list)
    matrices: list[Any] = field(default_factory=list)
    vectors: list["array[float]"] = field(default_factory=list)
    attention: list[tuple[int, int]] = field(default_factory=list)
    convolution: list[tuple[int, int]] = field(default_factory=list)
    logits: int = -1

    def as_arguments(self) -> dict[str, Any]:
        return dict(vars(self))


class _Lowering:
    def __init__(self, c: Config, weights: Weights) -> None:
        self.c, self.weights, self.spec = c, weights, Spec()
        self.index: dict[str, int] = {}
        self.angles: dict[tuple[float, ...], str] = {}

    def buffer(self, name: str, width: int, **options: Any) -> int:
        """The buffer of that name and width, made when first asked for; forms asked for add up."""
        key = f"{name}.{width}"
        if key not in self.index:
            self.index[key] = len(self.spec.buffers)
            self.spec.buffers.append({"name": name, "width": width, "floats": False, "int8": False, **options})
        return self.index[key]

    def input(self, name: str, matrices: list[int], **options: Any) -> int:
        """The buffer that feeds these matrices, in the form (int8 or floats) that each of them needs."""
        first = self.spec.matrices[matrices[0]]
        i = self.buffer(name, first.k, **options)
        for m in matrices:
            self.spec.buffers[i]["int8" if self.spec.matrices[m].int8 else "floats"] = True
        return i

    def floats(self, name: str, width: int, **options: Any) -> int:
        i = self.buffer(name, width, **options)
        self.spec.buffers[i]["floats"] = True
        return i

    def matrix(self, name: str) -> int:
        self.spec.matrices.append(self.weights.matrix(name))
        return len(self.spec.matrices) - 1

    def vector(self, values: "array[float]") -> int:
        self.spec.vectors.append(values)
        return len(self.spec.vectors) - 1

    def op(self, kind: str, **fields: Any) -> None:
        self.spec.ops.append({"kind": kind, **fields})

    def norm(self, name: str, source: int, target: int, **fields: Any) -> None:
        weight = self.vector(self.weights.norm(name))
        self.op("norm", **{"in": source}, out=target, vec=weight, eps=self.c.norm_eps, **fields)

    def bias(self, name: str, target: int) -> None:
        self.op("bias", out=target, vec=self.vector(self.weights.vector(name)))

    def residual(self, matrix: int, source: int, post_norm: str | None, bias: str | None = None) -> None:
        """x += matrix @ source + bias, through a norm of the branch where the family has one."""
        x = self.floats("x", self.c.hidden_size)
        branch = x if post_norm is None else self.floats("branch", self.c.hidden_size)
        self.op("matmul", **{"in": source}, out=branch, matrices=[matrix], epilogue="add" if branch == x else "store")
        if bias is not None:
            self.bias(bias, branch)
        if post_norm is None:
            return
        self.norm(post_norm, branch, x, epilogue="add")

    def turning(self, rope: Rope, head_dim: int) -> tuple[int, int]:
        """(buffer of cosines and sines, pairs) of a rope; one op per distinct table."""
        frequencies = rope.frequencies(head_dim)
        pairs = len(frequencies)
        while pairs and frequencies[pairs - 1] == 0:
            pairs -= 1
        key = frequencies[:pairs]
        new = key not in self.angles
        name = self.angles.setdefault(key, f"angles{len(self.angles)}")
        buffer = self.floats(name, 2 * pairs)
        if new:
            table = self.vector(array("f", key))
            self.op("angles", out=buffer, vec=table, pairs=pairs)
        return buffer, pairs

    def attention(self, m: Attention, at: str, post_norm: str | None) -> None:
        x = self.floats("x", self.c.hidden_size)
        projections = [self.matrix(f"{at}.self_attn.{p}_proj.weight") for p in "qkv"]
        gate = self.matrix(f"{at}.self_attn.g_proj.weight") if m.output_gate else None
        out = self.matrix(f"{at}.self_attn.out_proj.weight")
        normed = self.input("normed", [*projections, *([] if gate is None else [gate])])
        self.norm(f"{at}.operator_norm.weight", x, normed)
        qkv = self.floats("qkv", (m.num_heads + 2 * m.num_kv_heads) * m.head_dim)
        self.op("matmul", **{"in": normed}, out=qkv, matrices=projections)
        shape = {"heads": m.num_heads, "kv_heads": m.num_kv_heads, "head_dim": m.head_dim}
        shape["layer"] = len(self.spec.attention)
        self.spec.attention.append((m.num_kv_heads, m.head_dim))
        turn, pairs = self.turning(m.rope, m.head_dim)
        rope = {"in2": turn, "pairs": pairs, "pair_offset": m.head_dim // 2, "eps": self.c.norm_eps}
        if m.qk_norm:
            rope["vec"] = self.vector(self.weights.norm(f"{at}.self_attn.q_layernorm.weight"))
            rope["vec2"] = self.vector(self.weights.norm(f"{at}.self_attn.k_layernorm.weight"))
        self.op("rope", **{"in": qkv}, **shape, **rope)
        mixed = self.input("mixed", [out])
        extra: dict[str, Any] = {"scale": m.head_dim**-0.5 if m.scale is None else m.scale, "window": m.window or 0}
        if gate is not None:
            extra["in2"] = self.floats("gates", m.num_heads)
            self.op("matmul", **{"in": normed}, out=extra["in2"], matrices=[gate])
        self.op("attention", **{"in": qkv}, out=mixed, **shape, **extra)
        self.residual(out, mixed, post_norm)

    def short_conv(self, m: ShortConv, at: str, post_norm: str | None) -> None:
        d = self.c.hidden_size
        x = self.floats("x", d)
        into, out = self.matrix(f"{at}.conv.in_proj.weight"), self.matrix(f"{at}.conv.out_proj.weight")
        normed = self.input("normed", [into])
        self.norm(f"{at}.operator_norm.weight", x, normed)
        parts = self.floats("parts", 3 * d)
        self.op("matmul", **{"in": normed}, out=parts, matrices=[into])
        if m.bias:
            self.bias(f"{at}.conv.in_proj.bias", parts)
        mixed = self.input("mixed", [out])
        by_channel, taps = self.weights.vector(f"{at}.conv.conv.weight"), array("f")
        for step in range(m.width):
            taps += by_channel[step :: m.width]
        bias = {"vec2": self.vector(self.weights.vector(f"{at}.conv.conv.bias"))} if m.bias else {}
        layer = len(self.spec.convolution)
        self.op("short_conv", **{"in": parts}, out=mixed, layer=layer, vec=self.vector(taps), **bias)
        self.spec.convolution.append((d, m.width))
        self.residual(out, mixed, post_norm, f"{at}.conv.out_proj.bias" if m.bias else None)

    def dense(self, f: Ffn, at: str, post_norm: str | None) -> None:
        w1, w2, w3 = (self.matrix(f"{at}.feed_forward.w{i}.weight") for i in (1, 2, 3))
        normed, hidden = self.input("normed", [w1, w3]), self.input("hidden", [w2])
        self.norm(f"{at}.ffn_norm.weight", self.floats("x", self.c.hidden_size), normed)
        self.op("matmul", **{"in": normed}, out=hidden, matrices=[w1, w3], epilogue="gated", gate=f.activation)
        self.residual(w2, hidden, post_norm)

    def moe(self, f: Moe, at: str, post_norm: str | None) -> None:
        if post_norm is not None:
            raise ValueError(f"{at} has experts and post norms; the native engine runs one or the other")
        x = self.floats("x", self.c.hidden_size)
        router = self.matrix(f"{at}.feed_forward.gate.weight")
        w1, w2, w3 = (self.matrix(f"{at}.feed_forward.experts.w{i}") for i in (1, 2, 3))
        copies = f.num_experts_per_token
        normed = self.input("normed", [router, w1, w3])
        gathered = self.input("gathered", [w1, w3], copies=copies)
        hidden = self.input("expert_hidden", [w2], copies=copies)
        self.norm(f"{at}.ffn_norm.weight", x, normed)
        scores = self.floats("scores", f.num_experts)
        self.op("matmul", **{"in": normed}, out=scores, matrices=[router])
        bias = {"vec": self.vector(self.weights.vector(f"{at}.feed_forward.expert_bias"))} if f.expert_bias else {}
        how = {"top_k": copies, "normalize": f.norm_topk_prob, "scale": f.routed_scaling_factor}
        self.op("route", **{"in": normed, "in2": scores}, **how, **bias)
        self.op("gather", **{"in": normed}, out=gathered)
        self.op("moe_up", **{"in": gathered}, out=hidden, matrices=[w1, w3])
        answers = self.floats("answers", self.c.hidden_size, copies=copies)
        self.op("moe_down", **{"in": hidden}, out=answers, matrices=[w2])
        self.op("combine", **{"in": answers}, out=x, top_k=copies)

    def layer(self, layer: Layer, at: str) -> None:
        after = (f"{at}.post_operator_norm.weight", f"{at}.post_ffn_norm.weight") if layer.post_norms else (None, None)
        if isinstance(layer.mixer, Attention):
            self.attention(layer.mixer, at, after[0])
        else:
            self.short_conv(layer.mixer, at, after[0])
        if isinstance(layer.ffn, Moe):
            self.moe(layer.ffn, at, after[1])
        else:
            self.dense(layer.ffn, at, after[1])


def lower(c: Config, weights: Weights) -> Spec:
    """The program of a model. ValueError when the model has a part that the native core cannot run."""
    low = _Lowering(c, weights)
    x = low.floats("x", c.hidden_size)
    table = low.matrix("embed_tokens.weight")
    low.op("embed", out=x, matrices=[table], scale=c.embedding_scale)
    for i, layer in enumerate(c.layers):
        low.layer(layer, f"layers.{i}")
    head = table if c.tie_embeddings else low.matrix("lm_head.weight")
    chosen = low.floats("chosen", c.hidden_size, selected=True)
    low.op("select", **{"in": x}, out=chosen)
    last = low.input("last", [head], selected=True)
    low.norm("embedding_norm.weight", chosen, last)
    low.spec.logits = low.floats("logits", low.spec.matrices[head].rows, selected=True)
    low.op("matmul", **{"in": last}, out=low.spec.logits, matrices=[head])
    return low.spec
