"""The page of a run: health, numbers, live plots, samples. One HTML file: no script, no network, light and dark.

Written anew while the run goes on, and asks the browser to load it again. Nothing from a text reaches it unescaped.
The plots themselves: lines.py.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from headwater.files import atomic
from headwater.train.health import FINE
from headwater.train.lines import Line, chart

State = Literal["running", "finished", "stopped", "failed"]
Row = Mapping[str, Any]

_FIRST = ("loss", "bits_per_byte", "gradient_norm", "lr", "tokens/s")
_HIDDEN = {"step", "tokens", "seconds", "health", "weight"}
_SMOOTH = 20  # updates that a bold line averages over
_TITLES = {
    "loss": "Loss, nats a token",
    "bits_per_byte": "Held-out bits per byte",
    "gradient_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
    "tokens/s": "Tokens a second",
    "load": "Load of the experts, worst layer",
}
_MOST_SAMPLES = 12

_STYLE = """
:root{--ink:#1b2430;--soft:#5d6b7c;--line:#e3e8ee;--page:#f6f8fa;--card:#fff;--good:#2f7d5b;--bad:#b4481f;
--c0:#2f6f9f;--c1:#c4622d;--c2:#3f8f6b;--c3:#8a5aa8;--c4:#b0912b;--c5:#b84a6b;--c6:#4d8f9c;--c7:#6b7280;--c8:#7a6a4f;
--c9:#5661b8}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#93a1b1;--line:#2b3542;--page:#12171d;--card:#1a212a;
--good:#62b98f;--bad:#f0926a;--c0:#5fa8d9;--c1:#e59a6c;--c2:#62b98f;--c3:#b78ed3;--c4:#d6bb5c;--c5:#e07f9c;--c6:#79bdc9;
--c7:#9aa4b2;--c8:#b5a486;--c9:#8f98ea}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 64px}h1{font-size:24px;margin:0;letter-spacing:-.01em}
h2{font-size:15px;margin:0 0 8px;font-weight:600}.soft{color:var(--soft)}
.health{margin:14px 0;padding:10px 16px;border-radius:10px;border:1px solid var(--line);background:var(--card);
border-left:5px solid var(--good)}.health.bad{border-left-color:var(--bad)}.health.bad b{color:var(--bad)}
.bar{height:6px;border-radius:3px;background:var(--line);overflow:hidden;margin:10px 0 0}
.bar i{display:block;height:100%;background:var(--c0)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:14px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.cards b{display:block;font-size:21px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.cards span{color:var(--soft);font-size:13px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:14px;margin:14px 0}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--line)}.end{text-anchor:end}.middle{text-anchor:middle}.thin{opacity:.28}.bold{stroke-width:1.9}
path{fill:none;stroke-width:1}.band{stroke:none;opacity:.18}.spot{fill:transparent}.dot{stroke:none}
.key{font-size:12.5px;color:var(--soft);margin:6px 0 0;display:flex;flex-wrap:wrap;gap:4px 14px}
.key i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.key b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.sample{border-top:1px solid var(--line);padding:8px 0}.sample:first-of-type{border:0}
.sample p{margin:2px 0;white-space:pre-wrap;overflow-wrap:anywhere}
"""


def write_page(
    path: str | Path,
    rows: Sequence[Row],
    samples: Sequence[Row],
    *,
    title: str,
    state: State,
    health: str = FINE,
    steps: int = 0,
    every: float = 10.0,
) -> None:
    """Write the page of a run from rows of its log (progress.JsonLog), atomically.

    samples: {"step", "prompt", "text"}. `steps`: that the run is to make. While it runs the page asks to be loaded
    again every `every` seconds.
    """
    again = f'<meta http-equiv="refresh" content="{max(2, round(every))}">' if state == "running" else ""
    body = [_head(rows, title, state, steps), _health(rows, health, state), _numbers(rows, steps, state)]
    body += [_plots(rows), _samples(samples)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · {state}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _head(rows: Sequence[Row], title: str, state: State, steps: int) -> str:
    done = rows[-1]["step"] if rows else 0
    share = min(1.0, done / steps) if steps else 0.0
    of = f" of {steps:,}" if steps else ""
    return (
        f"<h1>{escape(title)}</h1><div class='soft'>{state}, {done:,}{of} updates</div>"
        f"<div class='bar'><i style='width:{100 * share:.1f}%'></i></div>"
    )


def _health(rows: Sequence[Row], now: str, state: State) -> str:
    """The line, and behind it what was wrong before."""
    before: dict[str, int] = {}
    for row in rows:
        if "health" in row:
            before[str(row["health"]).partition(":")[0]] = row["step"]
    past = "; ".join(f"{kind} (update {step:,})" for kind, step in list(before.items())[-4:])
    text = f"<b>{escape(now)}</b>" + (f"<div class='soft'>seen last: {escape(past)}</div>" if past else "")
    return f"<div class='health{'' if now == FINE and state != 'failed' else ' bad'}'>{text}</div>"


def _numbers(rows: Sequence[Row], steps: int, state: State) -> str:
    if not rows:
        return ""
    last, recent = rows[-1], rows[-_SMOOTH:]
    losses = [row["loss"] for row in recent if "loss" in row]
    speed, pace = _pace(rows[-min(len(rows), _SMOOTH + 1)], last)
    numbers = [
        (f"{sum(losses) / len(losses):.3f}" if losses else "–", f"loss, mean of the last {len(losses)}"),
        (f"{last['tokens']:,}", "tokens read"),
        (f"{speed:,.0f}" if speed else "–", "tokens a second"),
        (_clock(last["seconds"]), "in updates"),
    ]
    if state == "running" and pace:
        numbers.append((_clock((steps - last["step"]) * pace), "left"))
    cards = "".join(f"<div class='card'><b>{value}</b><span>{name}</span></div>" for value, name in numbers)
    return f"<div class='cards'>{cards}</div>"


def _pace(first: Row, last: Row) -> tuple[float, float]:
    """(tokens a second, seconds an update) between two rows; zeros for one row."""
    seconds, steps = last["seconds"] - first["seconds"], last["step"] - first["step"]
    if seconds <= 0 or steps <= 0:
        return 0.0, 0.0
    return (last["tokens"] - first["tokens"]) / seconds, seconds / steps


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plots(rows: Sequence[Row]) -> str:
    groups: dict[str, list[Line]] = {}
    for name, (xs, ys) in _columns(rows).items():
        group, _, member = name.partition("/") if name != "tokens/s" else (name, "", "")
        if name.startswith("load_"):
            group, member = "load", name.removeprefix("load_")
        smooth = _SMOOTH if group not in ("lr", "bits_per_byte") and len(xs) > _SMOOTH else 0
        groups.setdefault(group, []).append(Line(member or name, xs, ys, smooth))
    order = [*(g for g in _FIRST if g in groups), *(g for g in groups if g not in _FIRST)]
    cards = []
    for group in order:
        plot = chart(groups[group], logarithmic=group == "gradient_norm")
        cards.append(f"<div class='card'><h2>{escape(_TITLES.get(group, group))}</h2>{plot}</div>")
    return f"<div class='two'>{''.join(cards)}</div>"


def _columns(rows: Sequence[Row]) -> dict[str, tuple[list[float], list[float]]]:
    """(updates, values) of everything numeric, and the speed between neighbours."""
    columns: dict[str, tuple[list[float], list[float]]] = {}

    def put(name: str, step: float, value: float) -> None:
        xs, ys = columns.setdefault(name, ([], []))
        xs.append(step)
        ys.append(value)

    for i, row in enumerate(rows):
        for name, value in row.items():
            if name not in _HIDDEN and isinstance(value, int | float):
                put(name, row["step"], float(value))
        if i and (speed := _pace(rows[i - 1], row)[0]):
            put("tokens/s", row["step"], speed)
    nll, loss = columns.get("nll"), columns.get("loss")
    if nll is not None and loss is not None and nll[1] == loss[1]:
        del columns["nll"]  # the loss again
    return columns


def _samples(samples: Sequence[Row]) -> str:
    if not samples:
        return ""
    newest = samples[-_MOST_SAMPLES:][::-1]
    shown = "".join(
        f"<div class='sample'><span class='soft'>update {row['step']:,}</span>"
        f"<p><b>{escape(str(row['prompt']))}</b>{escape(str(row['text']))}</p></div>"
        for row in newest
    )
    return f"<div class='card'><h2>Samples</h2>{shown}</div>"
