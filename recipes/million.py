"""A million documents of real text with planted noise, and how much of the noise the data pipeline finds.

Documents are put together from real sentences of one language, so those that are not planted copies are distinct.
Planted: exact copies, near copies (words changed, dropped, added; a line in front), rewordings that share no shingles,
passages from evaluation sets, junk of several kinds. `make` writes them with the truth, `score` compares a run.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headwater.data.plan import USUAL
from headwater.files import read_json, write_json

DOCUMENTS, SEED, FILES, CHARS = 1_000_000, 1, 8, 1000
KINDS = ("clean", "copy", "near", "reworded", "contaminated", "junk")
SHARES = {"copy": 0.03, "near": 0.05, "reworded": 0.01, "contaminated": 0.002, "junk": 0.04}
REMEMBERED = 50_000  # documents that copies are made of
_SENTENCE = re.compile(r"(?<=[.!?。])\s+(?=\S)|(?<=。)")
_REFUSAL = "I'm sorry, but as an AI language model I cannot help with that request. "
_COOKIES = (
    "Accept all cookies. We use cookies to improve your experience. Privacy policy. Terms of use. "
    "Sign up for our newsletter. "
)


class Pool(NamedTuple):
    """Real sentences of each language, and questions of evaluation sets."""

    sentences: dict[str, list[str]]
    questions: list[str]


def read_pool(data: Path) -> Pool:
    """The sentences of every .json and .jsonl file of wiki_vital, debian_parallel and gsm8k/train under `data` (or of
    the recipes' own texts, where there is no such folder), and of the standard library's source.
    """
    sentences: dict[str, set[str]] = {}
    questions = []
    for file, language in ((f, f.stem.split("_")[1][:2]) for f in sorted(data.glob("wiki_vital/*.json"))):
        for row in read_json(file).values():
            _add(sentences, language, row["extract"])
    for file in sorted(data.glob("debian_parallel/*.jsonl")):
        for row in map(json.loads, file.open(encoding="utf-8")):
            for language, text in row.items():
                if language != "id" and language not in ("ar", "zh", "ru"):
                    _add(sentences, language, text)
    for file in sorted(data.glob("gsm8k/test.jsonl")):
        questions += [row["question"] for row in map(json.loads, file.open(encoding="utf-8"))]
    for name in ("wiki_en.jsonl", "parallel.jsonl") if not sentences else ():
        for row in map(json.loads, (Path(__file__).parent / "data" / name).open(encoding="utf-8")):
            _add(sentences, row.get("lang", "en"), row["text"])
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        _add(sentences, "code", file.read_text(encoding="utf-8", errors="ignore"))
    # A language of few sentences would make documents that are alike by chance.
    return Pool({k: sorted(v) for k, v in sentences.items() if len(v) >= 1500}, questions)


def _add(sentences: dict[str, set[str]], language: str, text: str) -> None:
    parts = text.split("\n\n") if language == "code" else _SENTENCE.split(text)
    least, most = (80, 500) if language == "code" else (20 if language in ("ja", "ko") else 40, 400)
    sentences.setdefault(language, set()).update(p for p in parts if least <= len(p) <= most)


class Maker:
    """Draws documents; `truth` holds (kind, number of the document it was made from or -1) of each."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool, self._rng = pool, random.Random(seed)
        # English three quarters, code a twentieth, the others by the root of their size.
        weights = {k: len(v) ** 0.5 for k, v in pool.sentences.items() if k not in ("en", "code")}
        total = sum(weights.values()) or 1
        self._languages = [*weights, "en", "code"]
        self._weights = [*(0.2 * w / total for w in weights.values()), 0.75, 0.05]
        self._remembered: list[tuple[int, str, str]] = []
        self.truth: list[tuple[int, int]] = []

    def documents(self, count: int) -> Iterator[tuple[str, str]]:
        """(text, language) of each."""
        rng = self._rng
        names, shares = list(SHARES), list(SHARES.values())
        for number in range(count):
            kind = rng.choices([*names, "clean"], [*shares, 1 - sum(shares)])[0]
            if kind in ("copy", "near", "reworded") and len(self._remembered) < 1000:
                kind = "clean"
            if kind == "contaminated" and not self._pool.questions:
                kind = "clean"
            origin, text, language = -1, "", "en"
            if kind in ("copy", "near", "reworded"):
                origin, text, language = rng.choice(self._remembered)
                text = {"copy": self._copy, "near": self._near, "reworded": self._reworded}[kind](text, language)
            elif kind == "junk":
                text = self._junk()
            else:
                language = rng.choices(self._languages, self._weights)[0]
                text = self._fresh(language)
                if kind == "contaminated":
                    text = f"{text} {rng.choice(self._pool.questions)} {self._fresh('en', 300)}"
            self.truth.append((KINDS.index(kind), origin))
            if kind == "clean" and language != "code":
                self._remember(number, text, language)
            yield text, language

    def _remember(self, number: int, text: str, language: str) -> None:
        if len(self._remembered) < REMEMBERED:
            self._remembered.append((number, text, language))
        elif self._rng.random() < 0.1:
            self._remembered[self._rng.randrange(REMEMBERED)] = (number, text, language)

    def _fresh(self, language: str, chars: int = CHARS) -> str:
        wanted = self._rng.gauss(chars, chars / 4)
        if language in ("ja", "ko"):
            wanted /= 3
        parts: list[str] = []
        while sum(map(len, parts)) < max(wanted, 200):
            parts.append(self._rng.choice(self._pool.sentences[language]))
        return ("\n\n" if language == "code" else " ").join(parts)

    def _copy(self, text: str, _: str) -> str:
        return self._rng.choice([text, text.replace(" ", "  ", 3), text + "\n", "\ufeff" + text])

    def _near(self, text: str, language: str) -> str:
        """Few words changed, so that at least four fifths of the shingles of five words stay."""
        rng = self._rng
        if language in ("ja", "ko"):
            return text + rng.choice(self._pool.sentences[language])[:40]
        words = text.split(" ")
        for _ in range(max(1, round(len(words) * rng.uniform(0.005, 0.018)))):
            at = rng.randrange(len(words))
            words[at] = rng.choice(["", rng.choice(words), rng.choice(words) + " " + words[at]])
        front = rng.choice(["", "", f"Updated: {rng.randrange(1, 28)} May {rng.randrange(2000, 2026)}. "])
        return front + " ".join(w for w in words if w)

    def _reworded(self, text: str, language: str) -> str:
        """Sentences in another order, every tenth word gone, neighbours swapped: hardly a shingle is left."""
        if language in ("ja", "ko"):
            return self._near(text, language)
        rng = self._rng
        words = [w for w in text.split(" ") if rng.random() > 0.1]
        for at in range(0, len(words) - 3, 3):
            words[at], words[at + 1] = words[at + 1], words[at]
        return " ".join(words)

    def _junk(self) -> str:
        rng = self._rng
        line = rng.choice(self._pool.sentences["en"])
        return rng.choice([
            lambda: line + "\n" + (line[:60] + "\n") * 25,
            lambda: "".join(rng.choice("#*/\\|<>{}[]=+-_~^%$@!") for _ in range(600)),
            lambda: line[:40],
            lambda: _REFUSAL * 2 + line,
            lambda: _COOKIES * 6 + line,
            lambda: " ".join(str(rng.randrange(10**6)) for _ in range(150)),
            lambda: (line + " ").encode().decode("latin-1") + "\ufffd" * 40 + " ".join(["click", "here"] * 80),
        ])()  # fmt: skip


def make(out: Path, data: Path, documents: int, seed: int) -> None:
    """Write `documents` in FILES files under out/in, and the truth beside them."""
    maker = Maker(read_pool(data), seed)
    folder = out / "in"
    folder.mkdir(parents=True, exist_ok=True)
    each = -(-documents // FILES)
    stream = maker.documents(documents)
    for number in range(FILES):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as f:
            for _, (text, language) in zip(range(min(each, documents - number * each)), stream, strict=False):
                row = {"text": text, "kind": "code"} if language == "code" else {"text": text}
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
    truth = np.array(maker.truth, dtype=np.int64)
    np.save(out / "truth.npy", truth)
    write_json(out / "made.json", {"documents": documents, "seed": seed, "each": each})


def plan_of(out: Path, *, tokenizer: str = "") -> dict[str, Any]:
    """Every step that needs no model."""
    output = {"form": "tokens", "tokenizer": tokenizer, "bos": False} if tokenizer else {"form": "jsonl.zst"}
    source = {"path": str(out / "in"), "name": "made", "facts": ["kind"]}
    return {"sources": [source], "steps": list(USUAL), "output": output}


def score(out: Path, run: Path) -> dict[str, Any]:
    """Recall of every planted kind, precision of every step that removes copies, losses of clean documents."""
    truth, each = np.load(out / "truth.npy"), read_json(out / "made.json")["each"]
    kind, origin = truth[:, 0], truth[:, 1]
    root = np.where(origin >= 0, origin, np.arange(len(origin)))
    removed_by, like = {}, {}
    steps: dict[str, int] = {}
    for line in (run / "removed.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        number = _number(row["id"], each)
        removed_by[number] = steps.setdefault(row["step"], len(steps))
        if row.get("detail", "").startswith("like "):
            like[number] = _number(row["detail"].removeprefix("like "), each)
    by = np.full(len(kind), -1)
    by[list(removed_by)] = list(removed_by.values())
    found: dict[str, Any] = {"recall": {}, "precision": {}, "clean_lost": {}}
    for name in ("copy", "near", "reworded"):
        planted = np.flatnonzero(kind == KINDS.index(name))
        # A pair is resolved if not both are still there; the earlier one is kept.
        resolved = (by[planted] >= 0) | (by[origin[planted]] >= 0)
        found["recall"][name] = float(resolved.mean()) if len(planted) else None
    for name in ("contaminated", "junk"):
        planted = np.flatnonzero(kind == KINDS.index(name))
        found["recall"][name] = float((by[planted] >= 0).mean()) if len(planted) else None
    for step, code in steps.items():
        gone = np.flatnonzero(by == code)
        if step in ("exact", "near", "semantic"):
            right = [root[d] == root[like[d]] for d in gone.tolist()]
            found["precision"][step] = float(np.mean(right))
        elif step not in ("exact", "near", "semantic"):
            found["clean_lost"][step] = int((kind[gone] == 0).sum())
    found["clean"] = int((kind == 0).sum())
    return found


def _number(id_: str, each: int) -> int:
    file, _, line = id_.removeprefix("made/").partition(":")
    return int(file.removesuffix(".jsonl")) * each + int(line) - 1


def watch(command: list[str]) -> dict[str, float]:
    """Run a command; seconds, and the largest memory of it and its children together (shared pages counted once)."""
    started, peak, before = time.perf_counter(), 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, sum(_memory(pid) for pid in _family(process.pid)))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.perf_counter() - started
    cpu_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak / 1e9}


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _family(int(child)))]


def _memory(pid: int) -> int:
    """Proportional set size in bytes."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:")), 0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="headwater recipe million", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/million"), help="folder of the input and of the run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of wiki_vital, debian_parallel, gsm8k")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default="", help="write token shards with it, instead of texts")
    options = parser.parse_args(arguments)
    if not (options.out / "made.json").exists():
        make(options.out, options.data, options.documents, options.seed)
    write_json(options.out / "plan.json", plan_of(options.out, tokenizer=options.tokenizer))
    run = options.out / "run"
    command = [sys.executable, "-m", "headwater.cli", "data", "run", "--plan", str(options.out / "plan.json")]
    measured = watch([*command, "--out", str(run), "--workers", str(options.workers)])
    result = {**measured, **score(options.out, run)}
    write_json(options.out / "result.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
