"""The driver of the pipeline: a plan over its input, unit by unit, stage by stage, to shards and a report.

Everything that is finished is in its final place under OUT/work, whole, so a run that was killed at any moment goes on
from there (`resume`). The kept texts depend on the plan and the input alone: not on workers, shards, kills or Ray.
Memory: a batch of texts a worker, and some bytes a document in the driver (exact.py, near.py, semantic.py).
"""

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from headwater.data import ledger
from headwater.data.decide import decide
from headwater.data.inputs import Inputs, plan_units
from headwater.data.page import write_page
from headwater.data.plan import Plan, Stage, digest
from headwater.data.pool import Function, Task, WorkerDied, run_tasks
from headwater.data.shards import kept_of, pieces, read_shard, shard_name, write_shard
from headwater.data.steps import Text
from headwater.data.store import finished_unit, unit_folder, unit_report
from headwater.data.work import (
    DECISION,
    FAULTS,
    LEARNT,
    REMOVED,
    STAGE,
    Context,
    context,
    run_unit,
    sample_of,
)
from headwater.files import atomic, read_json, write_json

PLAN, MANIFEST, RUN_REPORT, PAGE = "plan.json", "manifest.json", "report.json", "report.html"
SKIPPED, REMOVED_LIST = "skipped.jsonl", "removed.jsonl"
_MADE = ("shards", "work", MANIFEST, RUN_REPORT, PAGE, SKIPPED, REMOVED_LIST)  # a run begins with PLAN, before these
SHARD_CHARS = 1 << 27
Executor = Callable[[Function, Sequence[Task], int], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Progress:
    """How far a stage is. weight: bytes of input units done and in all; texts read and kept so far in it."""

    label: str
    done: int
    total: int
    read: int = 0
    kept: int = 0
    skipped: int = 0


def run(
    plan: Plan,
    out: str | Path,
    *,
    workers: int = 1,
    shards: int = 0,
    resume: bool = False,
    keep_work: bool = False,
    executor: Executor = run_tasks,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Run `plan` into the folder `out`; the report, as in OUT/report.json.

    workers: processes (0: this one). shards: how many (0: by size, one for every SHARD_CHARS
    kept). ValueError: `out` holds a run and `resume` is not set, holds one of another input or files
    of something else where a run writes, or is in use; an unreadable text in a strict plan. OSError with the
    cure in its text: no space left.
    """
    if shards < 0:
        raise ValueError(f"shards is {shards}; needed: at least 1, or 0 to have as many as the size asks for")
    if workers < 0:
        raise ValueError(f"workers is {workers}; 0 means this process alone, otherwise that many processes")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a run writes into a folder")
    with _only_one(out), _told_of_full_disk(out):
        begun = (out / PLAN).exists()
        inputs = _open(plan, out, resume)
        _sweep(out, begun)
        started, before = time.perf_counter(), read_json(out / MANIFEST) if (out / MANIFEST).exists() else {}
        stages = plan.stages(_inputs_key(plan, inputs))
        wanted = {"result": stages[-1].key, "output": asdict(plan.output), "shards": shards}
        if before and {key: before.get(key) for key in wanted} == wanted and _all_there(out, before):
            if not keep_work:
                _remove(out / "work")  # a kill may have come before this
            return read_json(out / RUN_REPORT)
        (out / MANIFEST).unlink(missing_ok=True)
        driver = _Driver(plan, out, inputs, workers, executor, progress)
        previous: Path | None = None
        for stage in stages:
            previous = driver.stage(stage, previous)
        assert previous is not None
        lines = driver.shards(previous, shards or driver.shards_by_size(previous))
        report = driver.report(stages, lines, time.perf_counter() - started)
        write_json(out / RUN_REPORT, report)
        write_page(out / PAGE, report)
        write_json(out / MANIFEST, {**wanted, "shards": shards, "files": lines})
        if not keep_work:
            _remove(out / "work")
        return report


class _Driver:
    def __init__(
        self, plan: Plan, out: Path, inputs: Inputs, workers: int, executor: Executor, tell: Callable[[Progress], None]
    ) -> None:
        self._plan, self._out, self._inputs, self._workers = plan, out, inputs, workers
        self._executor, self._tell = executor, tell
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, int] = {}
        self.resumed = False

    def stage(self, stage: Stage, previous: Path | None) -> Path:
        """Do what is left of a stage; its folder."""
        started = time.perf_counter()
        folder = (self._out / "work" / stage.key).absolute()
        spec = {
            "key": stage.key, "plan": self._plan.to_dict(), "inputs": _inputs_key(self._plan, self._inputs),
            "previous": str(previous) if previous else "",
        }  # fmt: skip
        write_json(folder / STAGE, spec)
        context.cache_clear()
        at = context(str(folder))
        self._learn(at)
        units = self._inputs.units
        reports = [finished_unit(folder, number) for number in range(len(units))]
        self.resumed |= any(report is not None for report in reports)
        todo = [number for number, report in enumerate(reports) if report is None]
        label = ", ".join(use.step for use in (*stage.each, *stage.whole)) or ("tokenise" if stage.tokens else "read")
        self._units(label, folder, todo, [r for r in reports if r is not None])
        self._seconds[f"units: {label}"] = time.perf_counter() - started
        self._memory[f"units: {label}"] = max(self._report_of(folder, number)["memory"] for number in range(len(units)))
        if stage.whole:
            started = time.perf_counter()
            self._tell(Progress(f"deciding: {', '.join(use.step for use in stage.whole)}", 0, 0))
            decide(context(str(folder)), [self._report_of(folder, number) for number in range(len(units))])
            label = f"decide: {', '.join(use.step for use in stage.whole)}"
            self._seconds[label], self._memory[label] = time.perf_counter() - started, ledger.peak_memory()
        return folder

    def _learn(self, at: Context) -> None:
        """Let the corpus steps learn from the sample, once."""
        sample: list[Text] | None = None
        for number, step in enumerate(at.whole):
            file = at.folder / LEARNT / f"{number}.safetensors"
            if file.exists():
                continue
            texts: list[Text] = []
            if step.learns:
                if sample is None:
                    self._tell(Progress(f"sampling for {step.name}", 0, 0))
                    sample = sample_of(at, self._inputs.units)
                texts = sample
            size = sum(len(t.text.encode("utf-8", "surrogatepass")) for t in texts) / max(1, len(texts))
            expected = int(self._inputs.weight / max(1.0, size)) + 1
            learnt = step.prepare(texts, expected) if texts else {}
            with atomic(file) as part:
                part.write_bytes(save(learnt))
        context.cache_clear()  # what was learnt is now there to be read

    def _units(self, label: str, folder: Path, todo: list[int], done: list[dict[str, Any]]) -> None:
        units = self._inputs.units
        weight = self._inputs.weight - sum(units[number].weight for number in todo)
        read, kept = sum(r["read"]["texts"] for r in done), sum(r["documents"] for r in done)
        skipped = sum(r["skipped"] for r in done)
        self._tell(Progress(label, weight, self._inputs.weight, read, kept, skipped))
        tasks = [(str(folder), number, units[number].to_dict()) for number in todo]
        try:
            for number, counts in self._executor(run_unit, tasks, min(self._workers, len(tasks))):
                weight += units[todo[number]].weight
                read, kept, skipped = read + counts["read"], kept + counts["kept"], skipped + counts["skipped"]
                self._tell(Progress(label, weight, self._inputs.weight, read, kept, skipped))
        except WorkerDied as e:  # a text that crashes a worker would do so again: say where it is
            unit = units[todo[e.task]]
            more = f" and {len(unit.files) - 1} files after it" if len(unit.files) > 1 else ""
            raise WorkerDied(f"{e}; it was at {label}, in {unit.files[0]} from {unit.first}{more}", e.task) from e

    def _report_of(self, folder: Path, number: int) -> dict[str, Any]:
        report = unit_report(folder, number)
        assert report is not None, f"unit {number} of {folder} is gone"
        return report

    def shards_by_size(self, stage: Path) -> int:
        """How many shards what is kept fills, of SHARD_CHARS each: it depends on the texts alone."""
        reports = [self._report_of(stage, number) for number in range(len(self._inputs.units))]
        chars = sum(r["left"]["chars"] for r in reports) / max(1, sum(r["documents"] for r in reports))
        return max(1, round(chars * sum(kept_of(stage, len(reports))) / SHARD_CHARS))

    def shards(self, stage: Path, shards: int) -> list[dict[str, Any]]:
        """Write the shards that are not there yet; the lines of the manifest. Old shards of another number go."""
        started = time.perf_counter()
        kept = kept_of(stage, len(self._inputs.units))
        header = _header(context(str(stage)))
        folder = self._out / "shards"
        form = self._plan.output.form
        names = [shard_name(shard, shards, form) for shard in range(shards)]
        if folder.exists():
            for file in folder.iterdir():
                if file.name not in names:
                    file.unlink()
        tasks = [
            (str(stage), str(folder / name), form, pieces(kept, shard, shards), header)
            for shard, name in enumerate(names)
        ]
        lines: list[dict[str, Any]] = [{}] * shards
        self._tell(Progress("writing shards", 0, shards))
        done = 0
        for number, line in self._executor(write_shard, tasks, min(self._workers, shards)):
            lines[number], done = line, done + 1
            self._tell(Progress("writing shards", done, shards))
        self._seconds["write shards"] = time.perf_counter() - started
        self._memory["write shards"] = max(line.pop("memory") for line in lines)
        return lines

    def report(self, stages: Sequence[Stage], lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """The account of the whole run, and the lists of what was skipped and removed."""
        units = range(len(self._inputs.units))
        folders = [self._out / "work" / stage.key for stage in stages]
        each = [[self._report_of(folder, number) for number in units] for folder in folders]
        steps: list[ledger.Entry] = []
        for stage, folder, reports in zip(stages, folders, each, strict=True):
            steps += [ledger.merge(r["steps"][at] for r in reports) for at in range(len(stage.each))]
            if stage.whole:
                decided = decide(context(str(folder)), reports)
                for entry in decided:
                    entry["seconds"] += sum(r["seconds"].get(entry["name"], 0.0) for r in reports)
                steps += decided
        faults: dict[str, Any] = {}
        for report in each[0]:
            for reason, row in report["faults"].items():
                into = faults.setdefault(reason, {"count": 0, "samples": []})
                into["count"] += row["count"]
                into["samples"] = (into["samples"] + row["samples"])[: ledger.SAMPLES]
        self._lists(folders)
        shapes = [line.pop("shape") for line in lines if "shape" in line]
        after = ledger.merge_shapes(shapes or [r["left"] for r in each[-1]])
        return {
            "plan": self._plan.to_dict(), "read": ledger.merge_shapes(r["read"] for r in each[0]), "kept": after,
            "steps": steps, "faults": faults, "left_out": self._inputs.left_out, "shards": lines,
            "documents": sum(line["documents"] for line in lines),
            "tokens": sum(line.get("tokens", 0) for line in lines),
            "input_bytes": self._inputs.weight, "seconds": seconds, "resumed": self.resumed,
            "stages": self._seconds, "memory": self._memory, "workers": self._workers,
        }  # fmt: skip

    def _lists(self, folders: Sequence[Path]) -> None:
        for name, place in ((SKIPPED, FAULTS), (REMOVED_LIST, REMOVED)):
            with atomic(self._out / name) as part, part.open("wb") as target:
                for folder in folders:
                    files = [unit_folder(folder, number) / place for number in range(len(self._inputs.units))]
                    for file in (*files, folder / DECISION / place):
                        if file.exists():
                            with file.open("rb") as source:
                                shutil.copyfileobj(source, target)


def _header(at: Context) -> dict[str, str]:
    if at.encoder is None:
        return {}
    tokenizer = at.encoder.tokenizer
    return {
        "dtype": at.encoder.dtype.str, "vocab_size": str(tokenizer.vocab_size),
        "tokenizer": at.encoder.fingerprint, "pad_id": json.dumps(tokenizer.pad_id),
    }  # fmt: skip


def _inputs_key(plan: Plan, inputs: Inputs) -> str:
    units = [list(asdict(unit).values()) for unit in inputs.units]
    return digest(json.dumps([[asdict(s) for s in plan.sources], inputs.files, units]))


def _open(plan: Plan, out: Path, resume: bool) -> Inputs:
    """Cut the input, check that a run that is there is of the same one, and write down the plan."""
    old = read_json(out / PLAN) if (out / PLAN).exists() else None
    if old is not None and not resume:
        raise ValueError(f"{out} holds a run already; cure: --resume to go on with it, or another folder")
    if old is None and (foreign := [name for name in _MADE if (out / name).exists()]):
        raise ValueError(
            f"{out} has no {PLAN}, so no run began it, but it holds {foreign[0]}, which this run would write over; "
            "cure: a new or empty folder"
        )
    inputs = plan_units(plan.sources, unit_bytes=plan.unit_bytes)
    files = [list(file) for file in inputs.files]
    if old is not None:
        now = {name: rest for name, *rest in files}
        for name, *rest in old["files"]:
            if now.get(name) != rest:
                raise ValueError(
                    f"{out} was begun on another input: {name} has changed or is gone; cure: start in another folder"
                )
    write_json(out / PLAN, {"plan": plan.to_dict(), "files": files})
    return inputs


def _all_there(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether the shards that a manifest names are there, each of its size."""
    files = [(out / "shards" / line["file"], line["bytes"]) for line in manifest["files"]]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill on the way leaves no half of it under its name; the next run sweeps the rest."""
    if folder.exists():
        away = folder.with_name(f".{folder.name}.part")
        folder.rename(away)
        shutil.rmtree(away)


def _sweep(out: Path, begun: bool) -> None:
    """Remove what a killed run had begun to write. In a folder that no run has begun that is a plan at most: other such
    names are those of whoever else writes with headwater.files.
    """
    found = [*out.rglob(".*.part"), *out.rglob(".scratch.*")] if begun else [*out.glob(f".{PLAN}.*.part")]
    for part in found:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the folder, so that two runs never write into it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(f"another run works in {out}; wait for it, or choose another folder") from e
        yield


@contextmanager
def _told_of_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            e.errno, f"no space left for {out}: what is finished is kept; cure: free space, then --resume"
        ) from e


def kept_texts(out: str | Path, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` texts of a finished run's shards, as {"id", "text", "source", "facts"}."""
    manifest = read_json(Path(out) / MANIFEST)
    files = [Path(out) / "shards" / line["file"] for line in manifest["files"]]
    yield from islice((row for file in files for row in read_shard(file)), count)
