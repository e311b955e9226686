"""A training step beside transformers: forward and backward at one shape, the same weights, each side in its own
process, the sides in turns (A B A B); tokens per second, their ratio, and the peak memory of each process.

    python -m recipes.train_speed [--model LFM2-350M] [--rows 2] [--length 512] [--turns 2] [--threads 2]

Random weights: speed does not depend on their values. Both sides report their loss, and it must be the same. No
optimizer: it is torch's on either side.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from headwater.config import named
from headwater.model import Lfm2
from headwater.objectives.next_token import next_token
from headwater.train.loop import run_head
from recipes.plain_speed import make_peer

SIDES = ("headwater", "transformers")
MODES = ("bfloat16", "autocast", "float32")
"""Weights and products in bf16; weights in fp32 and products in bf16; both in fp32."""
APART = {"bfloat16": 2e-2, "autocast": 2e-2, "float32": 1e-4}


def step_of(side: str, model: Lfm2, ids: torch.Tensor) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """(the module that gets the gradients, one forward and backward of `side` over the weights of `model`, which gives
    the loss)."""
    if side == "headwater":
        model.train()
        batch = {"input_ids": ids}

        def ours() -> torch.Tensor:
            loss, _ = next_token(run_head(model, batch), batch)
            loss.backward()
            return loss

        return model, ours
    peer = make_peer(model).train()

    def theirs() -> torch.Tensor:
        loss = peer(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss

    return peer, theirs


def measure(side: str, name: str, mode: str, rows: int, length: int, steps: int, recompute: bool) -> dict[str, float]:
    """Median seconds of a step, its loss, and the memory of this process: before the first step and at the peak."""
    model = Lfm2(named(name), dtype=torch.bfloat16 if mode == "bfloat16" else torch.float32)
    model.recompute = recompute
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    module, step = step_of(side, model, ids)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps + 1):
        module.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = step().item()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": statistics.median(seconds[1:]), "loss": loss,
        "before": before * unit, "peak": peak * unit, "parameters": model.config.num_parameters(),
    }  # fmt: skip


def in_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a fresh process."""
    flags = ["--recompute"] if options.recompute and side == SIDES[0] else []
    for flag in ("model", "mode", "rows", "length", "steps", "threads"):
        flags += [f"--{flag}", str(getattr(options, flag))]
    command = [sys.executable, "-m", "recipes.train_speed", "--side", side, *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both sides in turns; medians over the processes."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.turns):
        for side in SIDES:
            runs[side].append(in_process(side, options))
    losses = [runs[side][0]["loss"] for side in SIDES]
    assert abs(losses[0] - losses[1]) < APART[options.mode] * losses[1], f"not the same computation: losses {losses}"
    tokens, found = options.rows * options.length, {}
    for side in SIDES:
        seconds = statistics.median(run["seconds"] for run in runs[side])
        found[side] = {
            "tokens_per_second": tokens / seconds,
            "teraflops": 6 * runs[side][0]["parameters"] * tokens / seconds / 1e12,
            "peak": max(run["peak"] for run in runs[side]),
            "loss": runs[side][0]["loss"],
        }
    ours, peer = (found[side] for side in SIDES)
    speed, memory = ours["tokens_per_second"] / peer["tokens_per_second"], ours["peak"] / peer["peak"]
    table = Table("side", "tokens/s", "TFLOP/s (6N)", "peak memory", "loss")
    for side in SIDES:
        f = found[side]
        speeds = f"{f['tokens_per_second']:.0f}", f"{f['teraflops']:.2f}"
        table.add_row(side, *speeds, f"{f['peak'] / 1e9:.2f} GB", f"{f['loss']:.4f}")
    table.add_row("ratio", f"{speed:.2f}", "", f"{memory:.2f}", "")
    title = f"{options.model}, {options.mode}, forward and backward of {options.rows} x {options.length} tokens"
    console.print(f"{title}; {options.threads} threads, {options.turns} processes a side in turns", table)
    return {"found": found, "speed": speed, "memory": memory}


def main(arguments: list[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """The command line of this recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="LFM2-350M", help="a row of MODELS (default: %(default)s)")
    p.add_argument("--mode", choices=MODES, default=MODES[0], help="of weights and products (default: %(default)s)")
    p.add_argument("--rows", type=int, default=2, help="(default: %(default)s)")
    p.add_argument("--length", type=int, default=512, help="of a row in tokens (default: %(default)s)")
    p.add_argument("--steps", type=int, default=3, help="counted, after one that is not (default: %(default)s)")
    p.add_argument("--turns", type=int, default=2, help="processes a side (default: %(default)s)")
    p.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    p.add_argument("--recompute", action="store_true", help="headwater keeps the input of each layer alone")
    p.add_argument("--side", choices=SIDES, help="measure this side alone, here, and print it as JSON")
    o = p.parse_args(arguments)
    if o.side is None:
        return compare(o, console or Console())
    torch.set_num_threads(o.threads)
    alone = measure(o.side, o.model, o.mode, o.rows, o.length, o.steps, o.recompute)
    print(json.dumps(alone))
    return dict(alone)


if __name__ == "__main__":
    main()
