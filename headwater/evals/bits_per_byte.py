"""Bits per byte: how well a model predicts text, comparable between tokenizers of any vocabulary.

Each document is scored alone after BOS: the sum of -log2 p over its tokens, divided by its UTF-8 bytes. The
end-of-text token is not scored, since it stands for no byte.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.ops.head_loss import Head, Scores, head_loss

Model = Callable[[Tensor], Tensor | Head]
Forward = Callable[[Any, Mapping[str, Tensor]], Tensor | Head]
"""(model, {"input_ids"}) -> logits or a Head: train.loop has two."""


class Encoder(Protocol):
    """What is needed of a tokenizer: text to ids, with BOS in front."""

    def encode(self, text: str, *, bos: bool) -> list[int]: ...


def bits_per_byte(
    model: nn.Module | Model,
    tokenizer: Encoder,
    texts: Iterable[str],
    *,
    window: int = 1024,
    overlap: int = 256,
    batch_size: int = 16,
    forward: Forward | None = None,
) -> float:
    """-log2 p(texts) / bytes of `texts`, with log-probabilities in fp32.

    `model(input_ids (B, T))` -> logits (B, T, V) or a Head of them; `forward` calls it in another way. With a Head the
    logits never exist at once. A document longer than `window` ids is scored in windows whose first `overlap` ids were
    scored by the one before and serve as context only, so each token is scored once.
    ValueError: nothing to score, or `overlap` not below `window`.
    """
    if not 0 < overlap < window:
        raise ValueError(f"overlap is {overlap}, window {window}; the overlap must be at least 1 and below the window")
    texts = list(texts)
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise ValueError("there is no text to score")
    pieces = [piece for text in texts for piece in _windows(tokenizer.encode(text, bos=True), window, overlap)]
    pieces.sort(key=lambda piece: len(piece[0]))  # little padding a batch
    nats, run = 0.0, model if forward is None else lambda ids: forward(model, {"input_ids": ids})
    was_training = isinstance(model, nn.Module) and model.training
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            for i in range(0, len(pieces), batch_size):
                nats += _nats(run, pieces[i : i + batch_size], device)
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)
    return nats / math.log(2) / size


def _windows(ids: list[int], window: int, overlap: int) -> Iterator[tuple[list[int], int]]:
    """(ids of a window, how many of them are context that is not scored)."""
    context = 1  # BOS
    for start in range(0, max(1, len(ids) - overlap), window - overlap):
        yield ids[start : start + window], context
        context = overlap


def _nats(model: Model, pieces: list[tuple[list[int], int]], device: torch.device | None) -> float:
    """Sum of -ln p over the scored tokens. Padding stands on the right, where a causal model cannot see it."""
    longest = max(len(ids) for ids, _ in pieces)
    ids_bt = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in pieces], device=device)
    scored_bt = torch.tensor(
        [[context <= t < len(ids) for t in range(longest)] for ids, context in pieces], device=device
    )
    out = model(ids_bt)
    keep, labels = scored_bt[:, 1:], ids_bt[:, 1:][scored_bt[:, 1:]]
    if isinstance(out, Head):
        none = labels.new_empty((len(labels), 0))
        return head_loss(out.hidden[:, :-1][keep], out.weight, labels, none, _nll)[0].double().item()
    return F.cross_entropy(out[:, :-1][keep].float(), labels, reduction="sum").double().item()


def _nll(scores: Scores, _: slice) -> tuple[Tensor, dict[str, Tensor]]:
    return (scores.partition_n - scores.label_n).sum(), {}
