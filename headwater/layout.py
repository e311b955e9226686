"""Where each token of one forward call stands: its row, its position, its document, and whom it may look at.

Padding is taken out before the first layer and put back after the last, so no operator ever sees it: rows become
left-aligned with their own counts, whichever side the padding was on. Not for state (cache.py).
"""

import torch

from headwater.config import Rope
from headwater.ops.attention import Documents, Mask, visible
from headwater.ops.rope import cos_sin

MASK_VALUES = 1 << 23
"""A mask of packed documents larger than this is replaced by their lengths: the square of a long row would not fit."""


class Layout:
    """One call over ids of `shape` (b, t) behind rows that already hold `lengths` tokens.

    attention_mask (b, at least t): nonzero where a token counts, its last t columns are read (older ones, as other
    libraries pass them, describe the past). segment_ids (b, t): a change of value starts a new document.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        lengths: list[int],
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
    ) -> None:
        rows, steps = shape
        self._shape, self._device = shape, device
        self._order: torch.Tensor | None = None
        self.lengths = lengths
        self.counts = [steps] * rows
        if attention_mask is not None:
            self._take_out_padding(attention_mask)
        self.steps = max(self.counts)
        self.uniform = min(lengths) == max(lengths)
        self._masks: dict[int | None, Mask] = {}
        self._ropes: dict[tuple[Rope, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.segments: torch.Tensor | None = None
        positions = torch.arange(self.steps, device=device)[None]
        if segment_ids is not None:
            self._set_segments(segment_ids, positions)
        elif self.uniform:
            self.positions = positions + lengths[0]
        else:
            self.positions = positions + torch.tensor(lengths, device=device)[:, None]

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
        starts = torch.ones_like(packed, dtype=torch.bool)
        starts[:, 1:] = packed[:, 1:] != packed[:, :-1]
        self.segments = starts.cumsum(1)
        self.positions = positions - torch.where(starts, positions, 0).cummax(1).values

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
        if self.segments is None and reaches_all:
            if max(self.lengths) == 0:
                return "causal"
            if self.uniform and self.steps == 1:
                return None
        if self.segments is None:
            return visible(self.positions, torch.arange(end, device=self._device)[None], window)
        if reaches_all and self.segments.numel() * self.steps > MASK_VALUES:
            return Documents(
                tuple(tuple(row.unique_consecutive(return_counts=True)[1].tolist()) for row in self.segments)
            )
        same_document = self.segments[:, :, None] == self.segments[:, None, :]
        return visible(self.positions, self.positions, window) & same_document

    def rope(self, rope: Rope, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin tables of this call's positions."""
        key = (rope, head_dim)
        if key not in self._ropes:
            frequencies = torch.tensor(rope.frequencies(head_dim), dtype=torch.float32, device=self._device)
            self._ropes[key] = cos_sin(self.positions, frequencies)
        return self._ropes[key]
