"""Bytes of a file in blocks, plain or compressed, and lines out of blocks, with a bound on the memory of a line.

A damaged or truncated file gives everything before the damage, then its Damage as the last line. Not for parsing.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headwater import optional

BLOCK, _FIRST = 1 << 20, 1 << 15  # a range is begun with a small block: often only some lines are wanted (a sample)
_FEED = 512  # packed bytes at a time: a few can unpack to many, and these must fit into memory


class Damage(NamedTuple):
    """What takes the place of a line that cannot be given."""

    reason: str
    detail: str


def cut_lines(path: str | Path, about: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, number of the first line) of pieces of `about` bytes or a little more, each of whole lines."""
    start = at = lines = 0
    first = 1
    with open(path, "rb") as f:
        while block := f.read(min(BLOCK, max(about, 1))):
            cut = block.rfind(b"\n") + 1 if at + len(block) - start >= about else 0
            at += len(block)
            if not cut:
                lines += block.count(b"\n")
                continue
            stop = at - len(block) + cut
            lines += block.count(b"\n", 0, cut)
            yield start, stop, first
            start, first, lines = stop, first + lines, block.count(b"\n", cut)
    if at > start:
        yield start, at, first


def of_range(path: str | Path, start: int, stop: int) -> Iterator[bytes | Damage]:
    """The bytes [start, stop) of a file."""
    with open(path, "rb") as f:
        f.seek(start)
        left, size = stop - start, _FIRST
        while left > 0 and (block := f.read(min(size, left))):
            left, size = left - len(block), min(2 * size, BLOCK)
            yield block
        if left > 0:
            yield Damage("file_shrank", f"{left} bytes that were there when the run was planned are gone")


def of_compressed(path: str | Path, form: str) -> Iterator[bytes | Damage]:
    """The unpacked bytes of a .gz or .zst file of any number of members, to the last that can be unpacked."""
    ready: list[bytes] = []
    size = 0
    for block in _unpacked(path, form):
        if isinstance(block, Damage):
            yield b"".join(ready)
            yield block
            return
        ready.append(block)
        size += len(block)
        if size >= BLOCK:
            yield b"".join(ready)
            ready, size = [], 0
    yield b"".join(ready)


def _unpacked(path: str | Path, form: str) -> Iterator[bytes | Damage]:
    new, errors = _unpacker(form)
    unpacker, begun, members = new(), False, 0
    with open(path, "rb") as f:
        while raw := f.read(_FEED):
            while raw:
                if members and not begun and form == "gz" and not (raw := raw.lstrip(b"\0")):
                    break  # gzip allows padding behind a member
                begun = True
                try:
                    block = unpacker.decompress(raw)
                except errors as e:
                    yield Damage("damaged", f"the {form} data is damaged here: {e}")
                    return
                if block:
                    yield block
                raw = unpacker.unused_data if unpacker.eof else b""
                if unpacker.eof:
                    unpacker, begun, members = new(), False, members + 1
    if begun:
        yield Damage("truncated", f"the {form} file ends in the middle; the lines before this one were read")


def _unpacker(form: str) -> tuple[Any, tuple[type[Exception], ...]]:
    if form == "gz":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    zstandard = optional.load("zstandard", extra="data")
    return zstandard.ZstdDecompressor().decompressobj, (zstandard.ZstdError,)


def lines(blocks: Iterator[bytes | Damage], longest: int) -> Iterator[bytes | Damage]:
    """Lines without their end, the last one even without one. A line above `longest` bytes is dropped as it streams
    by and gives a Damage in its place; a Damage of `blocks` ends the lines, and takes the place of the torn last one.
    """
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        if isinstance(block, Damage):
            yield block
            return
        first, *rest = block.split(b"\n")
        held += len(first)
        if held <= longest:
            parts.append(first)
        elif parts:
            parts.clear()
        if not rest:
            continue
        *middle, last = rest
        yield b"".join(parts) if held <= longest else _too_long(held, longest)
        for line in middle:
            yield line if len(line) <= longest else _too_long(len(line), longest)
        parts, held = [last], len(last)
    if held:
        yield b"".join(parts) if held <= longest else _too_long(held, longest)


def _too_long(length: int, longest: int) -> Damage:
    return Damage("text_too_long", f"a line of {length} bytes; at most {longest} are read")
