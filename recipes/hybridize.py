"""Turn a pre-trained transformer into an LFM2-style hybrid: most attention layers become gated short convolutions.

Embedding, feed-forward parts, norms and the chosen attention layers stay. The others are first fitted layer by layer
to the teacher's hidden states, then the whole is distilled (decoupled Top-K and next token): the mixers alone, and at
last everything. A run that was stopped goes on where it was.

    headwater hybridize TEACHER TEXT... --out DIR [--keep 2,5,8] [--help]
"""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from headwater.chat import Chat, style_of
from headwater.config import Attention, Config, Layer, ShortConv
from headwater.data import capture as capturing
from headwater.data.pack import Document, PackedBatches
from headwater.data.sources import column, files_of, read_rows
from headwater.data.split import held_out
from headwater.data.teacher_store import Card, TeacherStore, Writer
from headwater.evals.bits_per_byte import bits_per_byte
from headwater.files import read_json, write_json
from headwater.model import MIXERS, Lfm2
from headwater.objectives.distill import distill
from headwater.tokenizer import Tokenizer
from headwater.train.layerwise import Layerwise, layer_error
from headwater.train.loop import Plan, Result, run_head, run_model, train
from headwater.train.optim import adamw, describe
from headwater.train.progress import JsonLog, ProgressBar, plot_losses, read_log
from headwater.train.schedule import Cosine

STAGES = ("fit", "mixers", "all")
PEAK = {"fit": 2e-3, "mixers": 1e-3, "all": 1e-4}
STEPS = {"fit": 400, "mixers": 800, "all": 800}
WARMUP, SAVE_EVERY = 0.03, 50
TOP_K, TEMPERATURE = 32, 1.0
LABEL_WEIGHT, TEACHER_WEIGHT = 0.2, 0.8
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


def read_documents(
    files: Sequence[Path], tokenizer: Tokenizer, *, share: float
) -> tuple[list[list[int]], dict[str, list[str]]]:
    """(documents of ids to train on, texts held out by their hash, under the name "held-out").

    `text` fields, and `messages` written by the tokenizer's chat template; conversations are not scored.
    """
    chat: Chat | None = None
    seen: list[list[int]] = []
    held: list[str] = []
    end = list(tokenizer.eos_ids[:1])
    for file in files_of(files):
        for row in read_rows(file):
            if "messages" in row:
                if chat is None:
                    chat = Chat(tokenizer, style_of(tokenizer.chat_template or ""))
                seen.append(chat.render(row["messages"]).encode()[0])
            elif not isinstance(text := row.get("text"), str):
                raise ValueError(f"{file}: a row has neither 'text' nor 'messages'; it has {', '.join(row)}")
            elif held_out(str(row.get("title", text)), share):
                held.append(text)
            else:
                seen.append(tokenizer.encode(text, bos=tokenizer.add_bos) + end)
    if not seen or (share and not held):
        raise ValueError(f"{len(seen)} texts to train on and {len(held)} held out; both are needed: give more text")
    return seen, {"held-out": held} if held else {}


def read_scored(files: Sequence[Path]) -> dict[str, list[str]]:
    """The texts to be measured on, under the name of their file. ValueError: a row without text, two of one name."""
    texts: dict[str, list[str]] = {}
    for file in files_of(files):
        name = file.name.split(".")[0]
        if name in texts:
            raise ValueError(f"two files to be measured on are named {name!r}; cure: rename one")
        texts[name] = list(column(read_rows(file), "text"))
        if not any(texts[name]):
            raise ValueError(f"{file} holds no text to be measured on")
    return texts


class Run:
    """One directory: the teacher, its student, the stages and what they left."""

    def __init__(self, teacher: str, files: Sequence[Path], out: Path, options: argparse.Namespace) -> None:
        self.out, self.options, self.console = out, options, options.console or Console()
        self.device = torch.device(options.device)
        self.fast = fast_dtype(self.device)
        loaded = Lfm2.from_pretrained(teacher, dtype=torch.float32, device=self.device)
        self.teacher = loaded.requires_grad_(False)
        self.tokenizer = Tokenizer.from_pretrained(teacher)
        layers = len(self.teacher.config.layers)
        keep = options.keep if options.keep is not None else range(EVERY - 1, layers, EVERY)
        c = hybrid_config(self.teacher.config, keep, width=options.width, qk_norm=options.qk_norm)
        _same_settings(out, {
            "teacher": str(teacher), "layers": c.pattern(), "width": options.width, "qk_norm": options.qk_norm,
            "seed": options.seed, "rows": options.rows, "length": options.length, "steps": options.steps,
            "files": [str(f) for f in files], "score": [str(f) for f in options.score],
        })  # fmt: skip
        self.student, self.parts = transplant(self.teacher, c, seed=options.seed)
        documents, self.held = read_documents(
            files, self.tokenizer, share=0.0 if options.score else options.held_out
        )  # fmt: skip
        self.held |= read_scored(options.score)
        self.sequences = list(capturing.cut(documents, options.length))
        self.console.print(
            f"layers {self.teacher.config.pattern()} become {c.pattern()}: {c.num_parameters():,} parameters; "
            f"{sum(map(len, self.sequences)):,} tokens, {sum(map(len, self.held.values()))} texts held out"
        )

    def measure(self, when: str, model: Lfm2 | None = None) -> dict[str, float]:
        """Print and return bits per byte of each kind of held-out text."""
        length = self.options.length
        with self.autocast():
            scores = {
                name: bits_per_byte(
                    model or self.student, self.tokenizer, texts, window=length, overlap=max(1, length // 8)
                )
                for name, texts in self.held.items()
            }
        told = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        self.console.print(f"bits per byte {when}: {told}", highlight=False)
        return scores

    def autocast(self) -> torch.autocast:
        """Products in bf16 where that is fast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast is not None)

    def capture(self) -> TeacherStore:
        """What the teacher expects after every token of the texts, on disk."""
        mark, c = capturing.fingerprint(self.tokenizer), self.teacher.config

        def run(ids: Sequence[int]) -> Any:
            with torch.inference_mode(), self.autocast():
                return self.teacher(torch.tensor([list(ids)], device=self.device))[0].float().cpu().numpy()

        card = Card(Path(self.options.teacher).name, mark, c.vocab_size, min(TOP_K, c.vocab_size))
        used = self.sequences[: self._needed()]
        with Writer(self.out / "teacher", card) as writer, self.console.status("capturing the teacher") as status:
            total, done = sum(map(len, used)), 0

            def told(tokens: int) -> None:
                nonlocal done
                done += tokens
                status.update(f"capturing the teacher: {done:,} of {total:,} tokens")

            capturing.capture(writer, used, run, on_tokens=told)
        store = TeacherStore(self.out / "teacher")
        store.check(mark, c.vocab_size)
        return store

    def _needed(self) -> int:
        """How many sequences the distilling stages will read at most."""
        o = self.options
        budget, count = (o.steps[1] + o.steps[2]) * o.rows * o.length, 0
        while count < len(self.sequences) and budget > 0:
            budget -= len(self.sequences[count])
            count += 1
        return count

    def stage(self, name: str, store: TeacherStore | None) -> Result:
        """Run one stage, or what is left of it."""
        o, steps = self.options, self.options.steps[STAGES.index(name)]
        self.student.requires_grad_(name == "all")
        for part in self.parts.values():
            part.requires_grad_(True)
        model = Layerwise(self.teacher, self.parts) if store is None else self.student
        documents = (Document(s) for s in self.sequences) if store is None else map(_document, store.sequences())
        batches = PackedBatches(
            documents, rows=o.rows, length=o.length, seed=o.seed, pad_id=self.tokenizer.pad_id or 0,
            columns=None if store is None else partial(taught, store),
        )  # fmt: skip
        objective = layer_error if store is None else partial(
            distill, temperature=TEMPERATURE, label_weight=LABEL_WEIGHT, teacher_weight=TEACHER_WEIGHT
        )  # fmt: skip
        schedule, optimizer = Cosine(steps=steps, warmup=int(WARMUP * steps), final=0.02), adamw(model, lr=PEAK[name])
        self.console.print(f"[bold]{name}[/bold]: {steps} steps of {o.rows} x {o.length} tokens; {describe(optimizer)}")
        with ProgressBar(name, console=self.console) as bar:
            return train(
                model, batches, objective, optimizer, schedule,
                plan=Plan(steps=steps, autocast=self.fast, save_every=SAVE_EVERY),
                forward=run_model if store is None else run_head,
                hooks=[bar, JsonLog(self.out / f"{name}.jsonl")],
                checkpoint=self.out / f"{name}.checkpoint", identity={"stage": name, "schedule": repr(schedule)},
            )  # fmt: skip


def hybridize(teacher: str, files: Sequence[Path], out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every stage; the report that is also written to OUT/report.json. OUT/model is a Hugging Face-format directory."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(teacher, files, out, options)
    if (out / "report.json").exists():
        return dict(read_json(out / "report.json"))
    scores = {"teacher": run.measure("of the teacher", run.teacher), "transplanted": run.measure("transplanted")}
    store: TeacherStore | None = None
    tokens, seconds = 0, 0.0
    for name, steps in zip(STAGES, options.steps, strict=True):
        if not steps:
            continue
        if name != "fit" and store is None:
            store = run.capture()
        result = run.stage(name, store)
        tokens, seconds = tokens + result.done.tokens, seconds + result.done.seconds
        if not result.finished:
            run.console.print(f"stopped at step {result.done.step} of {name}; the same command goes on from there")
            return {"finished": False, "stage": name, "step": result.done.step}
        scores[name] = run.measure(f"after {name}")
    logs = {name: read_log(out / f"{name}.jsonl") for name in STAGES if (out / f"{name}.jsonl").exists()}
    if logs:
        plot_losses(logs, out / "loss.png")
    run.student.save_pretrained(out / "model")
    run.tokenizer.save(out / "model")
    c = run.student.config
    report = {
        "finished": True, "layers": c.pattern(), "parameters": c.num_parameters(), "bits_per_byte": scores,
        "tokens": tokens, "seconds": seconds,
        "kv_share": c.pattern().count("A") / max(run.teacher.config.pattern().count("A"), 1),
    }  # fmt: skip
    write_json(out / "report.json", report)
    return report


def _document(ids: Any) -> Document:
    return Document(ids.tolist())


def taught(store: TeacherStore, start: int, stop: int) -> dict[str, torch.Tensor]:
    """What the teacher expects behind the tokens [start, stop), as the columns that objectives.distill reads."""
    t = store.range(start, stop)
    return {
        "teacher_ids": torch.from_numpy(t.ids), "teacher_logprobs": torch.from_numpy(t.logprobs),
        "teacher_mass": torch.from_numpy(t.mass),
    }  # fmt: skip


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 products on a GPU and where the processor has matrix tiles for them; elsewhere it is slower than fp32."""
    return torch.bfloat16 if device.type != "cpu" or torch.cpu._is_amx_tile_supported() else None


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists() and (before := read_json(path)) != settings:
        raise ValueError(f"{out} holds a run with {before}, this one has {settings}; cure: the same, or another --out")
    write_json(path, settings)


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
    p.add_argument("teacher", help="a model directory, a .gguf file or a hub id")
    p.add_argument("files", nargs="+", type=Path, help="files of 'text' or 'messages' (.jsonl, .gz, .zst), folders")
    p.add_argument("--out", type=Path, required=True, help="directory of the run")
    p.add_argument("--keep", type=_layers, help="layers that keep attention, such as 2,5,8 (default: every third)")
    p.add_argument("--width", type=int, default=3, help="of the convolutions (default: %(default)s)")
    p.add_argument("--qk-norm", action="store_true", help="normalise queries and keys, as LFM2 itself does")
    p.add_argument("--steps", type=_steps, default=list(STEPS.values()), help="of fit, mixers, all: 400,800,800")
    p.add_argument("--rows", type=int, default=4, help="of a batch (default: %(default)s)")
    p.add_argument("--length", type=int, default=512, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--held-out", type=float, default=0.02, help="share of the texts (default: %(default)s)")
    p.add_argument("--score", nargs="*", type=Path, default=[], help="files of held-out texts instead, measured apart")
    p.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args(arguments, argparse.Namespace(console=console))
    return hybridize(o.teacher, o.files, o.out, o)


if __name__ == "__main__":
    main()
