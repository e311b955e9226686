"""The claim of the LFM2 report about distillation (3.3), tested: decoupled tempered Top-K against its rivals.

One small student, one order of data, the same steps; what differs is the loss: next token alone, naive Top-K, K + 1
bucket, decoupled at three temperatures, the teacher's whole distribution, ids drawn from it. Several seeds of weights
and order, shared by all losses, so differences are paired. Each cell is saved when it is done and never done again.

    python -m recipes.ablate_distillation TEACHER TEXT... --out DIR [--help]
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from headwater import optional
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data import capture as capturing
from headwater.data.pack import Document, PackedBatches
from headwater.data.sources import read_rows
from headwater.data.split import held_out
from headwater.data.teacher_store import Card, TeacherStore, Writer
from headwater.evals.calibration import Calibration
from headwater.files import atomic, read_json, write_json
from headwater.model import Lfm2
from headwater.objectives.distill import distill, distill_full
from headwater.objectives.next_token import next_token
from headwater.ops.head_loss import Head
from headwater.tokenizer import Tokenizer
from headwater.train.loop import Objective, Plan, run_head, train
from headwater.train.optim import adamw
from headwater.train.progress import JsonLog, ProgressBar, read_log
from headwater.train.schedule import Cosine
from recipes.lessons import Deadline, OutOfTime, same_settings

TOP_K = DRAWS = 32
LAYERS, WIDTH, HEADS, KV_HEADS, FFN = "CCAC", 192, 6, 2, 512
PEAK, WARMUP = 3e-3, 0.05
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""


@dataclass(frozen=True)
class Method:
    """A loss: which `kind` of distillation ("" for none, "full" for the whole distribution) at which temperature."""

    kind: str
    temperature: float = 1.0


METHODS = {
    "next token": Method(""),
    "top-k, tau 2": Method("top_k", 2.0),
    "bucket, tau 2": Method("bucket", 2.0),  # at 1 it is the decoupled one
    "decoupled, tau 1": Method("decoupled", 1.0),
    "decoupled, tau 2": Method("decoupled", 2.0),
    "decoupled, tau 4": Method("decoupled", 4.0),
    "full KL": Method("full"),
    "sampled": Method("sampled"),
}


class Taught:
    """What the teacher said of some sequences, on disk: Top-K store, drawn ids with counts, last hidden states."""

    def __init__(self, directory: Path, tokens: int, width: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        shapes = {"draws": (np.int32, DRAWS), "counts": (np.uint8, DRAWS), "hidden": (np.float16, width)}
        self.arrays = {name: _array(directory / f"{name}.npy", kind, (tokens, n)) for name, (kind, n) in shapes.items()}

    def columns(self, store: TeacherStore, kind: str, start: int, stop: int) -> dict[str, torch.Tensor]:
        """The batch keys that a loss of `kind` reads, for a range of tokens."""
        if kind == "full":
            return {"teacher_hidden": torch.from_numpy(self.arrays["hidden"][start:stop].astype(np.float32))}
        if kind == "sampled":
            ids, counts = (self.arrays[name][start:stop] for name in ("draws", "counts"))
            return {
                "teacher_ids": torch.from_numpy(ids.astype(np.int64)),
                "teacher_counts": torch.from_numpy(counts.astype(np.float32)),
            }
        t = store.range(start, stop)
        return {
            "teacher_ids": torch.from_numpy(t.ids), "teacher_logprobs": torch.from_numpy(t.logprobs),
            "teacher_mass": torch.from_numpy(t.mass),
        }  # fmt: skip

    def bytes_per_token(self, store: TeacherStore, method: Method, vocabulary: int) -> float:
        """What a training set of this kind takes beside its own ids."""
        if not method.kind:
            return 0.0
        if method.kind == "full":
            return float(self.arrays["hidden"].itemsize * self.arrays["hidden"].shape[1])
        if method.kind == "sampled":
            unique = float((self.arrays["counts"][: store.tokens] > 0).sum(1).mean())
            return unique * (math.log2(vocabulary) + math.log2(DRAWS)) / 8
        return store.bytes / store.tokens


class Run:
    """One directory: the teacher's word, the cells and the report."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o, self.out, self.console = o, o.out, o.console or Console()
        self.deadline = Deadline(o.minutes)
        same_settings(self.out, {
            "teacher": str(o.teacher), "files": [str(f) for f in o.files], "steps": o.steps, "rows": o.rows,
            "length": o.length, "held_tokens": o.held_tokens,
        })  # fmt: skip
        self.tokenizer = Tokenizer.from_pretrained(o.teacher)
        seen, held = self._sequences(o.steps * o.rows * o.length)
        with _threads(o.threads):
            self.teacher: Lfm2 | None = None
            self.head_weight = self._capture("train", seen)
            self._capture("held", held)
        self.teacher = None  # a few hundred megabytes
        self.vocabulary = self.head_weight.shape[0]
        self.stores = {name: TeacherStore(self.out / name / "store") for name in ("train", "held")}
        self.held_bytes = sum(len(self.tokenizer.decode(ids[1:]).encode()) for ids in self.stores["held"].sequences())
        self.taught = {name: Taught(self.out / name, store.tokens, self.head_weight.shape[1])
                       for name, store in self.stores.items()}  # fmt: skip

    def _sequences(self, wanted: int) -> tuple[list[list[int]], list[list[int]]]:
        """(sequences to learn from, of at least `wanted` tokens; sequences held out by the hash of their text)."""
        kinds: dict[bool, list[list[int]]] = {False: [], True: []}
        needed = {False: wanted, True: self.o.held_tokens}
        for text in texts_of(self.o.files):
            held = held_out(text, self.o.held_share)
            if needed[held] > 0:
                for ids in capturing.pieces([text], self.tokenizer, length=self.o.length):
                    if needed[held] > 0:
                        kinds[held].append(ids)
                        needed[held] -= len(ids)
            if max(needed.values()) <= 0:
                return kinds[False], kinds[True]
        raise ValueError(
            f"the texts lack {max(0, needed[False]):,} tokens to learn from and {max(0, needed[True]):,} held out; "
            "cure: more text, fewer --steps or --held-tokens, another --held-share"
        )

    def _capture(self, name: str, sequences: list[list[int]]) -> torch.Tensor:
        """Run the teacher over what its directory lacks; returns its output matrix (bf16)."""
        weight_file = self.out / "head.npy"
        directory = self.out / name
        if (directory / "whole").exists() and weight_file.exists():
            return torch.from_numpy(np.load(weight_file)).bfloat16()
        if self.teacher is None:
            self.teacher = Lfm2.from_pretrained(self.o.teacher, dtype=torch.float32).requires_grad_(False)
        teacher = self.teacher
        c = teacher.config
        taught = Taught(directory, sum(map(len, sequences)), c.hidden_size)
        card = Card(Path(self.o.teacher).name, capturing.fingerprint(self.tokenizer), c.vocab_size, TOP_K)
        with Writer(directory / "store", card) as writer, self.console.status(f"teacher reads {name}") as status:
            done = 0

            def run(ids: Sequence[int]) -> np.ndarray:
                at = slice(writer.tokens, writer.tokens + len(ids))
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=_fast_dtype() is not None):
                    head = teacher(torch.tensor([list(ids)]), project=False)
                    logits = head.logits()[0].float()
                generator = torch.Generator().manual_seed(writer.sequences)
                drawn = logits.softmax(-1).multinomial(DRAWS, replacement=True, generator=generator).numpy()
                taught.arrays["draws"][at], taught.arrays["counts"][at] = counted(drawn)
                taught.arrays["hidden"][at] = head.hidden[0].float().numpy()
                return logits.numpy()

            def told(tokens: int) -> None:
                nonlocal done
                done += tokens
                status.update(f"teacher reads {name}: {done:,} tokens")
                if self.deadline.over:
                    raise OutOfTime

            capturing.capture(writer, sequences, capturing.by_logits(run, c.vocab_size), on_tokens=told)
        weight = teacher(torch.tensor([[0]]), project=False).weight
        with atomic(weight_file) as part, part.open("wb") as f:
            np.save(f, weight.float().numpy())
        for array in taught.arrays.values():
            array.flush()
        (directory / "whole").touch()
        return weight.bfloat16()

    def cell(self, name: str, seed: int) -> dict[str, Any]:
        """Train and measure one student, or read what an earlier start measured."""
        path = self.out / "cells" / f"{_file_name(name)}-{seed}.json"
        if path.exists():
            found: dict[str, Any] = read_json(path)
            return found
        o, method, store = self.o, METHODS[name], self.stores["train"]
        student = make_student(self.vocabulary, self.tokenizer, seed)
        columns = partial(self.taught["train"].columns, store, method.kind) if method.kind else None
        batches = PackedBatches(
            (Document(ids.tolist()) for ids in store.sequences()), rows=o.rows, length=o.length, seed=seed,
            pad_id=self.tokenizer.pad_id or 0, columns=columns,
        )  # fmt: skip
        log = path.with_suffix(".jsonl")
        log.unlink(missing_ok=True)
        schedule = Cosine(steps=o.steps, warmup=int(WARMUP * o.steps), final=0.05)
        with ProgressBar(f"{name}, seed {seed}", console=self.console, every=max(1, o.steps // 2)) as bar:
            result = train(
                student, batches, self.objective(method), adamw(student, lr=PEAK), schedule,
                plan=Plan(steps=o.steps, autocast=_fast_dtype()), forward=run_head, hooks=[bar, JsonLog(log)],
            )  # fmt: skip
        if not result.finished:
            raise KeyboardInterrupt
        norms = sorted(row["gradient_norm"] for row in read_log(log)[int(WARMUP * o.steps) :])
        found = {
            "method": name, "seed": seed, **self.measure(student), "seconds": result.done.seconds,
            "gradient_norm": statistics.mean(norms), "gradient_norm_95": norms[int(0.95 * (len(norms) - 1))],
            "bytes_per_token": self.taught["train"].bytes_per_token(store, method, self.vocabulary),
        }  # fmt: skip
        write_json(path, found)
        return found

    def objective(self, method: Method) -> Objective:
        if not method.kind:
            return next_token
        if method.kind == "full":
            weight = self.head_weight

            def teacher(batch: Mapping[str, torch.Tensor]) -> Head:
                return Head(batch["teacher_hidden"].to(weight.dtype), weight)

            return partial(distill_full, teacher=teacher, temperature=method.temperature)
        return partial(distill, kind=method.kind, temperature=method.temperature)

    @torch.no_grad()
    def measure(self, student: Lfm2) -> dict[str, float]:
        """Held-out nats a token, bits per byte, calibration error, KL from the teacher, same first choice."""
        student.eval()
        calibration, nats, kl, same, tokens, at = Calibration(), 0.0, 0.0, 0, 0, 0
        hidden = self.taught["held"].arrays["hidden"]
        for ids in self.stores["held"].sequences():
            row = torch.from_numpy(ids.astype(np.int64))
            with torch.autocast("cpu", torch.bfloat16, enabled=_fast_dtype() is not None):
                logs = student(row[None])[0, :-1].float().log_softmax(-1)
            taught_hidden = torch.from_numpy(hidden[at : at + len(row) - 1].astype(np.float32))
            taught = Head(taught_hidden.to(self.head_weight.dtype), self.head_weight).logits().float().log_softmax(-1)
            nats -= logs.gather(1, row[1:, None]).sum().item()
            kl += (taught.exp() * (taught - logs)).sum().item()
            best, choice = logs.max(-1)
            calibration.add(best.exp(), choice == row[1:])
            same += int((choice == taught.argmax(-1)).sum())
            tokens, at = tokens + len(row) - 1, at + len(row)
        return {
            "loss": nats / tokens, "bits_per_byte": nats / math.log(2) / self.held_bytes, "ece": calibration.error(),
            "kl": kl / tokens, "same_top": same / tokens,
        }  # fmt: skip


def texts_of(files: Sequence[Path]) -> Iterator[str]:
    """`text` fields of .jsonl files and of those in folders, in the order of their names, one of each in turn."""
    paths = [p for file in files for p in (sorted(file.glob("*.jsonl*")) if file.is_dir() else [file])]
    if not paths:
        raise ValueError(f"there is no .jsonl file in {', '.join(map(str, files))}")
    readers = [(row["text"] for row in read_rows(path) if isinstance(row.get("text"), str)) for path in paths]
    while readers:
        for reader in list(readers):
            text = next(reader, None)
            if text is None:
                readers.remove(reader)
            elif text:
                yield text


def counted(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, how often each was drawn) of draws (t, n); free places hold other ids with count 0, distinct in a row."""
    ids, counts = np.zeros_like(drawn, dtype=np.int32), np.zeros(drawn.shape, dtype=np.uint8)
    for i, row in enumerate(drawn):
        there, often = np.unique(row, return_counts=True)
        free = drawn.shape[1] - len(there)
        spare = np.setdiff1d(np.arange(drawn.shape[1] + len(there)), there)[:free]
        ids[i], counts[i, : len(there)] = np.concatenate([there, spare]), often
    return ids, counts


def make_student(vocabulary: int, tokenizer: Tokenizer, seed: int) -> Lfm2:
    """LFM2-shaped: convolutions and one attention layer."""
    attention = Attention(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=WIDTH // HEADS, rope=Rope(theta=1e4))
    config = Config(
        vocab_size=vocabulary, hidden_size=WIDTH, max_positions=4096, bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
        layers=stack(LAYERS, {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=FFN)),
    )  # fmt: skip
    return Lfm2(config, generator=torch.Generator().manual_seed(seed))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval by Student's t); nan for one value."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), T95[min(len(values) - 1, max(T95))] * statistics.stdev(values) / len(values) ** 0.5


MEASURES = ("loss", "bits_per_byte", "ece", "kl", "same_top", "gradient_norm", "bytes_per_token", "seconds")


def summary(cells: Sequence[Mapping[str, Any]], base: str) -> dict[str, dict[str, tuple[float, float]]]:
    """By method: each measure's mean and interval, and of the loss's difference from `base` seed by seed."""
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        by_method.setdefault(cell["method"], {})[cell["seed"]] = cell
    found = {}
    for name, seeds in by_method.items():
        found[name] = {m: interval([cell[m] for cell in seeds.values()]) for m in MEASURES}
        shared = sorted(seeds.keys() & by_method.get(base, {}).keys())
        if shared:
            found[name]["from_base"] = interval([seeds[s]["loss"] - by_method[base][s]["loss"] for s in shared])
    return found


def show(found: Mapping[str, Mapping[str, tuple[float, float]]], base: str, console: Console) -> None:
    """The table of the report."""
    table = Table(
        "loss", "held-out nats", f"from {base}", "bits/byte", "ECE", "KL from teacher", "gradient", "bytes/token"
    )
    for name, row in found.items():
        cells = [f"{row[m][0]:.4f} ± {row[m][1]:.4f}" for m in ("loss", "from_base", "bits_per_byte", "ece", "kl")
                 if m in row]  # fmt: skip
        table.add_row(name, *cells, f"{row['gradient_norm'][0]:.2f}", f"{row['bytes_per_token'][0]:.1f}")
    console.print("means over seeds with 95 % intervals (Student's t); differences are paired by seed", table)


def plot(found: Mapping[str, Mapping[str, tuple[float, float]]], base: str, path: Path) -> None:
    """Loss, difference, calibration and gradient norm with intervals, and loss against stored bytes."""
    optional.load("matplotlib", extra="train")
    figure = optional.load("matplotlib.figure", extra="train").Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    names = list(found)
    panels = (
        ("loss", "held-out loss, nats a token"), ("from_base", f"loss minus that of {base}, paired"),
        ("ece", "calibration error (15 bins)"), ("kl", "KL from the teacher, nats"),
        ("gradient_norm", "mean gradient norm"),
    )  # fmt: skip
    for axis, (measure, title) in zip(axes, panels, strict=False):
        for i, name in enumerate(names):
            mean, half = found[name].get(measure, (math.nan, math.nan))
            axis.errorbar(mean, i, xerr=0.0 if math.isnan(half) else half, fmt="o", color=f"C{i}", capsize=3)
        axis.set_yticks(range(len(names)), names if axis in (axes[0], axes[3]) else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, axis="x")
    for i, name in enumerate(names):
        x, (y, half) = found[name]["bytes_per_token"][0], found[name]["loss"]
        axes[5].errorbar(max(x, 1.0), y, yerr=0.0 if math.isnan(half) else half, fmt="o", color=f"C{i}", capsize=3)
        axes[5].annotate(name, (max(x, 1.0), y), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes[5].set(xscale="log")
    axes[5].set_title("held-out loss against stored bytes a token (none drawn at 1)", fontsize=10)
    axes[5].grid(alpha=0.3)
    agg = optional.load("matplotlib.backends.backend_agg", extra="train")
    with atomic(path) as part:
        agg.FigureCanvasAgg(figure).print_png(str(part))


def ablate(o: argparse.Namespace) -> dict[str, Any]:
    """Every cell, then OUT/report.json and OUT/report.png, which are renewed after each."""
    console = o.console or Console()
    try:
        run = Run(o)
    except OutOfTime:
        console.print("stopped while the teacher reads; the same command goes on from there")
        return {"finished": False}
    base = next(iter(METHODS)) if next(iter(METHODS)) in o.methods else o.methods[0]
    cells: list[dict[str, Any]] = []
    with _threads(o.threads):
        for seed in range(o.seeds):
            for name in o.methods:
                if run.deadline.over:
                    console.print(f"stopped after {len(cells)} cells; the same command goes on from there")
                    return {"finished": False}
                cells.append(run.cell(name, seed))
                left = (o.seeds * len(o.methods) - len(cells)) * statistics.mean(c["seconds"] for c in cells)
                console.print(f"cell {len(cells)} of {o.seeds * len(o.methods)}: {name}; {left / 60:.0f} minutes left")
                found = summary(cells, base)
                report = {"finished": len(cells) == o.seeds * len(o.methods), "base": base, "methods": found}
                write_json(run.out / "report.json", _plain(report))
    show(found, base, console)
    plot(found, base, run.out / "report.png")
    return report


def _plain(value: Any) -> Any:
    """For JSON: no nan."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _array(path: Path, kind: type, shape: tuple[int, int]) -> np.memmap:
    """The array of a file, made if it is not there. ValueError: it is there in another shape."""
    if not path.exists():
        return np.lib.format.open_memmap(path, "w+", dtype=kind, shape=shape)
    found: np.memmap = np.load(path, mmap_mode="r+")
    if found.shape != shape or found.dtype != kind:
        raise ValueError(f"{path} holds {found.shape} {found.dtype}, not {shape}; was it made from other texts?")
    return found


class _threads:
    """torch's threads for a while."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _fast_dtype() -> torch.dtype | None:
    """bf16 products where the processor has matrix tiles for them; elsewhere bf16 is slower than fp32."""
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _methods(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of: {'; '.join(METHODS)}")
    return names


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("teacher", help="a model directory or a .gguf file")
    p.add_argument("files", nargs="+", type=Path, help=".jsonl files with 'text', or folders of them")
    p.add_argument("--out", type=Path, required=True, help="directory of the run")
    p.add_argument("--methods", type=_methods, default=list(METHODS), help="names with ; between (default: all)")
    p.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    p.add_argument("--steps", type=int, default=240, help="updates of a cell (default: %(default)s)")
    p.add_argument("--rows", type=int, default=4, help="of a batch (default: %(default)s)")
    p.add_argument("--length", type=int, default=256, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--held-tokens", type=int, default=16_384, help="measured on (default: %(default)s)")
    p.add_argument("--held-share", type=float, default=0.1, help="of the texts (default: %(default)s)")
    p.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    p.add_argument("--minutes", type=float, help="of this call, to the end of a cell; the same command goes on later")
    return ablate(p.parse_args(arguments, argparse.Namespace(console=console)))


if __name__ == "__main__":
    main()
