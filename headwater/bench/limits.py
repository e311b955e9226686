"""What the machine can do at most, and what a model asks of it: bytes a decoded token reads, multiply-adds of a prompt.

Shares are of limits measured beside the run, never of a data sheet. Attention's multiply-adds are left out of a
prompt's (the int8 peak is not theirs), so shares of long prompts are a little low.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater import checkpoint
from headwater.bench.cases import Case
from headwater.checkpoint import gguf_model
from headwater.config import Config, Moe
from headwater.engine import native
from headwater.gguf_file import GgufFile, GgufTensor

PROBE_BYTES = 512 << 20
_Q8_BYTES = 34 / 32
KINDS = ("int8", "bf16", "fp32", "amx_int8", "amx_bf16")
_SIZES = (16 << 20, 64 << 20, 200 << 20, 700 << 20, 2 << 30)


class _File(gguf_model.Facts, GgufFile):  # type: ignore[misc]
    """A GGUF file described in Python, without the native core."""

    tensors: dict[str, GgufTensor]


@dataclass(frozen=True)
class Work:
    """What a model asks for. weight_bytes: read for each decoded token; macs: multiply-adds of a prompt's token."""

    config: Config
    weight_bytes: float
    macs: float

    def limit(self, case: Case, bandwidth: float, peak: float) -> float | None:
        """Tokens per second at which `case` meets its limit; None for cases that have none."""
        if case.kind == "prefill" and peak > 0:
            return peak / self.macs
        if case.kind == "decode":
            return bandwidth / (self.weight_bytes + self.config.kv_bytes(case.depth + case.tokens // 2))
        return None


def work_of(path: Path) -> Work:
    """Read it off a .gguf file or a directory (whose weights the engine keeps in Q8_0). ValueError: not readable."""
    if path.suffix == ".gguf":
        file = _File(path)
        config = gguf_model.read_config(file)
        size: float = sum(_touched(name, t.data.nbytes, config) for name, t in file.tensors.items())
    else:
        config = checkpoint.read_config(path)
        size = _Q8_BYTES * (config.num_parameters(active=True) - (not config.tie_embeddings) * _embedding(config))
    embeddings = _embedding(config) * (1 if config.tie_embeddings else 2)
    return Work(config, size, config.num_parameters(active=True) - embeddings)


def _embedding(c: Config) -> int:
    return c.vocab_size * c.hidden_size


def _touched(name: str, size: int, c: Config) -> float:
    """Bytes of a tensor that one token reads: all, or the chosen experts' part, or one row of an embedding."""
    ours = gguf_model.our_name(name) or name
    if ours == "embed_tokens.weight" and not c.tie_embeddings:
        return size / c.vocab_size
    if ".experts." in ours:
        ffn = c.layers[int(ours.split(".")[1])].ffn
        assert isinstance(ffn, Moe)
        return size * ffn.num_experts_per_token / ffn.num_experts
    return size


def thread_counts(threads: int) -> list[int]:
    """Thread counts worth probing beside runs on `threads`: one, two where there are two, and that many."""
    return sorted({1, min(2, len(os.sched_getaffinity(0))), threads})


@dataclass(frozen=True)
class Probe:
    """Limits at one moment: bytes per second by number of threads, and multiply-adds per second of `peak_kind`."""

    bandwidth: dict[int, float]
    peak: float


def probe(threads: int, seconds: float) -> Probe:
    """Measure now, for about (2 + number of thread counts) times `seconds`."""
    counts = thread_counts(threads)
    bandwidth = {n: native.read_bandwidth(bytes=PROBE_BYTES, threads=n, seconds=seconds) for n in counts}
    return Probe(bandwidth, native.peak(peak_kind(), threads=threads, seconds=seconds / 3))


def peak_kind() -> str:
    """The peak that prompts are held against: bfloat16 tiles where our kernels use them, else int8 vectors."""
    return "amx_bf16" if native.isa() == "amx" else "int8"


def roofline(threads: Sequence[int], seconds: float = 0.4, sizes: Sequence[int] = _SIZES) -> dict[str, Any]:
    """Read bandwidth by size of what is read and peaks by kind, each by number of threads: {"read": ..., "macs": ...}.

    A value is the median of three; sizes that do not fit into half of the free memory are left out.
    """
    most = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return {
        "cpu": native.cpu_name(),
        "isa": native.isa(),
        "read": {
            str(size): {
                str(n): _median3(lambda s=size, n=n: native.read_bandwidth(bytes=s, threads=n, seconds=seconds / 3))
                for n in threads
            }
            for size in sizes
            if size <= most and size >= max(threads) << 20
        },
        "macs": {
            kind: {
                str(n): _median3(lambda k=kind, n=n: native.peak(k, threads=n, seconds=seconds / 3)) for n in threads
            }
            for kind in KINDS
        },
    }


def _median3(measure: Any) -> float:
    return sorted(measure() for _ in range(3))[1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest. NaN when there are none."""
    if not values:
        return {"median": math.nan, "min": math.nan, "max": math.nan}
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return {"median": middle, "min": ordered[0], "max": ordered[-1]}
