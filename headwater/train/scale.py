"""What training on many GPUs takes, on paper: memory, traffic and time of one update, each number with its sum.

For the layout of train.parallel: FSDP or HSDP, experts and context on neighbours. Nothing here is measured. The one
assumption is `attained`, the share of a GPU's peak that the layers reach when nothing waits; links count at their
stated rates. No torch. Units: bytes, seconds, FLOP of which a multiply-add is two.
"""

import math
from dataclasses import dataclass, field

from headwater.config import Attention, Config, Moe, ShortConv
from headwater.files import closest

GB = 1e9
LOGITS = 1 << 27
"""Bytes of the fused head's buffer in bf16 (`ops.head_loss.CHUNK_BYTES`); a GPU has it in fp32 beside that."""


@dataclass(frozen=True)
class Gpu:
    """Per GPU, as its maker states: dense bf16 FLOP/s, bytes of memory, bytes/s one way in and between nodes."""

    peak: float
    memory: float
    inside: float
    between: float


GPUS = {
    "A100": Gpu(312e12, 80 * GB, 300 * GB, 25 * GB),
    "H100": Gpu(989e12, 80 * GB, 450 * GB, 50 * GB),
    "H200": Gpu(989e12, 141 * GB, 450 * GB, 50 * GB),
}
NODE = 8
"""GPUs of one node, joined by fast links."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on what. `batch_tokens`: of one update, rounded up to whole rows on every rank."""

    gpus: int
    gpu: str = "H100"
    length: int = 4096
    batch_tokens: int = 4_194_304
    context: int = 1
    attained: float = 0.5

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(f"gpu is {self.gpu!r}{closest(self.gpu, list(GPUS))}; there are {', '.join(GPUS)}")
        for name in ("gpus", "length", "batch_tokens", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.gpus % self.context:
            raise ValueError(f"context is {self.context}; it must divide the {self.gpus} GPUs")
        if not 0 < self.attained <= 1:
            raise ValueError(f"attained is {self.attained}; it is a share of the peak, above 0 and at most 1")


@dataclass
class Estimate:
    """The layout that was chosen, and each number with the sum that gave it, in order."""

    setting: Setting
    replicas: int
    shards: int
    experts: int
    rows: int
    """Of a micro-batch on one data rank."""
    accumulate: int
    numbers: dict[str, float] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, how: str) -> float:
        self.numbers[name], self.sums[name] = value, how
        return value


def estimate(config: Config, setting: Setting) -> Estimate:
    """The layout that fits with the fewest shards, then the most rows at once; ValueError if none fits."""
    gpu = GPUS[setting.gpu]
    data = setting.gpus // setting.context
    rows_in_all = math.ceil(setting.batch_tokens / setting.length / data)
    counts = [f.num_experts for layer in config.layers if isinstance(f := layer.ffn, Moe)]
    experts = math.gcd(NODE, setting.gpus, *counts) if counts else 1
    shards = [s for s in range(1, setting.gpus + 1) if setting.gpus % s == 0 and s % setting.context == 0]
    for shard in [s for s in shards if s >= min(NODE, setting.gpus)]:
        for rows in sorted((r for r in range(1, rows_in_all + 1) if rows_in_all % r == 0), reverse=True):
            found = Estimate(setting, setting.gpus // shard, shard, experts, rows, rows_in_all // rows)
            if _memory(config, found) <= 0.9 * gpu.memory:
                _time(config, found, gpu)
                return found
    raise ValueError(
        f"one row of {setting.length} tokens does not fit on {setting.gpus} x {setting.gpu}; "
        "cure: more GPUs, a larger context, or larger GPUs"
    )


def _split(config: Config) -> tuple[int, int]:
    """(parameters of experts, all others)."""
    d = config.hidden_size
    sparse = sum(
        3 * f.num_experts * f.intermediate_size * d for layer in config.layers if isinstance(f := layer.ffn, Moe)
    )
    return sparse, config.num_parameters() - sparse


def _memory(config: Config, e: Estimate) -> float:
    d, t = config.hidden_size, e.rows * e.setting.length // e.setting.context
    sparse, dense = _split(config)
    state = e.add(
        "state", 16 * (dense / e.shards + sparse / e.setting.gpus),
        f"16 B (fp32 weight, gradient, two moments) x ({dense:,} / {e.shards} shards"
        + (f" + {sparse:,} of experts / {e.setting.gpus} GPUs)" if sparse else ")"),
    )  # fmt: skip
    layer = max(
        layer.mixer.num_parameters(d) + layer.ffn.num_parameters(d) // (e.experts if isinstance(layer.ffn, Moe) else 1)
        for layer in config.layers
    )
    table = config.vocab_size * d
    gathered = e.add(
        "gathered", 2 * 3 * layer + 8 * table,
        f"2 B x (two layers and a gradient) x {layer:,} + (2 weight + 2 gradient + 4 sum) B x {table:,} of the head",
    )  # fmt: skip
    kept = 2 * t * d * len(config.layers)
    widest = max(_saved(layer, d) for layer in config.layers)
    head = 3 * LOGITS
    masks = 3 * t * e.setting.length if e.setting.context > 1 else 0
    held = e.add(
        "activations", kept + 2 * t * widest + masks + head,
        f"2 B x {t:,} tokens x ({d:,} x {len(config.layers)} layers kept + {widest:,} of the layer computed again)"
        + (f" + 3 B x {t:,} x {e.setting.length:,} (who may look at whom)" if masks else "")
        + f" + {head / GB:.2f} GB of logits",
    )  # fmt: skip
    return e.add("memory", state + gathered + held, "state + gathered + activations")


def _saved(layer: object, d: int) -> int:
    """Values a token that one layer keeps for its way back."""
    mixer, ffn = layer.mixer, layer.ffn  # type: ignore[attr-defined]
    if isinstance(mixer, Attention):
        own = 3 * d + mixer.head_dim * (4 * mixer.num_heads + 4 * mixer.num_kv_heads)
    else:
        own = 8 * d
    if isinstance(ffn, Moe):
        return own + 2 * d + ffn.num_experts_per_token * (3 * ffn.intermediate_size + 3 * d)
    return own + 2 * d + 3 * ffn.intermediate_size


def _time(config: Config, e: Estimate, gpu: Gpu) -> None:
    s, d = e.setting, config.hidden_size
    tokens = e.rows * e.accumulate * s.length * (s.gpus // s.context)
    mine = tokens / s.gpus
    active = config.num_parameters(active=True) + (0 if config.tie_embeddings else -config.vocab_size * d)
    pairs = sum(
        min(s.length / 2, m.window or math.inf) * m.num_heads * m.head_dim
        for layer in config.layers if isinstance(m := layer.mixer, Attention)
    )  # fmt: skip
    flop = e.add(
        "flop a token", 6 * active + 12 * pairs,
        f"6 x {active:,} active + 12 x {pairs:,.0f} (keys a query sees x width of attention, all layers)",
    )  # fmt: skip
    again = flop * 4 / 3 - 2 * config.vocab_size * d
    compute = e.add(
        "compute", again * mine / (gpu.peak * s.attained),
        f"(4/3 for the layers computed again, the head once) = {again:.3g} FLOP x {mine:,.0f} tokens a GPU "
        f"/ ({gpu.peak / 1e12:.0f} TFLOP/s x {s.attained} attained)",
    )  # fmt: skip
    waits = _traffic(config, e, gpu, mine)
    step = e.add("step", max(compute, waits["hidden"]) + waits["open"], "max(compute, sharding) + what nothing hides")
    e.add("tokens/s", tokens / step, f"{tokens:,} tokens / step")
    e.add("MFU", flop * tokens / (step * s.gpus * gpu.peak), "flop a token x tokens / (step x GPUs x peak)")


def _traffic(config: Config, e: Estimate, gpu: Gpu, mine: float) -> dict[str, float]:
    """Seconds that sharding takes beside the computation, and that the rest takes before or after it."""
    s, d = e.setting, config.hidden_size
    sparse, dense = _split(config)
    ring = (e.shards - 1) / e.shards
    sharding = e.accumulate * ring * dense * (2 + 2 + 4)
    link = gpu.inside if e.shards <= NODE else gpu.between
    how = f"{e.accumulate} x {ring:.3f} x {dense:,} x (2 + 2 gathered + 4 reduced) B"
    rest = s.gpus // e.experts
    spread = e.accumulate * (rest - 1) / rest * sparse / e.experts * 8
    if sparse:
        how += f" + {e.accumulate} x {(rest - 1) / rest:.3f} x {sparse:,} / {e.experts} x 8 B between nodes"
    slow = gpu.between if s.gpus > NODE else gpu.inside
    hidden = e.add("sharding", sharding / link + spread / slow, f"{how}, at {link / GB:.0f} GB/s")
    e.add("sharding bytes", sharding + spread, how)
    replicas = 2 * (e.replicas - 1) / e.replicas * 4 * dense / e.shards
    opened = e.add(
        "replicas", replicas / slow,
        f"2 x {(e.replicas - 1) / e.replicas:.3f} x 4 B x {dense:,} / {e.shards}, once, at {slow / GB:.0f} GB/s",
    )  # fmt: skip
    moe = [f for layer in config.layers if isinstance(f := layer.ffn, Moe)]
    if moe and e.experts > 1:
        away = (e.experts - 1) / e.experts
        sent = 6 * mine * 2 * d * away * sum(f.num_experts_per_token for f in moe)
        opened += e.add(
            "experts", sent / gpu.inside,
            f"6 exchanges x {mine:,.0f} tokens x 2 B x {d:,} x {away:.3f} away x "
            f"{sum(f.num_experts_per_token for f in moe)} choices, at {gpu.inside / GB:.0f} GB/s",
        )  # fmt: skip
    if s.context > 1:
        rows = e.rows * e.accumulate
        kv, away = config.kv_bytes(1), s.context - 1
        halo = sum(2 * d * (m.width - 1) for layer in config.layers if isinstance(m := layer.mixer, ShortConv))
        sent = 3 * rows * (halo + s.length / s.context * kv * away)
        fast = gpu.inside if s.context <= NODE else gpu.between
        opened += e.add(
            "context", sent / fast,
            f"3 x {rows} rows x ({halo:,} B of columns + {s.length // s.context:,} x {kv:,} B of keys and values "
            f"x {away} others), at {fast / GB:.0f} GB/s",
        )  # fmt: skip
    return {"hidden": hidden, "open": opened}
