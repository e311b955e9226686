"""Small plots as inline SVG text, for the report page: bars, histograms, a funnel. Colours are the page's CSS classes.

Not a plotting library: no scales to choose, no state, numbers in and a string out.
"""

from collections.abc import Sequence
from html import escape

_ROW, _GAP, _LABEL, _VALUE = 20, 6, 160, 130
WIDE, HALF = 1000, 470  # pixels of a figure that takes the page, and of one of two side by side


def short(value: float) -> str:
    """12,345 as 12.3k."""
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{mark}"
    return f"{value:.3g}"


def bars(
    rows: Sequence[tuple[str, float]], *, kind: str = "a", unit: str = "", title: str = "", width: int = HALF
) -> str:
    """Horizontal bars, one a (label, value), with the value written behind."""
    return stacked(
        [(label, [(kind, value)], f"{short(value)}{unit}") for label, value in rows], title=title, width=width
    )


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]], *, title: str = "", width: int = HALF) -> str:
    """Horizontal bars of several parts: (label, [(CSS class, value)], text behind)."""
    most = max((sum(value for _, value in parts) for _, parts, _ in rows), default=0) or 1
    room = width - _LABEL - _VALUE * (1 + (width == WIDE))
    out = []
    for at, (label, parts, text) in enumerate(rows):
        y = at * (_ROW + _GAP)
        out.append(_text(_LABEL - 8, y + 14, clip(label, 24), "label end"))
        x = float(_LABEL)
        for kind, value in parts:
            long = room * value / most
            if value > 0:
                tip = f"<title>{escape(label)}: {value:,.6g}</title>"
                out.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(long, 1):.1f}" height="{_ROW}" '
                           f'rx="3">{tip}</rect>')  # fmt: skip
            x += long
        out.append(_text(x + 6, y + 14, text, "value"))
    return _figure(width, len(rows) * (_ROW + _GAP), out, title)


def histogram(
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    title: str = "",
    every: int = 1,
    width: int = HALF,
) -> str:
    """Vertical bars, the series side by side: (CSS class, heights). every: each how many columns carry their name."""
    height, base = 150, 168
    most = max((value for _, values in series for value in values), default=0) or 1
    column = width / max(1, len(names))
    thick = max(1.0, (column - 2) / max(1, len(series)))
    out = [f'<line class="axis" x1="0" y1="{base - 14}" x2="{width}" y2="{base - 14}"/>']
    for number, (kind, values) in enumerate(series):
        for at, value in enumerate(values):
            tall = (height - 4) * value / most
            if value:
                x = at * column + 1 + number * thick
                out.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{base - 14 - tall:.1f}" width="{thick - 0.5:.1f}" '
                    f'height="{max(tall, 0.8):.1f}" rx="1.5"><title>{escape(names[at])}: {value:,.6g}</title></rect>'
                )
    for at in range(0, len(names), every):
        out.append(_text(at * column + column / 2, base, names[at], "label middle"))
    return _figure(width, base + 4, out, title)


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _figure(width: int, height: int, parts: Sequence[str], title: str) -> str:
    label = f' aria-label="{escape(title)}"' if title else ""
    wide = ' class="wide"' if width == WIDE else ""
    return f'<svg{wide} viewBox="0 0 {width} {height}" role="img"{label}>{"".join(parts)}</svg>'
