"""The files of a stage: what one unit of work left (texts, columns, a report), and the columns of all units together.

A unit is a folder that appears whole or not at all, so the folders that are there are the journal of the run.
Texts are Arrow IPC (lz4), columns are raw numbers whose type and shape stand in report.json. Never pickle.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headwater import optional
from headwater.data.steps import Text
from headwater.files import read_json

REPORT, TEXTS = "report.json", "texts.arrow"
_KINDS = "iuf"


def unit_folder(stage: Path, number: int) -> Path:
    return stage / "units" / f"{number:06}"


class UnitWriter(AbstractContextManager["UnitWriter"]):
    """Writes texts and columns of one unit, batch by batch, into a folder that exists."""

    def __init__(self, folder: Path, *, texts: bool = True) -> None:
        self._folder, self._files, self._columns = folder, dict[str, BinaryIO](), dict[str, list[Any]]()
        self.documents = 0
        self._writer = None
        if texts:
            pa, ipc = optional.load("pyarrow", extra="data"), optional.load("pyarrow.ipc", extra="data")
            self._schema = _schema()
            self._batch = pa.record_batch
            options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._sink = pa.OSFile(str(folder / TEXTS), "wb")
            self._writer = ipc.new_file(self._sink, self._schema, options=options)

    def texts(self, texts: Sequence[Text]) -> None:
        """Append a batch."""
        self.documents += len(texts)
        if self._writer is None or not texts:
            return
        dumps = optional.load("orjson", extra="data").dumps
        columns = [
            [t.id for t in texts],
            [t.text for t in texts],
            [t.source for t in texts],
            [dumps(t.facts).decode() if t.facts else "" for t in texts],
        ]
        self._writer.write_batch(self._batch(columns, schema=self._schema))

    def column(self, name: str, values: np.ndarray) -> None:
        """Append rows to a column: numbers, of one type and row shape."""
        if values.dtype.kind not in _KINDS:
            raise ValueError(f"column {name!r} is of type {values.dtype}; a column holds numbers")
        dtype = values.dtype.newbyteorder("<")
        kind = [dtype.str, list(values.shape[1:])]
        if self._columns.setdefault(name, kind) != kind:
            raise ValueError(f"column {name!r} changed from {self._columns[name]} to {kind} within a unit")
        if name not in self._files:
            self._files[name] = (self._folder / f"{name}.bin").open("wb")
        self._files[name].write(np.ascontiguousarray(values, dtype=dtype).data)

    def finish(self, report: dict[str, Any]) -> None:
        """Close the files and write the report, with the sizes that tell a damaged unit."""
        self._close()
        sizes = {p.name: p.stat().st_size for p in sorted(self._folder.iterdir())}
        whole = {"documents": self.documents, "columns": self._columns, "files": sizes, **report}
        (self._folder / REPORT).write_text(json.dumps(whole, ensure_ascii=False))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = None
        for file in self._files.values():
            file.close()

    def __exit__(self, *_: object) -> None:
        self._close()


def unit_report(stage: Path, number: int) -> dict[str, Any] | None:
    """The report of a finished unit, None if the unit is not there; ValueError if a file of it is damaged."""
    folder = unit_folder(stage, number)
    if not (folder / REPORT).is_file():
        return None
    report = read_json(folder / REPORT)
    for name, size in report["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is damaged (not {size} bytes); cure: remove {folder} and run again with --resume")
    return report


def finished_unit(stage: Path, number: int) -> dict[str, Any] | None:
    """The report of a unit that an earlier run finished. None where there is none, or one that is not whole, which is
    removed: units are not forced to the disk, so a machine that lost power may have kept a part.
    """
    try:
        return unit_report(stage, number)
    except ValueError:
        shutil.rmtree(unit_folder(stage, number))
        return None


def read_texts(folder: Path, copies: np.ndarray | None = None) -> Iterator[Text]:
    """The texts of a unit; with `copies`, each as often as it says, copies after the first with "#2", "#3" ... behind
    the id.
    """
    ipc, pa = optional.load("pyarrow.ipc", extra="data"), optional.load("pyarrow", extra="data")
    loads = optional.load("orjson", extra="data").loads
    at = 0
    with pa.OSFile(str(folder / TEXTS), "rb") as source, ipc.open_file(source) as table:
        for number in range(table.num_record_batches):
            batch = table.get_batch(number)
            here = None if copies is None else copies[at : at + batch.num_rows]
            at += batch.num_rows
            if here is not None and not here.any():
                continue
            times = [1] * batch.num_rows
            if here is not None:
                batch, times = batch.filter(pa.array(here > 0)), here[here > 0].tolist()
            columns = [batch.column(name).to_pylist() for name in ("id", "text", "source", "facts")]
            for time, id_, text, source_name, facts in zip(times, *columns, strict=True):
                known = loads(facts) if facts else {}
                yield Text(id_, text, source_name, known)
                for copy in range(2, time + 1):
                    yield Text(f"{id_}#{copy}", text, source_name, known)


def _schema() -> Any:
    pa = optional.load("pyarrow", extra="data")
    return pa.schema(
        [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("facts", pa.string())]
    )


class StageColumns:
    """The columns of all units of a stage, in unit order; see corpus.Columns."""

    def __init__(self, stage: Path, reports: Sequence[dict[str, Any]]) -> None:
        self._stage, self._reports = stage, reports
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([r["documents"] for r in reports])])
        self._folder = tempfile.TemporaryDirectory(prefix=".scratch.", dir=stage)
        self._prefix = ""

    def of(self, prefix: str) -> "StageColumns":
        """The same, where names stand for those with `prefix`."""
        self._prefix = prefix
        return self

    @property
    def num_documents(self) -> int:
        return int(self.starts[-1])

    @property
    def scratch(self) -> Path:
        return Path(self._folder.name)

    def load(self, name: str) -> np.ndarray:
        kind, shape = self._kind(name)
        parts = [np.fromfile(path, dtype=kind) for path in self._paths(name)]
        return (np.concatenate(parts) if parts else np.zeros(0, kind)).reshape(-1, *shape)

    def mapped(self, name: str) -> np.ndarray:
        kind, shape = self._kind(name)
        if not self.num_documents:
            return np.zeros((0, *shape), dtype=kind)
        whole = self.scratch / f"{self._prefix}{name}.bin"
        if not whole.exists():
            with whole.open("wb") as target:
                for path in self._paths(name):
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, target, 1 << 20)
        return np.memmap(whole, dtype=kind, mode="r", shape=(self.num_documents, *shape))

    def close(self) -> None:
        self._folder.cleanup()

    def place(self, document: int) -> tuple[int, int]:
        """(unit, row in it) of a document."""
        unit = int(np.searchsorted(self.starts, document, side="right")) - 1
        return unit, document - int(self.starts[unit])

    def _paths(self, name: str) -> Iterator[Path]:
        for number, report in enumerate(self._reports):
            if self._prefix + name in report["columns"]:
                yield unit_folder(self._stage, number) / f"{self._prefix}{name}.bin"

    def _kind(self, name: str) -> tuple[np.dtype, list[int]]:
        kinds = [r["columns"][self._prefix + name] for r in self._reports if self._prefix + name in r["columns"]]
        if not kinds:
            return np.dtype("u1"), []
        assert all(kind == kinds[0] for kind in kinds), (name, kinds)
        return np.dtype(kinds[0][0]), kinds[0][1]


def texts_at(stage: Path, starts: np.ndarray, documents: Sequence[int]) -> dict[int, Text]:
    """A few documents by number, reading only the units that hold them."""
    found: dict[int, Text] = {}
    wanted = np.unique(np.asarray(documents, dtype=np.int64))
    units = np.searchsorted(starts, wanted, side="right") - 1
    for unit in np.unique(units).tolist():
        here = wanted[units == unit]
        copies = np.zeros(int(starts[unit + 1] - starts[unit]), dtype=np.uint16)
        copies[here - starts[unit]] = 1
        found.update(zip(here.tolist(), read_texts(unit_folder(stage, unit), copies), strict=True))
    return found
