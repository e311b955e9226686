"""Everything that a person follows a run by, as one hook: bar, log, health line, page of live plots, samples, trackers.

    with Follow("runs/x", "pretrain", model=model, console=console) as follow:
        train(..., hooks=[follow])

leaves in the directory: pretrain.jsonl (one JSON object an update), pretrain.html (open it in a browser; it needs no
network and renews itself) and, with `samples`, pretrain.samples.jsonl. Nothing of it changes the run.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from torch import nn

from headwater.files import atomic
from headwater.train.health import Health
from headwater.train.loop import Step
from headwater.train.page import State, write_page
from headwater.train.progress import JsonLog, ProgressBar, read_log

ROWS = 8192  # that the page is made of; more are thinned


class Tracker(Protocol):
    """Another place for the numbers; train.trackers has two."""

    def __call__(self, step: Step) -> None: ...
    def sample(self, step: int, samples: Mapping[str, str]) -> None: ...
    def close(self) -> None: ...


class Follow:
    """A hook and a context manager. Call it after hooks that add metrics, such as Balance.

    samples() -> {prompt: text} is asked whenever an evaluation was due. `every`: seconds between two writings of the
    page. A page or tracker that cannot be written is an error: a run that nobody can follow should say so.
    ValueError: samples of a `model` that is spread over ranks.
    """

    def __init__(
        self,
        directory: str | Path,
        title: str,
        *,
        model: nn.Module | None = None,
        console: Console | None = None,
        health: Health | None = None,
        samples: Callable[[], Mapping[str, str]] | None = None,
        trackers: Sequence[Tracker] = (),
        every: float = 10.0,
    ) -> None:
        if samples is not None and model is not None and any(_spread(p) for p in model.parameters()):
            raise ValueError(
                "samples are written on the first rank alone, and a model that is spread over ranks needs them all; "
                "cure: no samples here, write them from a checkpoint with one process"
            )
        self.title, self.page = title, Path(directory) / f"{title}.html"
        self.health = health or Health(model)
        self._bar = ProgressBar(title, console=console, health=self.health)
        self._log = JsonLog(Path(directory) / f"{title}.jsonl", health=self.health)
        self._samples_path = Path(directory) / f"{title}.samples.jsonl"
        self._sample, self._trackers, self._every = samples, trackers, every
        self._rows: list[dict[str, Any]] | None = None
        self._samples: list[dict[str, Any]] = []
        self._written = float("-inf")
        self._last: Step | None = None
        self._failed = False

    def __enter__(self) -> "Follow":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        last = self._last
        whole = error is None and last is not None and last.done.step >= last.steps
        if last is not None or self._failed:  # else the page of an earlier start says more
            self._write("failed" if self._failed else "finished" if whole else "stopped")
        for tracker in self._trackers:
            tracker.close()

    def __call__(self, step: Step) -> None:
        self.health(step)
        row = self._log.write(step)
        if self._rows is None:
            self._start(step.done.step)
        assert self._rows is not None
        self._rows.append(row)
        if len(self._rows) > 2 * ROWS:
            self._rows = thinned(self._rows)
        for tracker in self._trackers:
            tracker(step)
        if step.evaluation and self._sample is not None:
            self._take_samples(step.done.step, self._sample())
        self._bar(step)
        self._last = step
        if time.monotonic() - self._written >= self._every:
            self._write("running")

    def failed(self, reason: str) -> None:
        """The loop refuses the next update: the line, the log and the page say why."""
        self._failed = True
        self.health.failed(reason)
        self._log.note(reason)
        self._write("failed")

    def _start(self, step: int) -> None:
        """What an earlier start of the run left, up to `step`, which is in the log already."""
        self._rows = [row for row in read_log(self._log.path) if "lr" in row and row["step"] < step]
        if len(self._rows) > ROWS:
            self._rows = thinned(self._rows)
        if self._samples_path.exists():
            self._samples = [row for row in read_log(self._samples_path) if row["step"] < step]
            self._save_samples()

    def _take_samples(self, step: int, samples: Mapping[str, str]) -> None:
        self._samples += [{"step": step, "prompt": prompt, "text": text} for prompt, text in samples.items()]
        self._save_samples()
        for tracker in self._trackers:
            tracker.sample(step, samples)

    def _save_samples(self) -> None:
        with atomic(self._samples_path) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in self._samples), encoding="utf-8")

    def _write(self, state: State) -> None:
        rows = self._rows or []
        write_page(
            self.page, rows, self._samples, title=self.title, state=state, health=self.health.line,
            steps=self._last.steps if self._last else 0, every=self._every,
        )  # fmt: skip
        self._written = time.monotonic()


def _spread(parameter: nn.Parameter) -> bool:
    mesh = getattr(parameter, "device_mesh", None)
    return bool(mesh is not None and mesh.size() > 1)


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every other row of the older half's, and all that tell of an evaluation or an illness; the newest stay."""
    usual = set(rows[-1])
    old, new = rows[: -ROWS // 2], rows[-ROWS // 2 :]
    return [row for i, row in enumerate(old) if i % 2 == 0 or set(row) != usual] + new
