"""What a person sees of a run: a progress bar, a log of one JSON object a line, a plot of the losses.

Hooks of train.loop: each is called with a `Step`. None of them changes the run.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headwater import optional
from headwater.files import atomic
from headwater.train.health import FINE, Health
from headwater.train.loop import Step


class ProgressBar:
    """A line with step, loss, tokens/s and time left; a context manager. Without a terminal: a plain line every
    `every` steps. What `health` finds wrong gets a line of its own when it is new.
    """

    WINDOW = 20  # updates that the shown speed and loss average over

    def __init__(
        self, title: str, *, console: Console | None = None, every: int = 50, health: Health | None = None
    ) -> None:
        self._title, self._console, self._every = title, console or Console(), every
        self._health, self._ill = health, ""
        self._recent: deque[Step] = deque(maxlen=self.WINDOW)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, loss=float("nan"), speed=0.0)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, step: Step) -> None:
        self._recent.append(step)
        seconds = sum(s.seconds for s in self._recent)
        speed = sum(s.tokens for s in self._recent) / max(seconds, 1e-9)
        loss = sum(s.done.metrics["loss"] for s in self._recent) / len(self._recent)
        done, steps = step.done.step, step.steps
        self._tell_health(done)
        self._bar.update(self._task, completed=done, total=steps, loss=loss, speed=speed)
        if self._bar.disable and (done % self._every == 0 or done == steps):
            left = (steps - done) * seconds / len(self._recent)
            self._console.print(
                f"{self._title}  {done}/{steps}  loss {loss:.3f}  {speed:,.0f} tokens/s  {left:.0f} s left"
            )

    def _tell_health(self, done: int) -> None:
        """Say once what kind of thing went wrong; the numbers in the words change from update to update."""
        line = self._health.line if self._health else FINE
        kind = "" if line == FINE else line.partition(":")[0]
        if kind and kind != self._ill:
            self._console.print(f"[yellow]{self._title}  {done}  {line}[/yellow]", highlight=False)
        self._ill = kind


class JsonLog:
    """Append one JSON object a step to `path`, with what `health` finds wrong under "health".

    At the first step it sees, lines of that step or later are dropped: they stem from an earlier run, or from updates
    that were done after the last save and are now done again.
    """

    def __init__(self, path: str | Path, *, health: Health | None = None) -> None:
        self.path, self._health = Path(path), health
        self._pruned = False

    def __call__(self, step: Step) -> None:
        self.write(step)

    def write(self, step: Step) -> dict[str, Any]:
        """Append a step; returns the row."""
        if not self._pruned:
            rows = read_log(self.path) if self.path.exists() else []
            self._rewrite([row for row in rows if row["step"] < step.done.step])
            self._pruned = True
        row: dict[str, Any] = {
            "step": step.done.step, "tokens": step.done.tokens, "seconds": round(step.done.seconds, 3),
            "lr": step.lr, "gradient_norm": step.gradient_norm, **step.done.metrics, **step.evaluation,
        }  # fmt: skip
        if self._health is not None and self._health.line != FINE:
            row["health"] = self._health.line
        self._append(row)
        return row

    def note(self, text: str) -> None:
        """Append why the run ended, a row with "step" and "health" alone."""
        rows = read_log(self.path) if self.path.exists() else []
        if not self._pruned:
            self._rewrite(rows)  # without what a kill cut short: the row would be glued to it
        self._append({"step": rows[-1]["step"] + 1 if rows else 1, "health": text})

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with atomic(self.path) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JsonLog in order. A last line cut short by a kill is left out; any other bad line is a ValueError."""
    rows = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a JSON object: {e.msg}") from e
    return rows


def plot_losses(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, *, x: str = "tokens") -> None:
    """Draw the loss of each named curve (rows of `read_log`) against its tokens, thin as it is and bold smoothed, to
    a PNG.
    """
    optional.load("matplotlib", extra="train")
    figure_module = optional.load("matplotlib.figure", extra="train")
    agg = optional.load("matplotlib.backends.backend_agg", extra="train")
    figure = figure_module.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, rows) in enumerate(curves.items()):
        told = [row for row in rows if "loss" in row]  # the last may say why the run ended
        xs, losses = [row[x] for row in told], [row["loss"] for row in told]
        axes.plot(xs, losses, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(xs, _smooth(losses), color=f"C{i}", linewidth=1.8, label=name)
    axes.set(xlabel=f"{x} trained on", ylabel="loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic(path) as part:
        agg.FigureCanvasAgg(figure).print_png(str(part))


def _smooth(values: Sequence[float], horizon: int = 20) -> list[float]:
    """Exponential average over about `horizon` values, without the bias of its start."""
    average = weight = 0.0
    out = []
    for value in values:
        average += (value - average) / horizon
        weight += (1.0 - weight) / horizon
        out.append(average / weight)
    return out
