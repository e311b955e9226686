"""headwater-nano: two ways from one teacher to a small hybrid model at equal computing time; the better one ships.

`hybrid`: the teacher's attention becomes convolutions (recipes/hybridize.py). `scratch`: an LFM2-shaped model of
random weights learns from the same teacher store for as many seconds, or for --scratch of them, and is compared with
what the hybrid was by then. The better one at the end becomes a GGUF file with its card. A run that was stopped or
killed goes on where it was.

    headwater recipe nano TEACHER TEXTS... --score HELD_OUT... --out DIR [--hours 6] [--minutes 20]
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.data.teacher_store import TeacherStore
from headwater.evals.held_out import PREFIX, HeldOut
from headwater.evals.samples import Samples
from headwater.files import atomic, read_json, write_json
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer
from headwater.train.follow import Follow
from headwater.train.loop import Plan, Result, run_head, train
from headwater.train.optim import adamw
from headwater.train.progress import read_log
from headwater.train.schedule import WSD
from recipes import hybridize, lessons
from recipes.shipping import ship, speeds

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 384, 1024, "CCACCACCAC", 6, 2
PEAK, WARMUP, DECAY = 2e-3, 0.02, 0.3
SAVE_EVERY, EVALUATE_EVERY = 50, 100
PROBED = 4
"""Updates whose time says how many the scratch route has."""
CASES = ("prefill_512", "decode_128", "decode_128@1024")


def scratch_model(tokenizer: Tokenizer, *, vocab_size: int, context: int, seed: int) -> Lfm2:
    """An LFM2-shaped student with random weights: 37 M parameters under a vocabulary of 49,152 words."""
    attention = Attention(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HIDDEN // HEADS, rope=Rope(theta=1e5))
    config = Config(
        vocab_size=vocab_size, hidden_size=HIDDEN, max_positions=context,
        layers=stack(LAYERS, {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=FFN)),
        bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    return Lfm2(config, generator=torch.Generator().manual_seed(seed))


class Scratch:
    """The scratch route in OUT/scratch: its data are the hybrid's store, its time is the hybrid's."""

    def __init__(self, o: argparse.Namespace, seconds: float, console: Console, deadline: lessons.Deadline) -> None:
        self.o, self.seconds, self.console, self.out, self.deadline = o, seconds, console, o.out / "scratch", deadline
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_pretrained(o.out / "hybrid" / "model")
        self.store = TeacherStore(o.out / "hybrid" / "lessons" / "teacher")
        self.context = read_json(o.out / "hybrid" / "model" / "config.json")["max_position_embeddings"]
        self.fast = hybridize.fast_dtype(torch.device(o.device))
        self.held = lessons.read_scored(o.score, o.score_bytes)

    def run(self) -> dict[str, Any] | None:
        """Train, measure and save; None: stopped before the end."""
        if (self.out / "report.json").exists():
            return dict(read_json(self.out / "report.json"))
        steps_path = self.out / "steps.json"
        if not steps_path.exists():
            write_json(steps_path, {"steps": self._steps()})
        steps = read_json(steps_path)["steps"]
        model = self._model()
        few = {kind: list(lessons.first(texts, self.o.evaluate_bytes)) for kind, texts in self.held.items()}
        samples = Samples(model, self.tokenizer, hybridize.PROMPTS)
        with Follow(self.out, "scratch", model=model, console=self.console, samples=samples) as follow:
            result = self._train(
                model, steps, hooks=[follow], checkpoint=self.out / "scratch.checkpoint", evaluate=self._judge(few)
            )
        if not result.finished:
            return None
        model.save_pretrained(self.out / "model")
        self.tokenizer.save(self.out / "model")
        done = result.done
        scores = {kind.removeprefix(f"{PREFIX}/"): score for kind, score in self._judge(self.held)(model).items()}
        report = {
            "parameters": model.config.num_parameters(), "layers": model.config.pattern(), "tokens": done.tokens,
            "seconds": done.seconds, "bits_per_byte": {kind: scores[kind] for kind in self.held},
        }  # fmt: skip
        write_json(self.out / "report.json", report)
        return report

    def _judge(self, texts: Mapping[str, Sequence[str]]) -> HeldOut:
        length = self.o.length
        overlap = max(1, length // 8)
        return HeldOut(self.tokenizer, texts, autocast=self.fast, window=length, overlap=overlap, forward=run_head)

    def _model(self) -> Lfm2:
        model = scratch_model(
            self.tokenizer, vocab_size=self.store.card.vocab_size, context=self.context, seed=self.o.seed
        )
        return model.to(self.o.device)

    def _steps(self) -> int:
        """How many updates take the time, by the time of a few that are thrown away."""
        times: list[float] = []

        def watch(_: object) -> None:
            times.append(time.perf_counter())

        self._train(self._model(), PROBED, hooks=[watch])
        if len(times) < PROBED:
            raise lessons.OutOfTime
        return max(PROBED, round(self.seconds * (PROBED - 1) / (times[-1] - times[0])))

    def _train(
        self, model: Lfm2, steps: int, *, hooks: Sequence[Any], checkpoint: Path | None = None,
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    ) -> Result:  # fmt: skip
        o = self.o
        batches = PackedBatches(
            (Document(ids.tolist()) for ids in self.store.sequences()), rows=o.rows, length=o.length, seed=o.seed,
            pad_id=self.tokenizer.pad_id or 0, columns=partial(lessons.columns, self.store), shuffle=False,
        )  # fmt: skip
        schedule = WSD(steps=steps, warmup=max(1, int(WARMUP * steps)), decay=int(DECAY * steps))
        return train(
            model, batches, hybridize.OBJECTIVE, adamw(model, lr=PEAK), schedule, forward=run_head, hooks=hooks,
            plan=Plan(
                steps=steps, autocast=self.fast, save_every=SAVE_EVERY, seconds=self.deadline.left,
                evaluate_every=EVALUATE_EVERY if evaluate else 0,
            ),
            evaluate=evaluate, checkpoint=checkpoint, identity={"schedule": repr(schedule)},
        )  # fmt: skip


def by_then(logs: Sequence[Path], seconds: float) -> dict[str, float] | None:
    """What the last evaluation within `seconds` of training found, over the stages of a run; None: there was none."""
    before, tokens, found = 0.0, 0, None
    for path in logs:
        rows = [row for row in read_log(path) if "seconds" in row] if path.exists() else []
        for row in rows:
            scores = {k.removeprefix(f"{PREFIX}/"): v for k, v in row.items() if k.startswith(PREFIX)}
            if scores and before + row["seconds"] <= seconds * 1.001:
                found = scores | {"seconds": before + row["seconds"], "tokens": tokens + row["tokens"]}
        if rows:
            before, tokens = before + rows[-1]["seconds"], tokens + rows[-1]["tokens"]
    return found


def card(report: dict[str, Any], o: argparse.Namespace) -> str:
    """The model card, in Markdown: what it was made of, how far it got, what it is not for."""
    chosen = report["routes"][report["chosen"]]
    names = list(report["teacher"])
    lines = [
        "# headwater-nano", "",
        f"{chosen['parameters']:,} parameters, layers {chosen['layers']} (C: gated short convolution, A: attention), "
        f"made by `headwater recipe nano`. Route: {report['chosen']}. Teacher: {Path(o.teacher).name}.", "",
        "| model | tokens seen | computing time | " + " | ".join(f"{n}, bits per byte" for n in names) + " |",
        "|---" * (3 + len(names)) + "|",
        "| teacher | | | " + " | ".join(f"{report['teacher'][n]:.3f}" for n in names) + " |",
    ]  # fmt: skip
    for name, route in report["routes"].items():
        scores = " | ".join(f"{route['bits_per_byte'][n]:.3f}" for n in names)
        lines.append(f"| {name} | {route['tokens']:,} | {route['seconds'] / 3600:.2f} h | {scores} |")
    if (equal := report.get("equal_time")) is not None:
        told = ", ".join(f"{name} {of['mean']:.3f}" for name, of in equal.items() if of is not None)
        lines += ["", f"On the texts measured during training, after equal time, mean bits per byte: {told}."]
    cases = [case for case in CASES if case in report["speed"]["teacher"]]
    lines += ["", f"| tokens a second, {o.type} | " + " | ".join(cases) + " | bytes a token of context |",
              "|---" * (2 + len(cases)) + "|"]  # fmt: skip
    for name, of in report["speed"].items():
        lines.append(f"| {name} | " + " | ".join(f"{of[case]:,.0f}" for case in cases) + f" | {of['kv_bytes']:,} |")
    sources = ", ".join(f.name for f in o.files)
    lines += ["", f"Texts: {sources}. Held out: {', '.join(names)}.", "",
              "A small model that makes things up; not for advice, facts or decisions about people.", ""]  # fmt: skip
    if o.data_card is not None:
        lines += ["# Data", "", *_tables(o.data_card.read_text(encoding="utf-8")), ""]
    return "\n".join(lines)


def _tables(text: str) -> list[str]:
    """Of a data card what a model card repeats: what it is, its languages, its sources with their licences."""
    kept, wanted = [], True
    for line in text.splitlines():
        if line.startswith("## "):
            wanted = line == "## Sources"
        if wanted and not line.startswith("# "):
            kept.append(line.replace("## ", "### "))
    return kept


def _measured(model: Lfm2, tokenizer: Tokenizer, path: Path, o: argparse.Namespace) -> dict[str, float]:
    """Write the file, and say how fast it is."""
    ship(model, tokenizer, path, o.type, o.head)
    return {**speeds(path, CASES, model.config.max_positions), "kv_bytes": model.config.kv_bytes_per_token()}


def nano(o: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both routes, their comparison, the file; the report that is also written to OUT/report.json."""
    deadline = lessons.Deadline(o.minutes)
    arguments = [
        o.teacher, *map(str, o.files), "--out", str(o.out / "hybrid"), "--score", *map(str, o.score), "--qk-norm",
        "--steps", o.steps, "--rows", str(o.rows), "--length", str(o.length), "--seed", str(o.seed),
        "--device", o.device, "--epochs", str(o.epochs),
        "--score-bytes", str(o.score_bytes), "--evaluate-bytes", str(o.evaluate_bytes),
        *(["--keep", o.keep] if o.keep else []), *(["--hours", str(o.hours)] if o.hours else []),
        *(["--minutes", str(o.minutes)] if o.minutes else []),
    ]  # fmt: skip
    first = hybridize.main(arguments, console=console)
    if not first["finished"]:
        return first
    *_, last = first["bits_per_byte"].values()
    routes = {"hybrid": {**{k: first[k] for k in ("parameters", "layers", "tokens", "seconds")}, "bits_per_byte": last}}
    equal: dict[str, Any] = {}
    if o.scratch:
        try:
            second = Scratch(o, o.scratch * first["seconds"], console, deadline).run()
        except lessons.OutOfTime:
            second = None
        if second is None:
            console.print("stopped in the scratch route; the same command goes on from there")
            return {"finished": False, "stage": "scratch"}
        routes["scratch"] = second
        then = [o.out / "hybrid" / f"{name}.jsonl" for name in hybridize.STAGES]
        equal = {
            "hybrid": _with_mean(by_then(then, second["seconds"])),
            "scratch": _with_mean(by_then([o.out / "scratch" / "scratch.jsonl"], second["seconds"])),
        }
    chosen = min(routes, key=lambda name: sum(routes[name]["bits_per_byte"].values()))
    report = {"finished": True, "teacher": first["bits_per_byte"]["teacher"], "routes": routes, "chosen": chosen}
    if equal:
        report["equal_time"] = equal
    return _shipped(report, o, console)


def _with_mean(scores: dict[str, float] | None) -> dict[str, float] | None:
    if scores is None or "mean" in scores:
        return scores
    (only,) = (value for name, value in scores.items() if name not in ("seconds", "tokens"))
    return {**scores, "mean": only}


def _shipped(report: dict[str, Any], o: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The file, the speed of it and of the teacher, the card, the report."""
    if (o.out / "report.json").exists():
        return dict(read_json(o.out / "report.json"))
    chosen = o.out / report["chosen"] / "model"
    model, teacher = (Lfm2.from_pretrained(p, dtype=torch.float32) for p in (chosen, o.teacher))
    file, beside = o.out / "headwater-nano.gguf", o.out / "teacher.gguf"
    report["speed"] = {
        "headwater-nano": _measured(model, Tokenizer.from_pretrained(chosen), file, o),
        "teacher": _measured(teacher, Tokenizer.from_pretrained(o.teacher), beside, o),
    }
    beside.unlink()
    report["bytes"] = file.stat().st_size
    with atomic(o.out / "CARD.md") as path:
        path.write_text(card(report, o), encoding="utf-8")
    write_json(o.out / "report.json", report)
    console.print((o.out / "CARD.md").read_text(encoding="utf-8"), markup=False, highlight=False)
    return report


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater recipe nano", description="The small hybrid that ships.")
    lessons.add_arguments(p)
    p.add_argument("--score", nargs="+", type=Path, required=True, help="files of held-out texts")
    p.add_argument("--keep", help="layers that keep attention (default: every third)")
    p.add_argument("--steps", default="800,2400,800", help="of the hybrid's three stages (default: %(default)s)")
    p.add_argument("--hours", type=float, help="of the hybrid in place of --steps")
    p.add_argument("--scratch", type=float, default=1.0, help="share of the hybrid's time; 0: none (default: 1)")
    p.add_argument("--epochs", type=int, default=2, help="that distillation reads a text (default: %(default)s)")
    p.add_argument("--score-bytes", type=int, default=60_000, help="measured of each file (default: %(default)s)")
    p.add_argument("--evaluate-bytes", type=int, default=8_000, help="the same during training (default: %(default)s)")
    p.add_argument("--data-card", type=Path, help="Markdown whose sources and licences the card repeats")
    p.add_argument("--type", default="q4_0", help="of the file (default: %(default)s)")
    p.add_argument("--head", default="q5_1", help="type of embedding and head in it (default: %(default)s)")
    p.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    o = p.parse_args(arguments)
    if not 0.0 <= o.scratch <= 1.0:
        raise ValueError(f"--scratch is {o.scratch}; the share of the hybrid's time lies between 0 and 1")
    return nano(o, console or Console())


if __name__ == "__main__":
    main()
