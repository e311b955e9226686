"""Tiny configurations, one for each architecture that GGUF files describe, for the tests of benchmarks."""

from headwater.config import Attention, Config, Ffn, Layer, Moe, Rope, RopeScaling, ShortConv

_VOCAB = 320


def _attention(**options) -> Attention:
    return Attention(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope": Rope(theta=1e6)} | options)


def _layers(*mixers, ffn=Ffn(intermediate_size=96), post_norms=False) -> tuple[Layer, ...]:  # noqa: B008 (frozen)
    return tuple(Layer(mixer=m, ffn=ffn, post_norms=post_norms) for m in mixers)


_CONV = ShortConv(width=3)
_SPARSE = Moe(num_experts=5, num_experts_per_token=2, intermediate_size=32)
_LLAMA3 = RopeScaling(kind="llama3", factor=32.0)
_GEMMA_FFN = Ffn(intermediate_size=96, activation="gelu_tanh")
_GEMMA = {"num_kv_heads": 1, "head_dim": 32, "scale": 256**-0.5}

SHAPES = {
    "lfm2": {"layers": _layers(_CONV, _attention(), _CONV), "bos_id": 1, "eos_ids": (7,), "pad_id": 0},
    "lfm2moe": {
        "layers": _layers(_CONV, _attention()) + _layers(_CONV, _attention(), ffn=_SPARSE), "bos_id": 1, "eos_ids": (7,)
    },
    "llama": {
        "layers": _layers(*[_attention(qk_norm=False, rope=Rope(theta=5e5, scaling=_LLAMA3))] * 2), "bos_id": 300,
        "eos_ids": (301, 302), "tie_embeddings": False,
    },
    "qwen3": {"layers": _layers(*[_attention()] * 2), "bos_id": 310, "eos_ids": (311,), "norm_eps": 1e-6},
    "gemma3": {
        "layers": _layers(
            *[_attention(rope=Rope(theta=1e4), window=8, **_GEMMA)] * 5, _attention(**_GEMMA), ffn=_GEMMA_FFN,
            post_norms=True,
        ),
        "bos_id": 2, "eos_ids": (1,), "pad_id": 0, "norm_offset": 1.0, "embedding_scale": 8.0,
    },
}  # fmt: skip


def tiny(name: str) -> Config:
    """A model of a few ten thousand parameters."""
    return Config(vocab_size=_VOCAB, hidden_size=64, max_positions=2048, **SHAPES[name])
