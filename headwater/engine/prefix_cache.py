"""What prompts have in common is read once: states of a hybrid model at block ends, in memory and on disk, by LRU.

A block of tokens is known by a hash of itself and of all before it. It holds its keys and values; some blocks also hold
the convolutions' last inputs at their end (the tail), and only there can a sequence go on. Not for whole conversations
that must survive (state_file, Talk.save): anything here may be dropped at any time.
"""

import contextlib
import hashlib
import logging
import queue
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.engine import state_file
from headwater.engine.scheduler import BLOCK

_WRITES_AHEAD, _READERS = 64, 2
_SUFFIX = ".state"
_log = logging.getLogger(__name__)


@dataclass
class _Block:
    kv: bytes
    tail: bytes | None

    @property
    def nbytes(self) -> int:
        return len(self.kv) + (0 if self.tail is None else len(self.tail))


@dataclass
class Counters:
    """Since the start: lookups, prompt tokens looked up, tokens found, blocks evicted from memory, blocks from disk."""

    lookups: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    evicted: int = 0
    from_disk: int = 0


class PrefixCache:
    """Blocks of `model` within `max_bytes` of memory, and of `disk_bytes` under `directory` where one is given.

    model: names weights and arithmetic (state_file.model_id); states of another are never found. block_bytes: of the
    keys and values of a block, and of a tail.
    """

    def __init__(
        self,
        model: str,
        block_bytes: tuple[int, int],
        *,
        max_bytes: int,
        directory: str | Path | None = None,
        disk_bytes: int = 4 << 30,
    ) -> None:
        if max_bytes < 0 or disk_bytes < 0:
            raise ValueError(f"bytes of the prefix cache are {max_bytes} and {disk_bytes}; allowed: 0 and more")
        self.model, self.max_bytes = model, max_bytes
        self.nbytes = 0
        self.counters = Counters()
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._disk = None if directory is None else _Disk(Path(directory), model, block_bytes, disk_bytes)

    def keys(self, ids: Sequence[int]) -> list[bytes]:
        """The name of every whole block of a sequence."""
        key, keys = hashlib.blake2b(self.model.encode(), digest_size=16).digest(), []
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            key = hashlib.blake2b(key + struct.pack(f"<{BLOCK}I", *ids[end - BLOCK : end]), digest_size=16).digest()
            keys.append(key)
        return keys

    def restore(self, core: Any, slot: int, prompt: Sequence[int]) -> tuple[list[bytes], int, int]:
        """Make an empty slot what an earlier sequence left of this prompt; one token at least is left to be read.

        (keys of the prompt, blocks in the slot, blocks shared with what was read before but not all restored).
        """
        keys = self.keys(prompt)
        usable, shared = self.match(keys[: (len(prompt) - 1) // BLOCK])
        self._load(core, slot, keys[:usable])
        self.counters.lookups += 1
        self.counters.tokens += len(prompt)
        self.counters.hit_tokens += usable * BLOCK
        return keys, usable, shared

    def fill(self, core: Any, slot: int, keys: Sequence[bytes]) -> int:
        """Put as many of the blocks `keys` into an empty slot as a sequence can go on from; how many. Not a lookup."""
        usable, _ = self.match(keys)
        self._load(core, slot, keys[:usable])
        return usable

    def _load(self, core: Any, slot: int, keys: Sequence[bytes]) -> None:
        blocks = self.blocks(keys)
        for i, block in enumerate(blocks):
            core.load_keys(slot, i * BLOCK, (i + 1) * BLOCK, block.kv)
        if blocks:
            core.restore(slot, len(blocks) * BLOCK, blocks[-1].tail)

    def store(self, core: Any, slot: int, keys: Sequence[bytes], known: int) -> None:
        """Keep the blocks `keys` of a slot that holds them whole, from number `known` on, and the tail at their end."""
        kv = [core.save_keys(slot, i * BLOCK, (i + 1) * BLOCK) for i in range(known, len(keys))]
        self.put(keys, kv, core.save_tail(slot, len(keys) * BLOCK))

    def match(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """(blocks a sequence can start from, blocks it shares with what was read before): the second is where a tail
        is worth having."""
        usable = shared = 0
        self._fetch(keys)
        for n, key in enumerate(keys, 1):
            block = self._blocks.get(key)
            if block is None:
                break
            shared = n
            if block.tail is not None:
                usable = n
        self._touch(keys[:shared])
        return usable, shared

    def blocks(self, keys: Sequence[bytes]) -> list[_Block]:
        """The blocks of a match that was just made, in order."""
        found = [self._blocks[key] for key in keys]
        self._shrink()  # the disk may have brought more than there is room for
        return found

    def has(self, key: bytes, *, tail: bool = False) -> bool:
        block = self._blocks.get(key)
        return block is not None and (block.tail is not None or not tail)

    def put(self, keys: Sequence[bytes], kv: Sequence[bytes], tail: bytes | None) -> None:
        """Keep the last len(kv) blocks of `keys`, the tail at the end of the last of them."""
        first = len(keys) - len(kv)
        for i, values in enumerate(kv):
            key, last = keys[first + i], i == len(kv) - 1
            old = self._blocks.get(key)
            block = _Block(values, tail if last else None)
            if old is not None:
                if not last or old.tail is not None or tail is None:
                    continue
                self.nbytes -= old.nbytes
            self._blocks[key] = block
            self.nbytes += block.nbytes
            if self._disk is not None:
                self._disk.put(key, (first + i) * BLOCK, block.kv, block.tail)
        self._touch(keys)
        self._shrink()

    def close(self) -> None:
        """Finish writing to disk."""
        if self._disk is not None:
            self._disk.close()

    def _fetch(self, keys: Sequence[bytes]) -> None:
        """Bring into memory what the disk has of a chain; reading and checking a file leave the interpreter to others,
        so several are read at a time."""
        if self._disk is None:
            return
        missing = []
        for key in keys:
            if key not in self._blocks:
                if not self._disk.has(key):
                    break
                missing.append(key)
        if not missing:
            return
        with ThreadPoolExecutor(_READERS) as pool:
            for key, found in zip(missing, pool.map(self._disk.get, missing), strict=True):
                if found is not None:
                    block = self._blocks[key] = _Block(*found)
                    self.nbytes += block.nbytes
                    self.counters.from_disk += 1

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Newest: the first block, so that of a chain the end is forgotten first."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def _shrink(self) -> None:
        while self.nbytes > self.max_bytes and self._blocks:
            _, block = self._blocks.popitem(last=False)
            self.nbytes -= block.nbytes
            self.counters.evicted += 1


class _Disk:
    """One file a block; written by a thread of its own, which skips what comes faster than the disk takes."""

    def __init__(self, directory: Path, model: str, block_bytes: tuple[int, int], max_bytes: int) -> None:
        name = hashlib.blake2b(model.encode(), digest_size=8).hexdigest()
        self._directory, self._model, self._max_bytes = directory / name, model, max_bytes
        self._block_bytes = block_bytes
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(".*.part"):
            left.unlink(missing_ok=True)  # of a process that was killed
        found = []
        for file in self._directory.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another process has just dropped it
                found.append((file.stat().st_mtime, file.name, file.stat().st_size))
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self._lock = threading.Lock()
        self._writes: queue.Queue = queue.Queue(_WRITES_AHEAD)
        self._thread = threading.Thread(target=self._write_all, name="prefix-cache", daemon=True)
        self._thread.start()

    def has(self, key: bytes) -> bool:
        with self._lock:
            return key.hex() + _SUFFIX in self._sizes

    def get(self, key: bytes) -> tuple[bytes, bytes | None] | None:
        name = key.hex() + _SUFFIX
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            state = state_file.read(self._directory / name, self._model)
            if (
                len(state.kv),
                len(state.tail) if state.tail is not None else self._block_bytes[1],
            ) != self._block_bytes:
                raise ValueError(f"{name} has {len(state.kv)} bytes of keys and values, not {self._block_bytes[0]}")
        except (ValueError, OSError) as e:
            _log.warning("dropping a state of the prefix cache: %s", e)
            self._forget(name)
            return None
        return state.kv, state.tail

    def put(self, key: bytes, first: int, kv: bytes, tail: bytes | None) -> None:
        try:
            self._writes.put_nowait((key, first, kv, tail))
        except queue.Full:
            _log.debug("the disk is behind; a state is not written")

    def close(self) -> None:
        self._writes.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (job := self._writes.get()) is not None:
            key, first, kv, tail = job
            path = self._directory / (key.hex() + _SUFFIX)
            try:
                state_file.write(path, state_file.State(self._model, first, first + BLOCK, (), kv, tail))
                self._note(path.name, path.stat().st_size)
            except (OSError, MemoryError) as e:
                _log.warning("the prefix cache cannot write %s: %s", path, e)

    def _note(self, name: str, size: int) -> None:
        """Count a file that was written; the oldest go when there are too many."""
        with self._lock:
            self._sizes[name] = size
            self._sizes.move_to_end(name)
            over = sum(self._sizes.values()) - self._max_bytes
            oldest = list(self._sizes.items())
        for old, bytes_ in oldest:
            if over <= 0:
                break
            self._forget(old)
            over -= bytes_

    def _forget(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name, None)
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as e:
            _log.warning("the prefix cache cannot delete %s: %s", name, e)
