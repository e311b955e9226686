"""What a model remembers of sequences between calls: one state per layer behind one Cache.

Each row is one sequence with its own length; padding never enters. An attention layer keeps keys and values of every
token, a convolution layer the last gated inputs: width - 1 that it needs, and `rewindable` more so that rejected
tokens can be taken back. Layers with a sliding window keep all keys here (the plain engine can always rewind).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from headwater.config import Attention, Config
from headwater.files import atomic

_FORMAT = "headwater-cache-1"


class AttentionState:
    """Keys and values (b, g, capacity, n) of one layer; the capacity doubles when it is used up."""

    def __init__(self, mixer: Attention, batch_size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (batch_size, mixer.num_kv_heads, 0, mixer.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` per row. New room is zero: a masked key times zero weight must not be NaN."""
        if num_tokens > self.k.shape[2]:
            room = max(num_tokens, 2 * self.k.shape[2], 64) - self.k.shape[2]
            self.k, self.v = (torch.nn.functional.pad(x, (0, 0, 0, room)) for x in (self.k, self.v))

    def append(self, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k, v (b, g, t, n) behind each row's `lengths` tokens; return all keys and values up to the longest."""
        end = max(lengths) + k.shape[2]
        self.reserve(end)
        if min(lengths) == max(lengths):
            self.k[:, :, lengths[0] : end] = k
            self.v[:, :, lengths[0] : end] = v
        else:
            for b, start in enumerate(lengths):
                self.k[b, :, start : start + k.shape[2]] = k[b]
                self.v[b, :, start : start + k.shape[2]] = v[b]
        return self.k[:, :, :end], self.v[:, :, :end]


class ConvState:
    """The last gated inputs of one layer, newest last: (b, width - 1 + rewindable, d), zeros before the start."""

    def __init__(
        self, width: int, hidden_size: int, rewindable: int, batch_size: int, dtype: torch.dtype, device: Any
    ) -> None:
        self.width = width
        self.columns = torch.zeros(batch_size, width - 1 + rewindable, hidden_size, dtype=dtype, device=device)

    @property
    def tail(self) -> torch.Tensor:
        """(b, width - 1, d): what the next call's first outputs look back on."""
        return self.columns[:, self.columns.shape[1] - (self.width - 1) :]

    def append(self, u_btd: torch.Tensor, counts: list[int]) -> None:
        """Take row b's first `counts[b]` steps of u; later steps are padding and leave no trace."""
        kept, steps = self.columns.shape[1], u_btd.shape[1]
        if min(counts) == steps >= kept:
            self.columns = u_btd[:, steps - kept :].clone()
            return
        seen = torch.cat([self.columns, u_btd], dim=1)
        if min(counts) == steps:
            self.columns = seen[:, steps:].clone()
        else:
            self.columns = torch.stack([seen[b, n : n + kept] for b, n in enumerate(counts)])

    def rewind(self, num_tokens: int) -> None:
        """Drop the newest columns; the oldest ones become unknown and are never used (Cache counts them)."""
        self.columns = torch.nn.functional.pad(self.columns, (0, 0, num_tokens, -num_tokens))


class Cache:
    """State of `batch_size` sequences for one Config.

    rewindable: how many tokens `rewind` can always take back (costs that many columns per convolution layer).
    """

    def __init__(
        self,
        config: Config,
        batch_size: int = 1,
        *,
        rewindable: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or rewindable < 0:
            raise ValueError(f"Cache(batch_size={batch_size}, rewindable={rewindable}); allowed: >= 1 and >= 0")
        self.config = config
        self.lengths = [0] * batch_size
        self.rewindable = rewindable
        self._known = rewindable
        self.states: list[AttentionState | ConvState] = [
            AttentionState(m, batch_size, dtype, device)
            if isinstance(m := layer.mixer, Attention)
            else ConvState(m.width, config.hidden_size, rewindable, batch_size, dtype, device)
            for layer in config.layers
        ]

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self._tensors()[0].device

    def _tensors(self) -> list[torch.Tensor]:
        return [t for s in self.states for t in ((s.columns,) if isinstance(s, ConvState) else (s.k, s.v))]

    def nbytes(self) -> int:
        """Bytes that the states hold now, reserved room included."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` per row at once, so that long prompts do not copy the cache again and again."""
        for state in self.states:
            if isinstance(state, AttentionState):
                state.reserve(num_tokens)

    def advance(self, counts: list[int]) -> None:
        """Record that every layer has taken counts[b] tokens of row b (the model calls this once per forward)."""
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        self._known = min(self.rewindable, self._known + min(counts))

    def rewind(self, num_tokens: int) -> None:
        """Take back the newest `num_tokens` tokens of every row.

        ValueError when a row is shorter, or when the convolution history that is kept does not reach back so far.
        """
        allowed = min(self._known, *self.lengths) if self.batch_size > 1 else min(self._known, self.lengths[0])
        if not 0 <= num_tokens <= allowed:
            raise ValueError(
                f"rewind({num_tokens}): from 0 to {allowed} tokens can be taken back now; make the Cache with a larger "
                f"rewindable (it is {self.rewindable}), or clone() it before the tokens that may be dropped"
            )
        for state in self.states:
            if isinstance(state, ConvState):
                state.rewind(num_tokens)
        self.lengths = [n - num_tokens for n in self.lengths]
        self._known -= num_tokens

    def clone(self) -> "Cache":
        """An independent copy."""
        return self.select(list(range(self.batch_size)))

    def select(self, rows: list[int]) -> "Cache":
        """A copy holding these rows in this order; a row may repeat (several answers to one prompt)."""
        other = Cache(self.config, len(rows), rewindable=self.rewindable)
        other.lengths, other._known = [self.lengths[b] for b in rows], self._known
        for mine, theirs in zip(self.states, other.states, strict=True):
            for name in ("columns",) if isinstance(mine, ConvState) else ("k", "v"):
                setattr(theirs, name, getattr(mine, name)[rows].clone())
        return other

    def save(self, path: str | Path) -> None:
        """Write all states to one safetensors file, atomically."""
        tensors, end = {}, max(self.lengths)
        for i, state in enumerate(self.states):
            if isinstance(state, ConvState):
                tensors[f"{i}.conv"] = state.columns.contiguous()
            else:
                tensors[f"{i}.k"] = state.k[:, :, :end].contiguous()
                tensors[f"{i}.v"] = state.v[:, :, :end].contiguous()
        facts = {"lengths": self.lengths, "rewindable": self.rewindable, "known": self._known}
        shape = json.dumps(self.config.to_dict(), sort_keys=True)
        with atomic(path) as part:
            save_file(tensors, part, {"format": _FORMAT, "facts": json.dumps(facts), "config": shape})

    @classmethod
    def load(cls, path: str | Path, config: Config, device: torch.device | str = "cpu") -> "Cache":
        """Read `save` output. ValueError when the file is damaged, incomplete or of another model."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as f:
                meta = f.metadata() or {}
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{path} is not a readable cache file: {e}") from e
        if meta.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {meta.get('format')!r}; this version reads {_FORMAT!r}")
        if meta.get("config") != json.dumps(config.to_dict(), sort_keys=True):
            raise ValueError(f"{path} was saved for another model shape; load it with the model that wrote it")
        facts = json.loads(meta["facts"])
        cache = cls(config, len(facts["lengths"]), rewindable=facts["rewindable"])
        cache.lengths, cache._known = facts["lengths"], facts["known"]
        for i, state in enumerate(cache.states):
            names = {"columns": "conv"} if isinstance(state, ConvState) else {"k": "k", "v": "v"}
            for attribute, name in names.items():
                tensor = tensors.get(f"{i}.{name}")
                if tensor is None or not _fits(tensor, getattr(state, attribute), max(cache.lengths)):
                    raise ValueError(f"{path}: the state {i}.{name} is missing or misshaped; nothing was restored")
                setattr(state, attribute, tensor)
        return cache


def _fits(tensor: torch.Tensor, empty: torch.Tensor, length: int) -> bool:
    wanted = list(empty.shape)
    if len(wanted) == 4:
        wanted[2] = length
    return list(tensor.shape) == wanted
