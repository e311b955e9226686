"""Which layers of a transformer keep their attention: quality against speed and memory, by one command.

Each choice is hybridized (hybridize.py) with the same texts, teacher store and updates, then measured: held-out bits
per byte, a number to be found again in the context, tokens a second of the native engine with little and much in
context, bytes of keys and values. The teacher is measured beside them. A run that was stopped or killed goes on.

    headwater recipe hybrid_ratios TEACHER TEXTS... --score HELD_OUT... --out DIR [--hours 1.5] [--minutes 20]
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from headwater import optional
from headwater.evals.needle import grid
from headwater.files import atomic, read_json, write_json
from headwater.model import Lfm2
from headwater.ops.head_loss import Head
from headwater.tokenizer import Tokenizer
from recipes import hybridize, lessons
from recipes.shipping import ship, speeds

EVERY = (2, 3, 5)
LENGTHS, DEPTHS, TRIALS = (256, 1024), (0.1, 0.5, 0.9), 4
CASES = ("prefill_512", "decode_128", "decode_128@4096")
TYPE = "q4_0"


class Ratios:
    """One directory: a hybridized teacher for each choice, the measures of all."""

    def __init__(self, o: argparse.Namespace, console: Console) -> None:
        self.o, self.console, self.deadline = o, console, lessons.Deadline(o.minutes)
        o.out.mkdir(parents=True, exist_ok=True)
        lessons.same_settings(o.out, {
            "teacher": str(o.teacher), "files": [str(f) for f in o.files], "score": [str(f) for f in o.score],
            "every": o.every, "steps": o.steps, "hours": o.hours, "rows": o.rows, "length": o.length, "seed": o.seed,
        })  # fmt: skip

    def choice(self, every: int) -> dict[str, Any] | None:
        """Hybridize and measure one choice; None: stopped before its end."""
        out, o = self.o.out / f"every-{every}", self.o
        if (out / "measured.json").exists():
            return dict(read_json(out / "measured.json"))
        layers = len(Lfm2.from_pretrained(o.teacher).config.layers)
        keep = ",".join(map(str, range(every - 1, layers, every)))
        arguments = [
            o.teacher, *map(str, o.files), "--out", str(out), "--score", *map(str, o.score), "--qk-norm",
            "--keep", keep, "--rows", str(o.rows), "--length", str(o.length), "--seed", str(o.seed),
            "--lessons", str(o.out / "lessons"), *self._time(every),
        ]  # fmt: skip
        if o.minutes is not None:
            arguments += ["--minutes", f"{self.deadline.left / 60:.6f}"]
        report = hybridize.main(arguments, console=self.console)
        if not report["finished"]:
            return None
        *_, last = report["bits_per_byte"].values()
        model = Lfm2.from_pretrained(out / "model", dtype=torch.float32)
        found = {"layers": report["layers"], "bits_per_byte": last, "tokens": report["tokens"],
                 "seconds": report["seconds"], **self._measured(model, out)}  # fmt: skip
        write_json(out / "measured.json", found)
        return found

    def _time(self, every: int) -> list[str]:
        """The first choice may find out how many updates its share of the hours has; the others make the same."""
        o = self.o
        if o.hours is None:
            return ["--steps", o.steps]
        first = o.out / f"every-{o.every[0]}"
        if every != o.every[0]:
            steps = first / "steps.json"
            return ["--steps", ",".join(str(n) for n in read_json(steps)["steps"].values())]
        return ["--hours", str(o.hours / len(o.every))]

    def teacher(self) -> dict[str, Any]:
        path = self.o.out / "teacher.json"
        if not path.exists():
            model = Lfm2.from_pretrained(self.o.teacher, dtype=torch.float32)
            scores = read_json(self.o.out / f"every-{self.o.every[0]}" / "scores.json")["teacher"]
            write_json(path, {"layers": model.config.pattern(), "bits_per_byte": scores,
                              **self._measured(model, self.o.out)})  # fmt: skip
        return dict(read_json(path))

    def _measured(self, model: Lfm2, out: Path) -> dict[str, Any]:
        """Needles, speed and bytes."""
        tokenizer, fast = Tokenizer.from_pretrained(self.o.teacher), hybridize.fast_dtype(torch.device("cpu"))
        filler = "\n".join(text for texts in lessons.read_scored(self.o.score).values() for text in texts)

        def forward(ids: torch.Tensor) -> Head:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast is not None):
                head = model(ids, project=False)
            return Head(head.hidden.float(), head.weight)

        lengths = [n for n in LENGTHS if n <= model.config.max_positions]
        needles = grid(forward, tokenizer, filler[:100_000], lengths=lengths, depths=DEPTHS, trials=TRIALS)
        file = out / "model.gguf"
        ship(model, tokenizer, file, TYPE)
        rates = speeds(file, CASES, model.config.max_positions)
        size = file.stat().st_size
        file.unlink()
        return {
            "parameters": model.config.num_parameters(), "file_bytes": size, "speed": rates,
            "kv_bytes": model.config.kv_bytes_per_token(), "conv_bytes": model.config.conv_state_bytes(),
            "recalled": {n: _mean([f.recalled for f in needles if f.length == n]) for n in lengths},
            "lift": {n: _mean([f.lift for f in needles if f.length == n]) for n in lengths},
        }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """The table of the report."""
    some = next(iter(found.values()))
    kinds, lengths = list(some["bits_per_byte"]), list(some["recalled"])
    table = Table("attention kept", *(f"{kind}, bits/byte" for kind in kinds),
                  *(f"recalled, lift in {n}" for n in lengths), "KV bytes a token",
                  *(f"{case}, tok/s" for case in some["speed"]))  # fmt: skip
    for name, of in found.items():
        table.add_row(
            f"{name}: {of['layers'].count('A')} of {len(of['layers'])}",
            *(f"{of['bits_per_byte'][kind]:.3f}" for kind in kinds),
            *(f"{of['recalled'][n]:.0%} {of['lift'][n]:+.2f}" for n in lengths), f"{of['kv_bytes']:,}",
            *(f"{value:,.0f}" for value in of["speed"].values()),
        )  # fmt: skip
    console.print(table)


def plot(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bits per byte and what a needle helps, against the bytes a token of context takes."""
    optional.load("matplotlib", extra="train")
    figure = optional.load("matplotlib.figure", extra="train").Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, of) in enumerate(found.items()):
        scores, lifts = list(of["bits_per_byte"].values()), list(of["lift"].values())
        for axis, value in ((left, _mean(scores)), (right, lifts[-1])):
            axis.plot(of["kv_bytes"], value, "o", color=f"C{i}")
            axis.annotate(name, (of["kv_bytes"], value), xytext=(5, 5), textcoords="offset points", fontsize=8)
    left.set(xlabel="bytes of keys and values a token", ylabel="held-out bits per byte, mean of kinds")
    right.set(xlabel="bytes of keys and values a token", ylabel="nats a needle in the context helps, longest")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    agg = optional.load("matplotlib.backends.backend_agg", extra="train")
    with atomic(path) as part:
        agg.FigureCanvasAgg(figure).print_png(str(part))


def ratios(o: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every choice, then OUT/report.json and OUT/report.png."""
    run = Ratios(o, console)
    found: dict[str, dict[str, Any]] = {}
    for every in o.every:
        one = run.choice(every)
        if one is None:
            return {"finished": False, "done": list(found)}
        found[f"every {every}"] = one
    found = {"teacher": run.teacher(), **found}
    write_json(o.out / "report.json", {"finished": True, "choices": found})
    report: dict[str, Any] = read_json(o.out / "report.json")
    show(report["choices"], console)
    plot(report["choices"], o.out / "report.png")
    return report


def _every(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("numbers of layers, the last of which keeps attention, such as 2,3,5")
    return numbers


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater recipe hybrid_ratios", description="Which layers keep their attention.")
    lessons.add_arguments(p)
    p.add_argument("--score", nargs="+", type=Path, required=True, help="files of held-out texts")
    p.add_argument("--every", type=_every, default=list(EVERY), help="the last of so many keeps attention: 2,3,5")
    p.add_argument("--steps", default="150,250,100", help="of each choice's three stages (default: %(default)s)")
    p.add_argument("--hours", type=float, help="of all choices together, in place of --steps")
    return ratios(p.parse_args(arguments), console or Console())


if __name__ == "__main__":
    main()
