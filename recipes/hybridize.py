"""Turn a pre-trained transformer into an LFM2-style hybrid: most attention layers become gated short convolutions.

Embedding, feed-forward parts, norms and the chosen attention layers stay. The others are first fitted layer by layer
to the teacher's hidden states, then the whole is distilled (decoupled Top-K and next token): the mixers alone, and at
last everything but embedding and head. A run that was stopped or killed goes on where it was.

    headwater hybridize TEACHER TEXT... --out DIR [--keep 2,5,8] [--hours 3] [--minutes 20] [--help]
"""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from headwater.config import Attention, Config, Layer, ShortConv
from headwater.data import capture as capturing
from headwater.data.pack import Document, PackedBatches
from headwater.data.teacher_store import Card, TeacherStore
from headwater.engine.engine import Engine
from headwater.evals.held_out import PREFIX, HeldOut
from headwater.evals.samples import Samples
from headwater.files import read_json, write_json
from headwater.model import MIXERS, Lfm2
from headwater.objectives.distill import distill
from headwater.tokenizer import Tokenizer
from headwater.train.follow import Follow
from headwater.train.layerwise import Layerwise, layer_error
from headwater.train.loop import Plan, Result, run_head, train
from headwater.train.optim import adamw, describe
from headwater.train.progress import plot_losses, read_log
from headwater.train.schedule import Cosine
from recipes import lessons
from recipes.lessons import Deadline, OutOfTime, same_settings

STAGES = ("fit", "mixers", "all")
PEAK = {"fit": 2e-3, "mixers": 1e-3, "all": 1e-4}
STEPS = {"fit": 400, "mixers": 800, "all": 800}
SHARES = {"fit": 0.1, "mixers": 0.35, "all": 0.55}
"""Of --hours."""
PROBED = 4
"""Updates whose time says how many fit into --hours."""
WARMUP, SAVE_EVERY, EVALUATE_EVERY = 0.03, 50, 100
OBJECTIVE = partial(distill, temperature=1.0, label_weight=0.2, teacher_weight=0.8)
PROMPTS = ("The river", "To make bread, you need")
EVERY = 3
"""Without --keep, the last of every three layers keeps its attention."""


def hybrid_config(c: Config, keep: Iterable[int], *, width: int = 3, qk_norm: bool = False) -> Config:
    """`c` with attention in the layers `keep` alone and convolutions of `width` elsewhere.

    qk_norm: normalise queries and keys of the kept layers, which programs that know LFM2 alone demand.
    """
    kept = set(keep)
    if wrong := sorted(kept - set(range(len(c.layers)))):
        raise ValueError(f"--keep names layer {wrong[0]}; the teacher has layers 0 to {len(c.layers) - 1}")

    def mixer(i: int, layer: Layer) -> Attention | ShortConv:
        if not isinstance(layer.mixer, Attention):
            return layer.mixer
        if i not in kept:
            return ShortConv(width=width)
        return dataclasses.replace(layer.mixer, qk_norm=True) if qk_norm else layer.mixer

    layers = tuple(dataclasses.replace(layer, mixer=mixer(i, layer)) for i, layer in enumerate(c.layers))
    return dataclasses.replace(c, layers=layers)


def transplant(teacher: Lfm2, c: Config, *, seed: int) -> tuple[Lfm2, dict[str, torch.nn.Module]]:
    """(the hybrid with everything the two share, the parts to be fitted by the name of the teacher's part)."""
    student = Lfm2(c, generator=torch.Generator().manual_seed(seed))
    taught = teacher.state_dict()
    shared = {name: taught[name] for name in student.state_dict().keys() & taught.keys()}
    student.load_state_dict(shared, strict=False)
    parts: dict[str, torch.nn.Module] = {}
    for i, (old, new) in enumerate(zip(teacher.config.layers, c.layers, strict=True)):
        if old.mixer != new.mixer:
            name = f"layers.{i}.{MIXERS[type(old.mixer)][0]}"
            was, now = teacher.get_submodule(name), student.get_submodule(f"layers.{i}.{MIXERS[type(new.mixer)][0]}")
            parts[name] = now
            if isinstance(new.mixer, ShortConv) and isinstance(old.mixer, Attention):
                _start_as_value(was, now, old.mixer)
    return student, parts


@torch.no_grad()
def _start_as_value(was: Any, now: Any, attention: Attention) -> None:
    """Begin as attention that looks at its own token: the value path through the convolution's last tap, gates at 1.

    Only where as many value heads fit the width; gates are products without a bias, so they start random.
    """
    size, d = attention.num_heads * attention.head_dim, now.in_proj.in_features
    if size == d:
        group = attention.num_heads // attention.num_kv_heads
        value = was.v_proj.weight.unflatten(0, (attention.num_kv_heads, attention.head_dim))
        now.in_proj.weight[2 * d :] = value.repeat_interleave(group, dim=0).flatten(0, 1)
        now.out_proj.weight.copy_(was.out_proj.weight)


class Run:
    """One directory: the teacher, its student, the stages and what they left."""

    def __init__(self, teacher: str, files: Sequence[Path], out: Path, options: argparse.Namespace) -> None:
        self.out, self.options, self.console = out, options, options.console or Console()
        self.deadline = Deadline(options.minutes)
        self.device = torch.device(options.device)
        self.fast = fast_dtype(self.device)
        loaded = Lfm2.from_pretrained(teacher, dtype=torch.float32, device=self.device)
        self.teacher = loaded.requires_grad_(False)
        self.tokenizer = Tokenizer.from_pretrained(teacher)
        layers = len(self.teacher.config.layers)
        keep = options.keep if options.keep is not None else range(EVERY - 1, layers, EVERY)
        self.config = hybrid_config(self.teacher.config, keep, width=options.width, qk_norm=options.qk_norm)
        self.lessons = options.lessons or out / "lessons"
        texts = {
            "teacher": str(teacher), "files": [str(f) for f in files], "length": options.length, "seed": options.seed,
            "held_out": 0.0 if options.score else options.held_out,
        }  # fmt: skip
        same_settings(out, {
            **texts, "layers": self.config.pattern(), "width": options.width, "qk_norm": options.qk_norm,
            "rows": options.rows, "steps": options.steps, "hours": options.hours, "epochs": options.epochs,
            "score": [str(f) for f in options.score], "score_bytes": options.score_bytes,
        })  # fmt: skip
        self.held = (
            lessons.read_scored(options.score, options.score_bytes) if options.score
            else lessons.read_held(files, options.held_out, options.score_bytes)
        )  # fmt: skip
        self._texts, self._files = texts, files
        self.student, self.parts = self._transplanted()
        self.steps = self._plan()
        distilled = sum(self._tokens(name) for name in STAGES[1:])
        self.sequences = self._sequences(self.lessons, -(-distilled // options.epochs))
        self._scores_path = out / "scores.json"
        self.scores: dict[str, dict[str, float]] = read_json(self._scores_path) if self._scores_path.exists() else {}
        self.console.print(
            f"layers {self.teacher.config.pattern()} become {self.config.pattern()}: "
            f"{self.config.num_parameters():,} parameters; {sum(map(len, self.sequences)):,} tokens, "
            f"{sum(map(len, self.held.values()))} texts held out"
        )

    def _transplanted(self) -> tuple[Lfm2, dict[str, torch.nn.Module]]:
        student, parts = transplant(self.teacher, self.config, seed=self.options.seed)
        return student.to(self.device), parts

    def _sequences(self, folder: Path, wanted: int) -> list[np.ndarray]:
        """The ids that this run reads, kept in `folder`; where the texts end before `wanted` tokens it starts again."""
        folder.mkdir(parents=True, exist_ok=True)
        wanted = max(wanted, self._tokens("fit"))
        same_settings(folder, {**self._texts, "tokens": wanted})
        t = self._texts
        return lessons.sequences(
            folder / "sequences.npz", self._files, self.tokenizer, wanted=wanted, length=t["length"], seed=t["seed"],
            share=t["held_out"],
        )  # fmt: skip

    def _tokens(self, name: str) -> int:
        return self.steps[name] * self.options.rows * self.options.length

    def _plan(self) -> dict[str, int]:
        """Updates of each stage: as asked, or as many as the hours have room for, by the time of a few."""
        o, path = self.options, self.out / "steps.json"
        self.steps = dict(zip(STAGES, o.steps, strict=True))
        if o.hours is None:
            return self.steps
        if not path.exists():
            self.steps = dict.fromkeys(STAGES, PROBED)
            seconds = self._probe()
            reading = seconds["capture"] / o.epochs
            self.steps = {
                name: max(1, round(share * 3600 * o.hours / (seconds[name] + (name != "fit") * reading)))
                for name, share in SHARES.items()
            }
            write_json(path, {"steps": self.steps, "seconds": seconds})
        return dict(read_json(path)["steps"])

    def _probe(self) -> dict[str, float]:
        """Seconds of an update of each stage, and of capturing the tokens of one; the student is as before."""
        folder, seconds = self.out / "probe", {}
        shutil.rmtree(folder, ignore_errors=True)
        self.sequences = self._sequences(folder, self._tokens("all"))
        begun = time.perf_counter()
        store = self._captured(folder / "store", self.sequences)
        seconds["capture"] = (time.perf_counter() - begun) * self.options.rows * self.options.length / store.tokens
        for name in STAGES:
            times: list[float] = []
            self._train(
                name, None if name == "fit" else store, hooks=[lambda _, t=times: t.append(time.perf_counter())]
            )
            if len(times) < PROBED:
                raise OutOfTime
            seconds[name] = (times[-1] - times[0]) / (PROBED - 1)
        self.student, self.parts = self._transplanted()
        shutil.rmtree(folder)
        told = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        self.console.print(f"seconds an update: {told}", highlight=False)
        return seconds

    def measure(self, name: str, when: str, model: Lfm2 | None = None) -> None:
        """Bits per byte of each kind of held-out text, printed and kept in OUT/scores.json; done once."""
        if name in self.scores:
            return
        self.scores[name] = {
            kind.removeprefix(f"{PREFIX}/"): score
            for kind, score in self._judge(self.held)(model or self.student).items()
            if kind != f"{PREFIX}/mean"
        }
        write_json(self._scores_path, self.scores)
        told = ", ".join(f"{kind} {score:.3f}" for kind, score in self.scores[name].items())
        self.console.print(f"bits per byte {when}: {told}", highlight=False)

    def _judge(self, texts: Mapping[str, Sequence[str]]) -> HeldOut:
        length = self.options.length
        overlap = max(1, length // 8)
        return HeldOut(self.tokenizer, texts, autocast=self.fast, window=length, overlap=overlap, forward=run_head)

    def capture(self) -> TeacherStore:
        """What the teacher expects after every token of the texts, on disk."""
        return self._captured(self.lessons / "teacher", self.sequences)

    def _reader(self) -> Lfm2 | Engine:
        """The teacher on what reads it fastest: on a CPU, if it is a file that the native engine takes, that."""
        path = Path(self.options.teacher)
        if self.device.type != "cpu" or path.suffix != ".gguf":
            return self.teacher
        threads = torch.get_num_threads()
        return Engine.from_pretrained(path, threads=threads, max_sequences=1, cache_bytes=0, logits_at_once=128)

    def _captured(self, folder: Path, sequences: Sequence[np.ndarray]) -> TeacherStore:
        mark, c = capturing.fingerprint(self.tokenizer), self.teacher.config
        card = Card(Path(self.options.teacher).name, mark, c.vocab_size, min(lessons.TOP_K, c.vocab_size))
        told = lessons.Told("teacher", sum(map(len, sequences)), self.console, self.deadline)
        lessons.capture(folder, card, sequences, self._reader(), autocast=self.fast, on_tokens=told)
        store = TeacherStore(folder)
        store.check(mark, c.vocab_size)
        return store

    def stage(self, name: str, store: TeacherStore | None) -> Result:
        """Run one stage, or what is left of it."""
        few = {kind: list(lessons.first(texts, self.options.evaluate_bytes)) for kind, texts in self.held.items()}
        judge = self._judge(few)
        samples = None if store is None else Samples(self.student, self.tokenizer, PROMPTS)
        with Follow(self.out, name, model=self.student, console=self.console, samples=samples) as follow:
            return self._train(
                name, store, hooks=[follow], checkpoint=self.out / f"{name}.checkpoint",
                evaluate=lambda _: judge(self.student),
            )  # fmt: skip

    def _train(
        self, name: str, store: TeacherStore | None, *, hooks: Sequence[Any], checkpoint: Path | None = None,
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    ) -> Result:  # fmt: skip
        o, steps = self.options, self.steps[name]
        self._free(name)
        model = Layerwise(self.teacher, self.parts) if store is None else self.student
        documents = self.sequences if store is None else store.sequences()
        batches = PackedBatches(
            (Document(ids.tolist()) for ids in documents), rows=o.rows, length=o.length, seed=o.seed,
            pad_id=self.tokenizer.pad_id or 0, columns=None if store is None else partial(lessons.columns, store),
            shuffle=False,
        )  # fmt: skip
        objective = layer_error if store is None else OBJECTIVE
        schedule, optimizer = Cosine(steps=steps, warmup=int(WARMUP * steps), final=0.02), adamw(model, lr=PEAK[name])
        if checkpoint is not None:
            self.console.print(
                f"[bold]{name}[/bold]: {steps} updates of {o.rows} x {o.length} tokens; {describe(optimizer)}"
            )
        return train(
            model, batches, objective, optimizer, schedule, forward=run_head, hooks=hooks, evaluate=evaluate,
            plan=Plan(
                steps=steps, autocast=self.fast, save_every=SAVE_EVERY, seconds=self.deadline.left,
                evaluate_every=EVALUATE_EVERY if evaluate else 0,
            ),
            checkpoint=checkpoint, identity={"stage": name, "schedule": repr(schedule)},
        )  # fmt: skip

    def _free(self, name: str) -> None:
        """What the stage trains. The embedding and the head never are: the teacher's are right for these words."""
        self.student.requires_grad_(name == "all")
        self.student.embed_tokens.requires_grad_(False)
        if not self.student.config.tie_embeddings:
            self.student.lm_head.requires_grad_(False)
        for part in self.parts.values():
            part.requires_grad_(True)


def hybridize(teacher: str, files: Sequence[Path], out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every stage; the report that is also written to OUT/report.json. OUT/model is a Hugging Face-format directory."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _stages(Run(teacher, files, out, options))
    except OutOfTime:
        (options.console or Console()).print("stopped while the teacher reads; the same command goes on from there")
        return {"finished": False, "stage": "capture", "step": 0}


def _stages(run: Run) -> dict[str, Any]:
    out = run.out
    if (out / "report.json").exists():
        return dict(read_json(out / "report.json"))
    run.measure("teacher", "of the teacher", run.teacher)
    run.measure("transplanted", "transplanted")
    store: TeacherStore | None = None
    tokens, seconds = 0, 0.0
    for name, steps in run.steps.items():
        if not steps:
            continue
        if name != "fit" and store is None:
            store = run.capture()
        result = run.stage(name, store)
        tokens, seconds = tokens + result.done.tokens, seconds + result.done.seconds
        if not result.finished:
            run.console.print(f"stopped at update {result.done.step} of {name}; the same command goes on from there")
            return {"finished": False, "stage": name, "step": result.done.step}
        run.measure(name, f"after {name}")
    logs = {name: read_log(out / f"{name}.jsonl") for name in STAGES if (out / f"{name}.jsonl").exists()}
    if logs:
        plot_losses(logs, out / "loss.png")
    run.student.save_pretrained(out / "model")
    run.tokenizer.save(out / "model")
    c = run.student.config
    report = {
        "finished": True, "layers": c.pattern(), "parameters": c.num_parameters(), "bits_per_byte": run.scores,
        "tokens": tokens, "seconds": seconds,
        "kv_share": c.pattern().count("A") / max(run.teacher.config.pattern().count("A"), 1),
    }  # fmt: skip
    write_json(out / "report.json", report)
    return report


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 products on a GPU and where the processor has matrix tiles for them; elsewhere it is slower than fp32."""
    return torch.bfloat16 if device.type != "cpu" or torch.cpu._is_amx_tile_supported() else None


def _layers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _steps(text: str) -> list[int]:
    steps = [int(word) for word in text.split(",")]
    if len(steps) != len(STAGES) or min(steps) < 0:
        raise argparse.ArgumentTypeError(f"one number for each stage ({', '.join(STAGES)}), such as 400,800,800")
    return steps


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser("headwater hybridize", description="Turn a transformer into an LFM2-style hybrid.")
    lessons.add_arguments(p)
    p.add_argument("--keep", type=_layers, help="layers that keep attention, such as 2,5,8 (default: every third)")
    p.add_argument("--width", type=int, default=3, help="of the convolutions (default: %(default)s)")
    p.add_argument("--qk-norm", action="store_true", help="normalise queries and keys, as LFM2 itself does")
    p.add_argument("--steps", type=_steps, default=list(STEPS.values()), help="of fit, mixers, all: 400,800,800")
    p.add_argument("--hours", type=float, help="of the whole in place of --steps; a short trial says how many fit in")
    p.add_argument("--epochs", type=int, default=1, help="that distillation reads a text (default: %(default)s)")
    p.add_argument("--held-out", type=float, default=0.02, help="share of the texts (default: %(default)s)")
    p.add_argument("--score", nargs="*", type=Path, default=[], help="files of held-out texts instead, measured apart")
    p.add_argument("--score-bytes", type=int, default=60_000, help="measured of each kind (default: %(default)s)")
    p.add_argument("--evaluate-bytes", type=int, default=8_000, help="the same during a stage (default: %(default)s)")
    p.add_argument("--lessons", type=Path, help="folder of ids and the teacher's word that runs share (default: OUT's)")
    p.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    o = p.parse_args(arguments, argparse.Namespace(console=console))
    if o.hours is not None and not o.hours > 0:
        raise ValueError(f"--hours is {o.hours}; the time of the whole must be above 0")
    if o.epochs < 1:
        raise ValueError(f"--epochs is {o.epochs}; each text is read once at least")
    return hybridize(o.teacher, o.files, o.out, o)


if __name__ == "__main__":
    main()
