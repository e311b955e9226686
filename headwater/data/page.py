"""The report of a run as one HTML page: no script, no network, plots as inline SVG, light and dark.

Everything on it comes from report.json; nothing from a text reaches the page unescaped.
"""

from html import escape
from pathlib import Path
from typing import Any

from headwater.data import svg
from headwater.files import atomic

Report = dict[str, Any]
_MOST_ROWS = 16

_STYLE = """
:root{--ink:#1b2430;--soft:#5d6b7c;--line:#e3e8ee;--page:#f6f8fa;--card:#fff;--a:#2f6f9f;--b:#b9c8d6;--bad:#d0663f;
--good:#3f8f6b}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#93a1b1;--line:#2b3542;--page:#12171d;--card:#1a212a;
--a:#5fa8d9;--b:#465463;--bad:#e58a63;--good:#62b98f}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:17px;margin:0 0 12px}h3{font-size:15px;margin:0}p{margin:4px 0 12px}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0}
.card{min-width:0;overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px 18px}
.cards b{display:block;font-size:24px;letter-spacing:-.02em}.cards span{color:var(--soft);font-size:13px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:14px}section{margin:14px 0}
svg{width:100%;height:auto;display:block}svg.wide{min-width:640px}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg .label,svg .value{fill:var(--soft)}.end{text-anchor:end}.middle{text-anchor:middle}
.a{fill:var(--a)}.b{fill:var(--b)}.bad{fill:var(--bad)}.good{fill:var(--good)}.axis{stroke:var(--line)}
.key{font-size:13px;color:var(--soft);margin:0 0 8px}.key i{display:inline-block;width:10px;height:10px;
border-radius:3px;margin:0 5px 0 12px}.key i:first-child{margin-left:0}
details{border-top:1px solid var(--line);padding:8px 0}
summary{cursor:pointer;display:flex;gap:10px;align-items:baseline}
summary:before{content:"+";color:var(--soft);width:10px}details[open]>summary:before{content:"\\2013"}
summary .n{margin-left:auto;color:var(--soft);font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--page);border-radius:8px;padding:8px 12px;margin:6px 0;
font:12.5px/1.45 ui-monospace,monospace}.id{font:12px ui-monospace,monospace;color:var(--soft);margin:10px 0 0}
table{border-collapse:collapse;width:100%;font-size:13.5px}td,th{text-align:right;padding:5px 8px;
white-space:nowrap;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;font-weight:400}
th{color:var(--soft)}
td:first-child,th:first-child{text-align:left}tr:last-child td{border:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:10px}
"""


def write_page(path: str | Path, report: Report) -> None:
    """Write the page of a report, atomically."""
    with atomic(path) as part:
        part.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The whole page as text."""
    names = ", ".join(source["name"] for source in report["plan"]["sources"])
    parts = [
        f"<h1>Corpus report</h1><p class='soft'>{escape(svg.clip(names, 200))}</p>",
        _numbers(report),
        _card("What each step kept", _funnel(report)),
        f"<div class='two'>{_card('Why texts left', _reasons(report))}{_card('Length of a text', _lengths(report))}"
        f"{_mix(report, 'languages', 'Languages')}{_mix(report, 'sources', 'Sources')}"
        "</div>",
        _card("Step by step", _table(report)),
        _card("Time of each step, all processes", _times(report)),
        _card("Time and memory of the run", _stages(report)),
        *(_step(entry) for entry in report["steps"]),
        _faults(report),
    ]
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>Corpus report</title>"
    view = "<meta name='viewport' content='width=device-width,initial-scale=1'>"
    return f"{head}{view}<style>{_STYLE}</style><main>{''.join(parts)}</main></html>"


def _numbers(report: Report) -> str:
    read, kept = report["read"], report["kept"]
    share = 100 * report["documents"] / max(1, read["texts"])
    shown = [
        (f"{read['texts']:,}", "texts read"),
        (f"{report['documents']:,}", f"texts kept ({share:.1f} %)"),
        (svg.short(kept["chars"]), f"characters kept of {svg.short(read['chars'])}"),
        (f"{sum(row['count'] for row in report['faults'].values()):,}", "texts unreadable"),
        (
            f"{report['seconds']:.1f} s",
            f"{report['input_bytes'] / 1e6 / max(report['seconds'], 1e-9):.1f} MB/s of input",
        ),
    ]
    if report["tokens"]:
        shown.insert(3, (svg.short(report["tokens"]), "tokens"))
    cards = "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in shown
    )
    return f"<div class='cards'>{cards}</div>"


def _card(title: str, body: str) -> str:
    return f"<section class='card'><h2>{escape(title)}</h2>{body}</section>"


def _funnel(report: Report) -> str:
    rows: list[tuple[str, list[tuple[str, float]], str]] = [
        ("read", [("a", report["read"]["texts"])], f"{report['read']['texts']:,}")
    ]
    for entry in report["steps"]:
        gone = max(0, entry["texts_in"] - entry["texts_out"])
        change = f"  (−{gone:,})" if gone else f"  ({entry['changed']:,} rewritten)" if entry["changed"] else ""
        rows.append((entry["name"], [("a", entry["texts_out"]), ("bad", gone)], f"{entry['texts_out']:,}{change}"))
    return _key(("a", "kept"), ("bad", "removed")) + svg.stacked(rows, title="Texts after each step", width=svg.WIDE)


def _reasons(report: Report) -> str:
    rows = [
        (reason, row["count"]) for entry in report["steps"] for reason, row in entry["removed"].items()
    ]  # fmt: skip
    rows += [(reason, row["count"]) for reason, row in report["faults"].items()]
    rows.sort(key=lambda row: (-row[1], row[0]))
    if not rows:
        return "<p class='soft'>No text was removed.</p>"
    return svg.bars(rows[:_MOST_ROWS], kind="bad", title="Texts removed by reason") + _rest(rows)


def _lengths(report: Report) -> str:
    before, after = (
        {int(k): v for k, v in report[key]["lengths"].items()} for key in ("read", "kept")
    )  # fmt: skip
    bits = range(min((*before, *after), default=0), max((*before, *after), default=0) + 1)
    names = [svg.short(2 ** max(0, bit - 1)) for bit in bits]
    series = [("b", [before.get(bit, 0) for bit in bits]), ("a", [after.get(bit, 0) for bit in bits])]
    note = "<p class='soft'>Characters; a column reaches from its number to the next.</p>"
    return _key(("b", "read"), ("a", "kept")) + svg.histogram(names, series, title="Lengths") + note


def _mix(report: Report, key: str, title: str) -> str:
    before, after = report["read"][key], report["kept"][key]
    if not after and not before:
        return ""
    rows = sorted({**before, **after}, key=lambda name: -after.get(name, 0))
    if key == "languages":  # known only after the step that tells them
        total = sum(after.values()) or 1
        shown = [
            (n, [("a", after.get(n, 0))], f"{after.get(n, 0):,}  ({100 * after.get(n, 0) / total:.1f} %)") for n in rows
        ]
    else:
        shown = [
            (n, [("a", after.get(n, 0)), ("b", max(0, before.get(n, 0) - after.get(n, 0)))],
             f"{svg.short(after.get(n, 0))} of {svg.short(before.get(n, 0))}") for n in rows
        ]  # fmt: skip
    return _card(title, svg.stacked(shown[:_MOST_ROWS], title=title) + _rest(rows))


def _rest(rows: list[Any]) -> str:
    return f"<p class='soft'>and {len(rows) - _MOST_ROWS} more</p>" if len(rows) > _MOST_ROWS else ""


def _times(report: Report) -> str:
    rows = [(entry["name"], entry["seconds"]) for entry in report["steps"]]
    return (
        svg.bars(rows, unit=" s", title="Seconds of each step", width=svg.WIDE)
        if rows
        else "<p class='soft'>No steps.</p>"
    )


def _stages(report: Report) -> str:
    head = "<tr><th>part of the run</th><th>seconds</th><th>memory of the largest process</th></tr>"
    rows = "".join(
        f"<tr><td>{escape(svg.clip(label, 100))}</td><td>{seconds:.1f}</td>"
        f"<td>{report['memory'][label] / 1e6:,.0f} MB</td></tr>"
        for label, seconds in report["stages"].items()
    )
    workers = f"<p class='soft'>{report['workers']} worker processes beside the first one.</p>"
    return f"<table>{head}{rows}</table>{workers}"


def _table(report: Report) -> str:
    head = "<tr><th>step</th><th>in</th><th>out</th><th>kept</th><th>rewritten</th><th>chars out</th></tr>"
    rows = "".join(
        f"<tr><td>{escape(e['name'])}</td><td>{e['texts_in']:,}</td><td>{e['texts_out']:,}</td>"
        f"<td>{100 * e['texts_out'] / max(1, e['texts_in']):.2f} %</td><td>{e['changed']:,}</td>"
        f"<td>{svg.short(e['chars_out'])}</td></tr>"
        for e in report["steps"]
    )
    return f"<table>{head}{rows}</table>"


def _step(entry: dict[str, Any]) -> str:
    body = f"<p class='soft'>{escape(entry['source'])}</p>{_facts(entry['facts'])}"
    for reason, row in sorted(entry["removed"].items(), key=lambda item: -item[1]["count"]):
        samples = "".join(_sample(sample) for sample in row["samples"])
        body += (
            f"<details><summary><h3>{escape(reason)}</h3><span class='n'>{row['count']:,} texts, "
            f"{svg.short(row['chars'])} characters</span></summary>{samples}</details>"
        )
    if not entry["removed"]:
        body += f"<p>Removed nothing; rewrote {entry['changed']:,} texts.</p>"
    return _card(entry["name"], body)


def _facts(facts: dict[str, Any]) -> str:
    """Numbers as a line, lists of 20 or more as histograms over 0 to 1."""
    line = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in facts.items() if isinstance(v, int | float))
    out = f"<p>{escape(line)}</p>" if line else ""
    for name, values in facts.items():
        if isinstance(values, list) and len(values) >= 20:
            names = [f"{at / len(values):.2f}" for at in range(len(values))]
            out += f"<p class='key'>{escape(name.replace('_', ' '))}</p>"
            out += svg.histogram(names, [("a", values)], title=name, every=max(1, len(values) // 10), width=svg.WIDE)
        elif isinstance(values, dict):
            rows = [(str(k), float(v)) for k, v in values.items() if isinstance(v, int | float)]
            out += f"<p class='key'>{escape(name.replace('_', ' '))}</p>" + svg.bars(
                rows[:_MOST_ROWS], title=name, width=svg.WIDE
            )
    return out


def _sample(sample: dict[str, Any]) -> str:
    detail = f" · {escape(sample['detail'])}" if sample.get("detail") else ""
    text = f"<pre>{escape(sample['text'])}</pre>"
    if "like" not in sample:
        return f"<p class='id'>{escape(sample['id'])}{detail}</p>{text}"
    other = f"<div><p class='id'>kept: {escape(sample['like_id'])}</p><pre>{escape(sample['like'])}</pre></div>"
    return f"<div class='pair'><div><p class='id'>{escape(sample['id'])}{detail}</p>{text}</div>{other}</div>"


def _faults(report: Report) -> str:
    if not report["faults"] and not report["left_out"]:
        return ""
    body = "<p class='soft'>All of them, by file and line, are in skipped.jsonl.</p>"
    for reason, row in report["faults"].items():
        shown = "".join(f"<pre>{escape(s['where'])}: {escape(s['detail'])}</pre>" for s in row["samples"])
        count = f"<span class='n'>{row['count']:,}</span>"
        body += f"<details><summary><h3>{escape(reason)}</h3>{count}</summary>{shown}</details>"
    if report["left_out"]:
        names = escape(", ".join(report["left_out"][:20]))
        body += f"<p>Left out, of unknown kind or not to be opened ({len(report['left_out'])}): {names}</p>"
    return _card("What could not be read", body)


def _key(*items: tuple[str, str]) -> str:
    colours = {"a": "var(--a)", "b": "var(--b)", "bad": "var(--bad)", "good": "var(--good)"}
    return "<p class='key'>" + "".join(f"<i style='background:{colours[k]}'></i>{escape(t)}" for k, t in items) + "</p>"
