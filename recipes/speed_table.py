"""Every row of the speed table: beside llama.cpp, beside a busy process, and the hybrid beside plain transformers.

    python -m recipes.speed_table --prepare
    python -m recipes.speed_table [--out DIR] [--only PART,...] [--rounds 5] [--minutes 14] [--peer-binary llama-bench]

A part is one model under one condition, a unit one case of it; what a unit measured is saved at once, and a call goes
on with the units that are missing (--minutes: and begins none after that). Every call writes speed.json, speed.md and
speed.png of all there is. Random weights in exact shapes; the phone's numbers are those of the LFM2 report.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.bench import cases, limits, measure, peers, show, synthetic
from headwater.config import named
from headwater.files import atomic, closest, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model under one condition. cases: name -> what is asked for, in words ("": nothing). peer: llama.cpp in
    turn with ours; without it, a row of the comparison of models inside our engine."""

    model: str
    cases: dict[str, str]
    type: str = "q4_0"
    pure: bool = False
    threads: int = 2
    neighbours: int = 0
    peer: bool = True

    @property
    def subject(self) -> str:
        return f"{self.model} {self.type}{' pure' if self.pure else ''}"

    def file(self) -> Path:
        return synthetic.file_for(self.model, self.type, pure=self.pure)


_SHAPES = dict.fromkeys(("prefill_1024", "prefill_4096", "decode_100@1024", "decode_100@4096"), "")

PARTS = {
    "350m": Part(
        model="LFM2-350M",
        cases={
            "prefill_512": "2.5x", "decode_128": "90 % of the bandwidth (80 % above 60 GB/s)", "prefill_4096": "3x",
            "decode_128@4096": "1.7x", "first_token": "0.25 s", "memory": "file + 15 % + KV",
        },
    ),
    "350m-one-thread": Part(model="LFM2-350M", threads=1, cases={"decode_128": "1.5x"}),
    "350m-neighbour": Part(
        model="LFM2-350M", neighbours=1, cases={"decode_128": "0.9x of one thread beside the same neighbour"}
    ),
    "350m-neighbour-one-thread": Part(model="LFM2-350M", threads=1, neighbours=1, cases={"decode_128": ""}),
    "350m-q8": Part(model="LFM2-350M", type="q8_0", cases={"prefill_512": "4x", "decode_128": "1.2x"}),
    "1.2b": Part(
        model="LFM2-1.2B",
        cases={"prefill_512": "2.5x", "decode_128": "92 % of the bandwidth, 1x", "prefill_4096": "2.7x"},
    ),
    "1.2b-one-thread": Part(model="LFM2-1.2B", threads=1, cases={"decode_128": "1.5x"}),
    "8b-a1b": Part(
        model="LFM2-8B-A1B", pure=True, cases={"prefill_512": "4x", "decode_128": "1.15x", "first_token": "1 s"}
    ),
    **{
        f"shape-{model.lower()}": Part(model=model, peer=False, cases=_SHAPES)
        for model in ("LFM2-350M", "Qwen3-0.6B", "LFM2-1.2B", "Llama-3.2-1B", "Qwen3-1.7B", "Gemma-3-1B")
    },
}  # fmt: skip

PHONE = {
    "LFM2-350M": (1067, 657, 194.1, 143.8),
    "LFM2-1.2B": (335, 222, 69.8, 55.5),
    "Llama-3.2-1B": (229, 130, 54.6, 37.8),
    "Qwen3-1.7B": (140, 98, 39.7, 26.9),
    "Gemma-3-1B": (377, 295, 67.5, 67.1),
}
"""tokens/s on a Samsung Galaxy S25 (llama.cpp, Q4_0), in the order of _SHAPES. Source: LFM2 technical report, table 2;
it has no row for Qwen3-0.6B."""
RIVALS = {"LFM2-350M": ("Qwen3-0.6B",), "LFM2-1.2B": ("Llama-3.2-1B", "Qwen3-1.7B", "Gemma-3-1B")}


def units(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(part, case) of all chosen parts; ValueError for an unknown one."""
    for name in names:
        if name not in PARTS:
            raise ValueError(f"no part {name!r}{closest(name, list(PARTS))}; there are {', '.join(PARTS)}")
        yield from ((name, case) for case in PARTS[name].cases)


def measure_unit(part: Part, case: str, *, rounds: int, retries: int, binary: Path | None) -> dict[str, Any]:
    """What `headwater bench --json` would print of one case."""
    path = part.file()
    work = limits.work_of(path)
    engines: list[peers.Contender] = [peers.ours(path)]
    if part.peer:
        engines.append(peers.llama_cpp(path, binary))
    plan = measure.Plan(threads=part.threads, rounds=rounds, neighbours=part.neighbours, retries=retries)
    chosen = cases.chosen([case], work.config.max_positions)
    return measure.report(measure.measure(engines, chosen, work, plan), {"model": part.subject})


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of one part's cases as one result, for the plot."""
    whole = {**results[0], "ours": {}, "peer": {} if results[0]["peer"] else None}
    for r in results:
        whole["ours"] |= r["ours"]
        if r["peer"]:
            whole["peer"] |= r["peer"]
    return whole


def peer_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: ours, the limit, llama.cpp and the ratio of every measured row."""
    lines = [
        "| model, condition | row | ours (least - greatest) | of limit | llama.cpp | of limit | ratio | asked "
        "| quiet pairs; cores stolen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in PARTS.items():
        if not part.peer:
            continue
        beside = " beside a busy process" if part.neighbours else ""
        condition = f"{part.subject}, {part.threads} thread{'s' * (part.threads > 1)}{beside}"
        for case, asked in part.cases.items():
            r = found.get(unit_name(name, case))
            if r is None:
                continue
            for row in r["ours"]:
                ours, peer = r["ours"][row], r["peer"][row]
                stolen = r["noise"]["stolen_cores"]["median"]
                clean = f"{r['noise']['clean_pairs'][case]} of {r['noise']['pairs'][case]}; {stolen:.2f}"
                cells = [
                    condition,
                    row,
                    show.value(row, ours),
                    show.share(ours),
                    show.value(row, peer),
                    show.share(peer),
                ]
                lines.append(f"| {' | '.join(cells)} | {r['ratios'][row]:.2f} | {asked} | {clean} |")
    return lines


def shape_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: models inside our engine at 1K and 4K, beside the phone; then the ratios of both."""
    speeds: dict[str, list[float | None]] = {}
    unknown: Sequence[float | None] = (None,) * 4
    for name, part in PARTS.items():
        if not part.peer:
            each = [found.get(unit_name(name, case)) for case in part.cases]
            paired = zip(each, part.cases, strict=True)
            speeds[part.model] = [None if r is None else float(r["ours"][c]["median"]) for r, c in paired]
    head = "prefill 1K | prefill 4K | decode at 1K | decode at 4K"
    lines = [f"| model, Q4_0 | {head} | phone: {head} |", f"|---{'|---' * 8}|"]
    for model, own in speeds.items():
        cells = [_speed(v) for v in (*own, *PHONE.get(model, unknown))]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += ["", f"| ratio | {head} | phone: {head} |", f"|---{'|---' * 8}|"]
    for ours, others in RIVALS.items():
        for other in others:
            here = _ratios(speeds[ours], speeds[other])
            phone = _ratios(PHONE[ours], PHONE.get(other, unknown))
            lines.append(f"| {ours} / {other} | {' | '.join([*here, *phone])} |")
    return lines


def _ratios(a: Sequence[float | None], b: Sequence[float | None]) -> list[str]:
    return [f"{x / y:.2f}" if x and y else "" for x, y in zip(a, b, strict=True)]


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 200 else f"{value:.1f}"


def unit_name(part: str, case: str) -> str:
    return f"{part}.{re.sub('[^a-z0-9_]', '-', case)}"


def gather(out: Path) -> dict[str, dict[str, Any]]:
    """All saved results by unit."""
    files = {unit: out / "units" / f"{unit}.json" for unit in (unit_name(*u) for u in units(list(PARTS)))}
    return {unit: show.read_result(path) for unit, path in files.items() if path.is_file()}


def write_tables(out: Path) -> None:
    """speed.json, speed.md and, where the comparison of models has begun, speed.png."""
    found = gather(out)
    if not found:
        raise ValueError(f"{out} holds no results yet; run some parts first")
    machines = sorted({f"{r['about']['cpu']}, {r['about']['isa']}" for r in found.values()})
    reads = [s["median"] / 1e9 for r in found.values() for n, s in r["limits"]["read_bandwidth"].items() if n == "2"]
    beside = f"; read beside the runs on two threads: {min(reads):.0f} to {max(reads):.0f} GB/s" if reads else ""
    text = [f"Machine: {'; '.join(machines)}{beside}.", "", *peer_table(found), "", *shape_table(found), ""]
    write_json(out / "speed.json", found)
    with atomic(out / "speed.md") as path:
        path.write_text("\n".join(text))
    shapes = [
        joined(results)
        for name, part in PARTS.items()
        if not part.peer and (results := [found[u] for c in part.cases if (u := unit_name(name, c)) in found])
    ]
    if shapes:
        show.plot(out / "speed.png", shapes, beside=_phone())
    print("\n".join(text))


def _phone() -> show.Beside:
    """The report's numbers for the plot."""
    sizes = {model: named(model).num_parameters() for model in PHONE}
    at: dict[str, dict[str, dict[int, float]]] = {
        model: {"prefill": {1024: v[0], 4096: v[1]}, "decode": {1024: v[2], 4096: v[3]}} for model, v in PHONE.items()
    }
    return show.Beside("Galaxy S25, llama.cpp", sizes, at)


def main(
    out: Path = Path("runs/speed"),
    only: str | None = None,
    rounds: int = 5,
    retries: int = 2,
    minutes: float | None = None,
    peer_binary: Path | None = None,
    prepare: bool = False,
    fresh: bool = False,
) -> None:
    """Measure what is missing, one unit at least, then write the tables."""
    names = list(PARTS) if only is None else [n.strip() for n in only.split(",")]
    todo, begun, measured = list(units(names)), time.monotonic(), 0
    (out / "units").mkdir(parents=True, exist_ok=True)
    for name, case in todo:
        target = out / "units" / f"{unit_name(name, case)}.json"
        if prepare:
            PARTS[name].file()
            continue
        if target.is_file() and not fresh and read_json(target)["about"]["rounds"] >= rounds:
            continue
        if minutes is not None and measured and time.monotonic() - begun > 60 * minutes:
            print(f"speed_table: {name} {case} and what follows is left for the next call", file=sys.stderr)
            break
        print(f"speed_table: {name} {case}", file=sys.stderr)
        result = measure_unit(PARTS[name], case, rounds=rounds, retries=retries, binary=peer_binary)
        with atomic(target) as path:
            path.write_text(json.dumps(result))
        measured += 1
    if not prepare:
        write_tables(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of results (default: %(default)s)")
    parser.add_argument("--only", help=f"parts, by commas; there are: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a case (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=2, help="further tries of a noisy pair (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no unit after so long")
    parser.add_argument("--peer-binary", type=Path, help="llama-bench (default: as headwater bench finds it)")
    parser.add_argument("--prepare", action="store_true", help="only write the models into the cache")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    try:
        main(**vars(parser.parse_args()))
    except ValueError as fault:
        sys.exit(f"speed_table: {fault}")
