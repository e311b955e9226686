"""Files of any size to streams of Text: jsonl (.gz, .zst), parquet, json, txt, md, folders of them, hub data sets.

`plan_units` cuts the input into units that depend on the files alone, never on workers or shards; `read_unit` streams
one of them with bounded memory. An id is "source/file:line" (parquet: row from 0), so it never changes. Every text
that cannot be read is a Fault with its file and line: raised if `strict`, otherwise handed on to be counted.
Not for cleaning or choosing. `sources.py` is the plain reader of small files.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from headwater import optional
from headwater.data import blocks
from headwater.data.steps import Text
from headwater.files import closest

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
WHOLE = (".txt", ".md")
KINDS = (*LINES, ".json", ".parquet", *WHOLE)
HUB = "hf:"
UNIT_BYTES = 16 << 20
MAX_TEXT_BYTES = 64 << 20  # one text; larger ones are a fault, since every step holds a text at once
_MAX_JSON_BYTES = 512 << 20  # a .json array cannot be streamed
_FILES_A_UNIT = 2048
_HALVES = re.compile("[\ud800-\udfff]")


class Fault(NamedTuple):
    """A text that could not be read. reason: short and fixed, to be counted; where: "file:line"."""

    reason: str
    where: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input. path: file, folder, or "hf:owner/name" (":config", ":config:split" may follow); name: the first part
    of its ids, by default the name of the file or folder; text: the field that holds the text; facts: further fields
    to keep; add: facts of all its texts, such as {"kind": "code"}.
    """

    path: str
    name: str = ""
    text: str = "text"
    facts: tuple[str, ...] = ()
    add: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("a source has an empty path; give a file, a folder or hf:owner/name")
        if not _is_utf8(self.path):
            raise ValueError(f"the path {self.path!r} is no UTF-8, which ids of texts must be; cure: rename it")
        if not self.name:
            base = self.path.removeprefix(HUB).rstrip("/").rsplit("/", 1)[-1]
            object.__setattr__(self, "name", base.split(".")[0].replace(":", "-") or base)
        if "/" in self.name or ":" in self.name:
            raise ValueError(f"the source name {self.name!r} holds '/' or ':', which part the pieces of an id")
        if isinstance(self.facts, str):
            raise ValueError(f"facts is {self.facts!r}; a list of fields is needed, such as [{self.facts!r}]")
        object.__setattr__(self, "facts", tuple(self.facts))


@dataclass(frozen=True)
class Unit:
    """A piece of one source: bytes [start, stop) of a file of lines, row groups [start, stop) of parquet, part `start`
    of `stop` of a hub data set, or whole files. first: line or row of the start; weight: bytes on disk.
    """

    source: int
    files: tuple[str, ...]
    kind: str
    start: int = 0
    stop: int = 0
    first: int = 1
    weight: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Unit":
        return cls(**{**values, "files": tuple(values["files"])})


@dataclass
class Inputs:
    """The cut input. files: [path, bytes, mtime in ns] of each, to notice changes; left_out: files of unknown kind,
    links that are broken or lead to a folder, and names that are no UTF-8.
    """

    units: list[Unit] = field(default_factory=list)
    files: list[tuple[str, int, int]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def weight(self) -> int:
        return sum(unit.weight for unit in self.units)


def plan_units(sources: Iterable[Source], *, unit_bytes: int = UNIT_BYTES) -> Inputs:
    """Cut all sources, in their order, files of a folder by name.

    ValueError: nothing there, a file named directly that is of no known kind, two sources with one name.
    """
    found, names = Inputs(), set()
    for number, source in enumerate(sources):
        if source.name in names:
            raise ValueError(f"two sources are named {source.name!r}, so their ids would clash; cure: give them names")
        names.add(source.name)
        if source.path.startswith(HUB):
            found.units += _hub_units(source, number)
            continue
        small: list[Path] = []
        for path in _files(source, found):
            stat = path.stat()
            found.files.append((str(path), stat.st_size, stat.st_mtime_ns))
            if kind_of(path) in WHOLE:
                small.append(path)
            else:
                found.units += _file_units(path, number, unit_bytes)
        found.units += _small_units(small, number, unit_bytes)
    if not found.units:
        raise ValueError(
            "the sources hold no readable file; files of texts end in " + ", ".join(KINDS) + _some(found.left_out)
        )
    return found


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, or ''."""
    name = path.name.lower()
    return next((kind for kind in sorted(KINDS, key=len, reverse=True) if name.endswith(kind)), "")


def _files(source: Source, found: Inputs) -> Iterator[Path]:
    path = Path(source.path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()):  # links are not followed
            if any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            if kind_of(file) and file.is_file() and _is_utf8(str(file)):
                yield file
            else:
                found.left_out.append(os.fsencode(file).decode("utf-8", "backslashreplace"))
    elif not path.exists():
        raise ValueError(f"there is no file or folder {path}; a hub data set is written hf:owner/name")
    elif not kind_of(path):
        raise ValueError(f"{path}: files of texts end in {', '.join(KINDS)}")
    else:
        yield path


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_units(path: Path, source: int, unit_bytes: int) -> list[Unit]:
    kind, size = kind_of(path), path.stat().st_size
    base = Unit(source, (str(path),), kind, weight=size)
    if kind == ".parquet":
        return _parquet_units(base, unit_bytes)
    if kind != ".jsonl" or size == 0:
        return [replace(base, stop=size)]  # a compressed file can only be read from its start
    return [
        replace(base, start=start, stop=stop, first=first, weight=stop - start)
        for start, stop, first in blocks.cut_lines(path, unit_bytes)
    ]


def _parquet_units(base: Unit, unit_bytes: int) -> list[Unit]:
    parquet, lib = optional.load("pyarrow.parquet", extra="data"), optional.load("pyarrow.lib", extra="data")
    try:
        meta = parquet.read_metadata(base.files[0])
    except (lib.ArrowException, OSError):
        return [replace(base, first=0)]  # the reader reports it
    units, start, first, weight, rows = [], 0, 0, 0, 0
    for group in range(meta.num_row_groups):
        weight += meta.row_group(group).total_byte_size
        rows += meta.row_group(group).num_rows
        if weight >= unit_bytes or group == meta.num_row_groups - 1:
            units.append(replace(base, start=start, stop=group + 1, first=first, weight=weight))
            start, first, weight = group + 1, rows, 0
    return units or [replace(base, first=0)]


def _small_units(paths: list[Path], source: int, unit_bytes: int) -> list[Unit]:
    units: list[Unit] = []
    group: list[str] = []
    weight = 0
    for at, path in enumerate(paths):
        group.append(str(path))
        weight += path.stat().st_size
        if weight >= unit_bytes or len(group) == _FILES_A_UNIT or at == len(paths) - 1:
            units.append(Unit(source, tuple(group), "whole", weight=weight))
            group, weight = [], 0
    return units


def spread(unit: Unit, places: int) -> list[Unit]:
    """Parts of a unit that begin at evenly spaced places, to take a sample from: a unit of lines is cut, another one is
    given as it is. The numbers of lines, and so the ids, are not those of the unit.
    """
    size = unit.stop - unit.start
    if unit.kind != ".jsonl" or size < places:
        return [unit]
    begins = {unit.start}
    with open(unit.files[0], "rb") as f:
        for place in range(1, places):
            f.seek(unit.start + size * place // places)
            f.readline(MAX_TEXT_BYTES)
            begins.add(f.tell())
    return [replace(unit, start=start) for start in sorted(begins) if start < unit.stop]


def _some(names: list[str]) -> str:
    return f"; left out: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else ""


def read_unit(unit: Unit, source: Source, *, strict: bool = False) -> Iterator[Text | Fault]:
    """Every text of a unit in order, and a Fault for each that could not be read; ValueError instead if `strict`."""
    for item in _read(unit, source):
        if strict and isinstance(item, Fault):
            raise ValueError(
                f"{item.where}: {item.detail} ({item.reason}); cure: mend it, or count and skip such texts"
            )
        yield item


def _read(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    if unit.kind == "hub":
        return _read_hub(unit, source)
    if unit.kind == "whole":
        return _read_whole(unit, source)
    if unit.kind == ".parquet":
        return _read_parquet(unit, source)
    if unit.kind == ".json":
        return _read_json(unit, source)
    return _read_lines(unit, source)


def _stem(file: str, source: Source) -> str:
    """ "source/file", the file relative to the folder that was named."""
    root, path = Path(source.path), Path(file)
    return f"{source.name}/{path.name if root == path else path.relative_to(root).as_posix()}"


def _text(row: Any, source: Source, stem: str, where: str, number: int) -> Text | Fault:
    """A parsed object as a Text."""
    if type(row) is not dict:
        return Fault("not_an_object", where, f"a JSON {type(row).__name__}, where an object is needed")
    text = row.get(source.text)
    if type(text) is not str:
        if source.text not in row:
            hint = closest(source.text, list(row))
            return Fault("no_text_field", where, f"no field {source.text!r}{hint}; it has {', '.join(row) or 'none'}")
        return Fault("text_not_a_string", where, f"field {source.text!r} is a {type(text).__name__}, not a string")
    if not text:
        return Fault("empty_text", where, f"field {source.text!r} is empty")
    if 4 * len(text) > MAX_TEXT_BYTES and (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_TEXT_BYTES:
        return Fault("text_too_long", where, f"one text of {size} bytes; at most {MAX_TEXT_BYTES} are read")
    facts = {**source.add, **{key: row[key] for key in source.facts if key in row}}
    if source.facts and (problem := _no_json(facts)):
        kept = ", ".join(source.facts)
        return Fault("facts_not_json", where, f"one of the fields {kept} cannot be kept: {problem}; cure: leave it out")
    return Text(f"{stem}:{number}", text, source.name, facts)


def _no_json(facts: Mapping[str, Any]) -> str:
    """Why facts cannot be stored (raw bytes, decimals, numbers beyond 64 bits, half surrogates), or ''."""
    try:
        optional.load("orjson", extra="data").dumps(facts)
    except TypeError as e:
        return str(e)
    return ""


def _read_lines(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    loads = optional.load("orjson", extra="data").loads
    file = unit.files[0]
    stem, number = _stem(file, source), unit.first - 1
    if unit.kind == ".jsonl":
        stream = blocks.of_range(file, unit.start, unit.stop)
    else:
        stream = blocks.of_compressed(file, unit.kind.rsplit(".", 1)[-1])
    if unit.stop == 0:
        yield Fault("empty_file", file, "the file has no bytes")
    for line in blocks.lines(stream, MAX_TEXT_BYTES):
        number += 1
        if not isinstance(line, bytes):
            yield Fault(line.reason, f"{file}:{number}", line.detail)
            continue
        try:
            row = loads(line)
        except ValueError as e:
            if line.isspace() or not line:
                continue
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                row = _try(loads, line[3:])
            else:
                row = None
            if row is None:
                yield _unreadable(line, f"{file}:{number}", e)
                continue
        item = _text(row, source, stem, f"{file}:{number}", number)
        yield item


def _try(loads: Any, line: bytes) -> Any:
    try:
        return loads(line)
    except ValueError:
        return None


def _unreadable(line: bytes, where: str, error: ValueError) -> Fault:
    if b"\0" in line:
        return Fault("nul_bytes", where, f"{line.count(0)} NUL bytes in a line of {len(line)}: UTF-16, or a torn write")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as e:
        return Fault("not_utf8", where, f"not UTF-8 (byte {e.start} of the line is {line[e.start]:#04x})")
    return Fault("not_json", where, f"not valid JSON: {error}")


def _read_whole(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    for file in unit.files:
        size = Path(file).stat().st_size
        if size > MAX_TEXT_BYTES:
            yield Fault("text_too_long", f"{file}:1", f"one text of {size} bytes; at most {MAX_TEXT_BYTES} are read")
            continue
        raw = Path(file).read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            line = raw.count(b"\n", 0, e.start) + 1
            yield Fault("not_utf8", f"{file}:{line}", f"not UTF-8 (byte {e.start} is {raw[e.start]:#04x})")
            continue
        if "\0" in text:
            line = raw.count(b"\n", 0, raw.index(0)) + 1
            yield Fault("nul_bytes", f"{file}:{line}", f"{text.count(chr(0))} NUL bytes: binary, or a torn write")
        elif not text:
            yield Fault("empty_file", file, "the file has no bytes")
        else:
            yield Text(f"{_stem(file, source)}:1", text, source.name, dict(source.add))


def _read_json(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    file = unit.files[0]
    if unit.stop == 0:
        yield Fault("empty_file", file, "the file has no bytes")
        return
    if unit.weight > _MAX_JSON_BYTES:
        yield Fault("text_too_long", file, f"a JSON array of {unit.weight} bytes is not streamed; cure: write .jsonl")
        return
    raw = Path(file).read_bytes()
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        yield _unreadable(raw, file, ValueError(str(e)))
        return
    if not isinstance(rows, list):
        yield Fault("not_an_array", file, f"a JSON {type(rows).__name__}; an array of objects is needed")
        return
    stem = _stem(file, source)
    for number, row in enumerate(rows):
        where = f"{file}: item {number}"
        item = _text(row, source, stem, where, number)
        if isinstance(item, Text) and (half := _HALVES.search(item.text)):  # the other parsers refuse such a text
            item = Fault("not_utf8", where, f"character {half.start()} is {half[0]!a}, half of a surrogate pair")
        yield item


def _read_parquet(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    parquet, lib = optional.load("pyarrow.parquet", extra="data"), optional.load("pyarrow.lib", extra="data")
    file = unit.files[0]
    stem, number = _stem(file, source), unit.first
    try:
        with parquet.ParquetFile(file, memory_map=False) as table:
            names = table.schema_arrow.names
            if source.text not in names:
                hint = closest(source.text, names)
                yield Fault("no_text_field", file, f"no column {source.text!r}{hint}; it has {', '.join(names)}")
                return
            columns = [name for name in (source.text, *source.facts) if name in names]
            groups = list(range(unit.start, unit.stop))
            for batch in table.iter_batches(batch_size=512, row_groups=groups, columns=columns, use_threads=False):
                for row in _rows(batch):
                    where = f"{file}:{number}"
                    if isinstance(row, UnicodeDecodeError):
                        yield Fault("not_utf8", where, f"not UTF-8 (byte {row.start} of a field: {row.reason})")
                    else:
                        yield _text(row, source, stem, where, number)
                    number += 1
    except (lib.ArrowException, OSError) as e:
        yield Fault("damaged", f"{file}:{number}", f"the parquet file ends or breaks here: {e}")


def _rows(batch: Any) -> list[Any]:
    """The rows of a batch of parquet, an error in place of each that is not UTF-8: its writers seldom check that."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as e:
        if batch.num_rows == 1:
            return [e]
        return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]


def _hub_units(source: Source, number: int) -> list[Unit]:
    parts = _hub(source).num_shards
    return [Unit(number, (source.path,), "hub", start=part, stop=parts, first=0) for part in range(parts)]


def _hub(source: Source) -> Any:
    """The streamed data set of an "hf:" source."""
    datasets = optional.load("datasets", extra="data-hub")
    name, _, rest = source.path.removeprefix(HUB).partition(":")
    config, _, split = rest.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except (OSError, ValueError) as e:
        raise ValueError(
            f"the data set {name!r} cannot be opened: {' '.join(str(e).split())}; "
            "cure: check its name, configuration and split, and that the hub can be reached, or download its files"
        ) from e


def _read_hub(unit: Unit, source: Source) -> Iterator[Text | Fault]:
    stem = f"{source.name}/{unit.start}"
    rows = _hub(source).shard(num_shards=unit.stop, index=unit.start)
    for number, row in enumerate(rows):
        yield _text(row, source, stem, f"{source.path} part {unit.start}, row {number}", number)
