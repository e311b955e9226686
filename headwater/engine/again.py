"""Answers read again as prompts while nobody waits, so that the next turn of a conversation finds them in the cache.

Where reading and writing have different arithmetic (docs/engine.md) the states that an answer leaves are not those of a
prompt that repeats it, and the prefix cache must not hold them. Read again, they are. Not for what requests wait for.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headwater.engine.scheduler import BLOCK

if TYPE_CHECKING:
    from headwater.engine.prefix_cache import PrefixCache

_PIECE = 2 * BLOCK
"""Tokens of a step: as long as a newcomer may wait for its end."""
_MOST = 32
"""Conversations that may wait. The newest goes first: it is the likeliest to go on."""


class Again:
    """Conversations to read. One at a time has a slot of `core`."""

    def __init__(self, core: Any, cache: "PrefixCache") -> None:
        self._core, self._cache = core, cache
        self._waiting: deque[list[int]] = deque(maxlen=_MOST)
        self._ids: list[int] = []
        self._keys: list[bytes] = []
        self._slot, self._read = -1, 0
        self.tokens = 0

    def note(self, ids: Sequence[int]) -> None:
        """Remember a conversation, its last answer included; what is longer than the cache is not worth it."""
        whole = len(ids) // BLOCK * BLOCK
        if 0 < whole * self._core.bytes_per_token <= self._cache.max_bytes // 2:
            self._waiting.append(list(ids[:whole]))

    def step(self) -> bool:
        """Read one piece. False when there was nothing to do."""
        while self._slot < 0:
            if not self._waiting or not self._begin(self._waiting.pop()):
                return False
        most = min(_PIECE, self._core.max_tokens // BLOCK * BLOCK)
        piece = self._ids[self._read : self._read + most]
        self._core.run([(self._slot, piece, "none")])
        done, self._read = self._read // BLOCK, self._read + len(piece)
        self.tokens += len(piece)
        self._cache.store(self._core, self._slot, self._keys[: self._read // BLOCK], done)
        if self._read == len(self._ids):
            self._end()
        return True

    def pause(self) -> None:
        """Give the slot back; what was read stays in the cache, and the rest is read another time."""
        if self._slot >= 0:
            self._waiting.append(self._ids)
            self._end()

    def _begin(self, ids: list[int]) -> bool:
        """Open a slot with what the cache has. False when there is none; nothing is opened where all is known."""
        keys = self._cache.keys(ids)
        if self._cache.has(keys[-1], tail=True):
            return True
        try:
            self._slot = self._core.open()
            found, self._keys = self._cache.fill(self._core, self._slot, keys[:-1]), keys
        except (MemoryError, ValueError):  # another holds every slot
            self._end()
            return False
        self._ids, self._read = ids, found * BLOCK
        return True

    def _end(self) -> None:
        if self._slot >= 0:
            self._core.close(self._slot)
        self._slot, self._ids, self._keys = -1, [], []
