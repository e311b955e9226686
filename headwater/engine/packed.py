"""Packed files (.hwp): weights in the native core's own layout, mapped instead of read: a second start is instant.

One file: 8 magic bytes, the length of a JSON header, the header (Config, where each tensor and the tokenizer stand),
then these at multiples of 64. The tokenizer is JSON, its vocabulary and merges beside it as texts that are searched
where they lie: the file is whole without its source, and reading it takes no time. Bytes are this machine's layout
for every instruction set; the format of a model to give away is GGUF or safetensors, not this.
"""

import contextlib
import json
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headwater.config import Config
from headwater.engine.core import PACKED_VERSION
from headwater.files import atomic
from headwater.vocabulary import Merges, Vocabulary

_MAGIC = b"HWPACK%02d" % PACKED_VERSION
_ALIGN = 64
_MAX_HEADER = 64 << 20
_TOKENIZER, _TOKENS, _MERGES = "tokenizer.json", "tokenizer.tokens", "tokenizer.merges"
_VECTOR_FIELDS = {"offset", "size"}
_MATRIX_FIELDS = {"offset", "format", "rows", "k", "experts"}


class Recorder:
    """Weights that remember what they gave out, so that it can be written."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self.matrices: dict[str, Any] = {}
        self.vectors: dict[str, array[float]] = {}

    def matrix(self, name: str) -> Any:
        self.matrices[name] = self._weights.matrix(name)
        return self.matrices[name]

    def vector(self, name: str) -> "array[float]":
        self.vectors[name] = self._weights.vector(name)
        return self.vectors[name]

    def norm(self, name: str) -> "array[float]":
        self.vectors[name] = self._weights.norm(name)
        return self.vectors[name]


def write(path: str | Path, config: Config, recorded: Recorder, tokenizer: dict[str, Any] | None) -> None:
    """Write a packed file atomically. tokenizer: what the reader will be given as the model's tokenizer, JSON-ready."""
    offset, blobs = 0, []
    places: dict[str, dict[str, Any]] = {}
    words = {} if tokenizer is None else _laid_out(tokenizer)
    for name, values in {**recorded.matrices, **recorded.vectors, **words}.items():
        if isinstance(values, array):
            places[name] = {"offset": offset, "size": len(values)}
            blob = memoryview(values).cast("B")
        elif isinstance(values, bytes):
            places[name] = {"offset": offset, "size": len(values)}
            blob = memoryview(values)
        else:
            shape = {"rows": values.rows, "k": values.k, "experts": values.experts}
            places[name] = {"offset": offset, "format": values.format, **shape}
            blob = values.bytes().data
        blobs.append(blob)
        offset += -(-blob.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"config": config.to_dict(), "tensors": places}).encode()
    with atomic(path) as part, part.open("wb") as f:
        f.write(_MAGIC + struct.pack("<Q", len(header)) + header)
        f.write(bytes(-f.tell() % _ALIGN))
        for blob in blobs:
            f.write(blob)
            f.write(bytes(-blob.nbytes % _ALIGN))
        f.write(bytes(4096))  # kernels fetch ahead; the page behind the last tensor must be there


def _laid_out(tokenizer: dict[str, Any]) -> dict[str, bytes]:
    """The tokenizer's parts: its vocabulary and merges as texts in the order of ids and ranks, the rest as JSON. All of
    it is JSON where ids have gaps or twins, or a name is no text."""
    spec = tokenizer["spec"]
    vocab, merges = spec["model"]["vocab"], spec["model"].get("merges") or []
    names = {i: name for name, i in vocab.items()}
    laid: dict[str, bytes] = {}
    if sorted(names) == list(range(len(vocab))):
        with contextlib.suppress(UnicodeEncodeError):
            pairs = (m if isinstance(m, str) else " ".join(m) for m in merges)
            laid = {_TOKENS: _texts(names[i] for i in range(len(vocab))), _MERGES: _texts(pairs)}
            model = spec["model"] | {"vocab": {}, "merges": []}
            tokenizer = tokenizer | {"spec": spec | {"model": model}}
    return {_TOKENIZER: json.dumps(tokenizer, ensure_ascii=False).encode("utf-8", "surrogatepass"), **laid}


def _texts(texts: Iterable[str]) -> bytes:
    encoded = (t.encode() for t in texts)
    return b"".join(struct.pack("<Q", len(t)) + t for t in encoded)


class PackedWeights:
    """The weights of a packed file by our names. ValueError when it is damaged."""

    def __init__(self, path: str | Path, mapped: Any) -> None:
        self.path, self._mapped = Path(path), mapped
        header, self._start = _header(self.path)
        try:
            self.config = Config.from_dict(header["config"])
            self._tensors: dict[str, dict[str, Any]] = dict(header["tensors"])
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{self.path}: the header is damaged ({type(e).__name__}: {e}); pack it again") from e

    def matrix(self, name: str) -> Any:
        place = self._place(name, _MATRIX_FIELDS)
        return self._mapped.matrix(**{**place, "offset": self._start + place["offset"]})

    def described(self, name: str) -> tuple[str, int, int, int]:
        """(format, rows, k, experts) of a matrix, from the header."""
        place = self._place(name, _MATRIX_FIELDS)
        return place["format"], place["rows"], place["k"], place["experts"]

    def vector(self, name: str) -> "array[float]":
        place = self._place(name, _VECTOR_FIELDS)
        return array("f", self._mapped.floats(offset=self._start + place["offset"], count=place["size"]))

    norm = vector

    def tokenizer(self) -> dict[str, Any] | None:
        """What `write` was given as the tokenizer."""
        if _TOKENIZER not in self._tensors:
            return None
        place = self._place(_TOKENIZER, _VECTOR_FIELDS)
        with self.path.open("rb") as f:
            f.seek(self._start + place["offset"])
            text = f.read(min(place["size"], _MAX_HEADER))
        try:
            found = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{self.path}: the tokenizer is damaged ({e}); pack it again") from e
        if not isinstance(found, dict):
            raise ValueError(f"{self.path}: the tokenizer is not an object; pack it again")
        if _TOKENS in self._tensors:
            tokens, merges = (self._texts(name) for name in (_TOKENS, _MERGES))
            try:
                found["spec"]["model"] |= {"vocab": Vocabulary(tokens), "merges": Merges(merges)}
            except (KeyError, TypeError) as e:
                raise ValueError(f"{self.path}: the tokenizer is damaged ({e}); pack it again") from e
        return found

    def _texts(self, name: str) -> Any:
        place = self._place(name, _VECTOR_FIELDS)
        return self._mapped.texts(offset=self._start + place["offset"], bytes=place["size"])

    def _place(self, name: str, fields: set[str]) -> dict[str, Any]:
        place = self._tensors.get(name)
        if not isinstance(place, dict) or set(place) != fields:
            raise ValueError(f"{self.path} does not say where {name} stands; pack it again")
        numbers, name_of = [v for k, v in place.items() if k != "format"], place.get("format", "")
        if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in numbers) or not isinstance(name_of, str):
            raise ValueError(f"{self.path}: {name} stands at {place}; it is damaged, pack it again")
        return place


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as f:
        magic, size = f.read(8), f.read(8)
        length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
        if magic != _MAGIC or not 0 < length <= _MAX_HEADER:
            raise ValueError(f"{path} is not a packed file of this version; pack the model again")
        try:
            header = json.loads(f.read(length))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path}: the header is damaged ({e}); pack it again") from e
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is not an object; pack it again")
    return header, -(-(16 + length) // _ALIGN) * _ALIGN
