"""Line plots as inline SVG text, for the page of a run. Colours are the page's variables --c0 to --c9.

Many points become a band of their extremes and a line of their means, so the text stays small. Not for files of their
own (progress.plot_losses).
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 470, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 24
COLUMNS = 240  # of points at most
COLOURS = 10
SPOTS = 40  # places of a line that tell their value under the pointer


class Line(NamedTuple):
    """Values over updates; `smooth` > 0: drawn thin, with a bold average over about so many."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    smooth: int = 0


def chart(lines: Sequence[Line], *, logarithmic: bool = False) -> str:
    """The plot and its key. Values that are not finite (or not positive, if logarithmic) are left out."""
    kept = [_finite(line, logarithmic) for line in lines]
    kept = [line for line in kept if line.xs]
    if not kept:
        return "<p class='soft'>nothing finite to draw</p>"
    low, high = _range([y for line in kept for y in line.ys], logarithmic)
    first, last = min(line.xs[0] for line in kept), max(line.xs[-1] for line in kept)

    def at(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if logarithmic else y
        over = (x - first) / (last - first) if last > first else 0.5
        return LEFT + over * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = _grid(low, high, first, last, logarithmic)
    for number, line in enumerate(kept):
        parts += _drawn(line, f"var(--c{number % COLOURS})", at)
    key = "".join(
        f"<span><i style='background:var(--c{n % COLOURS})'></i>{escape(line.name)} <b>{short(line.ys[-1])}</b></span>"
        for n, line in enumerate(kept)
    )
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"{picture}<div class='key'>{key}</div>"


def short(value: float) -> str:
    """12,345 as 12.3k, 0.00012 as 1.2e-04."""
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if mark == 'k' else size):.3g}{mark}"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from low to high."""
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [i * step for i in range(start, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Logarithms of round numbers: of 1, 2, 5 times powers of ten, or of the powers alone where those are many."""
    digits = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [v for p in powers for v in (p + math.log10(d) for d in digits) if low <= v <= high]


def average(values: Sequence[float], horizon: int) -> list[float]:
    """Exponential average over about `horizon` values, without the bias of its start."""
    mean = weight = 0.0
    out = []
    for value in values:
        mean += (value - mean) / horizon
        weight += (1.0 - weight) / horizon
        out.append(mean / weight)
    return out


def _finite(line: Line, logarithmic: bool) -> Line:
    good = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y) and (y > 0 or not logarithmic)]
    return line._replace(xs=[x for x, _ in good], ys=[y for _, y in good])


def _range(values: list[float], logarithmic: bool) -> tuple[float, float]:
    """What the height spans: without the highest percent if that is far off, so that one spike hides nothing."""
    values = sorted(math.log10(v) for v in values) if logarithmic else sorted(values)
    low, high = values[0], values[-1]
    most = values[min(len(values) - 1, int(0.99 * len(values)))]
    if high - low > 4 * (most - low) > 0:
        high = most + (most - low)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _grid(low: float, high: float, first: float, last: float, logarithmic: bool) -> list[str]:
    parts = []
    for value in _decades(low, high) if logarithmic else ticks(low, high):
        y = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        text = short(10.0**value) if logarithmic else short(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    for value in ticks(first, last) if last > first else [first]:
        x = LEFT + ((value - first) / (last - first) if last > first else 0.5) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text class="middle" x="{x:.1f}" y="{HEIGHT - 6}">{short(value)}</text>')
    return parts


def _drawn(line: Line, colour: str, at: Callable[[float, float], tuple[float, float]]) -> list[str]:
    bold = average(line.ys, line.smooth) if line.smooth else list(line.ys)
    size = -(-len(line.xs) // COLUMNS)
    pieces = [slice(i, i + size) for i in range(0, len(line.xs), size)]
    xs = [line.xs[piece][-1] for piece in pieces]
    parts = []
    if line.smooth and size > 1:
        upper = [at(x, max(line.ys[piece])) for x, piece in zip(xs, pieces, strict=True)]
        lower = [at(x, min(line.ys[piece])) for x, piece in zip(xs, pieces, strict=True)]
        parts.append(f'<path class="band" style="fill:{colour}" d="{_path(upper + lower[::-1])}Z"/>')
    elif line.smooth:
        points = [at(x, y) for x, y in zip(line.xs, line.ys, strict=True)]
        parts.append(f'<path class="thin" style="stroke:{colour}" d="{_path(points)}"/>')
    values = [bold[piece][-1] for piece in pieces]
    points = [at(x, y) for x, y in zip(xs, values, strict=True)]
    parts.append(f'<path class="bold" style="stroke:{colour}" d="{_path(points)}"/>')
    dots = len(points) <= SPOTS
    for i in range(0, len(points), max(1, len(points) // SPOTS)):
        x, y = points[i]
        tip = f"<title>{escape(line.name)}, update {xs[i]:,.0f}: {values[i]:.5g}</title>"
        if dots and not line.smooth:
            parts.append(f'<circle class="dot" style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>')
        parts.append(f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="7">{tip}</circle>')
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{min(max(y, TOP - 4), HEIGHT - BOTTOM + 4):.1f}" for x, y in points)
