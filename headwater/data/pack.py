"""Documents of ids to (rows, positions) batches, several documents a row, kept apart by `segment_ids`.

Endless: a new shuffled epoch follows the last. The order depends on the seed and the epoch alone and the position is
a few numbers, so a run resumes on the very next token. Documents are held in memory as one flat tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Document(NamedTuple):
    """Token ids and, for each, whether it is to be learnt (None: all)."""

    ids: Sequence[int]
    mask: Sequence[bool] | None = None


Columns = Callable[[int, int], dict[str, Tensor]]
"""(start, stop) of a range of tokens -> named tensors (stop - start, ...)."""


class PackedBatches:
    """Iterator of {"input_ids", "segment_ids": int64, "loss_mask": bool}, each (rows, length).

    `whole=False` (pre-training): rows are filled to the last position; a document that reaches the edge goes on in
    the next row.
    `whole=True` (conversations): a document is never cut; where the next one does not fit, the row is filled with
    `pad_id` as a segment of its own without loss. Segments count 0, 1, 2, ... in each row.
    `columns` gives what else is known of a range of tokens, counted through all documents; zeros at padding.
    `shuffle=False`: every epoch has the order that the documents came in, so `columns` are read from one end.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        *,
        rows: int,
        length: int,
        seed: int,
        pad_id: int,
        whole: bool = False,
        columns: Columns | None = None,
        shuffle: bool = True,
    ) -> None:
        for name, value, least in (("rows", rows, 1), ("length", length, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}; a batch needs at least {least}")
        self._rows, self._length, self._seed, self._pad_id, self._whole = rows, length, seed, pad_id, whole
        self._columns, self._shuffle = columns, shuffle
        self._ids, self._mask, self._starts = _flatten(documents, length if whole else None)
        self._epoch = self._next = self._offset = 0
        self._order = self._shuffled()

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, without padding."""
        return len(self._ids)

    @property
    def epoch(self) -> int:
        return self._epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    @property
    def rows(self) -> int:
        return self._rows

    def __next__(self) -> dict[str, Tensor]:
        return self.share(0, self._rows)

    def share(self, first: int, stop: int) -> dict[str, Tensor]:
        """As `next`, but only rows first..stop-1 of the batch are made: what one of several processes takes of it."""
        shape = (stop - first, self._length)
        ids = torch.full(shape, self._pad_id)
        segments = torch.zeros(shape, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        more: dict[str, Tensor] = {}
        for row in range(-first, self._rows - first):
            at = segment = 0
            while at < self._length:
                begin, end = self._take(self._length - at)
                size = end - begin if end > begin else self._length - at
                here = slice(at, at + size)
                at += size
                if not 0 <= row < stop - first:
                    continue
                segments[row, here] = segment
                segment += 1
                if end > begin:
                    ids[row, here] = self._ids[begin:end]
                    mask[row, here] = self._mask[begin:end]
                    for name, values in (self._columns(begin, end) if self._columns else {}).items():
                        more.setdefault(name, values.new_zeros(*shape, *values.shape[1:]))[row, here] = values
        return {"input_ids": ids, "segment_ids": segments, "loss_mask": mask, **more}

    def _take(self, room: int) -> tuple[int, int]:
        """Flat range of the next piece of at most `room` tokens; an empty one if the next document has to wait for a
        new row.
        """
        document = self._order[self._next]
        start, stop = self._starts[document] + self._offset, self._starts[document + 1]
        if stop - start > room:
            if self._whole:
                return start, start
            self._offset += room
            return start, start + room
        self._offset, self._next = 0, self._next + 1
        if self._next == len(self._order):
            self._epoch, self._next = self._epoch + 1, 0
            self._order = self._shuffled()
        return start, stop

    def _shuffled(self) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._starts) - 1)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return torch.randperm(len(self._starts) - 1, generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self._epoch, "next": self._next, "offset": self._offset, **self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved position. ValueError: it was saved over other documents, another seed or another shape."""
        state = {"shuffle": True, **state}  # what was saved before there was a choice
        for name, now in self._fingerprint().items():
            if state[name] != now:
                raise ValueError(
                    f"the saved data position has {name} {state[name]}, these batches {now}: other data or settings"
                )
        self._epoch, self._next, self._offset = state["epoch"], state["next"], state["offset"]
        self._order = self._shuffled()

    def _fingerprint(self) -> dict[str, int | bool]:
        return {
            "documents": len(self._starts) - 1, "tokens": len(self._ids), "rows": self._rows, "length": self._length,
            "seed": self._seed, "whole": self._whole, "shuffle": self._shuffle,
        }  # fmt: skip


def _flatten(documents: Iterable[Document], longest: int | None) -> tuple[Tensor, Tensor, list[int]]:
    """All ids (int32), all masks (bool), and where each document starts, with the end as the last entry."""
    ids: list[Tensor] = []
    masks: list[Tensor] = []
    starts = [0]
    for number, (tokens, mask) in enumerate(documents):
        if not tokens:
            raise ValueError(f"document {number} is empty; cure: drop empty documents before packing")
        if longest is not None and len(tokens) > longest:
            raise ValueError(
                f"document {number} has {len(tokens)} tokens, a row {longest}, and whole documents are asked for; "
                "cure: longer rows, or drop or cut such documents"
            )
        if mask is not None and len(mask) != len(tokens):
            raise ValueError(f"document {number} has {len(tokens)} ids but a mask of {len(mask)}")
        ids.append(torch.tensor(tokens, dtype=torch.int32))
        masks.append(
            torch.ones(len(tokens), dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
        )
        starts.append(starts[-1] + len(tokens))
    if not ids:
        raise ValueError("there are no documents to pack; cure: check the files and the filters before this point")
    return torch.cat(ids), torch.cat(masks), starts
