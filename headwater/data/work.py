"""One unit of work: read, run the steps, write what is left. Runs in a worker process, on this machine or another.

A unit's result depends on the plan and on the unit alone. Not for what needs all units (decide.py, shards.py).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import load_file

from headwater.data import ledger
from headwater.data.corpus import Batch, CorpusStep, Learnt
from headwater.data.inputs import Fault, Unit, read_unit, spread
from headwater.data.plan import Plan, Stage
from headwater.data.steps import Step, Text
from headwater.data.store import UnitWriter, read_texts, unit_folder, unit_report
from headwater.data.tokens import Encoder
from headwater.files import atomic_dir, read_json

STAGE, LEARNT, DECISION, COPIES, DECIDED = "stage.json", "learnt", "decision", "copies.bin", "report.json"
FAULTS, REMOVED, TOKENS = "faults.jsonl", "removed.jsonl", "tokens.bin"
_BATCH_TEXTS, _BATCH_CHARS = 512, 4 << 20
_PLACES = 16  # in a unit, where a sample is taken from


@dataclass(frozen=True)
class Context:
    """What all units of a stage share. previous: folder of the stage that its texts come from, None: the sources."""

    folder: Path
    plan: Plan
    stage: Stage
    previous: Path | None
    each: tuple[Step, ...]
    whole: tuple[CorpusStep, ...]
    learnt: Mapping[str, Learnt]
    encoder: Encoder | None


@lru_cache(maxsize=2)
def context(folder: str) -> Context:
    """The stage whose folder this is, its steps built."""
    spec = read_json(Path(folder) / STAGE)
    plan = Plan.from_dict(spec["plan"])
    stage = next(s for s in plan.stages(spec["inputs"]) if s.key == spec["key"])
    whole = tuple(cast(CorpusStep, use.build()) for use in stage.whole)
    files = {column_prefix(at): Path(folder) / LEARNT / f"{at}.safetensors" for at in range(len(whole))}
    return Context(
        Path(folder), plan, stage, Path(spec["previous"]) if spec["previous"] else None,
        tuple(cast(Step, use.build()) for use in stage.each), whole,
        {prefix: load_file(file) if file.exists() else {} for prefix, file in files.items()},
        Encoder.load(plan.output.tokenizer, bos=plan.output.bos, eos=plan.output.eos) if stage.tokens else None,
    )  # fmt: skip


def column_prefix(number: int) -> str:
    """What stands before the column names of a stage's corpus step."""
    return f"{number}."


def read_input(at: Context, number: int, unit: Unit) -> Iterator[Text | Fault]:
    """The texts that a unit of this stage starts from."""
    if at.previous is None:
        return read_unit(unit, at.plan.sources[unit.source], strict=at.plan.strict)
    return read_texts(unit_folder(at.previous, number), copies_of(at.previous, number))


def copies_of(stage: Path, number: int) -> np.ndarray | None:
    """How often each text of a unit goes on; None: there was nothing to decide, all do."""
    spec = stage / DECISION / DECIDED
    if not spec.exists():
        return None
    start, stop = _starts(str(spec))[number : number + 2]
    return np.fromfile(stage / DECISION / COPIES, dtype=np.uint16, count=stop - start, offset=2 * start)


@lru_cache(maxsize=2)
def _starts(spec: str) -> list[int]:
    return read_json(spec)["starts"]


def run_unit(folder: str, number: int, unit: dict[str, Any]) -> dict[str, int]:
    """Do one unit and put it in its place, whole. Returns counts for the progress display."""
    at = context(folder)
    target = unit_folder(at.folder, number)
    report = unit_report(at.folder, number)
    if report is None:
        with atomic_dir(target, durable=False) as part, UnitWriter(part, texts=not at.stage.tokens) as out:
            _process(at, number, Unit.from_dict(unit), part, out)
        report = unit_report(at.folder, number)
        assert report is not None, target
    return {"read": report["read"]["texts"], "kept": report["documents"], "skipped": report["skipped"]}


def _process(at: Context, number: int, unit: Unit, part: Path, out: UnitWriter) -> None:
    entries = [ledger.new_entry(step.name, step.source) for step in at.each]
    read, left, faults = ledger.Shape(), ledger.Shape(), dict[str, dict[str, Any]]()
    seconds = dict[str, float]()
    with (part / FAULTS).open("w") as fault_file, (part / REMOVED).open("w") as removed_file:
        for batch in batches(read_input(at, number, unit)):
            texts = [item for item in batch if isinstance(item, Text)]
            for fault in batch:
                if isinstance(fault, Fault):
                    _write_fault(fault, faults, fault_file)
            read.add(texts)
            for step, entry in zip(at.each, entries, strict=True):
                texts = ledger.apply(step, texts, entry, log=removed_file)
            left.add(texts)
            if texts:
                _write(at, texts, part, out, seconds)
    out.finish(
        {"read": read.to_dict(), "left": left.to_dict(), "steps": entries, "faults": faults, "seconds": seconds,
         "skipped": sum(row["count"] for row in faults.values()), "memory": ledger.peak_memory()}
    )  # fmt: skip


def _write(at: Context, texts: list[Text], part: Path, out: UnitWriter, seconds: dict[str, float]) -> None:
    out.texts(texts)
    batch = Batch(texts)
    if at.whole:
        out.column("chars", np.fromiter((len(t.text) for t in texts), dtype=np.int32, count=len(texts)))
    for number, step in enumerate(at.whole):
        prefix = column_prefix(number)
        with ledger.clock(seconds, step.name):
            columns = step.columns(batch, at.learnt[prefix])
        for name, values in columns.items():
            assert len(values) == len(texts), (step.name, name, len(values))
            out.column(prefix + name, values)
    if at.encoder is not None:
        with ledger.clock(seconds, "tokenise"):
            ids, lengths = at.encoder.encode(texts)
        with (part / TOKENS).open("ab") as f:
            f.write(ids.data)
        out.column("length", lengths)
        out.column("document", np.array([ledger.id_hash(t.id) for t in texts], dtype=np.uint64))


def _write_fault(fault: Fault, faults: dict[str, dict[str, Any]], file: Any) -> None:
    row = faults.setdefault(fault.reason, {"count": 0, "samples": []})
    row["count"] += 1
    if len(row["samples"]) < ledger.SAMPLES:
        row["samples"].append({"where": fault.where, "detail": fault.detail})
    file.write(json.dumps(fault._asdict(), ensure_ascii=False) + "\n")


def batches(items: Iterable[Text | Fault]) -> Iterator[list[Text | Fault]]:
    """Lists of some hundred items and some MB, whichever comes first."""
    batch: list[Text | Fault] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.text) if isinstance(item, Text) else 0
        if len(batch) == _BATCH_TEXTS or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def sample_of(at: Context, units: list[Unit]) -> list[Text]:
    """About plan.sample texts for corpus steps to learn from: a few from places spread over every unit (the first of a
    packed file; of more units than texts, over so many units), with what the steps of this stage make of them. Where
    these leave nothing of them, the first plan.sample texts of which they leave something.
    """
    count = min(len(units), at.plan.sample)
    each = -(-at.plan.sample // count)
    found: list[Text] = []
    for number in (len(units) * place // count for place in range(count)):
        unit = units[number]
        pieces = [unit] if at.previous is not None else spread(unit, min(_PLACES, each))
        for piece in pieces:
            found += islice(_readable(at, number, piece), -(-each // len(pieces)))
    return _left(at, found) or list(islice(_all_left(at, units), at.plan.sample))


def _readable(at: Context, number: int, piece: Unit) -> Iterator[Text]:
    """The texts of a unit or of a part of it; what cannot be read is told by the run itself."""
    fresh = at.previous is None
    items = read_unit(piece, at.plan.sources[piece.source]) if fresh else read_input(at, number, piece)
    return (item for item in items if isinstance(item, Text))


def _all_left(at: Context, units: list[Unit]) -> Iterator[Text]:
    for number, unit in enumerate(units):
        for batch in batches(_readable(at, number, unit)):
            yield from _left(at, [item for item in batch if isinstance(item, Text)])


def _left(at: Context, texts: list[Text]) -> list[Text]:
    """What the steps of a stage make of some texts, save those steps that cost much (a jury)."""
    for step in at.each:
        if not getattr(step, "costly", False):
            texts = [verdict for verdict in step(texts) if isinstance(verdict, Text)]
    return texts
