"""The shape of a network as data: frozen, checked values, and one row per released model in MODELS.

A Config is a tuple of layers and a few widths. Each layer holds its own mixer (Attention or ShortConv) and its own
feed-forward part (Ffn or Moe), so two models differ by values and never by code. How other programs spell the same
facts (config.json of each family, GGUF metadata) is checkpoint/'s business, not this file's.
Sources: LFM2 report (arXiv 2511.23404) section 2, published config.json files.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from headwater.files import closest
from headwater.records import field, fields, record


def _check(ok: bool, owner: object, name: str, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}; allowed: {allowed}")


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _check(isinstance(value, int) and not isinstance(value, bool) and value > 0, owner, name, "a positive integer")


@record(frozen=True, kw_only=True)
class RopeScaling:
    """How long-context training stretched the rotary frequencies.

    `linear` divides all of them by `factor`; `llama3` divides the slow ones and blends between (Llama 3.1 report).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        _check(self.kind in ("linear", "llama3"), self, "kind", "'linear' or 'llama3'")
        _check(self.factor > 0, self, "factor", "a positive number")
        _check(self.high_freq_factor > self.low_freq_factor, self, "high_freq_factor", "more than low_freq_factor")

    def apply(self, frequency: float) -> float:
        """The stretched value of one frequency in radians per position."""
        slowed = frequency / self.factor
        if self.kind == "linear":
            return slowed
        turns = self.original_max_positions * frequency / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = min(max(blend, 0.0), 1.0)
        return (1 - blend) * slowed + blend * frequency


@record(frozen=True, kw_only=True)
class Rope:
    """Half-split rotary positions: pair i is dimensions (i, i + head_dim / 2), its frequency theta^(-2 i / head_dim).

    Only the first `fraction` of the pairs turns, the rest keeps frequency zero ("proportional" in LFM3).
    """

    theta: float
    fraction: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _check(self.theta > 0, self, "theta", "a positive number")
        _check(0 < self.fraction <= 1, self, "fraction", "a number above 0 and up to 1")

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """Radians per position of each of the head_dim / 2 pairs."""
        num_turning = int(self.fraction * head_dim / 2)
        turning = [self.theta ** (-2 * i / head_dim) for i in range(num_turning)]
        if self.scaling is not None:
            turning = [self.scaling.apply(f) for f in turning]
        return (*turning, *[0.0] * (head_dim // 2 - num_turning))


@record(frozen=True, kw_only=True)
class Attention:
    """Causal grouped-query attention. `window` counts the current token; `scale` defaults to head_dim ** -0.5."""

    kind: str = field(default="attention", init=False)
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    qk_norm: bool = True
    window: int | None = None
    output_gate: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        _positive(self, "num_heads", "num_kv_heads", "head_dim")
        _check(self.head_dim % 2 == 0, self, "head_dim", "an even number (rotary pairs)")
        _check(
            self.num_heads % self.num_kv_heads == 0, self, "num_heads", f"a multiple of {self.num_kv_heads} KV heads"
        )
        if self.window is not None:
            _positive(self, "window")

    def num_parameters(self, hidden_size: int) -> int:
        projections = 2 * hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return projections + 2 * self.head_dim * self.qk_norm + hidden_size * self.num_heads * self.output_gate


@record(frozen=True, kw_only=True)
class ShortConv:
    """Double-gated depthwise causal convolution over `width` steps; its state is the last width - 1 gated inputs."""

    kind: str = field(default="conv", init=False)
    width: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        _positive(self, "width")

    def num_parameters(self, hidden_size: int) -> int:
        return 4 * hidden_size**2 + self.width * hidden_size + 5 * hidden_size * self.bias


@record(frozen=True, kw_only=True)
class Ffn:
    """Gated feed-forward: w2(act(w1 x) * w3 x), SwiGLU with silu and GeGLU with gelu_tanh."""

    kind: str = field(default="dense", init=False)
    intermediate_size: int
    activation: Literal["silu", "gelu_tanh"] = "silu"

    def __post_init__(self) -> None:
        _positive(self, "intermediate_size")
        _check(self.activation in ("silu", "gelu_tanh"), self, "activation", "'silu' or 'gelu_tanh'")

    def num_parameters(self, hidden_size: int) -> int:
        return 3 * hidden_size * self.intermediate_size

    num_active_parameters = num_parameters


@record(frozen=True, kw_only=True)
class Moe:
    """Sparse SwiGLU experts behind a sigmoid router; the expert bias steers selection only (LFM2 report, 8B-A1B)."""

    kind: str = field(default="moe", init=False)
    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    expert_bias: bool = True

    def __post_init__(self) -> None:
        _positive(self, "num_experts", "num_experts_per_token", "intermediate_size")
        few_enough = self.num_experts_per_token <= self.num_experts
        _check(few_enough, self, "num_experts_per_token", f"at most num_experts = {self.num_experts}")

    def num_parameters(self, hidden_size: int) -> int:
        return self.num_experts * (3 * hidden_size * self.intermediate_size + hidden_size)

    def num_active_parameters(self, hidden_size: int) -> int:
        return self.num_experts_per_token * 3 * hidden_size * self.intermediate_size + hidden_size * self.num_experts


@record(frozen=True, kw_only=True)
class Layer:
    """x + mixer(norm(x)), then x + ffn(norm(x)); `post_norms` also normalises each branch before it is added."""

    mixer: Attention | ShortConv
    ffn: Ffn | Moe
    post_norms: bool = False


@record(frozen=True, kw_only=True)
class Config:
    """A whole decoder. Raises ValueError that names the field on any value out of range.

    vocab_size: rows of the embedding (padding included); max_positions: context in tokens; norm_offset: added to each
    norm's weight (1 for Gemma); embedding_scale: multiplies the embeddings (sqrt(hidden_size) for Gemma);
    bos_id, eos_ids, pad_id: special tokens where the publisher states them, else None or ().
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...] = field(repr=False)
    max_positions: int
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "hidden_size", "max_positions")
        _check(len(self.layers) > 0, self, "layers", "at least one layer")
        _check(self.norm_eps > 0, self, "norm_eps", "a positive number")
        ids = {"bos_id": (self.bos_id,), "eos_ids": self.eos_ids, "pad_id": (self.pad_id,)}
        for name, values in ids.items():
            fits = all(v is None or 0 <= v < self.vocab_size for v in values)
            _check(fits, self, name, f"token ids from 0 to {self.vocab_size - 1}")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers whose mixer is attention."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.mixer, Attention))

    def pattern(self) -> str:
        """The layers as letters: C short convolution, A attention, S sliding-window attention."""
        return "".join(
            "C" if isinstance(m := layer.mixer, ShortConv) else "S" if m.window else "A" for layer in self.layers
        )

    def num_parameters(self, *, active: bool = False) -> int:
        """Weights of the model, the expert biases not counted; `active`: those one token touches."""
        d = self.hidden_size
        total = self.vocab_size * d * (1 if self.tie_embeddings else 2) + d
        for layer in self.layers:
            ffn = layer.ffn.num_active_parameters(d) if active else layer.ffn.num_parameters(d)
            total += layer.mixer.num_parameters(d) + ffn + 2 * d * (1 + layer.post_norms)
        return total

    def kv_bytes(self, num_tokens: int, *, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values that a sequence of `num_tokens` needs; a sliding window caps its layer's share."""
        total = 0
        for layer in self.layers:
            if isinstance(m := layer.mixer, Attention):
                kept = min(num_tokens, m.window) if m.window else num_tokens
                total += kept * 2 * m.num_kv_heads * m.head_dim * bytes_per_value
        return total

    def kv_bytes_per_token(self, *, bytes_per_value: int = 2) -> int:
        """Bytes that each token adds to the KV cache while no window is full."""
        return self.kv_bytes(1, bytes_per_value=bytes_per_value)

    def conv_state_bytes(self, *, bytes_per_value: int = 2) -> int:
        """Bytes of convolution state per sequence: width - 1 columns in each conv layer, whatever the length."""
        columns = sum(layer.mixer.width - 1 for layer in self.layers if isinstance(layer.mixer, ShortConv))
        return columns * self.hidden_size * bytes_per_value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` is the inverse."""
        from dataclasses import asdict

        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Read `to_dict` output. ValueError names an unknown or missing key."""
        layers = values.get("layers")
        if not isinstance(layers, list | tuple):
            raise ValueError(f"Config.layers is {layers!r}; allowed: a list of layers")
        rest = {k: v for k, v in values.items() if k != "layers"} | {"eos_ids": tuple(values.get("eos_ids", ()))}
        return _build(cls, rest | {"layers": tuple(_layer_from_dict(v) for v in layers)})


_KINDS = {"attention": Attention, "conv": ShortConv, "dense": Ffn, "moe": Moe}


def _build(cls: Any, values: Any) -> Any:
    """Construct a dataclass from a mapping, refusing unknown and missing keys by name."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is {values!r}; allowed: an object with its fields")
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(
                f"{cls.__name__} has no field {key!r}{closest(str(key), known)}; it has {', '.join(known)}"
            )
    try:
        return cls(**values)
    except TypeError as e:
        raise ValueError(f"{cls.__name__}: {e}") from e


def _part_from_dict(name: str, values: Any) -> Any:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in _KINDS:
        raise ValueError(f"Layer.{name}.kind is {kind!r}; allowed: {', '.join(_KINDS)}")
    values = {k: v for k, v in values.items() if k != "kind"}
    if (rope := values.get("rope")) is not None:
        scaling = rope.get("scaling") if isinstance(rope, Mapping) else None
        values["rope"] = _build(Rope, rope if scaling is None else {**rope, "scaling": _build(RopeScaling, scaling)})
    return _build(_KINDS[kind], values)


def _layer_from_dict(values: Any) -> Layer:
    if not isinstance(values, Mapping):
        raise ValueError(f"Config.layers has the entry {values!r}; allowed: an object with mixer and ffn")
    parts = {k: _part_from_dict(k, values[k]) for k in ("mixer", "ffn") if k in values}
    return _build(Layer, {**values, **parts})


def stack(
    pattern: str, mixers: Mapping[str, Attention | ShortConv], *ffns: Ffn | Moe, post_norms: bool = False
) -> tuple[Layer, ...]:
    """Layers from letters: `mixers` gives each letter's mixer; the last of `ffns` serves all layers from there on."""
    return tuple(
        Layer(mixer=mixers[letter], ffn=ffns[min(i, len(ffns) - 1)], post_norms=post_norms)
        for i, letter in enumerate(pattern)
    )


def _lfm2(hidden: int, heads: int, pattern: str, *ffns: Ffn | Moe, vocab: int = 65536, theta: float = 1e6) -> Config:
    attention = Attention(num_heads=heads, num_kv_heads=8, head_dim=64, rope=Rope(theta=theta))
    ids: dict[str, Any] = {"bos_id": 1, "eos_ids": (7,), "pad_id": 0} if vocab == 65536 else {}
    layers = stack(pattern, {"C": ShortConv(width=3), "A": attention}, *ffns)
    return Config(vocab_size=vocab, hidden_size=hidden, layers=layers, max_positions=128_000, **ids)


def _lfm3(hidden: int, pattern: str, ffn: Ffn) -> Config:
    shared: dict[str, Any] = {"num_heads": 16, "num_kv_heads": 4, "head_dim": 128, "output_gate": True}
    mixers: dict[str, Attention | ShortConv] = {
        "C": ShortConv(width=7),
        "A": Attention(rope=Rope(theta=1e6, fraction=0.5), **shared),
        "S": Attention(rope=Rope(theta=1e4), window=256, **shared),
    }
    return Config(
        vocab_size=128_000, hidden_size=hidden, layers=stack(pattern, mixers, ffn, post_norms=True),
        max_positions=262_144, bos_id=124_894, eos_ids=(124_900,), pad_id=124_893,
    )  # fmt: skip


def _transformer(vocab: int, hidden: int, depth: int, ffn: int, attention: Attention, **rest: Any) -> Config:
    layers = stack("A" * depth, {"A": attention}, Ffn(intermediate_size=ffn))
    return Config(vocab_size=vocab, hidden_size=hidden, layers=layers, **rest)


def _gemma3_1b() -> Config:
    shared: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "scale": 256**-0.5}
    mixers = {
        "A": Attention(rope=Rope(theta=1e6), **shared),
        "S": Attention(rope=Rope(theta=1e4), window=512, **shared),
    }
    ffn = Ffn(intermediate_size=6912, activation="gelu_tanh")
    return Config(
        vocab_size=262_144, hidden_size=1152, layers=stack(("SSSSSA" * 5)[:26], mixers, ffn, post_norms=True),
        max_positions=32_768, norm_eps=1e-6, norm_offset=1.0, embedding_scale=1152**0.5,
        bos_id=2, eos_ids=(1, 106), pad_id=0,
    )  # fmt: skip


_LLAMA3 = RopeScaling(kind="llama3", factor=32.0)
_SIXTEEN = "CCACCACCACACACAC"
_THIRTY = "".join("A" if i in (2, 5, 9, 13, 17, 21, 24, 27) else "C" for i in range(30))
_TWENTY_FOUR = "".join("A" if i in (2, 6, 10, 14, 18, 21) else "C" for i in range(24))
_DENSE_8B = Ffn(intermediate_size=7168)
_MOE_8B = Moe(num_experts=32, num_experts_per_token=4, intermediate_size=1792)
_DENSE_24B = Ffn(intermediate_size=11776)
_MOE_24B = Moe(num_experts=64, num_experts_per_token=4, intermediate_size=1536)
_QWEN3 = Attention(num_heads=16, num_kv_heads=8, head_dim=128, rope=Rope(theta=1e6))
_QWEN3_IDS: dict[str, Any] = {"max_positions": 40_960, "norm_eps": 1e-6, "bos_id": 151_643, "eos_ids": (151_645,)}

MODELS: dict[str, Config] = {
    "LFM2-350M": _lfm2(1024, 16, _SIXTEEN, Ffn(intermediate_size=4608)),
    "LFM2-700M": _lfm2(1536, 24, _SIXTEEN, Ffn(intermediate_size=6912)),
    "LFM2-1.2B": _lfm2(2048, 32, _SIXTEEN, Ffn(intermediate_size=8192)),
    "LFM2-2.6B": _lfm2(2048, 32, _THIRTY, Ffn(intermediate_size=10752)),
    "LFM2-8B-A1B": _lfm2(2048, 32, _TWENTY_FOUR, _DENSE_8B, _DENSE_8B, _MOE_8B),
    "LFM2-24B-A2B": _lfm2(2048, 32, "CCAC" * 10, _DENSE_24B, _DENSE_24B, _MOE_24B),
    "LFM2.5-230M": _lfm2(1024, 16, "CC" + "AC" * 6, Ffn(intermediate_size=2560)),
    "LFM2.5-350M": _lfm2(1024, 16, _SIXTEEN, Ffn(intermediate_size=4608)),
    "LFM2.5-1.2B": _lfm2(2048, 32, _SIXTEEN, Ffn(intermediate_size=8192)),
    "LFM2.5-2.6B": _lfm2(2048, 32, _THIRTY, Ffn(intermediate_size=10752), vocab=128_000),
    "LFM2.5-8B-A1B": _lfm2(2048, 32, _TWENTY_FOUR, _DENSE_8B, _DENSE_8B, _MOE_8B, vocab=128_000, theta=5e6),
    "LFM3-1.7B": _lfm3(2048, "CCAC" + "SCAC" * 5, Ffn(intermediate_size=7680)),
    "SmolLM2-135M": _transformer(
        49_152, 576, 30, 1536,
        Attention(num_heads=9, num_kv_heads=3, head_dim=64, rope=Rope(theta=1e5), qk_norm=False),
        max_positions=8192, bos_id=1, eos_ids=(2,), pad_id=2,
    ),
    "Llama-3.2-1B": _transformer(
        128_256, 2048, 16, 8192,
        Attention(num_heads=32, num_kv_heads=8, head_dim=64, rope=Rope(theta=5e5, scaling=_LLAMA3), qk_norm=False),
        max_positions=131_072, bos_id=128_000, eos_ids=(128_001, 128_008, 128_009),
    ),
    "Qwen3-0.6B": _transformer(151_936, 1024, 28, 3072, _QWEN3, **_QWEN3_IDS),
    "Qwen3-1.7B": _transformer(151_936, 2048, 28, 6144, _QWEN3, **_QWEN3_IDS),
    "Gemma-3-1B": _gemma3_1b(),
}  # fmt: skip
"""Released models by name: the LFM family, and the transformers that it is compared with."""


def named(name: str) -> Config:
    """The row of MODELS called `name` (case-insensitive); ValueError lists the closest."""
    for known, config in MODELS.items():
        if known.lower() == name.lower():
            return config
    raise ValueError(f"unknown model {name!r}{closest(name, list(MODELS))}; known: {', '.join(MODELS)}")
