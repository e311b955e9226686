"""The corpus steps of a stage, once all its units are done: which texts go on, and the account of it.

Runs in one process over columns; texts are read again only for the samples of the report.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from headwater import optional
from headwater.data import ledger
from headwater.data.corpus import CorpusStep, Decision
from headwater.data.ledger import Entry
from headwater.data.steps import Text
from headwater.data.store import TEXTS, StageColumns, texts_at, unit_folder
from headwater.data.work import COPIES, DECIDED, DECISION, REMOVED, Context, column_prefix
from headwater.files import atomic_dir, read_json

MAX_COPIES = np.iinfo(np.uint16).max


def decide(at: Context, reports: list[dict[str, Any]]) -> list[Entry]:
    """Run the corpus steps in order and store what they decided; the accounts, one a step."""
    folder = at.folder / DECISION
    if (folder / DECIDED).exists():
        return read_json(folder / DECIDED)["steps"]
    columns = StageColumns(at.folder, reports)
    try:
        entries = []
        copies = np.ones(columns.num_documents, dtype=np.uint16)
        with atomic_dir(folder) as part:
            ids = _Ids(at.folder, len(reports))
            chars = columns.of("").load("chars")
            with (part / REMOVED).open("w") as log:
                for number, step in enumerate(at.whole):
                    started = time.perf_counter()
                    prefix = column_prefix(number)
                    # Where no text came this far there are no columns to decide over.
                    decision = (
                        step.decide(columns.of(prefix), copies > 0, at.learnt[prefix]) if len(copies) else Decision({})
                    )
                    entry = ledger.new_entry(step.name, step.source)
                    entry["facts"] = decision.facts
                    _account(entry, decision, copies, chars)
                    _samples(entry, decision, at.folder, columns.starts, ids)
                    _log(log, step, decision, ids)
                    _apply(step, decision, copies)
                    entry["texts_out"] = int(copies.sum())
                    entry["chars_out"] = int((copies * chars.astype(np.int64)).sum())
                    entry["seconds"] = time.perf_counter() - started
                    entries.append(entry)
            copies.tofile(part / COPIES)
            (part / DECIDED).write_text(json.dumps({"starts": columns.starts.tolist(), "steps": entries}))
        return entries
    finally:
        columns.close()


def _account(entry: Entry, decision: Decision, copies: np.ndarray, chars: np.ndarray) -> None:
    entry["texts_in"] = int(copies.sum())
    entry["chars_in"] = int((copies * chars.astype(np.int64)).sum())
    for reason, documents in decision.removed.items():
        if len(documents):
            entry["removed"][reason] = {
                "count": int(copies[documents].sum()),
                "chars": int((copies[documents] * chars[documents].astype(np.int64)).sum()), "samples": [],
            }  # fmt: skip


def _apply(step: CorpusStep, decision: Decision, copies: np.ndarray) -> None:
    if decision.copies is not None:
        times = decision.copies.astype(np.int64) * copies
        if times.max(initial=0) > MAX_COPIES:
            raise ValueError(f"step {step.name!r} repeats a text {times.max()} times; at most {MAX_COPIES} is possible")
        copies[:] = times
    for documents in decision.removed.values():
        copies[documents] = 0


def _samples(entry: Entry, decision: Decision, stage: Path, starts: np.ndarray, ids: "_Ids") -> None:
    for reason, documents in decision.removed.items():
        if not len(documents):
            continue
        drawn = documents[np.unique(np.linspace(0, len(documents) - 1, 200).astype(np.int64))]
        chosen = sorted(drawn.tolist(), key=lambda d: ledger.id_hash(ids[d]))[: ledger.SAMPLES]
        likes = [-1 if decision.because is None else int(decision.because[d]) for d in chosen]
        texts: dict[int, Text] = texts_at(stage, starts, [d for d in (*chosen, *likes) if d >= 0])
        entry["removed"][reason]["samples"] = [
            ledger.sample(texts[d], "", like=texts.get(like)) for d, like in zip(chosen, likes, strict=True)
        ]


def _log(log: Any, step: CorpusStep, decision: Decision, ids: "_Ids") -> None:
    for reason, documents in decision.removed.items():
        likes = [-1] * len(documents) if decision.because is None else decision.because[documents].tolist()
        for document, like in zip(documents.tolist(), likes, strict=True):
            log.write(ledger.removal(ids[document], step.name, reason, f"like {ids[like]}" if like >= 0 else ""))


class _Ids:
    """The ids of all documents, by number: their bytes and 8 bytes each in memory."""

    def __init__(self, stage: Path, units: int) -> None:
        pa, ipc = optional.load("pyarrow", extra="data"), optional.load("pyarrow.ipc", extra="data")
        chunks = []
        for number in range(units):
            file = unit_folder(stage, number) / TEXTS
            options = ipc.IpcReadOptions(included_fields=[0], use_threads=False)
            with pa.OSFile(str(file), "rb") as source, ipc.open_file(source, options=options) as table:
                chunks += [table.get_batch(i).column(0) for i in range(table.num_record_batches)]
        self._ids = pa.chunked_array(chunks, type=pa.string()).cast(pa.large_string()).combine_chunks()

    def __getitem__(self, document: int) -> str:
        return self._ids[document].as_py()
