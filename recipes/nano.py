"""headwater-nano: two ways from one teacher to a small hybrid model at equal computing time; the better one ships.

`hybrid`: the teacher's attention becomes convolutions (recipes/hybridize.py). `scratch`: an LFM2-shaped model of
random weights learns from the same teacher store for as many seconds. Both are measured on the same held-out texts;
the better one becomes a GGUF file with its card. Every part goes on where it was stopped.

    headwater recipe nano TEACHER TEXTS... --score HELD_OUT... --out DIR
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.data.teacher_store import TeacherStore
from headwater.evals.bits_per_byte import bits_per_byte
from headwater.export import gguf
from headwater.files import atomic, read_json, write_json
from headwater.model import Lfm2
from headwater.objectives.distill import distill
from headwater.tokenizer import Tokenizer
from headwater.train.loop import Plan, run_head, train
from headwater.train.optim import adamw
from headwater.train.progress import JsonLog, ProgressBar
from headwater.train.schedule import WSD
from recipes import hybridize

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 384, 1024, "CCACCACCAC", 6, 2
PEAK, WARMUP, DECAY = 2e-3, 0.02, 0.3
SAVE_EVERY = 50
PROBED = 4
"""Updates whose time says how many the scratch route has."""


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

    def __init__(self, o: argparse.Namespace, seconds: float, console: Console) -> None:
        self.o, self.seconds, self.console, self.out = o, seconds, console, o.out / "scratch"
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_pretrained(o.out / "hybrid" / "model")
        self.store = TeacherStore(o.out / "hybrid" / "teacher")
        self.context = read_json(o.out / "hybrid" / "model" / "config.json")["max_position_embeddings"]
        self.fast = hybridize.fast_dtype(torch.device(o.device))

    def run(self) -> dict[str, Any] | None:
        """Train, measure and save; None: stopped before the end."""
        steps_path = self.out / "steps.json"
        if not steps_path.exists():
            write_json(steps_path, {"steps": self._steps()})
        steps = read_json(steps_path)["steps"]
        model = self._model()
        with ProgressBar("scratch", console=self.console) as bar:
            result = self._train(
                model, steps, hooks=[bar, JsonLog(self.out / "scratch.jsonl")], checkpoint=self.out / "checkpoint"
            )
        if not result.finished:
            return None
        model.save_pretrained(self.out / "model")
        self.tokenizer.save(self.out / "model")
        done = result.done
        return {
            "parameters": model.config.num_parameters(), "layers": model.config.pattern(), "tokens": done.tokens,
            "seconds": done.seconds, "bits_per_byte": self._measure(model),
        }  # fmt: skip

    def _model(self) -> Lfm2:
        model = scratch_model(
            self.tokenizer, vocab_size=self.store.card.vocab_size, context=self.context, seed=self.o.seed
        )
        return model.to(self.o.device)

    def _steps(self) -> int:
        """How many updates take the hybrid's time, by the time of a few that are thrown away."""
        times: list[float] = []

        def watch(_: object) -> None:
            times.append(time.perf_counter())

        self._train(self._model(), PROBED, hooks=[watch], checkpoint=None)
        return max(PROBED, round(self.seconds * (PROBED - 1) / (times[-1] - times[0])))

    def _train(self, model: Lfm2, steps: int, *, hooks: Sequence[Any], checkpoint: Path | None) -> Any:
        o = self.o
        batches = PackedBatches(
            (Document(ids.tolist()) for ids in self.store.sequences()), rows=o.rows, length=o.length, seed=o.seed,
            pad_id=self.tokenizer.pad_id or 0, columns=partial(hybridize.taught, self.store),
        )  # fmt: skip
        schedule = WSD(steps=steps, warmup=max(1, int(WARMUP * steps)), decay=int(DECAY * steps))
        objective = partial(
            distill, temperature=hybridize.TEMPERATURE, label_weight=hybridize.LABEL_WEIGHT,
            teacher_weight=hybridize.TEACHER_WEIGHT,
        )  # fmt: skip
        return train(
            model, batches, objective, adamw(model, lr=PEAK), schedule, forward=run_head, hooks=hooks,
            plan=Plan(steps=steps, autocast=self.fast, save_every=SAVE_EVERY), checkpoint=checkpoint,
            identity={"schedule": repr(schedule)},
        )  # fmt: skip

    def _measure(self, model: Lfm2) -> dict[str, float]:
        length = self.o.length
        with torch.autocast(self.o.device, torch.bfloat16, enabled=self.fast is not None):
            return {
                name: bits_per_byte(model, self.tokenizer, texts, window=length, overlap=max(1, length // 8))
                for name, texts in hybridize.read_scored(self.o.score).items()
            }


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
    sources = ", ".join(f.name for f in o.files)
    lines += ["", f"Texts: {sources}. Held out: {', '.join(names)}.", "",
              "A small model that makes things up; not for advice, facts or decisions about people.", ""]  # fmt: skip
    return "\n".join(lines)


def ship(directory: Path, path: Path, type: str) -> None:
    """Write the model of a directory as a GGUF file, rounded to `type`."""
    model = Lfm2.from_pretrained(directory, dtype=torch.float32)
    tensors = {name: _Floats(value) for name, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    gguf.write(
        path, model.config, tensors, Tokenizer.from_pretrained(directory), type=type, name=path.stem, threads=threads
    )


class _Floats:
    """A weight as the exporter reads it."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value, self.shape = value, tuple(value.shape)

    def read(self) -> Any:
        return self._value.numpy()


def nano(o: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both routes, their comparison, the file; the report that is also written to OUT/report.json."""
    arguments = [
        o.teacher, *map(str, o.files), "--out", str(o.out / "hybrid"), "--score", *map(str, o.score), "--qk-norm",
        "--steps", o.steps, "--rows", str(o.rows), "--length", str(o.length), "--seed", str(o.seed),
        "--device", o.device, *(["--keep", o.keep] if o.keep else []),
    ]  # fmt: skip
    first = hybridize.main(arguments, console=console)
    if not first["finished"]:
        return first
    *_, last = first["bits_per_byte"].values()
    routes = {"hybrid": {**{k: first[k] for k in ("parameters", "layers", "tokens", "seconds")}, "bits_per_byte": last}}
    if not o.no_scratch:
        second = Scratch(o, first["seconds"], console).run()
        if second is None:
            return {"finished": False, "stage": "scratch"}
        routes["scratch"] = second
    chosen = min(routes, key=lambda name: sum(routes[name]["bits_per_byte"].values()))
    report = {"finished": True, "teacher": first["bits_per_byte"]["teacher"], "routes": routes, "chosen": chosen}
    ship(o.out / chosen / "model", o.out / "headwater-nano.gguf", o.type)
    with atomic(o.out / "CARD.md") as path:
        path.write_text(card(report, o), encoding="utf-8")
    write_json(o.out / "report.json", report)
    console.print((o.out / "CARD.md").read_text(encoding="utf-8"), markup=False, highlight=False)
    return report


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater recipe nano", description="The small hybrid that ships.")
    p.add_argument("teacher", help="a chat model: directory, .gguf file or hub id")
    p.add_argument("files", nargs="+", type=Path, help="files or folders of 'text' or 'messages'")
    p.add_argument("--score", nargs="+", type=Path, required=True, help="files of held-out texts")
    p.add_argument("--out", type=Path, required=True, help="directory of the run")
    p.add_argument("--keep", help="layers that keep attention (default: every third)")
    p.add_argument("--steps", default="800,2400,800", help="of the hybrid's three stages (default: %(default)s)")
    p.add_argument("--rows", type=int, default=4, help="of a batch (default: %(default)s)")
    p.add_argument("--length", type=int, default=512, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--type", default="q4_0", help="of the file (default: %(default)s)")
    p.add_argument("--no-scratch", action="store_true", help="the hybrid alone")
    p.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    return nano(p.parse_args(arguments), console or Console())


if __name__ == "__main__":
    main()
