"""What `headwater fit` says beside what a real server then takes, with every slot filled to its context.

    python -m recipes.fit_measured MODEL.gguf [--ctx 1024] [--slots 4] [--cache-mib 0] [--threads 2]

The server is a process of its own. As many prompts as there are slots come at once, and each answer goes on to the end
of the context, which no answer reaches before the last prompt is read; then the same with other words, for the prefix
cache. Taken is the largest resident set (VmHWM). Random weights will do.
"""

import argparse
import json
import random
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from headwater.bench import load_servers
from headwater.engine import fit

_ROUNDS = 2
_STEP = 192
"""Tokens of prompts that a server reads for every token of the answers beside them."""


@dataclass(frozen=True)
class Found:
    """Bytes: said by the estimate, and the process's largest resident set."""

    said: fit.Fit
    peak: int

    @property
    def error(self) -> float:
        """How much more is said than was taken, as a share of it."""
        return self.said.total / self.peak - 1


def measured(model: Path, *, context: int, slots: int, cache_mib: int, threads: int) -> Found:
    """Serve `model`, fill it, and look. ValueError where it does not come up."""
    config, of = fit.of(str(model), threads=threads, cache_bytes=cache_mib << 20)
    setting = load_servers.Setting(model=model, slots=slots, context=context, threads=threads, cache_mib=cache_mib)
    with load_servers.started("headwater", None, setting) as (url, pid):
        draw, answer = random.Random(0), min(context // 2, 32 + slots * context // _STEP)
        for _ in range(_ROUNDS):
            prompts = [
                [draw.randrange(300, config.vocab_size - 1) for _ in range(context - answer)] for _ in range(slots)
            ]
            with ThreadPoolExecutor(slots) as pool:
                list(pool.map(lambda ids: _ask(url, ids, answer, config.eos_ids), prompts))
        peak = _bytes(Path(f"/proc/{pid}/status"), "VmHWM")
    return Found(of(context, slots), peak)


def _ask(url: str, ids: list[int], answer: int, ends: Sequence[int]) -> None:
    body = {"prompt": ids, "max_tokens": answer, "temperature": 0, "logit_bias": {str(i): -100 for i in ends}}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=1800) as reply:
        usage = json.load(reply)["usage"]
    assert usage["completion_tokens"] == answer, usage


def _bytes(path: Path, key: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"{path} has no {key}; this needs Linux")


def main(model: Path, ctx: int, slots: int, cache_mib: int, threads: int) -> None:
    found = measured(model, context=ctx, slots=slots, cache_mib=cache_mib, threads=threads)
    parts = ", ".join(f"{name} {getattr(found.said, name) / (1 << 20):.1f}" for name in fit.PARTS)
    said, taken = found.said.total / (1 << 20), found.peak / (1 << 20)
    print(f"{model.name}, {slots} slots of {ctx} tokens, cache {cache_mib}, {threads} threads, MiB")
    print(f"said {said:.1f} ({parts}); taken {taken:.1f}: {100 * found.error:+.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--ctx", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--cache-mib", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    main(**vars(parser.parse_args()))
