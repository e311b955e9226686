"""The engines that are measured, each as a table row: how a case is started, and how what it printed is read.

A reading is rows -> values (tokens per second or seconds); memory and noise are seen from outside (fresh.py).
What a peer prints is taken with suspicion: a missing or odd value is a ValueError that names it.
"""

import compileall
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from headwater.bench.build_peer import built_binary
from headwater.bench.cases import Case
from headwater.bench.fresh import Run
from headwater.engine import kept, native

BINARY_VARIABLE = "HEADWATER_LLAMA_BENCH"


class Contender(Protocol):
    """An engine as the rounds see it."""

    @property
    def name(self) -> str: ...

    def command(self, case: Case, threads: int) -> list[str]:
        """What to start for `case`."""

    def read(self, case: Case, run: Run) -> dict[str, float]:
        """Rows of `case` from what the process printed; ValueError when it is not what was expected."""


def with_memory(values: dict[str, float], case: Case, run: Run) -> dict[str, float]:
    """The rows of a run: those of memory come from outside, for every engine alike."""
    if case.kind == "memory":
        return {"peak_memory": run.peak_memory, "peak_anonymous": run.peak_anonymous}
    return values


def _object(line: str, who: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{who} printed {line[:120]!r}, which is not JSON ({e.msg})") from e
    if not isinstance(value, dict):
        raise ValueError(f"{who} printed {line[:120]!r}, which is not an object")
    return value


def _numbers(value: object, who: str, name: str) -> list[float]:
    good = isinstance(value, list) and value and all(isinstance(v, int | float) and v > 0 for v in value)
    if not good or not all(math.isfinite(v) for v in value):  # type: ignore[attr-defined]
        raise ValueError(f"{who} printed {name} = {value!r}; expected: positive numbers")
    return [float(v) for v in value]  # type: ignore[attr-defined]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


@dataclass(frozen=True)
class Worker:
    """An engine behind a module of ours that takes a JSON job and prints {"seconds", "load", "at"}."""

    name: str
    module: str
    job: dict[str, Any]

    def command(self, case: Case, threads: int) -> list[str]:
        job = {**self.job, "case": case.name, "threads": threads}
        return [sys.executable, "-m", self.module, json.dumps(job)]

    def read(self, case: Case, run: Run) -> dict[str, float]:
        printed = _object(run.lines[-1] if run.lines else "", self.name)
        seconds = _numbers(printed.get("seconds"), self.name, "seconds")
        load, at = (_numbers([printed.get(k)], self.name, k)[0] for k in ("load", "at"))
        if case.kind == "first_token":
            return {"first_token": at - run.started, "load": load}
        return with_memory({case.name: case.tokens / median(seconds)}, case, run)


@dataclass(frozen=True)
class Ours(Worker):
    """Our engine. Its start and its memory are those of the command that people run: `headwater generate`."""

    def command(self, case: Case, threads: int) -> list[str]:
        if case.kind not in _GENERATED:
            return super().command(case, threads)
        model, prompt, answers = self.job["model"], "Hello", 1
        if case.kind == "memory":
            prompt, answers = _prompt(Path(model), case.depth), case.tokens
        options = ["--max-tokens", str(answers), "--threads", str(threads), "--engine", "native", "--json"]
        # Runs are of the file that was named: copies that earlier runs left would be a packed file in its place.
        return ["env", f"{kept.SWITCH}=0", sys.executable, "-m", "headwater.cli", "generate", model, prompt, *options]

    def read(self, case: Case, run: Run) -> dict[str, float]:
        if case.kind not in _GENERATED:
            return super().read(case, run)
        printed = _object(run.lines[-1] if run.lines else "", self.name)
        (prefill,) = _numbers([printed.get("prefill_seconds")], self.name, "prefill_seconds")
        if case.kind == "first_token":
            at = run.line_seconds[-1]
            return {"first_token": at, "load": max(at - prefill, 1e-9)}
        return with_memory({}, case, run)


_GENERATED = ("first_token", "memory")


@cache
def _prompt(model: Path, count: int) -> str:
    """Text of about `count` tokens of the model's vocabulary. ValueError: it has none."""
    tokenizer = native.tokenizer(model)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer; leave first_token and memory out with --only")
    text = "The river runs from the hills to the sea, and the boats on it carry stone, grain and people. " * count
    ids, places = tokenizer.encode_offsets(text)
    return text[: places[count - 1][1]] if len(ids) >= count else text


def ours(model: Path) -> Ours:
    """Our engine on a .gguf file, a packed file or a directory."""
    compileall.compile_dir(Path(__file__).parent.parent, quiet=2)  # as an installed package is: the start is measured
    return Ours("headwater", "headwater.bench.worker", {"model": str(model)})


def transformers(source: dict[str, Any], dtype: str) -> Worker:
    """Hugging Face's library, eager. source: {"model": directory} or {"config": the contents of a config.json}."""
    return Worker("transformers", "headwater.bench.transformers_worker", {**source, "dtype": dtype})


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's llama-bench. A first token is its first line of output after a prompt, without a sampler or text."""

    model: Path
    binary: Path
    arguments: tuple[str, ...] = ()
    name: str = field(default="llama.cpp", init=False)

    def command(self, case: Case, threads: int) -> list[str]:
        prompt, answers, depth = 0, 0, 0
        if case.kind in ("prefill", "first_token"):
            prompt = case.tokens
        elif case.kind == "decode":
            answers, depth = case.tokens, case.depth
        else:
            prompt, answers = case.depth, case.tokens
        short = ["-r", str(case.repetitions if case.kind != "first_token" else 1)]
        if case.long or case.kind == "first_token":
            short.append("--no-warmup")
        counts = [f"-p {prompt}", f"-n {answers}", f"-d {depth}", f"-t {threads}"]
        split = [word for pair in counts for word in pair.split()]
        return [str(self.binary), "-m", str(self.model), *split, *short, "-o", "jsonl", *self.arguments]

    def read(self, case: Case, run: Run) -> dict[str, float]:
        tests = [_object(line, self.name) for line in run.lines if line.lstrip().startswith("{")]
        if case.kind == "memory":
            return with_memory({}, case, run)
        wanted = {"n_prompt": case.tokens, "n_gen": 0, "n_depth": 0}
        if case.kind == "decode":
            wanted = {"n_prompt": 0, "n_gen": case.tokens, "n_depth": case.depth}
        found = [t for t in tests if all(t.get(k) == v for k, v in wanted.items())]
        if len(found) != 1:
            raise ValueError(f"llama-bench printed {len(tests)} tests, none or several of them with {wanted}")
        if case.kind == "first_token":
            taken = _numbers(found[0].get("samples_ns"), self.name, "samples_ns")[0] / 1e9
            at = next(s for line, s in zip(run.lines, run.line_seconds, strict=True) if line.lstrip().startswith("{"))
            return {"first_token": at, "load": max(at - taken, 1e-9)}
        return {case.name: median(_numbers(found[0].get("samples_ts"), self.name, "samples_ts"))}


def llama_cpp(model: Path, binary: Path | None, arguments: Sequence[str] = ()) -> LlamaCpp:
    """llama.cpp on a .gguf file. binary: llama-bench; else BINARY_VARIABLE, our own build, or one on the PATH."""
    if model.suffix != ".gguf":
        raise ValueError(f"llama.cpp reads .gguf files, {model} is none; quantize it first, or use --synthetic")
    named = os.environ.get(BINARY_VARIABLE)
    candidates = [binary, Path(named) if named else None, built_binary(), shutil.which("llama-bench")]
    found = next((Path(c) for c in candidates if c), None)
    if found is None or not os.access(found, os.X_OK) or found.is_dir():
        where = "is not built here" if found is None else f"{found} is no program"
        raise ValueError(
            f"llama-bench {where}; cure: headwater bench --build-peer llama.cpp (some minutes, once), or give the "
            f"program with --peer-binary or {BINARY_VARIABLE}"
        )
    return LlamaCpp(model, found, tuple(arguments))
