"""Where each token of one forward call stands: its row, its position, its document, and whom it may look at.

Padding is taken out before the first layer and put back after the last, so no operator ever sees it: rows become
left-aligned with their own counts, whichever side the padding was on. Not for state (cache.py).
"""

from typing import Protocol

import torch
import torch.nn.functional as F

from headwater.config import Rope
from headwater.ops.attention import MASK_VALUES, Documents, Mask, visible
from headwater.ops.rope import cos_sin


class Context(Protocol):
    """The other parts of a sequence that is split over processes, in equal parts: train.context_parallel has one."""

    rank: int
    size: int

    def before(self, x_btd: torch.Tensor, count: int) -> torch.Tensor:
        """(b, count, d): what stands before the first column of x, zeros on the first rank. Differentiable."""

    def gathered(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """The parts of all ranks along `axis`, in order. Differentiable."""


class Layout:
    """One call over ids of `shape` (b, t) behind rows that already hold `lengths` tokens.

    attention_mask (b, at least t): nonzero where a token counts, its last t columns are read (older ones, as other
    libraries pass them, describe the past). segment_ids (b, t): a change of value starts a new document.
    context: the ids are this rank's part of longer rows; ValueError together with padding.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        lengths: list[int],
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        context: Context | None = None,
    ) -> None:
        rows, steps = shape
        self._context = context
        self._shape, self._device = shape, device
        self._order: torch.Tensor | None = None
        self.lengths = lengths
        self.counts = [steps] * rows
        if attention_mask is not None:
            self._take_out_padding(attention_mask)
        self.steps = max(self.counts)
        self.uniform = min(lengths) == max(lengths)
        if context is not None and self._order is not None:
            raise ValueError("a sequence split over ranks has padding; cure: packed rows with segment_ids")
        self._masks: dict[int | None, Mask] = {}
        self._ropes: dict[tuple[Rope, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.segments: torch.Tensor | None = None
        total = self.steps * (1 if context is None else context.size)
        positions = torch.arange(total, device=device)[None]
        if segment_ids is not None:
            self._set_segments(segment_ids, positions)
        elif self.uniform:
            self._set_positions(positions + lengths[0])
        else:
            self._set_positions(positions + torch.tensor(lengths, device=device)[:, None])

    def _take_out_padding(self, attention_mask: torch.Tensor) -> None:
        rows, steps = self._shape
        if attention_mask.dim() != 2 or attention_mask.shape[0] != rows or attention_mask.shape[1] < steps:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; allowed: ({rows}, {steps}) or more columns, "
                f"one for each token of input_ids {self._shape}"
            )
        valid = attention_mask[:, attention_mask.shape[1] - steps :].to(torch.bool)
        if bool(valid.all()):
            return
        self.counts = valid.sum(1).tolist()
        if max(self.counts) == 0:
            raise ValueError("attention_mask hides every token of input_ids; at least one must count")
        self._order = (~valid).to(torch.int8).argsort(dim=1, stable=True)[:, : max(self.counts)]

    def _set_segments(self, segment_ids: torch.Tensor, positions: torch.Tensor) -> None:
        if tuple(segment_ids.shape) != self._shape:
            raise ValueError(f"segment_ids has shape {tuple(segment_ids.shape)}; allowed: {self._shape} like input_ids")
        packed = self.pack(segment_ids)
        if self._context is not None:
            packed = self._context.gathered(packed, 1)
        starts = torch.ones_like(packed, dtype=torch.bool)
        starts[:, 1:] = packed[:, 1:] != packed[:, :-1]
        self._key_segments = starts.cumsum(1)
        self.segments = self._own(self._key_segments)
        self._set_positions(positions - torch.where(starts, positions, 0).cummax(1).values)

    def _set_positions(self, positions: torch.Tensor) -> None:
        self._key_positions, self.positions = positions, self._own(positions)

    def _own(self, columns: torch.Tensor) -> torch.Tensor:
        """The columns of this rank, of those of the whole sequence."""
        if self._context is None:
            return columns
        return columns[:, self._context.rank * self.steps :][:, : self.steps]

    @property
    def split(self) -> bool:
        """Whether these are parts of longer rows."""
        return self._context is not None

    def before(self, x_btd: torch.Tensor, count: int) -> torch.Tensor | None:
        """The `count` columns before x on the rank to the left, (b, count, d); None where a sequence is whole."""
        if self._context is None or count == 0:
            return None
        if count > self.steps:
            raise ValueError(
                f"each of {self._context.size} ranks holds {self.steps} positions of a row, and a convolution looks "
                f"{count} back; cure: longer rows or fewer context ranks"
            )
        return self._context.before(x_btd, count)

    def segments_after(self, count: int) -> torch.Tensor | None:
        """Segments of this call's tokens (b, t), behind those of `before` where a sequence is split: (b, count + t)."""
        if self._context is None or self.segments is None:
            return self.segments
        start = self._context.rank * self.steps
        return F.pad(self._key_segments, (count, 0), value=-1)[:, start : start + count + self.steps]

    def keys(self, x_bgtn: torch.Tensor) -> torch.Tensor:
        """Keys or values of all tokens that a query of this call may look at, (b, g, s, n)."""
        return x_bgtn if self._context is None else self._context.gathered(x_bgtn, 2)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t) -> (b, steps): each row's counted tokens first."""
        return x if self._order is None else x.gather(1, self._order)

    def unpack(self, y: torch.Tensor) -> torch.Tensor:
        """(b, steps, d) -> (b, t, d): results back at their tokens' places, zeros at padding."""
        if self._order is None:
            return y
        counted = (
            torch.arange(self.steps, device=self._device) < torch.tensor(self.counts, device=self._device)[:, None]
        )
        out = y.new_zeros(*self._shape, y.shape[-1])
        return out.scatter(1, self._order[..., None].expand_as(y), y * counted[..., None])

    def mask(self, window: int | None) -> Mask:
        """What `ops.attention.attention` takes as mask, for attention with this window."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Mask:
        end = max(self.lengths) + self.steps
        reaches_all = window is None or end <= window
        if self.segments is not None:
            square = self.segments.numel() * self.steps
            on_cpu = self._device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere lengths cost a wait
            if reaches_all and self._context is None and (on_cpu or square > MASK_VALUES):
                return Documents(
                    tuple(tuple(row.unique_consecutive(return_counts=True)[1].tolist()) for row in self.segments)
                )
            same_document = self.segments[:, :, None] == self._key_segments[:, None, :]
            return visible(self.positions, self._key_positions, window) & same_document
        if self._context is not None:
            return visible(self.positions, self._key_positions, window)
        if reaches_all:
            if max(self.lengths) == 0:
                return "causal"
            if self.uniform and self.steps == 1:
                return None
        return visible(self.positions, torch.arange(end, device=self._device)[None], window)

    def rope(self, rope: Rope, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin tables of this call's positions."""
        key = (rope, head_dim)
        if key not in self._ropes:
            frequencies = torch.tensor(rope.frequencies(head_dim), dtype=torch.float32, device=self._device)
            self._ropes[key] = cos_sin(self.positions, frequencies)
        return self._ropes[key]
