"""Perplexity by position: does a model predict better the more it has read, or worse beyond what it was trained on?

Each row is one long text from its start. The logits of a few hundred positions exist at a time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.ops.head_loss import Head

CHUNK = 256


@dataclass(frozen=True)
class Stretch:
    """Positions [start, stop): mean nats a token, its standard error over the rows' tokens, how many tokens."""

    start: int
    stop: int
    nats: float
    error: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats, 700.0))


def by_position(
    forward: Callable[[Tensor], Head],
    rows: Iterable[Sequence[int]],
    *,
    edges: Sequence[int] = (1, 256, 1024, 4096, 8192, 16384, 32768),
    device: torch.device | str = "cpu",
) -> list[Stretch]:
    """Stretches between neighbouring `edges`; position p is token p predicted from tokens 0 to p - 1.

    `forward(ids (1, t)) -> Head`. Stretches that no row reaches are left out. ValueError: edges that do not rise from
    at least 1, or rows all shorter than two tokens.
    """
    if list(edges) != sorted(set(edges)) or len(edges) < 2 or edges[0] < 1:
        raise ValueError(f"edges are {list(edges)}; they must rise, from 1 at least")
    sums = torch.zeros(len(edges) - 1, 3, dtype=torch.float64)  # nats, nats squared, tokens
    for row in rows:
        if len(row) < 2:
            continue
        nats = _nats(forward, list(row[: edges[-1]]), device)
        for i, (start, stop) in enumerate(pairwise(edges)):
            part = nats[start - 1 : stop - 1]
            sums[i] += torch.stack([part.sum(), part.square().sum(), torch.tensor(float(len(part)))])
    if not sums[:, 2].any():
        raise ValueError("no row is long enough to be scored")
    found = []
    for i, (start, stop) in enumerate(pairwise(edges)):
        total, squares, count = sums[i].tolist()
        if count:
            mean = total / count
            spread = max(0.0, squares / count - mean * mean)
            found.append(Stretch(start, stop, mean, math.sqrt(spread / count), int(count)))
    return found


@torch.no_grad()
def _nats(forward: Callable[[Tensor], Head], ids: list[int], device: torch.device | str) -> Tensor:
    """-ln p of tokens 1, 2, ... of a row, fp64."""
    ids_t = torch.tensor(ids, device=device)
    head = forward(ids_t[None])
    parts = []
    for start in range(0, len(ids) - 1, CHUNK):
        at = slice(start, min(start + CHUNK, len(ids) - 1))
        logits = Head(head.hidden[0, at], head.weight).logits().float()
        parts.append(F.cross_entropy(logits, ids_t[at.start + 1 : at.stop + 1], reduction="none"))
    return torch.cat(parts).double().cpu()
