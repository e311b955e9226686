"""Files to rows and texts. Every fault names the file and the line. Not for cleaning or choosing (later functions
do).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from headwater.data import blocks
from headwater.files import closest, read_json

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".txt", ".md")
_LONGEST_LINE = 64 << 20  # bytes


def files_of(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files; of a folder all that `read_rows` can read, by name, but hidden ones. ValueError: there is none."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES) and p.name[0] != ".")
        if not found:
            raise ValueError(f"the folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
        yield from found


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of one file: .jsonl (one a line, blank lines skipped; .gz or .zst may follow), .json (an array of
    objects), .txt/.md (one {"text"}).

    ValueError names file and line: unknown suffix, damaged, not UTF-8, not JSON, not an object.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: files of text end in {', '.join(SUFFIXES)}, not {path.suffix!r}")
    if path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds a JSON {type(rows).__name__}; an array of objects is needed")
        for number, row in enumerate(rows):
            yield _object(row, f"{path}: item {number}")
        return
    if path.suffix in (".txt", ".md"):
        yield {"text": _utf8(path.read_bytes(), str(path))}
        return
    for number, raw in enumerate(_lines(path), 1):
        if isinstance(raw, blocks.Damage):
            raise ValueError(f"{path}:{number}: {raw.detail} ({raw.reason})")
        line = _utf8(raw, f"{path}:{number}").strip()
        if not line:
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"{path}:{number}: not valid JSON: {e}") from e
        yield _object(row, f"{path}:{number}")


def column(rows: Iterable[dict[str, Any]], name: str, kind: type = str) -> Iterator[Any]:
    """The value of field `name` of every row; ValueError says the row, the field and the closest one if it is absent
    or no `kind`.
    """
    for number, row in enumerate(rows):
        if name not in row:
            raise ValueError(
                f"row {number} has no field {name!r}{closest(name, list(row))}; it has {', '.join(row) or 'none'}"
            )
        if not isinstance(row[name], kind):
            raise ValueError(f"row {number}: field {name!r} is a {type(row[name]).__name__}, not a {kind.__name__}")
        yield row[name]


def _lines(path: Path) -> Iterator[bytes | blocks.Damage]:
    plain = path.suffix == ".jsonl"
    stream = blocks.of_range(path, 0, path.stat().st_size) if plain else blocks.of_compressed(path, path.suffix[1:])
    return blocks.lines(stream, _LONGEST_LINE)


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}, where an object is needed")
    return row


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{where}: not UTF-8 text (byte {e.start} is {raw[e.start]:#04x})") from e
