"""A stretch of a sequence as a file: keys and values, the convolutions' tail, whose model and which tokens they are.

Layout: magic, length of a JSON header, header, keys and values, tail, a SHA-256 digest of all before it. Written whole
or not at all; a reader believes no length that it has not compared with the file, and nothing that the digest does not
cover. Not for sharing between models, machines or versions: the header names them, and another's state is refused.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.config import Config
from headwater.files import atomic

_MAGIC = b"HWSTATE2"
_DIGEST = 32
_MAX_HEADER = 32 << 20
_FIELDS = {"model", "first", "end", "ids", "kv", "tail"}
_SAMPLES, _SAMPLE = 256, 4096


@dataclass(frozen=True)
class State:
    """Positions [first, end) of a sequence of `model`: keys and values as bytes, and the tail at `end` or None.

    ids: the tokens, where the file is a whole conversation.
    """

    model: str
    first: int
    end: int
    ids: tuple[int, ...]
    kv: bytes
    tail: bytes | None


def model_id(config: Config, files: list[Path], *details: str) -> str:
    """A name for weights and arithmetic: a hash of the configuration, of `details` and of samples of the weight files.

    Samples (the ends and pages between, with the sizes) tell checkpoints apart without reading gigabytes, and the time
    of the last change those that differ between the samples: a copy has a name of its own unless it keeps that time.
    """
    digest = hashlib.blake2b(json.dumps([config.to_dict(), *details], sort_keys=True).encode(), digest_size=16)
    for file in files:
        facts = file.stat()
        size = facts.st_size
        digest.update(struct.pack("<Qq", size, facts.st_mtime_ns))
        with file.open("rb") as f:
            for i in range(_SAMPLES):
                f.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(f.read(_SAMPLE))
    return digest.hexdigest()


def write(path: str | Path, state: State) -> None:
    """Write a state atomically: after a kill at any moment the file is the old one or the new one. OSError."""
    tail = state.tail
    header = json.dumps(
        {
            "model": state.model, "first": state.first, "end": state.end, "ids": list(state.ids),
            "kv": len(state.kv), "tail": None if tail is None else len(tail),
        }
    ).encode()  # fmt: skip
    parts = [
        _MAGIC,
        struct.pack("<I", len(header)),
        header,
        state.kv,
        b"" if tail is None else tail,
    ]
    digest = hashlib.sha256()  # processors have instructions for it, and a long prompt's states are 50 MB
    with atomic(path) as part, part.open("wb") as f:
        for piece in parts:
            digest.update(piece)
            f.write(piece)
        f.write(digest.digest())


def read(path: str | Path, model: str) -> State:
    """Read a state of `model`. ValueError when it is damaged, of another version, or another model's; OSError."""
    path = Path(path)
    with path.open("rb") as f:
        data = f.read()
    start = len(_MAGIC) + 4
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start + _DIGEST:
        raise ValueError(f"{path} is not a saved state of this version; read the conversation again")
    if hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError(f"{path} is damaged (its checksum differs); read the conversation again")
    (length,) = struct.unpack("<I", data[len(_MAGIC) : start])
    if not 0 < length <= min(_MAX_HEADER, len(data) - start - _DIGEST):
        raise ValueError(f"{path} has a header of {length} bytes, which it does not hold")
    header = _header(path, data[start : start + length])
    if header["model"] != model:
        raise ValueError(f"{path} is a state of another model (or of other kernels); read the conversation again")
    kv, tail, body = header["kv"], header["tail"], start + length
    if kv + (tail or 0) != len(data) - _DIGEST - body:
        raise ValueError(f"{path} says {kv} and {tail} bytes of state; it holds {len(data) - _DIGEST - body}")
    keys, end = data[body : body + kv], None if tail is None else data[body + kv : -_DIGEST]
    return State(model, header["first"], header["end"], tuple(header["ids"]), keys, end)


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: the header is not JSON ({e})") from e
    if not isinstance(header, dict) or set(header) != _FIELDS:
        raise ValueError(f"{path}: the header needs the fields {', '.join(sorted(_FIELDS))}")
    sizes = [header["first"], header["end"], header["kv"], 0 if header["tail"] is None else header["tail"]]
    ids = header["ids"]
    if not all(_is_count(n) for n in sizes) or not isinstance(ids, list) or not all(_is_count(n) for n in ids):
        raise ValueError(f"{path}: the header's numbers are not counts")
    if header["first"] > header["end"] or (ids and len(ids) != header["end"]):
        raise ValueError(f"{path}: {len(ids)} ids for positions {header['first']} to {header['end']}")
    return header


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48
