"""Mid-training: a trained model goes on with long texts, at 32,768 tokens a row, while its learning rate falls fast.

LFM2 report, 3.2: one trillion more tokens of the better and naturally long texts, the recipe otherwise unchanged, an
accelerated decay (end point not stated; here 1 - sqrt to zero, which falls fastest at the start). Before and after:
perplexity by position, a needle in a haystack, held-out bits per byte. The memory of a step is measured. A stopped
run goes on.

    python -m recipes.midtrain MODEL TEXT... --out DIR [--checkpoint RUN.checkpoint] [--help]
"""

import argparse
import dataclasses
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from headwater.data.pack import Document, PackedBatches
from headwater.data.sources import read_rows
from headwater.data.split import held_out
from headwater.evals.held_out import HeldOut, by_language
from headwater.evals.needle import grid
from headwater.evals.positions import by_position
from headwater.files import read_json, write_json
from headwater.model import Lfm2
from headwater.objectives.next_token import next_token
from headwater.ops.head_loss import Head
from headwater.tokenizer import Tokenizer
from headwater.train.checkpoint import branch
from headwater.train.follow import Follow
from headwater.train.loop import Plan, Result, Step, run_head, train
from headwater.train.optim import adamw, describe
from headwater.train.schedule import WSD
from recipes.lessons import Deadline, same_settings

LENGTH = 32_768
LR = 3e-4
SAVE_EVERY = 20
NEEDLE_DEPTHS = (0.0, 0.5, 1.0)


class Memory:
    """A hook: what the process holds at its peak beyond what it held before the first update, by token of a batch.

    Where the peak cannot be forgotten, what was measured before hides a part of it in the call that measured.
    """

    def __init__(self) -> None:
        _forget_peak()
        self._before, self.bytes_per_token = _peak(), 0.0

    def __call__(self, step: Step) -> None:
        self.bytes_per_token = max(self.bytes_per_token, (_peak() - self._before) / step.tokens)
        step.done.metrics["memory/bytes a token"] = self.bytes_per_token


def _peak() -> int:
    """Bytes: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """The peak so far is what is held now; on other systems than Linux a process's peak stays."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it
            Path("/proc/self/clear_refs").write_text("5")


class Run:
    """One directory: the model, its texts, the stage and its measures."""

    def __init__(self, model: str, files: Sequence[Path], options: argparse.Namespace) -> None:
        self.options, self.out, self.console = options, options.out, options.console or Console()
        self.out.mkdir(parents=True, exist_ok=True)
        same_settings(self.out, {
            "model": str(model), "files": [str(f) for f in files], "length": options.length, "rows": options.rows,
            "steps": options.steps, "lr": options.lr, "checkpoint": str(options.checkpoint), "seed": options.seed,
            "least": options.least,
        })  # fmt: skip
        self.model = Lfm2.from_pretrained(model, dtype=torch.float32, device=options.device)
        self.model.recompute = not options.keep_activations
        self.tokenizer = Tokenizer.from_pretrained(model)
        rows = [row for file in files for row in read_rows(file)]
        held = [row for row in rows if held_out(_name(row), options.held_out)]
        texts = [row["text"] for row in rows if not held_out(_name(row), options.held_out)]
        if not held or not texts:
            raise ValueError(f"{len(texts)} texts to train on and {len(held)} held out; both are needed")
        self.held = by_language(held, most_bytes=options.evaluate_bytes)
        end = list(self.tokenizer.eos_ids[:1])
        self.documents = [[*ids, *end] for ids in self.tokenizer.encode_batch(texts, bos=self.tokenizer.add_bos)]
        self.documents = [ids for ids in self.documents if len(ids) >= options.least]
        self.long = [self.tokenizer.encode(row["text"], bos=True) for row in held]
        self.filler = "\n".join(row["text"] for row in held)
        if not self.documents:
            raise ValueError(f"no text has --least {options.least} tokens")
        share = sum(len(d) for d in self.documents if len(d) > options.length // 4) / sum(map(len, self.documents))
        self.console.print(
            f"{len(self.documents):,} texts of {sum(map(len, self.documents)):,} tokens, {share:.0%} of them in texts "
            f"longer than {options.length // 4:,}; {len(held)} held out"
        )

    def forward(self, ids: torch.Tensor) -> Head:
        """For the measures: in evaluation mode, products in bf16 where they are fast."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=_fast(self.options.device)):
            head: Head = self.model(ids, project=False)
            return Head(head.hidden.float(), head.weight)

    def measure(self, when: str) -> dict[str, Any]:
        """Bits per byte by language, perplexity by position, needles; printed and returned."""
        self.model.eval()
        o, device = self.options, self.options.device
        fast = torch.bfloat16 if _fast(device) else None
        found: dict[str, Any] = HeldOut(
            self.tokenizer, self.held, autocast=fast, batch_size=4, forward=run_head
        )(self.model)  # fmt: skip
        edges = [1, *(n for n in (256, 1024, 4096, 8192, 16384) if n < o.length), o.length]
        rows = sorted(self.long, key=len, reverse=True)[: o.measured_rows]
        stretches = by_position(self.forward, rows, edges=edges, device=device)
        table = Table("positions", "perplexity", "nats", "tokens", title=f"{when}: by position")
        for s in stretches:
            table.add_row(f"{s.start:,} to {s.stop:,}", f"{s.perplexity:.2f}", f"{s.nats:.3f} ± {s.error:.3f}",
                          f"{s.tokens:,}")  # fmt: skip
        self.console.print(table)
        lengths = sorted({max(o.length // n, min(o.length, 128)) for n in (16, 4, 1)})
        needles = grid(
            self.forward, self.tokenizer, self.filler, lengths=lengths, depths=NEEDLE_DEPTHS, trials=o.trials,
            seed=o.seed, device=device,
        )  # fmt: skip
        table = Table("tokens", "depth", "recalled", "nats", "lift", title=f"{when}: needles")
        for n in needles:
            table.add_row(f"{n.length:,}", f"{n.depth:.2f}", f"{n.recalled:.0%}", f"{n.nats:.2f}", f"{n.lift:+.2f}")
        self.console.print(table)
        return {
            **found,
            "by_position": [dataclasses.asdict(s) for s in stretches],
            "needles": [dataclasses.asdict(n) for n in needles],
        }

    def stage(self, memory: Memory) -> Result:
        """The stage itself."""
        o = self.options
        optimizer = adamw(self.model, lr=o.lr)
        schedule = WSD(steps=o.steps, warmup=o.warmup, decay=o.steps - o.warmup)
        checkpoint = self.out / "midtrain.checkpoint"
        if o.checkpoint is not None and not checkpoint.exists():
            branch(o.checkpoint, self.model, optimizer)
            self.console.print(f"weights and moments of {o.checkpoint}")
        batches = PackedBatches(
            (Document(ids) for ids in self.documents), rows=o.rows, length=o.length, seed=o.seed,
            pad_id=self.tokenizer.pad_id or 0,
        )  # fmt: skip
        self.console.print(f"{o.steps} updates of {o.rows} x {o.length:,} tokens; {describe(optimizer)}")
        fast = torch.bfloat16 if _fast(o.device) else None
        with Follow(self.out, "midtrain", model=self.model, console=self.console) as follow:
            return train(
                self.model, batches, next_token, optimizer, schedule,
                plan=Plan(
                    steps=o.steps, autocast=fast, save_every=o.save_every, seconds=Deadline(o.minutes).left
                ),
                forward=run_head,
                hooks=[memory, follow], checkpoint=checkpoint,
                identity={"stage": "midtrain", "schedule": repr(schedule), "lr": o.lr},
            )  # fmt: skip


def midtrain(model: str, files: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Measure, train, measure; the report that is also written to OUT/report.json. OUT/model is the model."""
    run = Run(model, files, options)
    before_file = run.out / "before.json"
    if not before_file.exists():
        write_json(before_file, run.measure("before"))
    memory = Memory()
    result = run.stage(memory)
    if not result.finished:
        run.console.print(f"stopped at update {result.done.step}; the same command goes on from there")
        return {"finished": False, "step": result.done.step}
    run.model.save_pretrained(run.out / "model")
    run.tokenizer.save(run.out / "model")
    report = {
        "finished": True, "before": read_json(before_file), "after": run.measure("after"),
        "tokens": result.done.tokens, "tokens_per_second": result.done.tokens / max(result.done.seconds, 1e-9),
        "bytes_per_token": memory.bytes_per_token, "recompute": run.model.recompute,
    }  # fmt: skip
    write_json(run.out / "report.json", report)
    run.console.print(
        f"{result.done.tokens:,} tokens at {report['tokens_per_second']:,.0f} a second; "
        f"{memory.bytes_per_token:,.0f} bytes of memory a token of a batch; model in {run.out / 'model'}"
    )
    return report


def _name(row: dict[str, Any]) -> str:
    return str(row.get("title", row.get("text")))


def _fast(device: str) -> bool:
    """Whether products in bf16 are faster there."""
    return device != "cpu" or torch.cpu._is_amx_tile_supported()


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater recipe midtrain", description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("model", help="a model directory, a .gguf file or a hub id")
    p.add_argument("files", nargs="+", type=Path, help=".jsonl files with 'text', and 'lang' where it is known")
    p.add_argument("--out", type=Path, required=True, help="directory of the run")
    p.add_argument("--checkpoint", type=Path, help="of the run to go on from: its weights and the optimizer's moments")
    p.add_argument("--length", type=int, default=LENGTH, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--rows", type=int, default=1, help="of a batch (default: %(default)s)")
    p.add_argument("--steps", type=int, default=200, help="updates (default: %(default)s)")
    p.add_argument("--save-every", type=int, default=SAVE_EVERY, help="updates (default: %(default)s)")
    p.add_argument("--minutes", type=float, help="of this call's updates; the same command goes on later")
    p.add_argument("--warmup", type=int, default=0, help="updates; moments of a run need none (default: %(default)s)")
    p.add_argument("--lr", type=float, default=LR, help="that the decay starts from (default: %(default)s)")
    p.add_argument("--least", type=int, default=0, help="tokens of the shortest text to train on (default: all)")
    p.add_argument("--held-out", type=float, default=0.05, help="share of the texts (default: %(default)s)")
    p.add_argument("--evaluate-bytes", type=int, default=50_000, help="of a language (default: %(default)s)")
    p.add_argument("--measured-rows", type=int, default=4, help="longest held-out texts (default: %(default)s)")
    p.add_argument("--trials", type=int, default=2, help="needles a length and depth (default: %(default)s)")
    p.add_argument("--keep-activations", action="store_true", help="faster, with more memory")
    p.add_argument("--device", default="cpu", help="(default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args(arguments, argparse.Namespace(console=console))
    return midtrain(o.model, o.files, o)


if __name__ == "__main__":
    main()
