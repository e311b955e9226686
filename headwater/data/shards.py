"""What a run leaves: shards of texts (jsonl.zst, parquet) or of token ids, cut from the kept documents in order.

Shard s of n holds the documents from s/n to (s+1)/n of the kept ones, so shards put together are the same for any n.
A token shard is one safetensors file: "ids" (uint16, or uint32 for large vocabularies) of all documents, "offsets"
(int64, where each begins, and the end), "documents" (uint64, a hash of each id). Its checksum is in the manifest.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headwater import optional
from headwater.data import blocks, ledger
from headwater.data.inputs import MAX_TEXT_BYTES
from headwater.data.plan import FORMS
from headwater.data.steps import Text
from headwater.data.store import read_texts, unit_folder, unit_report
from headwater.data.work import TOKENS, batches, copies_of
from headwater.files import atomic

FORMAT, VERSION = "headwater.tokens", 1
_ROW_GROUP, _ROW_GROUP_CHARS = 4096, 1 << 26  # whichever comes first: rows are held until their group is written
_BLOCK = 1 << 22
Piece = tuple[int, int, int]  # unit, first and last + 1 of its kept documents


def pieces(kept: Sequence[int], shard: int, shards: int) -> list[Piece]:
    """The parts of units that make up one shard; kept: documents of each unit that go out."""
    total = sum(kept)
    start, stop = total * shard // shards, total * (shard + 1) // shards
    found, before = [], 0
    for unit, count in enumerate(kept):
        first, last = max(start - before, 0), min(stop - before, count)
        if first < last:
            found.append((unit, first, last))
        before += count
    return found


def shard_name(shard: int, shards: int, form: str) -> str:
    suffix = "safetensors" if form == "tokens" else form
    return f"shard-{shard:05}-of-{shards:05}.{suffix}"


def write_shard(stage: str, path: str, form: str, parts: list[Piece], header: dict[str, str]) -> dict[str, Any]:
    """Write one shard, atomically; its line in the manifest."""
    assert form in FORMS, form
    with atomic(path) as part:
        if form == "tokens":
            facts = _write_tokens(Path(stage), part, parts, header)
        else:
            shape = ledger.Shape()
            write = _write_jsonl if form == "jsonl.zst" else _write_parquet
            write(part, _shaped(_texts(Path(stage), parts), shape))
            facts = {"documents": shape.texts, "chars": shape.chars, "shape": shape.to_dict()}
        size = part.stat().st_size
        checksum = checksum_of(part)
    return {"file": Path(path).name, "bytes": size, "xxh3_128": checksum, "memory": ledger.peak_memory(), **facts}


def checksum_of(path: Path) -> str:
    """XXH3-128 of a file, in hex."""
    hasher = optional.load("xxhash", extra="data").xxh3_128()
    with path.open("rb") as f:
        while block := f.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _texts(stage: Path, parts: list[Piece]) -> Iterator[Text]:
    for unit, first, last in parts:
        yield from islice(read_texts(unit_folder(stage, unit), copies_of(stage, unit)), first, last)


def _shaped(texts: Iterator[Text], shape: ledger.Shape) -> Iterator[list[Text]]:
    for batch in batches(texts):
        here = [text for text in batch if isinstance(text, Text)]
        shape.add(here)
        yield here


def _write_jsonl(part: Path, batches: Iterator[list[Text]]) -> None:
    dumps = optional.load("orjson", extra="data").dumps
    zstandard = optional.load("zstandard", extra="data")
    with part.open("wb") as f, zstandard.ZstdCompressor(level=3).stream_writer(f) as out:
        for batch in batches:
            lines = [dumps({"id": t.id, "text": t.text, "source": t.source, "facts": t.facts}) for t in batch]
            out.write(b"\n".join(lines) + b"\n")


def _write_parquet(part: Path, batches: Iterator[list[Text]]) -> None:
    pa, parquet = optional.load("pyarrow", extra="data"), optional.load("pyarrow.parquet", extra="data")
    fields = [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("facts", pa.string())]
    schema = pa.schema(fields)
    with parquet.ParquetWriter(part, schema, compression="zstd") as out:
        rows: list[Text] = []
        chars = 0
        for batch in batches:
            rows += batch
            chars += sum(len(t.text) for t in batch)
            if len(rows) >= _ROW_GROUP or chars >= _ROW_GROUP_CHARS:
                out.write_table(_table(pa, schema, rows))
                rows, chars = [], 0
        if rows:
            out.write_table(_table(pa, schema, rows))


def _table(pa: Any, schema: Any, rows: list[Text]) -> Any:
    facts = [json.dumps(t.facts, ensure_ascii=False) for t in rows]
    return pa.table(
        [[t.id for t in rows], [t.text for t in rows], [t.source for t in rows], facts], schema=schema
    )  # fmt: skip


def _write_tokens(stage: Path, part: Path, parts: list[Piece], header: dict[str, str]) -> dict[str, Any]:
    kind = np.dtype(header["dtype"])
    lengths, hashes, spans = [], [], []
    for unit, first, last in parts:
        folder = unit_folder(stage, unit)
        here = np.fromfile(folder / "length.bin", dtype="<i4")
        lengths.append(here[first:last])
        hashes.append(np.fromfile(folder / "document.bin", dtype="<u8")[first:last])
        spans.append((folder / TOKENS, int(here[:first].sum(dtype=np.int64)), int(here[:last].sum(dtype=np.int64))))
    counts = np.concatenate([np.zeros(1, np.int64), *lengths])
    offsets = np.cumsum(counts, dtype="<i8")
    documents = np.concatenate([np.zeros(0, "<u8"), *hashes]).astype("<u8")
    tokens = int(offsets[-1])
    with part.open("wb") as out:
        _write_header(out, {"format": FORMAT, "version": str(VERSION), **header}, kind, tokens, len(documents))
        out.write(offsets.tobytes())
        out.write(documents.tobytes())
        for file, start, stop in spans:
            _copy(file, out, start * kind.itemsize, (stop - start) * kind.itemsize)
    return {"documents": len(documents), "tokens": tokens}


def _write_header(out: BinaryIO, metadata: dict[str, str], kind: np.dtype, tokens: int, documents: int) -> None:
    """The head of a safetensors file, written by hand because the ids stream after it."""
    ends = np.cumsum([8 * (documents + 1), 8 * documents, kind.itemsize * tokens]).tolist()
    head = {
        "__metadata__": metadata,
        "offsets": {"dtype": "I64", "shape": [documents + 1], "data_offsets": [0, ends[0]]},
        "documents": {"dtype": "U64", "shape": [documents], "data_offsets": [ends[0], ends[1]]},
        "ids": {"dtype": f"U{8 * kind.itemsize}", "shape": [tokens], "data_offsets": [ends[1], ends[2]]},
    }
    raw = json.dumps(head).encode()
    raw += b" " * (-len(raw) % 8)
    out.write(len(raw).to_bytes(8, "little") + raw)


def _copy(file: Path, out: BinaryIO, start: int, size: int) -> None:
    with file.open("rb") as f:
        f.seek(start)
        while size > 0:
            block = f.read(min(_BLOCK, size))
            if not block:
                raise ValueError(f"{file} is shorter than its report says; cure: remove its folder, --resume")
            out.write(block)
            size -= len(block)


def kept_of(stage: Path, units: int) -> list[int]:
    """Documents of each unit that go out."""
    found = []
    for number in range(units):
        copies = copies_of(stage, number)
        report = unit_report(stage, number)
        assert report is not None, number
        found.append(report["documents"] if copies is None else int(copies.sum()))
    return found


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a shard of texts: {"id", "text", "source", "facts"}. ValueError: it is a shard of tokens."""
    if path.name.endswith(".jsonl.zst"):
        loads = optional.load("orjson", extra="data").loads
        for line in blocks.lines(blocks.of_compressed(path, "zst"), MAX_TEXT_BYTES * 2):
            if not isinstance(line, bytes):
                raise ValueError(f"{path} is damaged: {line.detail}")
            yield loads(line)
    elif path.suffix == ".parquet":
        parquet = optional.load("pyarrow.parquet", extra="data")
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=512, use_threads=False):
                for row in batch.to_pylist():
                    yield row | {"facts": json.loads(row["facts"])}
    else:
        raise ValueError(f"{path} holds tokens, not texts; headwater.data.stream reads it")
