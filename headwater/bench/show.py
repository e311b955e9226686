"""Results for people: the table of a run, the roofline, and the plot of speed against size and depth."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from headwater import optional
from headwater.bench.cases import row
from headwater.files import atomic, read_json

_DEPTH = re.compile(r"decode_\d+(?:@(\d+))?")


def wide_console() -> Console:
    """stdout, never narrower than a table: pipes have no width, and a cut number is worse than a wrapped line."""
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    return console


def table(result: dict[str, Any], console: Console) -> None:
    """One line a row: medians with spread, share of the limit, ratio of medians and median of the pairs' ratios."""
    about, noise = result["about"], result["noise"]
    names = about["engines"]
    out = Table(title=f"{about['model']}, {about['threads']} threads, medians (least - greatest)", box=SIMPLE)
    out.add_column("", no_wrap=True)
    out.add_column("unit", no_wrap=True)
    for name in names:
        out.add_column(name, justify="right", no_wrap=True)
        out.add_column("limit", justify="right", no_wrap=True)
    if len(names) > 1:
        out.add_column("ratio", justify="right", no_wrap=True)
        out.add_column("pairs", justify="right", no_wrap=True)
    out.add_column("clean", justify="right", no_wrap=True)
    clean = _clean_by_row(result)
    for name in result["ours"]:
        cells = [name, row(name).unit]
        for engine in [result["ours"], result["peer"]][: len(names)]:
            cells += [value(name, engine[name]), share(engine[name])]
        if len(names) > 1:
            cells += [f"{result['ratios'][name]:.2f}", f"{result['pair_ratios'][name]:.2f}"]
        out.add_row(*cells, clean[name])
    console.print(out)
    _say_limits(result["limits"], console)
    _say_noise(noise, console)


def _say_limits(limits: dict[str, Any], console: Console) -> None:
    reads = "; ".join(f"{n} thread{'s' * (n != '1')} {_gb(s)}" for n, s in limits["read_bandwidth"].items())
    peak = f"{limits['peak_kind']} peak {limits['peak_macs']['median'] / 1e9:,.0f} GMAC/s"
    console.print(f"beside the runs: read GB/s: {reads}; {peak}", soft_wrap=True)
    console.print(
        f"a token reads {limits['weight_bytes_per_token'] / 1e6:.1f} MB of weights; a prompt's token costs "
        f"{limits['macs_per_prompt_token'] / 1e6:.0f} M multiply-adds",
        soft_wrap=True,
    )


def _say_noise(noise: dict[str, Any], console: Console) -> None:
    pairs, clean = sum(noise["pairs"].values()), sum(noise["clean_pairs"].values())
    if noise["clean"]:
        again = f"; {noise['repeated']} noisy ones were run again" if noise["repeated"] else ""
        console.print(f"all {pairs} pairs were clean{again}", soft_wrap=True)
    else:
        worst = f"{noise['foreign_cores']['max']:.2f} and {noise['stolen_cores']['max']:.2f}"
        console.print(
            f"[bold]not clean[/]: {pairs - clean} of {pairs} pairs stayed noisy (others and the host took over "
            f"{noise['quiet_cores']} cores, worst {worst}); quote only clean rows",
            soft_wrap=True,
        )


def _clean_by_row(result: dict[str, Any]) -> dict[str, str]:
    noise, of = result["noise"], {"load": "first_token", "peak_memory": "memory", "peak_anonymous": "memory"}
    case = {name: of.get(name, name) for name in result["ours"]}
    return {name: f"{noise['clean_pairs'][c]} of {noise['pairs'][c]}" for name, c in case.items()}


def value(name: str, stats: dict[str, Any]) -> str:
    """Median with least and greatest of a row, in its unit."""
    r = row(name)
    middle, low, high = (stats[k] / r.scale for k in ("median", "min", "max"))
    digits = 3 if r.unit == "s" else 0 if middle >= 200 else 1
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def share(stats: dict[str, Any]) -> str:
    """The part of the limit that a row reached, or "" where it has none."""
    return f"{100 * stats['share_of_limit']:.0f} %" if "share_of_limit" in stats else ""


def _gb(stats: dict[str, float]) -> str:
    return f"{stats['median'] / 1e9:.1f} ({stats['min'] / 1e9:.1f} - {stats['max'] / 1e9:.1f})"


def roofline(result: dict[str, Any], console: Console) -> None:
    """The limits of this machine as a table."""
    threads = list(next(iter(result["macs"].values())))
    out = Table(title=f"{result['cpu'].strip()}, {result['isa']}")
    out.add_column("")
    for n in threads:
        out.add_column(f"{n} thread{'s' if n != '1' else ''}", justify="right")
    for size, by in result["read"].items():
        out.add_row(f"read, {int(size) >> 20} MiB", *(f"{by[n] / 1e9:.1f} GB/s" for n in threads))
    for kind, by in result["macs"].items():
        out.add_row(kind, *(f"{by[n] / 1e9:,.0f} GMAC/s" if by[n] else "none" for n in threads))
    console.print(out)


def read_result(path: Path) -> dict[str, Any]:
    """A file that `headwater bench --json` printed; ValueError says what it lacks."""
    result = read_json(path)
    lacks = [
        k for k in ("ratios", "ours", "peer", "limits", "about") if not isinstance(result, dict) or k not in result
    ]
    if lacks:
        raise ValueError(f"{path} has no {', '.join(lacks)}; give a file that `headwater bench --json` printed")
    return result


@dataclass(frozen=True)
class Beside:
    """Published speeds to draw beside measured ones: parameters, and tokens/s by kind and tokens, of each model."""

    name: str
    parameters: dict[str, int]
    speeds: dict[str, dict[str, dict[int, float]]]


def plot(path: Path, results: Sequence[dict[str, Any]], beside: Beside | None = None) -> None:
    """Prefill and decode speed against parameters, and decode speed against depth; one mark or line a model."""
    pyplot = optional.load("matplotlib.pyplot", extra="train")
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(1, 3, figsize=(16.5, 4.5), constrained_layout=True)
    for engine, mark, fill in (("ours", "o", "full"), ("peer", "s", "none")):
        for number, result in enumerate(results):
            if result[engine]:
                _draw(axes, result, engine, {"marker": mark, "fillstyle": fill, "color": f"C{number % 10}"})
    if beside is not None:
        _draw_beside(axes, beside)
    titles = ("prompt, 1024 tokens or nearest", "answer behind 1024 tokens or nearest", "answer by depth")
    for axis, title, x in zip(axes, titles, ("million parameters", "million parameters", "tokens before"), strict=True):
        axis.margins(x=0.25, y=0.1)
        axis.set(title=title, xlabel=x, ylabel="tokens/s", ylim=(0, None))
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    if axes[2].get_legend_handles_labels()[1]:
        axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    suffix = path.suffix.lower().removeprefix(".") or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        allowed = ", ".join(figure.canvas.get_supported_filetypes())
        raise ValueError(f"--plot {path} asks for the format {suffix!r}; allowed: {allowed}")
    with atomic(path) as part:
        figure.savefig(part, format=suffix, dpi=150)
    pyplot.close(figure)


def _draw(axes: Any, result: dict[str, Any], engine: str, style: dict[str, Any]) -> None:
    about = result["about"]
    who = about["engines"][0 if engine == "ours" else 1]
    label, size = f"{about['model']}, {who}", about["parameters"] / 1e6
    prefill = {int(n.split("_")[1]): s["median"] for n, s in result[engine].items() if n.startswith("prefill_")}
    decode = {int(m[1] or 0): s["median"] for n, s in result[engine].items() if (m := _DEPTH.fullmatch(n))}
    for axis, speeds in zip(axes, (prefill, decode), strict=False):
        if speeds:
            at = min(speeds, key=lambda tokens: abs(tokens - 1024))
            axis.plot([size], [speeds[at]], linestyle="none", **style)
            if engine == "ours":
                axis.annotate(about["model"], (size, speeds[at]), textcoords="offset points", xytext=(5, 4), fontsize=7)
    if decode:
        axes[2].plot(sorted(decode), [decode[d] for d in sorted(decode)], label=label, **style)


def _draw_beside(axes: Any, beside: Beside) -> None:
    for axis, kind in zip(axes, ("prefill", "decode"), strict=False):
        for number, (model, size) in enumerate(beside.parameters.items()):
            speeds = beside.speeds[model][kind]
            at = speeds[min(speeds, key=lambda tokens: abs(tokens - 1024))]
            label = beside.name if number == 0 else None
            axis.plot([size / 1e6], [at], marker="x", color="gray", linestyle="none", label=label)
            axis.annotate(model, (size / 1e6, at), textcoords="offset points", xytext=(5, -9), fontsize=6, color="gray")
