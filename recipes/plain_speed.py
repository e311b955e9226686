"""The plain torch path beside transformers: same weights, same process, in turns; medians and their ratio.

    python -m recipes.plain_speed [--model LFM2-350M] [--rounds 5] [--threads 2]

Random weights: speed does not depend on their values. Not the native engine's benchmark.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from headwater import optional
from headwater.checkpoint.huggingface import config_dict
from headwater.config import named
from headwater.model import Lfm2

PROMPT = 512
DECODE = 32


def make_peer(ours: Lfm2) -> nn.Module:
    """transformers' model over the same tensors (shared, not copied)."""
    transformers = optional.load("transformers", extra="dev")
    values, names = config_dict(ours.config)
    tensors = {names.theirs(name): tensor for name, tensor in ours.state_dict().items()}
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    absent = peer.load_state_dict(tensors, strict=False, assign=True).missing_keys
    assert set(absent) <= {"lm_head.weight"}, absent
    peer.tie_weights()
    peer.model.rotary_emb.__init__(peer.config)  # its tables were left on the meta device
    return peer.eval()


def run_ours(model: Lfm2, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of a prefill of `ids` (1, t) and of DECODE greedy steps after it."""
    start = time.perf_counter()
    cache = model.new_cache()
    cache.reserve(ids.shape[1] + DECODE)
    logits = model.head(model.hidden(ids, cache=cache)[:, -1:]).logits()
    middle = time.perf_counter()
    for _ in range(DECODE):
        logits = model(logits.argmax(-1), cache=cache)
    return middle - start, time.perf_counter() - middle


def run_peer(model: nn.Module, ids: torch.Tensor) -> tuple[float, float]:
    """The same through transformers' forward and its own cache."""
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(DECODE):
        out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    return middle - start, time.perf_counter() - middle


@torch.inference_mode()
def compare(name: str, dtype: torch.dtype, rounds: int) -> list[tuple[str, float, float]]:
    """(what, our median tokens/s, the peer's) for prefill and decode; one discarded round first."""
    ours = Lfm2(named(name), dtype=dtype)
    peer = make_peer(ours)
    ids = torch.randint(ours.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    logits, expected = ours(ids[:, :64]).float(), peer(ids[:, :64]).logits.float()
    off = ((logits - expected).norm() / expected.norm()).item()
    assert off < (1e-4 if dtype == torch.float32 else 0.1), f"the two do not compute the same: {off:.2g} apart"
    sides: list[Callable[[], tuple[float, float]]] = [lambda: run_ours(ours, ids), lambda: run_peer(peer, ids)]
    taken: list[list[tuple[float, float]]] = [[], []]
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):  # who goes first after the other's decoding is slower
            seconds = sides[side]()
            if turn:
                taken[side].append(seconds)
    medians = [[statistics.median(x[i] for x in side) for i in (0, 1)] for side in taken]
    return [
        (f"prefill {PROMPT}", PROMPT / medians[0][0], PROMPT / medians[1][0]),
        (f"decode {DECODE} at {PROMPT}", DECODE / medians[0][1], DECODE / medians[1][1]),
    ]


def main(model: str = "LFM2-350M", rounds: int = 5, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    table = Table("dtype", "run", "headwater tok/s", "transformers tok/s", "ratio")
    for dtype in (torch.float32, torch.bfloat16):
        for what, ours, peer in compare(model, dtype, rounds):
            row = f"{ours:.1f}", f"{peer:.1f}", f"{ours / peer:.2f}"
            table.add_row(str(dtype).removeprefix("torch."), what, *row)
    Console().print(f"{model}, random weights, {threads} threads, median of {rounds} rounds in turns", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LFM2-350M", help="a row of MODELS (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    main(**vars(parser.parse_args()))
