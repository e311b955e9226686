"""Tiny random models of every family: the reference in transformers, and the same weights in ours."""

import functools
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

from headwater.model import Lfm2

logging.set_verbosity_error()
logging.disable_progress_bar()

STD = 0.15
VOCAB = 131


def _lfm2(width: int) -> transformers.PreTrainedModel:
    config = transformers.Lfm2Config(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=100, block_multiple_of=8, num_hidden_layers=5,
        num_attention_heads=6, num_key_value_heads=2, conv_L_cache=width, eos_token_id=7,
        layer_types=["conv", "full_attention", "conv", "full_attention", "conv"],
    )  # fmt: skip
    return transformers.Lfm2ForCausalLM(config)


def _lfm2_moe(width: int) -> transformers.PreTrainedModel:
    config = transformers.Lfm2MoeConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=72, moe_intermediate_size=40, num_hidden_layers=5,
        num_attention_heads=6, num_key_value_heads=2, conv_L_cache=width, num_experts=7, num_experts_per_tok=3,
        num_dense_layers=1, routed_scaling_factor=1.5, eos_token_id=7,
        layer_types=["conv", "full_attention", "conv", "full_attention", "conv"],
    )  # fmt: skip
    return transformers.Lfm2MoeForCausalLM(config)


def _lfm3(width: int) -> transformers.PreTrainedModel:
    config = transformers.Lfm3Config(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=72, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, conv_L_cache=width, sliding_window=9, bos_token_id=1, eos_token_id=7,
        pad_token_id=0, layer_types=["conv", "full_attention", "conv", "sliding_attention", "conv",
                                     "full_attention", "sliding_attention"],
    )  # fmt: skip
    return transformers.Lfm3ForCausalLM(config)


def _llama() -> transformers.PreTrainedModel:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=False, rope_parameters=rope, max_position_embeddings=4096,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _qwen3() -> transformers.PreTrainedModel:
    config = transformers.Qwen3Config(
        vocab_size=VOCAB, hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=5,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config)


def _gemma3() -> transformers.PreTrainedModel:
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=40, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=20, sliding_window=9, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    )  # fmt: skip
    return transformers.Gemma3ForCausalLM(config)


BUILDERS = {
    "lfm2-k3": functools.partial(_lfm2, 3),
    "lfm2-k7": functools.partial(_lfm2, 7),
    "lfm2_moe-k3": functools.partial(_lfm2_moe, 3),
    "lfm2_moe-k7": functools.partial(_lfm2_moe, 7),
    "lfm3-k7": functools.partial(_lfm3, 7),
    "lfm3-k3": functools.partial(_lfm3, 3),
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}
NAMES = list(BUILDERS)
HYBRIDS = [n for n in NAMES if n.startswith("lfm")]


def reference(name: str) -> transformers.PreTrainedModel:
    """A transformers model in fp32 whose every tensor is N(0, 0.15); norms are 1 + N(0, 0.15)."""
    model = BUILDERS[name]().eval()
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            noise = torch.empty(tensor.shape).normal_(0, STD, generator=generator)
            norm_centre = 1.0 if "norm" in key and name != "gemma3" else 0.0
            tensor.copy_(noise + norm_centre)
    model.tie_weights()
    return model


@functools.cache
def pair(name: str) -> tuple[transformers.PreTrainedModel, Lfm2]:
    """The reference and our model, loaded from the directory that the reference wrote."""
    theirs = reference(name)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, Lfm2.from_pretrained(Path(directory))


def tokens(rows: int, steps: int, seed: int = 3) -> torch.Tensor:
    """Random ids (rows, steps)."""
    return torch.randint(0, VOCAB, (rows, steps), generator=torch.Generator().manual_seed(seed))


def rel(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / b.abs().max()).item()
