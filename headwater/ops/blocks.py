"""Rows a few at a time: several passes over a piece that stays in the processor's cache instead of over the whole.

For elementwise work in fp32 on tensors of a narrower dtype. Elsewhere than on a CPU the piece is the whole.
"""

from collections.abc import Iterator

import torch

ELEMENTS = 1 << 17
"""Of a piece; a few of its size in fp32 fit the second-level cache of one core."""


def blocks(x_nd: torch.Tensor) -> Iterator[slice]:
    """Slices over the rows of x (n, d), each of about ELEMENTS values."""
    rows, width = x_nd.shape
    size = max(1, ELEMENTS // max(1, width)) if x_nd.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, size):
        yield slice(start, start + size)
