"""The network: embedding, layers of a mixer and a feed-forward part, norm, head. Dense and MoE, training and decoding.

Decisions: (1) layers are data, one Config value per layer, and one class per kind of part, looked up in MIXERS and
FFNS. (2) Tensor names are those of the LFM2 checkpoints. (3) Padding never reaches an operator (layout.py), so whole,
padded, chunked, stepwise, packed and rewound runs give the same logits. (4) Norms, rotary tables, router scores and
softmax are in fp32, matrices in the model's dtype. (5) Experts of one layer are three stacked tensors.
Shapes: b rows, t steps, d hidden, h query heads, g KV heads, n head_dim, v vocabulary. Not for sampling (generate.py).
Source: LFM2 report (arXiv 2511.23404) section 2 and the released checkpoints.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpointed

from headwater import checkpoint, config, weights
from headwater.cache import AttentionState, Cache, ConvState
from headwater.config import Config
from headwater.layout import Context, Layout
from headwater.ops.attention import attention
from headwater.ops.head_loss import Head
from headwater.ops.moe import experts, route
from headwater.ops.norm import rms_norm
from headwater.ops.rope import rotate
from headwater.ops.short_conv import gated_short_conv, short_conv
from headwater.ops.swiglu import swiglu

_COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": swiglu,
    "gelu_tanh": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
}


class RmsNorm(nn.Module):
    """Weight (size,) of `ops.norm.rms_norm`; with an offset the neutral weight is 1 - offset."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.offset = eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, self.offset)

    def init_weights(self, **_: Any) -> None:
        nn.init.constant_(self.weight, 1.0 - self.offset)


class Attention(nn.Module):
    """Grouped-query attention: per-head QK norm, then rotary positions, softmax, optional sigmoid gate per head."""

    def __init__(self, c: Config, mixer: config.Attention) -> None:
        super().__init__()
        self.mixer = mixer
        self.scale = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
        query_size, kv_size = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv_size, bias=False)
        self.out_proj = nn.Linear(query_size, c.hidden_size, bias=False)
        if mixer.qk_norm:
            self.q_layernorm = RmsNorm(mixer.head_dim, c.norm_eps, c.norm_offset)
            self.k_layernorm = RmsNorm(mixer.head_dim, c.norm_eps, c.norm_offset)
        if mixer.output_gate:
            self.g_proj = nn.Linear(c.hidden_size, mixer.num_heads, bias=False)

    def forward(self, x_btd: torch.Tensor, layout: Layout, state: AttentionState | None) -> torch.Tensor:
        m = self.mixer
        q_bthn = self.q_proj(x_btd).unflatten(-1, (m.num_heads, m.head_dim))
        k_btgn = self.k_proj(x_btd).unflatten(-1, (m.num_kv_heads, m.head_dim))
        v_btgn = self.v_proj(x_btd).unflatten(-1, (m.num_kv_heads, m.head_dim))
        if m.qk_norm:
            q_bthn, k_btgn = self.q_layernorm(q_bthn), self.k_layernorm(k_btgn)
        tables = layout.rope(m.rope, m.head_dim)
        q, k, v = (
            rotate(q_bthn.transpose(1, 2), *tables),
            rotate(k_btgn.transpose(1, 2), *tables),
            v_btgn.transpose(1, 2),
        )
        k, v = layout.keys(k), layout.keys(v)
        if state is not None:
            k, v = state.append(k, v, layout.lengths)
        o_bthn = attention(q, k, v, self.scale, layout.mask(m.window)).transpose(1, 2)
        if m.output_gate:
            o_bthn = o_bthn * self.g_proj(x_btd).sigmoid()[..., None]
        return self.out_proj(o_bthn.flatten(2))

    def init_weights(self, std: Callable[[int], float], shrink: float, generator: torch.Generator) -> None:
        for name in ("q_proj", "k_proj", "v_proj") + (("g_proj",) if self.mixer.output_gate else ()):
            _normal(getattr(self, name).weight, std(self.q_proj.in_features), generator)
        _normal(self.out_proj.weight, shrink * std(self.out_proj.in_features), generator)


class _Depthwise(nn.Module):
    """Holder of the convolution's weight (d, 1, k) and bias (d,), under the checkpoint's names."""

    def __init__(self, hidden_size: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, 1, width))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None


class ShortConv(nn.Module):
    """Double-gated short convolution: (B, C, x) = in_proj(h); out_proj(C * conv(B * x)); no activation anywhere."""

    def __init__(self, c: Config, mixer: config.ShortConv) -> None:
        super().__init__()
        self.in_proj = nn.Linear(c.hidden_size, 3 * c.hidden_size, bias=mixer.bias)
        self.conv = _Depthwise(c.hidden_size, mixer.width, mixer.bias)
        self.out_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=mixer.bias)

    def forward(self, x_btd: torch.Tensor, layout: Layout, state: ConvState | None) -> torch.Tensor:
        mixed_btc = self.in_proj(x_btd)
        if state is None and mixed_btc.requires_grad and not layout.split:
            gated = gated_short_conv(mixed_btc, self.conv.weight[:, 0], self.conv.bias, layout.segments)
            return self.out_proj(gated)
        gate_in, gate_out, value = mixed_btc.chunk(3, dim=-1)
        u_btd = gate_in * value
        past = self.conv.weight.shape[-1] - 1
        tail = layout.before(u_btd, past) if state is None else state.tail
        v_btd = short_conv(u_btd, self.conv.weight[:, 0], self.conv.bias, tail, layout.segments_after(past))
        if state is not None:
            state.append(u_btd, layout.counts)
        return self.out_proj(gate_out * v_btd)

    def init_weights(self, std: Callable[[int], float], shrink: float, generator: torch.Generator) -> None:
        _normal(self.in_proj.weight, std(self.in_proj.in_features), generator)
        bound = self.conv.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.conv.weight, -bound, bound, generator=generator)
        _normal(self.out_proj.weight, shrink * std(self.out_proj.in_features), generator)
        for bias in (self.in_proj.bias, self.conv.bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)


class FeedForward(nn.Module):
    """w2(act(w1 x) * w3 x)."""

    def __init__(self, c: Config, ffn: config.Ffn) -> None:
        super().__init__()
        self.combine = _COMBINE[ffn.activation]
        self.w1 = nn.Linear(c.hidden_size, ffn.intermediate_size, bias=False)
        self.w2 = nn.Linear(ffn.intermediate_size, c.hidden_size, bias=False)
        self.w3 = nn.Linear(c.hidden_size, ffn.intermediate_size, bias=False)

    def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
        return self.w2(self.combine(self.w1(x_btd), self.w3(x_btd)))

    def init_weights(self, std: Callable[[int], float], shrink: float, generator: torch.Generator) -> None:
        _normal(self.w1.weight, std(self.w1.in_features), generator)
        _normal(self.w3.weight, std(self.w3.in_features), generator)
        _normal(self.w2.weight, shrink * std(self.w2.in_features), generator)


class _Experts(nn.Module):
    """Stacked SwiGLU matrices: w1, w3 (e, i, d) and w2 (e, d, i). `compute` is another form of `experts` while they
    are spread over ranks (train.expert_parallel).
    """

    compute = staticmethod(experts)

    def __init__(self, hidden_size: int, ffn: config.Moe) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(ffn.num_experts, ffn.intermediate_size, hidden_size))
        self.w2 = nn.Parameter(torch.empty(ffn.num_experts, hidden_size, ffn.intermediate_size))
        self.w3 = nn.Parameter(torch.empty(ffn.num_experts, ffn.intermediate_size, hidden_size))

    def forward(self, x_nd: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.compute(x_nd, chosen, weights, self.w1, self.w2, self.w3)


class MoeFeedForward(nn.Module):
    """Sparse experts behind `ops.moe.route`; router scores and expert_bias stay fp32 in every model dtype."""

    def __init__(self, c: Config, ffn: config.Moe) -> None:
        super().__init__()
        self.expert_bias: torch.Tensor | None
        self.ffn = ffn
        self.gate = nn.Linear(c.hidden_size, ffn.num_experts, bias=False)
        self.experts = _Experts(c.hidden_size, ffn)
        self.register_buffer("expert_bias", torch.empty(ffn.num_experts) if ffn.expert_bias else None)
        self.load: torch.Tensor | None = None
        """While training: tokens that each expert got (e) since it was last set to None."""

    def _apply(self, fn: Callable, recurse: bool = True) -> "MoeFeedForward":
        before = self.expert_bias
        super()._apply(fn, recurse)
        if before is not None and (after := self.expert_bias) is not None and after.dtype != torch.float32:
            self.expert_bias = after.float() if before.is_meta else before.to(after.device)
        return self

    def route(self, x_nd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts (n, k) and fp32 weights (n, k) for tokens x (n, d)."""
        kind = x_nd.device.type  # autocast would round the scores by more than a step of the bias
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            logits = F.linear(x_nd.float(), self.gate.weight.float())
        f = self.ffn
        return route(logits, self.expert_bias, f.num_experts_per_token, f.norm_topk_prob, f.routed_scaling_factor)

    def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
        x_nd = x_btd.flatten(0, 1)
        chosen, chosen_weights = self.route(x_nd)
        if self.training and torch.is_grad_enabled():
            counts = chosen.flatten().bincount(minlength=self.ffn.num_experts)
            self.load = counts if self.load is None else self.load + counts
        return self.experts(x_nd, chosen, chosen_weights).view_as(x_btd)

    def init_weights(self, std: Callable[[int], float], shrink: float, generator: torch.Generator) -> None:
        hidden_size, inner = self.experts.w2.shape[1:]
        for weight in (self.gate.weight, self.experts.w1, self.experts.w3):
            _normal(weight, std(hidden_size), generator)
        _normal(self.experts.w2, shrink * std(inner), generator)
        if self.expert_bias is not None:
            nn.init.zeros_(self.expert_bias)


MIXERS: dict[type, tuple[str, type[nn.Module]]] = {
    config.Attention: ("self_attn", Attention),
    config.ShortConv: ("conv", ShortConv),
}
FFNS: dict[type, type[nn.Module]] = {config.Ffn: FeedForward, config.Moe: MoeFeedForward}


class Block(nn.Module):
    """One layer: x + mixer(norm x), then x + ffn(norm x); sandwich norms on the branches where the row asks for it."""

    def __init__(self, c: Config, layer: config.Layer) -> None:
        super().__init__()
        self.mixer_name, mixer_class = MIXERS[type(layer.mixer)]
        self.add_module(self.mixer_name, mixer_class(c, layer.mixer))
        self.feed_forward = FFNS[type(layer.ffn)](c, layer.ffn)
        names = ["operator_norm", "ffn_norm"] + ["post_operator_norm", "post_ffn_norm"] * layer.post_norms
        for name in names:
            self.add_module(name, RmsNorm(c.hidden_size, c.norm_eps, c.norm_offset))
        self.post_norms = layer.post_norms

    operator_norm: RmsNorm
    ffn_norm: RmsNorm
    post_operator_norm: RmsNorm
    post_ffn_norm: RmsNorm

    def forward(self, x_btd: torch.Tensor, layout: Layout, state: AttentionState | ConvState | None) -> torch.Tensor:
        branch = getattr(self, self.mixer_name)(self.operator_norm(x_btd), layout, state)
        x_btd = x_btd + (self.post_operator_norm(branch) if self.post_norms else branch)
        branch = self.feed_forward(self.ffn_norm(x_btd))
        return x_btd + (self.post_ffn_norm(branch) if self.post_norms else branch)


class Lfm2(nn.Module):
    """A causal language model of any Config.

    Fresh weights come from `generator` (default: seed 0); `init=False` leaves them unset for a loader to fill.
    """

    def __init__(
        self,
        c: Config,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        init: bool = True,
    ) -> None:
        super().__init__()
        self.config = c
        self.recompute = False
        """Training keeps the input of each layer alone and computes the layer again on the way back: less memory."""
        self.context: Context | None = None
        """The ranks that hold the other parts of each row, when one is split over several."""
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
            self.layers = nn.ModuleList(Block(c, layer) for layer in c.layers)
            self.embedding_norm = RmsNorm(c.hidden_size, c.norm_eps, c.norm_offset)
            if not c.tie_embeddings:
                self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.to(dtype=dtype)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            if init:
                self.init_weights(generator or torch.Generator(device).manual_seed(0))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights: matrices N(0, 1 / fan_in), those that write to the residual stream shrunk by 1 / sqrt(2 L).

        INFERRED from the publisher's audio code (the report states no initialisation); convolutions start uniform
        within 1 / sqrt(width), norms neutral, expert biases zero.
        """
        shrink = (2 * len(self.layers)) ** -0.5
        for module in self.modules():
            init = getattr(module, "init_weights", None)
            if init is not None and module is not self:
                init(std=_inverse_root, shrink=shrink, generator=generator)
        _normal(self.embed_tokens.weight, _inverse_root(self.config.hidden_size), generator)
        if not self.config.tie_embeddings:
            _normal(self.lm_head.weight, _inverse_root(self.config.hidden_size), generator)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def new_cache(self, batch_size: int = 1, *, rewindable: int = 16) -> Cache:
        """An empty Cache in this model's dtype and device."""
        return Cache(self.config, batch_size, rewindable=rewindable, dtype=self.dtype, device=self.device)

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Final-norm states (b, t, d), zeros at padding; arguments and errors as in `forward`."""
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}; allowed: (rows, tokens), at least one token"
            )
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids and cache came together; packed documents have no past: use one row each")
        if cache is not None and self.context is not None:
            raise ValueError("a cache came while rows are split over ranks; decode with whole rows")
        if cache is not None and cache.batch_size != input_ids.shape[0]:
            raise ValueError(f"input_ids has {input_ids.shape[0]} rows, the cache {cache.batch_size}; they must agree")
        lengths = [0] * input_ids.shape[0] if cache is None else cache.lengths
        shape = (input_ids.shape[0], input_ids.shape[1])
        layout = Layout(shape, input_ids.device, lengths, attention_mask, segment_ids, self.context)
        x_btd = self.embed_tokens(layout.pack(input_ids))
        if self.config.embedding_scale != 1.0:
            x_btd = x_btd * torch.tensor(self.config.embedding_scale, dtype=x_btd.dtype)
        for i, block in enumerate(self.layers):
            if self.recompute and torch.is_grad_enabled():
                x_btd = checkpointed(block, x_btd, layout, None, use_reentrant=False)
            else:
                x_btd = block(x_btd, layout, None if cache is None else cache.states[i])
        if cache is not None:
            cache.advance(layout.counts)
        return layout.unpack(self.embedding_norm(x_btd))

    def head(self, hidden_btd: torch.Tensor) -> Head:
        """Final-norm states (..., d) with the projection still to come, for `Head.logits` or a fused loss."""
        return Head(hidden_btd, self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        project: bool = True,
    ) -> torch.Tensor | Head:
        """Logits (b, t, v) for ids (b, t); at padded places they are zero. project=False: the Head before them.

        attention_mask (b, t or more): 0 marks padding, on any side. segment_ids (b, t): packed documents that never
        see each other and count positions from zero. cache: earlier tokens of each row; it takes these ones in.
        ValueError on shapes that disagree and on segment_ids together with a cache.
        """
        head = self.head(self.hidden(input_ids, attention_mask, segment_ids, cache))
        return head.logits() if project else head

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> "Lfm2":
        """Load a Hugging Face-format directory, a .gguf file or a hub id; dtype None keeps the file's.

        ValueError when the configuration is not understood or a tensor is missing, extra, misshaped or damaged.
        """
        c, sources, file_dtype = checkpoint.read(path_or_id)
        model = cls(c, dtype=dtype or file_dtype, device=device, init=False)
        tensors = model.state_dict()
        if c.tie_embeddings and (head := sources.pop("lm_head.weight", None)) is not None:
            _check_tied(head, sources.get("embed_tokens.weight"))
        weights.fill(tensors, sources)
        return model.eval()

    def save_pretrained(self, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
        """Write config.json and safetensors that transformers loads (where it knows the shape), atomically."""
        checkpoint.write(directory, self.config, self.state_dict(), max_shard_bytes=max_shard_bytes)


def _check_tied(head: weights.Source, embedding: weights.Source | None) -> None:
    if embedding is not None and not torch.equal(head.read(), embedding.read()):
        raise ValueError(
            "config.json ties the head to the embedding, but lm_head.weight differs from it; "
            "set tie_word_embeddings to false if the head is its own"
        )


def _inverse_root(fan_in: int) -> float:
    return fan_in**-0.5


def _normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.normal_(weight, std=std, generator=generator)
