"""Training batches straight from token shards on disk, memory-mapped: any number of tokens in a few megabytes.

As PackedBatches (pack.py): endless, a new shuffled epoch after the last, exact resume from a few numbers. The order of
documents is a keyed permutation worked out one document at a time, so it costs no memory and any position is reached
at once. Not for masks within a document (conversations: pack.py), and the only torch user of the pipeline.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater.data.shards import FORMAT, VERSION, checksum_of
from headwater.files import read_json

_MASK = (1 << 64) - 1
_ROUNDS = 4


class Shard(NamedTuple):
    """One memory-mapped token shard; see shards.py for its format."""

    ids: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray
    header: dict[str, str]


def open_shard(path: str | Path) -> Shard:
    """Map a shard. ValueError: it is cut short, damaged, or of another format."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut short or no token shard")
        try:
            head = json.loads(f.read(length))
            header = head.pop("__metadata__")
            tables = {name: _mapped(path, row, 8 + length, size) for name, row in head.items()}
            shard = Shard(tables["ids"], tables["offsets"], tables["documents"], header)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as e:
            raise ValueError(f"{path} is no token shard: {e}") from e
    if header.get("format") != FORMAT or header.get("version") != str(VERSION):
        raise ValueError(f"{path} is {header.get('format')!r} {header.get('version')}; this reads {FORMAT!r} {VERSION}")
    if len(shard.offsets) != len(shard.documents) + 1 or shard.offsets[0] != 0 or shard.offsets[-1] != len(shard.ids):
        raise ValueError(f"{path} is damaged: its offsets do not fit its {len(shard.ids)} ids")
    return shard


def _mapped(path: Path, row: dict[str, Any], base: int, size: int) -> np.ndarray:
    kinds = {"U16": "<u2", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
    if row["dtype"] not in kinds:
        raise ValueError(f"{path} holds a table of type {row['dtype']!r}; known are {', '.join(kinds)}")
    start, stop = row["data_offsets"]
    kind = np.dtype(kinds[row["dtype"]])
    shape = tuple(row["shape"])
    if base + stop > size or (stop - start) != int(np.prod(shape)) * kind.itemsize:
        raise ValueError(f"{path} is cut short: {size} bytes, its header speaks of {base + stop}")
    return (
        np.memmap(path, dtype=kind, mode="r", offset=base + start, shape=shape) if stop > start else np.zeros(0, kind)
    )


class ShardBatches:
    """Iterator of {"input_ids", "segment_ids": int64, "loss_mask": bool}, each (rows, length), over a folder of shards.

    Rows are filled to the last position; a document that reaches the edge goes on in the next row. Segments count
    0, 1, 2, ... in each row. verify: compare every shard with its checksum first, which reads all of it.
    """

    def __init__(self, folder: str | Path, *, rows: int, length: int, seed: int, verify: bool = False) -> None:
        for name, value, least in (("rows", rows, 1), ("length", length, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}; a batch needs at least {least}")
        self._rows, self._length, self._seed = rows, length, seed
        self._shards = _open_all(Path(folder), verify)
        self._firsts = [0, *accumulate(len(shard.documents) for shard in self._shards)]
        self._tokens = sum(len(shard.ids) for shard in self._shards)
        self._epoch = self._next = self._offset = 0
        if not self._tokens:
            raise ValueError(f"the shards of {folder} hold no tokens; cure: look at the report of the run")

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return self._tokens

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def vocab_size(self) -> int:
        """Ids lie below it."""
        return int(self._shards[0].header["vocab_size"])

    @property
    def tokenizer(self) -> str:
        """The fingerprint of the tokenizer that made the ids (tokens.Encoder.fingerprint)."""
        return self._shards[0].header["tokenizer"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    @property
    def rows(self) -> int:
        return self._rows

    def __next__(self) -> dict[str, Tensor]:
        return self.share(0, self._rows)

    def share(self, first: int, stop: int) -> dict[str, Tensor]:
        """As `next`, but only rows first..stop-1 of the batch are read: what one of several processes takes of it."""
        shape = (stop - first, self._length)
        ids, segments = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        for row in range(-first, self._rows - first):
            at = segment = 0
            while at < self._length:
                piece = self._take(self._length - at)
                if 0 <= row < stop - first:
                    ids[row, at : at + len(piece)] = piece
                    segments[row, at : at + len(piece)] = segment
                at, segment = at + len(piece), segment + (len(piece) > 0)
        return {
            "input_ids": torch.from_numpy(ids),
            "segment_ids": torch.from_numpy(segments),
            "loss_mask": torch.ones(shape, dtype=torch.bool),
        }

    def _take(self, room: int) -> np.ndarray:
        """The next at most `room` ids of the document in turn."""
        number = permuted(self._next, self._firsts[-1], self._seed, self._epoch)
        which = bisect_right(self._firsts, number) - 1
        shard, document = self._shards[which], number - self._firsts[which]
        start = int(shard.offsets[document]) + self._offset
        stop = int(shard.offsets[document + 1])
        if stop - start > room:
            self._offset += room
            return shard.ids[start : start + room]
        self._offset, self._next = 0, self._next + 1
        if self._next == self._firsts[-1]:
            self._epoch, self._next = self._epoch + 1, 0
        return shard.ids[start:stop]

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self._epoch, "next": self._next, "offset": self._offset, **self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved position. ValueError: it was saved over other shards, another seed or another shape."""
        for name, now in self._fingerprint().items():
            if state[name] != now:
                raise ValueError(
                    f"the saved data position has {name} {state[name]}, these shards {now}: other data or settings"
                )
        self._epoch, self._next, self._offset = state["epoch"], state["next"], state["offset"]

    def _fingerprint(self) -> dict[str, int | str]:
        return {
            "documents": self._firsts[-1], "tokens": self._tokens, "tokenizer": self.tokenizer, "rows": self._rows,
            "length": self._length, "seed": self._seed,
        }  # fmt: skip


def permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """The `index`-th of the numbers below `size` in an order that depends on seed and epoch; each comes once.

    A Feistel network over the next even power of two, walked until it lands below `size` (Black & Rogaway 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    key = _mixed(_mixed(seed & _MASK) ^ epoch)
    while True:
        left, right = index >> half, index & low
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + (step << 32 | right)) & low)
        index = left << half | right
        if index < size:
            return index


def _mixed(value: int) -> int:
    """splitmix64."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def _open_all(folder: Path, verify: bool) -> list[Shard]:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{folder} has no manifest.json: no finished run; cure: headwater data pack")
    shards = []
    for line in read_json(manifest)["files"]:
        path = folder / "shards" / line["file"]
        if not path.is_file():
            raise ValueError(f"{path} is gone, but the manifest names it; cure: run again with --resume")
        if path.stat().st_size != line["bytes"] or (verify and checksum_of(path) != line["xxh3_128"]):
            raise ValueError(f"{path} is damaged: not what the manifest says; cure: remove manifest.json, --resume")
        shards.append(open_shard(path))
    if len({shard.header["tokenizer"] for shard in shards}) > 1:
        raise ValueError(f"the shards of {folder} are of different tokenizers")
    return shards
