"""What a load test says: pieces (one server, so many users, so long) to rows, a table and a plot.

Pieces of the same server and number of users are one row together. Not for measuring (load) or starting (load_servers).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from headwater import optional
from headwater.files import atomic

_PERCENTILES = (50, 95, 99)
_MIB = 1 << 20


def rows(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every (users, server) in order. Times in seconds, memory in bytes."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for piece in sorted(pieces, key=lambda p: p["users"]):
        found.setdefault((piece["users"], piece["server"]), []).append(piece)
    return [_row(users, server, group) for (users, server), group in found.items()]


def _row(users: int, server: str, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    requests = [r for p in pieces for r in p["requests"]]
    seconds = sum(p["seconds"] for p in pieces)
    heard = [r for r in requests if r["events"]]
    whole = [r for r in requests if r["whole"]]
    gaps = np.concatenate([np.diff(r["events"]) for r in heard]) if heard else np.zeros(0)
    later = [r["events"][0] for r in heard if r["turn"]]
    cached = [r for r in whole if r["cached"] >= 0]
    return {
        "server": server,
        "users": users,
        "seconds": seconds,
        "requests": len(whole),
        "errors": sum(r["error"] is not None for r in requests),
        "answer_tokens_per_second": sum(r["answer_tokens"] for r in requests) / seconds,
        "prompt_tokens_per_second": sum(r["prompt_tokens"] for r in whole) / seconds,
        "cached_share": sum(r["cached"] for r in cached) / max(1, sum(r["prompt_tokens"] for r in cached)),
        "first_token": _percentiles([r["events"][0] for r in heard]),
        "first_token_later_turns": _percentiles(later),
        "between_tokens": _percentiles(gaps),
        "memory": _memory(pieces),
    }


def _percentiles(values: Any) -> dict[str, float]:
    """NaN where nothing was measured."""
    if not len(values):
        return {f"p{p}": float("nan") for p in _PERCENTILES}
    return {f"p{p}": float(v) for p, v in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}


def _memory(pieces: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Resident bytes: the most there were, and how many the second half of a piece had more at its end than at its
    beginning (the worst piece): zero where memory is flat."""
    series = [[m[0] for m in p["memory"]] for p in pieces]
    return {"peak": max(map(max, series)), "late_growth": max(s[-1] - s[len(s) // 2] for s in series)}


def finite(value: Any) -> Any:
    """The same for JSON, which has no NaN: null where nothing was measured."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(found: Sequence[dict[str, Any]], title: str, console: Console) -> None:
    """Two lines a row: how much, and how long it took."""
    much = _columns(title, "answer tok/s", "prompt tok/s", "cached", "requests", "errors", "peak MiB", "growth MiB")
    long = _columns("milliseconds, p50 / p95 / p99", "first token", "the same, later turns", "between tokens")
    for r in found:
        peak, growth = (r["memory"][k] / _MIB for k in ("peak", "late_growth"))
        much.add_row(
            str(r["users"]), r["server"], f"{r['answer_tokens_per_second']:,.1f}",
            f"{r['prompt_tokens_per_second']:,.0f}", f"{100 * r['cached_share']:.0f} %", str(r["requests"]),
            str(r["errors"]), f"{peak:,.0f}", f"{growth:+,.1f}",
        )  # fmt: skip
        times = (r[key] for key in ("first_token", "first_token_later_turns", "between_tokens"))
        long.add_row(str(r["users"]), r["server"], *map(_ms, times))
    console.print(much, long)
    console.print("prompt tok/s counts cached tokens; growth: of resident memory over the second half of a piece")


def _columns(title: str, *names: str) -> Table:
    out = Table(title=title, box=SIMPLE)
    for name in ("users", "server", *names):
        out.add_column(name, justify="left" if name == "server" else "right", no_wrap=True)
    return out


def _ms(p: dict[str, float]) -> str:
    return " / ".join(
        "" if math.isnan(v) else f"{1000 * v:,.0f}" if v >= 0.01 else f"{1000 * v:.1f}" for v in p.values()
    )


def plot(path: Path, found: Sequence[dict[str, Any]], pieces: Sequence[dict[str, Any]], title: str) -> None:
    """Speed, first token and pauses by users; memory over time. ValueError: a format that cannot be drawn."""
    pyplot = optional.load("matplotlib.pyplot", extra="train")
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(1, 4, figsize=(19, 4.5), constrained_layout=True)
    figure.suptitle(title)
    for number, server in enumerate(dict.fromkeys(r["server"] for r in found)):
        mine = [r for r in found if r["server"] == server]
        users, style = [r["users"] for r in mine], {"color": f"C{number}", "marker": "o"}
        axes[0].plot(users, [r["answer_tokens_per_second"] for r in mine], label=server, **style)
        for axis, what in ((axes[1], "first_token"), (axes[2], "between_tokens")):
            for key, line in (("p50", "-"), ("p95", "--"), ("p99", ":")):
                axis.plot(users, [1000 * r[what][key] for r in mine], line, label=f"{server} {key}", **style)
        for p in (p for p in pieces if p["server"] == server and p["memory"]):
            most = max(r["users"] for r in mine)
            axes[3].plot(
                [m[0] / _MIB for m in p["memory"]], color=f"C{number}", alpha=0.3 + 0.7 * p["users"] / most,
                label=f"{server}, {p['users']} users",
            )  # fmt: skip
    labels = (("answer tokens/s", "users"), ("first token, ms", "users"), ("between tokens, ms", "users"),
              ("resident memory, MiB", "seconds"))  # fmt: skip
    for axis, (name, x) in zip(axes, labels, strict=True):
        axis.set(title=name, xlabel=x)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=6)
    suffix = path.suffix.lower().removeprefix(".") or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        allowed = ", ".join(figure.canvas.get_supported_filetypes())
        raise ValueError(f"--plot {path} asks for the format {suffix!r}; allowed: {allowed}")
    with atomic(path) as part:
        figure.savefig(part, format=suffix, dpi=130)
    pyplot.close(figure)
