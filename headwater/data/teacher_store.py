"""A teacher's Top-K distributions on disk: ids, log-probabilities and the exact mass of each token, at random access.

Decisions: of K ids in order of likelihood, the ids and the gaps between their log-probabilities (steps of 1/8 nat)
are entropy-coded (rans.py) under frequencies of their shard; the mass keeps its odds to 0.04 %. Blocks of 2,048 tokens
decode alone. A shard is a safetensors file; `store.json` lists them and names the tokenizer. What does not fill a
shard yet waits in a file of raw records that survives a kill. Not for running teachers, not for batches (pack.py).
"""

import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from headwater.data import rans
from headwater.data.rans import Frequencies
from headwater.files import atomic, read_json, write_json

STEP = 1 / 8
BLOCK = 2048
_GAPS = 256
_FORMAT = "headwater-teacher-store"
_VERSION = 1
_ODDS = (-8.0, 16.0)
"""Range of log(mass / (1 - mass)) that 16 bits are spread over."""
_RECORD = struct.Struct("<II")


class Taught(NamedTuple):
    """A run of T tokens: the ids the teacher read, and its distribution of each next one, most likely first."""

    input_ids: np.ndarray
    """(T) int64"""
    ids: np.ndarray
    """(T, K) int64"""
    logprobs: np.ndarray
    """(T, K) float32, untempered"""
    mass: np.ndarray
    """(T) float32: the probability of the K ids together"""


@dataclass(frozen=True)
class Card:
    """What a store says of itself. tokenizer: a hash that teacher and student must share; teacher: for people."""

    teacher: str
    tokenizer: str
    vocab_size: int
    top_k: int

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.vocab_size:
            raise ValueError(f"top_k is {self.top_k}; allowed: 1 to the vocabulary's {self.vocab_size}")

    @property
    def id_type(self) -> np.dtype:
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def record(self) -> np.dtype:
        """One token before it is coded."""
        return np.dtype(
            [
                ("input", self.id_type),
                ("ids", self.id_type, self.top_k),
                ("gaps", "u1", self.top_k - 1),
                ("mass", "<u2"),
            ]
        )


class Writer:
    """Appends sequences; opened again on its directory it goes on after the last whole one. Close it at the end."""

    def __init__(self, directory: str | Path, card: Card, *, shard_tokens: int = 1 << 20) -> None:
        """ValueError: the directory holds a store of another teacher, tokenizer, vocabulary or K."""
        self.directory, self.card, self._shard_tokens = Path(directory), card, shard_tokens
        self.directory.mkdir(parents=True, exist_ok=True)
        self._shards: list[dict[str, Any]] = []
        if (self.directory / "store.json").exists():
            found, self._shards = _read_card(self.directory)
            for name, mine in asdict(card).items():
                if getattr(found, name) != mine:
                    raise ValueError(
                        f"{directory} holds a store whose {name} is {getattr(found, name)!r}, not {mine!r}; "
                        "cure: another directory"
                    )
        else:
            self._save_card()
        for old in self.directory.glob("pending-*.raw"):
            if old != self._pending:
                old.unlink()  # its records stand in a shard already
        self._waiting = self._recover()
        self._file = self._pending.open("ab")

    @property
    def sequences(self) -> int:
        """How many sequences are safe."""
        return sum(s["sequences"] for s in self._shards) + len(self._waiting)

    @property
    def tokens(self) -> int:
        return sum(s["tokens"] for s in self._shards) + sum(map(len, self._waiting))

    def last(self) -> np.ndarray | None:
        """The ids that the teacher read in the last sequence that is safe; ValueError: its shard is damaged."""
        if self._waiting:
            return self._waiting[-1]["input"]
        if not self._shards:
            return None
        shard = _Shard(self.directory / self._shards[-1]["name"], self.card, self._shards[-1])
        return shard.input_ids[len(shard.input_ids) - int(shard.lengths[-1]) :]

    def add(self, input_ids: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, mass: np.ndarray) -> None:
        """One sequence: what the teacher read (T), its K likeliest next ids (T, K) and their mass (T)."""
        rows = self._rows(np.asarray(input_ids), np.asarray(ids), np.asarray(logprobs, np.float32), np.asarray(mass))
        raw = rows.tobytes()
        self._file.write(_RECORD.pack(len(rows), zlib.crc32(raw)) + raw)
        self._file.flush()
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._shard_tokens:
            self._write_shard()

    def close(self) -> None:
        """Code what still waits."""
        if self._waiting:
            self._write_shard()
        self._file.close()
        self._pending.unlink(missing_ok=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    @property
    def _pending(self) -> Path:
        return self.directory / f"pending-{len(self._shards):05}.raw"

    def _rows(self, input_ids: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, mass: np.ndarray) -> np.ndarray:
        k, tokens = self.card.top_k, len(input_ids)
        for name, array, shape in (
            ("input_ids", input_ids, (tokens,)), ("ids", ids, (tokens, k)),
            ("logprobs", logprobs, (tokens, k)), ("mass", mass, (tokens,)),
        ):  # fmt: skip
            if array.shape != shape or not tokens:
                raise ValueError(
                    f"{name} has shape {array.shape}; for {tokens} tokens and top_k {k} it must be {shape}"
                )
        for name, array in (("input_ids", input_ids), ("ids", ids)):
            if array.min() < 0 or array.max() >= self.card.vocab_size:
                raise ValueError(
                    f"{name} reach from {array.min()} to {array.max()}; words are 0..{self.card.vocab_size - 1}"
                )
        if not np.isfinite(logprobs).all() or not (np.isfinite(mass) & (mass > 0)).all():
            raise ValueError(
                "the teacher's log-probabilities or masses are not finite numbers; is its arithmetic sound?"
            )
        drop = logprobs[:, :1] - logprobs
        gaps = np.diff(np.rint(drop / STEP).astype(np.int64), axis=1)
        if gaps.size and gaps.min() < 0:
            raise ValueError("logprobs must come most likely first")
        rows = np.empty(tokens, self.card.record)
        rows["input"], rows["ids"], rows["gaps"] = input_ids, ids, np.minimum(gaps, _GAPS - 1)
        rows["mass"] = _pack_mass(mass)
        return rows

    def _recover(self) -> list[np.ndarray]:
        """Whole records of the pending file; what a kill left behind the last one is cut off."""
        found: list[np.ndarray] = []
        if not self._pending.exists():
            return found
        raw, at, size = self._pending.read_bytes(), 0, self.card.record.itemsize
        while at + _RECORD.size <= len(raw):
            tokens, crc = _RECORD.unpack_from(raw, at)
            body = raw[at + _RECORD.size : at + _RECORD.size + tokens * size]
            if len(body) != tokens * size or zlib.crc32(body) != crc:
                break
            found.append(np.frombuffer(body, self.card.record))
            at += _RECORD.size + len(body)
        with self._pending.open("r+b") as f:
            f.truncate(at)
        return found

    def _write_shard(self) -> None:
        name, rows = f"shard-{len(self._shards):05}.safetensors", np.concatenate(self._waiting)
        tensors = _code(rows, np.array([len(w) for w in self._waiting], np.uint32))
        with atomic(self.directory / name) as part:
            save_file(tensors, part)
        self._file.close()
        done = self._pending
        self._shards.append(
            {"name": name, "sequences": len(self._waiting), "tokens": len(rows), "crc": _crc(tensors)}
        )  # fmt: skip
        self._save_card()
        done.unlink(missing_ok=True)
        self._waiting = []
        self._file = self._pending.open("ab")

    def _save_card(self) -> None:
        facts = {"format": _FORMAT, "version": _VERSION, **asdict(self.card), "shards": self._shards}
        write_json(self.directory / "store.json", facts)


class TeacherStore:
    """Read access by sequence or by range of tokens, counted through all sequences in the order they were written."""

    def __init__(self, directory: str | Path) -> None:
        """ValueError: not a store, a shard is missing or damaged."""
        self.directory = Path(directory)
        self.card, shards = _read_card(self.directory)
        self._shards = [_Shard(self.directory / s["name"], self.card, s) for s in shards]
        self._token_starts = np.cumsum([0] + [s.tokens for s in self._shards])
        self._sequence_ends = np.cumsum(np.concatenate([s.lengths for s in self._shards] or [np.empty(0, np.int64)]))

    def __len__(self) -> int:
        return len(self._sequence_ends)

    @property
    def tokens(self) -> int:
        return int(self._token_starts[-1])

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(s.path.stat().st_size for s in self._shards)

    def check(self, tokenizer: str, vocab_size: int) -> None:
        """ValueError unless the student reads and predicts the same words as the teacher did."""
        if (tokenizer, vocab_size) != (self.card.tokenizer, self.card.vocab_size):
            raise ValueError(
                f"{self.directory} was captured with another tokenizer (teacher {self.card.teacher!r}, "
                f"{self.card.vocab_size} words, hash {self.card.tokenizer[:12]}) than the student's "
                f"({vocab_size} words, hash {tokenizer[:12]}); distillation needs one tokenizer"
            )

    def __getitem__(self, sequence: int) -> Taught:
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence {sequence} of a store of {len(self)}")
        stop = int(self._sequence_ends[sequence])
        return self.range(0 if sequence == 0 else int(self._sequence_ends[sequence - 1]), stop)

    def range(self, start: int, stop: int) -> Taught:
        """Tokens start..stop-1."""
        if not 0 <= start < stop <= self.tokens:
            raise IndexError(f"tokens {start}..{stop} of a store of {self.tokens}")
        parts = []
        for shard, first in zip(self._shards, self._token_starts, strict=False):
            a, b = max(start - first, 0), min(stop - first, shard.tokens)
            if a < b:
                parts.append(shard.range(int(a), int(b)))
        return Taught(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def sequences(self) -> Iterator[np.ndarray]:
        """The ids that the teacher read, sequence by sequence; nothing is decoded."""
        for shard in self._shards:
            yield from np.split(shard.input_ids.astype(np.int64), np.cumsum(shard.lengths)[:-1])


class _Shard:
    def __init__(self, path: Path, card: Card, facts: Mapping[str, Any]) -> None:
        self.path, self._card = path, card
        try:
            self._file = safe_open(path, framework="numpy")
            small = {name: self._file.get_tensor(name) for name in self._file.keys() if name != "blocks"}  # noqa: SIM118
            self._blocks = self._file.get_slice("blocks")
            self._load(small)
        except FileNotFoundError as e:
            raise ValueError(
                f"{path} is missing, which store.json lists; cure: bring it back, or remove the store and capture again"
            ) from e
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError, OSError) as e:
            raise ValueError(f"{path} is damaged or no shard of a teacher store: {e}") from e
        if _crc(small) != facts["crc"] or self.tokens != facts["tokens"] or int(self.lengths.sum()) != self.tokens:
            raise ValueError(f"{path} is damaged, or is not the shard that store.json describes")
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()

    def _load(self, small: Mapping[str, np.ndarray]) -> None:
        self.lengths, self.input_ids = small["lengths"].astype(np.int64), small["input_ids"]
        self._mass, self._offsets, self._crcs = small["mass"], small["block_offsets"], small["block_crcs"]
        shares = np.zeros(self._card.vocab_size, np.int64)
        shares[small["id_symbols"]] = small["id_shares"]
        self._columns = [Frequencies(shares)] * self._card.top_k + [Frequencies(f) for f in small["gap_shares"]]

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def range(self, start: int, stop: int) -> Taught:
        k = self._card.top_k
        first, last = start // BLOCK, (stop - 1) // BLOCK
        table = np.concatenate([self._block(b) for b in range(first, last + 1)])[start - first * BLOCK :][
            : stop - start
        ]
        drop = np.cumsum(table[:, k:], axis=1, dtype=np.float32) * np.float32(STEP)
        inside = np.concatenate([np.zeros((len(table), 1), np.float32), -drop], axis=1)
        inside -= np.log(np.exp(inside).sum(1, keepdims=True))
        mass = _unpack_mass(self._mass[start:stop])
        return Taught(
            self.input_ids[start:stop].astype(np.int64), table[:, :k].astype(np.int64),
            inside + np.log(mass)[:, None], mass,
        )  # fmt: skip

    def _block(self, number: int) -> np.ndarray:
        """Ids and gaps (tokens, 2K - 1) of one block; the last few stay decoded."""
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        try:
            raw = self._blocks[int(self._offsets[number]) : int(self._offsets[number + 1])].tobytes()
            whole = zlib.crc32(raw) == self._crcs[number]
        except (SafetensorError, IndexError):
            whole = False
        if not whole:
            raise ValueError(f"{self.path}: block {number} is damaged; remove the store and capture it again")
        tokens = min(BLOCK, self.tokens - number * BLOCK)
        self._decoded[number] = rans.decode(raw, tokens, self._columns)
        if len(self._decoded) > 4:
            self._decoded.popitem(last=False)
        return self._decoded[number]


def _code(rows: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a shard."""
    table = np.concatenate([rows["ids"].astype(np.int64), rows["gaps"].astype(np.int64)], axis=1)
    k = rows["ids"].shape[1]
    ids = Frequencies.of(np.bincount(table[:, :k].ravel()))
    gaps = [Frequencies.of(np.bincount(column, minlength=_GAPS)) for column in table[:, k:].T]
    blocks = [rans.encode(table[at : at + BLOCK], [ids] * k + gaps) for at in range(0, len(table), BLOCK)]
    known = np.flatnonzero(ids.shares)
    return {
        "lengths": lengths, "input_ids": rows["input"].copy(), "mass": rows["mass"].copy(),
        "id_symbols": known.astype(np.uint32), "id_shares": ids.shares[known].astype(np.uint32),
        "gap_shares": np.array([g.shares for g in gaps], np.uint32).reshape(k - 1, _GAPS),
        "block_offsets": np.cumsum([0] + [len(b) for b in blocks]).astype(np.uint64),
        "block_crcs": np.array([zlib.crc32(b) for b in blocks], np.uint32),
        "blocks": np.frombuffer(b"".join(blocks), np.uint8),
    }  # fmt: skip


def _crc(tensors: Mapping[str, np.ndarray]) -> int:
    """Checksum of all but the blocks, which have their own."""
    crc = 0
    for name in sorted(tensors.keys() - {"blocks"}):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def _read_card(directory: Path) -> tuple[Card, list[dict[str, Any]]]:
    path = directory / "store.json"
    if not path.exists():
        raise ValueError(
            f"{directory} is no teacher store: it has no store.json; make one with `headwater teacher capture`"
        )
    facts = read_json(path)
    try:
        if (facts.pop("format"), facts.pop("version")) != (_FORMAT, _VERSION):
            raise ValueError(f"{path} is of another format or version than {_FORMAT} {_VERSION}")
        shards = [{k: s[k] for k in ("name", "sequences", "tokens", "crc")} for s in facts.pop("shards")]
        if any(Path(s["name"]).name != s["name"] for s in shards):
            raise ValueError(f"{path} names a shard outside its own directory")
        return Card(**facts), shards
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is not the card of a teacher store: {e}") from e


def _pack_mass(mass: np.ndarray) -> np.ndarray:
    m = np.clip(mass.astype(np.float64), 1e-12, 1 - 1e-12)
    low, high = _ODDS
    return np.clip(np.rint((np.log(m) - np.log1p(-m) - low) / (high - low) * 65535), 0, 65535).astype(np.uint16)


def _unpack_mass(code: np.ndarray) -> np.ndarray:
    low, high = _ODDS
    return (1 / (1 + np.exp(-(code.astype(np.float64) / 65535 * (high - low) + low)))).astype(np.float32)
