"""The whole life of a tiny LFM2 on a CPU in minutes: tokenizer, pre-training, SFT, save, load, talk.

Real text, every part of the library that a large model passes through, nothing tuned for looks. Each stage is one
function; a run that was stopped goes on where it was when started again with the same settings. Same seed, same
machine: same model.

    python -m recipes.smoke [--out DIR] [--seed N] [--steps N] [--fresh]
"""

import argparse
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from headwater.chat import LFM2_TEMPLATE, Chat
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.conversations import encode_conversations
from headwater.data.pack import Document, PackedBatches
from headwater.data.sources import column, read_rows
from headwater.data.split import split
from headwater.evals.bits_per_byte import bits_per_byte
from headwater.files import read_json, write_json
from headwater.generate import generate
from headwater.model import Lfm2
from headwater.objectives.next_token import next_token
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer
from headwater.train.follow import Follow
from headwater.train.loop import Plan, Result, train
from headwater.train.optim import adamw, describe
from headwater.train.progress import plot_losses, read_log
from headwater.train.schedule import WSD, Cosine

DATA = Path(__file__).parent / "data"
TEXTS = ("wiki_en.jsonl", "parallel.jsonl")
CHATS = {"chat_wiki.jsonl": 1, "chat_everyday.jsonl": 16}  # file: how often each of its conversations is seen an epoch
HELD_OUT = 0.02

VOCABULARY = 4096
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 192, 6, 2, 32, 512
LAYERS = "CCACAC"
CONTEXT = 1024

STEPS, SFT_STEPS = 800, 160  # SFT keeps this proportion when --steps changes
ROWS, LENGTH = 4, 256
PEAK, SFT_PEAK = 6e-3, 2e-3
WARMUP, DECAY = 0.03, 0.4  # shares of the steps
SAVE_EVERY = 100

PROMPTS = ("The river", "Paris is", "In mathematics,")
QUESTIONS = ("Hello!", "What is Jupiter?", "Who are you?")
SAMPLING = SamplingParams(max_tokens=60, temperature=0.3, min_p=0.1, repetition_penalty=1.05, seed=1)


@dataclass(frozen=True)
class Data:
    """Texts and conversations to train on, and held-out texts by kind ("English", "nine languages")."""

    texts: list[str]
    chats: list[list[dict[str, Any]]]
    held_out: dict[str, list[str]]


def read_data() -> Data:
    """Read the shipped slices and hold documents out by title, so that a held-out article's question is left out
    too.
    """
    if not DATA.is_dir():
        raise ValueError(f"{DATA} is missing: its share-alike texts are not in the wheel; run this recipe from a clone")
    rows = [row for name in TEXTS for row in read_rows(DATA / name)]
    seen, held = split(rows, _title, HELD_OUT)
    chats = []
    for name, repeats in CHATS.items():
        kept, _ = split(read_rows(DATA / name), _title, HELD_OUT)
        chats += list(column(kept, "messages", list)) * repeats
    english = [row["text"] for row in held if "lang" not in row]
    other = [row["text"] for row in held if "lang" in row]
    return Data(list(column(seen, "text")), chats, {"English": english, "nine languages": other})


def _title(row: dict[str, Any]) -> str:
    return row["title"]


def make_tokenizer(data: Data, out: Path) -> Tokenizer:
    """Learn the vocabulary from the training texts, or load the one an earlier start of this run made."""
    if (out / "tokenizer").exists():
        return Tokenizer.from_pretrained(out / "tokenizer")
    tokenizer = Tokenizer.train(data.texts, VOCABULARY, pad_to=VOCABULARY)
    tokenizer.chat_template = LFM2_TEMPLATE
    tokenizer.save(out / "tokenizer")
    return tokenizer


def make_model(tokenizer: Tokenizer, seed: int) -> Lfm2:
    """About three million parameters in the family's form: two convolutions first, one last, few KV heads, a tied
    head.
    """
    attention = Attention(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, rope=Rope(theta=1e4))
    config = Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        layers=stack(LAYERS, {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=FFN)),
        max_positions=CONTEXT,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
    )
    return Lfm2(config, generator=torch.Generator().manual_seed(seed))


def pretrain(
    model: Lfm2, tokenizer: Tokenizer, data: Data, out: Path, *, steps: int, seed: int, console: Console
) -> Result:
    """Next-token prediction on packed articles: warm-up, a flat stretch, a decay to zero."""
    end = tokenizer.eos_ids[0]
    documents = (Document([*ids, end]) for ids in tokenizer.encode_batch(data.texts, bos=True))
    batches = PackedBatches(documents, rows=ROWS, length=LENGTH, seed=seed, pad_id=tokenizer.pad_id or 0)
    schedule = WSD(steps=steps, warmup=int(WARMUP * steps), decay=int(DECAY * steps))
    return _stage("pretrain", model, batches, PEAK, schedule, out, steps=steps, seed=seed, console=console)


def finetune(
    model: Lfm2, tokenizer: Tokenizer, data: Data, out: Path, *, steps: int, seed: int, console: Console
) -> Result:
    """SFT on whole conversations, learning only what the assistant says."""
    documents = encode_conversations(data.chats, Chat(tokenizer, style="lfm2"), longest=LENGTH)
    batches = PackedBatches(documents, rows=ROWS, length=LENGTH, seed=seed, pad_id=tokenizer.pad_id or 0, whole=True)
    schedule = Cosine(steps=steps, warmup=int(WARMUP * steps), final=0.0)
    return _stage("sft", model, batches, SFT_PEAK, schedule, out, steps=steps, seed=seed, console=console)


def _stage(
    name: str,
    model: Lfm2,
    batches: PackedBatches,
    peak: float,
    schedule: Callable[[int], float],
    out: Path,
    *,
    steps: int,
    seed: int,
    console: Console,
) -> Result:
    """Run one stage of training with its progress bar, log, page and checkpoint."""
    optimizer = adamw(model, lr=peak)
    checkpoint = out / f"{name}.checkpoint"
    console.print(f"[bold]{name}[/bold]: {steps} steps of {ROWS} x {LENGTH} tokens; {describe(optimizer)}")
    if checkpoint.exists():
        console.print(f"going on from {checkpoint}")
    with Follow(out, name, model=model, console=console) as follow:
        return train(
            model,
            batches,
            next_token,
            optimizer,
            schedule,
            plan=Plan(steps=steps, autocast=_fast_dtype(), save_every=SAVE_EVERY),
            hooks=[follow],
            checkpoint=checkpoint,
            identity={"stage": name, "schedule": repr(schedule), "peak": peak, "seed": seed},
        )


def _fast_dtype() -> torch.dtype | None:
    """bf16 products where the processor has matrix tiles for them; elsewhere bf16 is slower than fp32."""
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None


def measure(model: Lfm2, tokenizer: Tokenizer, data: Data, console: Console, when: str) -> dict[str, float]:
    """Print and return held-out bits per byte of each kind of text."""
    scores = {kind: bits_per_byte(model, tokenizer, texts) for kind, texts in data.held_out.items()}
    console.print(f"held-out bits per byte {when}: " + ", ".join(f"{kind} {s:.3f}" for kind, s in scores.items()))
    return scores


def talk(model: Lfm2, tokenizer: Tokenizer, console: Console) -> dict[str, str]:
    """Complete PROMPTS as plain text and answer QUESTIONS as chat; returns prompt -> text."""
    chat = Chat(tokenizer, style="lfm2")
    prompts = [tokenizer.encode(text, bos=True) for text in PROMPTS]
    for question in QUESTIONS:
        rendered = chat.render([{"role": "user", "content": question}], add_generation_prompt=True)
        prompts.append(rendered.encode()[0])
    completions = generate(model, prompts, SAMPLING, tokenizer=tokenizer)
    answers = {text: done.text.strip() for text, done in zip((*PROMPTS, *QUESTIONS), completions, strict=True)}
    for text, answer in answers.items():
        console.print(f"[bold]{text}[/bold] {answer}", highlight=False)
    return answers


def main(
    out: str | Path = "runs/smoke",
    seed: int = 0,
    steps: int = STEPS,
    *,
    fresh: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run every stage and return the report that is also written to OUT/report.json.

    OUT also gets `model/` (a Hugging Face directory with the tokenizer), the logs, loss.png and the checkpoints. A stop
    (Ctrl-C) leaves a checkpoint and returns {"finished": False}. ValueError if OUT belongs to a run with other
    settings.
    """
    console, out = console or Console(), Path(out)
    if fresh:
        _start_over(out)
    _same_settings(out, {"seed": seed, "steps": steps})
    data = read_data()
    tokenizer = make_tokenizer(data, out)
    model = make_model(tokenizer, seed)
    size = sum(len(text.encode()) for text in data.texts)
    console.print(
        f"{model.config.num_parameters():,} parameters, layers {model.config.pattern()}; "
        f"{len(data.texts):,} texts, {size:,} bytes; {len(data.chats):,} conversations"
    )
    scores = {"start": measure(model, tokenizer, data, console, "before training")}
    results = []
    for name, stage, count in (("pretrain", pretrain, steps), ("sft", finetune, max(1, steps * SFT_STEPS // STEPS))):
        result = stage(model, tokenizer, data, out, steps=count, seed=seed, console=console)
        if not result.finished:
            console.print(f"stopped at step {result.done.step} of {name}; the same command goes on from there")
            return {"finished": False, "stage": name, "step": result.done.step}
        results.append(result)
        scores[name] = measure(model, tokenizer, data, console, f"after {name}")
    plot_losses({name: read_log(out / f"{name}.jsonl") for name in ("pretrain", "sft")}, out / "loss.png")
    model.save_pretrained(out / "model")
    tokenizer.save(out / "model")
    loaded = Lfm2.from_pretrained(out / "model")
    answers = talk(loaded, Tokenizer.from_pretrained(out / "model"), console)
    report = _report(model, scores, results, answers)
    write_json(out / "report.json", report)
    console.print(
        f"{report['tokens']:,} tokens at {report['tokens_per_second']:,.0f} a second; model in {out / 'model'}, "
        f"losses in {out / 'loss.png'}, pages of the stages beside it"
    )
    return report


def _start_over(out: Path) -> None:
    """Remove what an earlier run left in `out`, and nothing else that may lie there."""
    for name in (
        "settings.json",
        "pretrain.checkpoint",
        "pretrain.jsonl",
        "pretrain.html",
        "sft.checkpoint",
        "sft.jsonl",
        "sft.html",
        "report.json",
    ):
        (out / name).unlink(missing_ok=True)
    for name in ("tokenizer", "model"):
        shutil.rmtree(out / name, ignore_errors=True)


def _same_settings(out: Path, settings: dict[str, int]) -> None:
    path = out / "settings.json"
    if path.exists() and (before := read_json(path)) != settings:
        raise ValueError(
            f"{out} holds a run with {before}, this one has {settings}; "
            "cure: the same settings, another --out, or --fresh"
        )
    write_json(path, settings)


def _report(model: Lfm2, scores: Any, results: Iterable[Result], answers: dict[str, str]) -> dict[str, Any]:
    done = [result.done for result in results]
    tokens, seconds = sum(d.tokens for d in done), sum(d.seconds for d in done)
    return {
        "finished": True,
        "parameters": model.config.num_parameters(),
        "loss": {"pretrain": done[0].metrics["loss"], "sft": done[1].metrics["loss"]},
        "bits_per_byte": scores,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "answers": answers,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The whole life of a tiny LFM2 on a CPU.")
    parser.add_argument("--out", default="runs/smoke", help="directory of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data order (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of pre-training (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    main(**vars(parser.parse_args()))
