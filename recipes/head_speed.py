"""What distillation costs over plain cross-entropy: output projection and loss, forward and backward, at one shape.

Each side in its own process, the sides in turns: cross-entropy from logits that are all there, the fused one, and the
fused one with a distillation loss from 32 teacher ids a token. Seconds, and memory beyond what the tensors take.

    python -m recipes.head_speed [--tokens 4096] [--words 65536] [--width 1024] [--turns 3] [--threads 2]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from headwater.objectives.distill import KINDS, distill
from headwater.objectives.next_token import next_token
from headwater.ops.head_loss import Head

TOP_K = 32
SIDES = ("all logits", "cross-entropy", *KINDS)


def made(tokens: int, words: int, width: int) -> tuple[Head, dict[str, Tensor]]:
    """A head of bf16 states and weights that want gradients, and a batch with a teacher's word on it."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens + 1, width, generator=g).bfloat16().requires_grad_()
    weight = (torch.randn(words, width, generator=g) * width**-0.5).bfloat16().requires_grad_()
    first, apart = torch.randint(words, (1, tokens + 1, 1), generator=g), torch.arange(TOP_K) * (words // TOP_K)
    said = torch.randn(1, tokens + 1, TOP_K, generator=g).sort(-1, descending=True).values.log_softmax(-1)
    batch = {
        "input_ids": torch.randint(words, (1, tokens + 1), generator=g), "teacher_ids": (first + apart) % words,
        "teacher_logprobs": said - 0.1, "teacher_counts": torch.ones(1, tokens + 1, TOP_K),
    }  # fmt: skip
    return Head(hidden, weight), batch


def step_of(side: str) -> Callable[[Head, dict[str, Tensor]], Tensor]:
    """(head, batch) -> the loss of one side."""
    if side == "all logits":
        return lambda head, batch: F.cross_entropy(head.logits()[0, :-1].float(), batch["input_ids"][0, 1:])
    if side == "cross-entropy":
        return lambda head, batch: next_token(head, batch)[0]
    loss = partial(distill, kind=side, temperature=1.0 if side == "sampled" else 2.0)
    return lambda head, batch: loss(head, batch)[0]


def measure(side: str, o: argparse.Namespace) -> dict[str, float]:
    """Median seconds of forward and backward, and peak bytes beyond those before the first."""
    torch.set_num_threads(o.threads)
    (hidden, weight), batch = made(o.tokens, o.words, o.width)
    step, seconds = step_of(side), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(o.steps + 1):
        hidden.grad = weight.grad = None
        begun = time.perf_counter()
        step(Head(hidden, weight), batch).backward()
        seconds.append(time.perf_counter() - begun)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[1:]), "memory": float(peak - before) * unit}


def compare(o: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every side in turns; seconds, memory and the cost over plain cross-entropy by side."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in o.sides}
    for _ in range(o.turns):
        for side in o.sides:
            sizes = [f"--{name}={getattr(o, name)}" for name in ("tokens", "words", "width", "steps", "threads")]
            command = [sys.executable, "-m", "recipes.head_speed", *sizes, "--side", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[side].append(json.loads(done.stdout))
    found = {
        side: {"seconds": statistics.median(r["seconds"] for r in of), "memory": max(r["memory"] for r in of)}
        for side, of in runs.items()
    }
    plain = found.get("cross-entropy", next(iter(found.values())))
    table = Table("loss", "seconds", "over cross-entropy", "memory", "more than cross-entropy")
    for side, of in found.items():
        of["over"] = of["seconds"] / plain["seconds"] - 1.0
        more = of["memory"] - plain["memory"]
        table.add_row(side, f"{of['seconds']:.2f}", f"{of['over']:+.1%}", f"{of['memory'] / 1e9:.3f} GB",
                      f"{more / 1e6:+,.0f} MB")  # fmt: skip
    title = f"{o.tokens:,} tokens, {o.words:,} words, width {o.width:,}, bf16, forward and backward"
    console.print(f"{title}; {o.threads} threads, {o.turns} processes a side in turns", table)
    return found


def main(arguments: list[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=4096, help="with a target (default: %(default)s)")
    p.add_argument("--words", type=int, default=65_536, help="of the vocabulary (default: %(default)s)")
    p.add_argument("--width", type=int, default=1024, help="of the hidden states (default: %(default)s)")
    p.add_argument("--steps", type=int, default=2, help="counted, after one that is not (default: %(default)s)")
    p.add_argument("--turns", type=int, default=3, help="processes a side (default: %(default)s)")
    p.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    p.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    p.add_argument("--side", choices=SIDES, help="measure this side alone, here, and print it as JSON")
    o = p.parse_args(arguments)
    if o.side is None:
        return compare(o, console or Console())
    alone = measure(o.side, o)
    print(json.dumps(alone))
    return dict(alone)


if __name__ == "__main__":
    main()
