"""Near-duplicates of planted copies by `datatrove`, `text-dedup` and us: the same documents, the same cores, in turns.

`recipes/million.py` makes the documents. Each peer has an environment of its own: `--peer-python` with `pip install
'datatrove[io]' 'xxhash<4' spacy tokenizers regex`, `--text-dedup-python` with `pip install --no-deps text-dedup` and
what its MinHash imports: `click click-option-group datasets ftfy regex rich scipy xxhash`. A finished run is not
repeated, so a killed comparison goes on where it was. Only the removal of copies is compared, no filters.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headwater.files import read_json, write_json
from recipes.million import KINDS, watch

BUCKETS, ROWS, WIDTH = 14, 8, 5  # datatrove's defaults
THRESHOLD = 0.7  # text-dedup's default, and ours


def cut(made: Path, out: Path, documents: int) -> None:
    """The first documents of `made`, in two files, with the line number as id."""
    folder = out / "in"
    if folder.exists():
        return
    part = out / "in.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    each, number = read_json(made / "made.json")["each"], 0
    targets = [(part / f"{half}.jsonl").open("w", encoding="utf-8") for half in (0, 1)]
    for file in range(-(-documents // each)):
        for line in (made / "in" / f"{file}.jsonl").open(encoding="utf-8"):
            if number < documents:
                row = {"id": str(number), "text": json.loads(line)["text"]}
                print(json.dumps(row, ensure_ascii=False), file=targets[number * 2 // documents])
            number += 1
    for target in targets:
        target.close()
    part.rename(folder)


def ours(out: Path, run: Path) -> list[str]:
    """The command of our side: the same kinds of copies, exact and near."""
    plan = {
        "sources": [{"path": str(out / "in"), "name": "in", "facts": ["id"]}],
        "steps": ["exact", "near"],
        "output": {"form": "jsonl.zst"},
        "unit_bytes": 4 << 20,
    }
    write_json(out / "plan.json", plan)
    command = [sys.executable, "-m", "headwater.cli", "data", "run", "--plan", str(out / "plan.json")]
    return [*command, "--out", str(run), "--workers", "2"]


def datatrove(source: Path, run: Path) -> None:
    """datatrove's four steps of MinHash deduplication, two processes, with its defaults. Runs in its environment."""
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
    from datatrove.pipeline.dedup import (  # type: ignore[import-not-found]
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # type: ignore[import-not-found]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.writers.jsonl import JsonlWriter  # type: ignore[import-not-found]

    config = MinhashConfig(n_grams=WIDTH, num_buckets=BUCKETS, hashes_per_bucket=ROWS)
    places = {name: str(run / name) for name in ("signatures", "buckets", "removed", "kept")}
    steps: list[tuple[int, list[Any]]] = [
        (2, [JsonlReader(str(source)), MinhashDedupSignature(places["signatures"], config=config)]),
        (BUCKETS, [MinhashDedupBuckets(places["signatures"], places["buckets"], config=config)]),
        (1, [MinhashDedupCluster(places["buckets"], places["removed"], config=config)]),
        (2, [JsonlReader(str(source)), MinhashDedupFilter(places["removed"]), JsonlWriter(places["kept"])]),
    ]
    for number, (tasks, pipeline) in enumerate(steps):
        LocalPipelineExecutor(
            pipeline=pipeline, tasks=tasks, workers=min(2, tasks), logging_dir=str(run / "logs" / str(number))
        ).run()


def text_dedup(python: str, source: Path, run: Path) -> list[str]:
    """The command of text-dedup's MinHash, two processes, its defaults: shingles of five words, 250 permutations."""
    given = {
        "path": "json", "data_files": str(source / "*.jsonl"), "split": "train", "column": "text",
        "cache_dir": str(run / "cache"), "output": str(run / "kept"), "num_proc": "2", "threshold": str(THRESHOLD),
    }  # fmt: skip
    return [python, "-m", "text_dedup.minhash", *(part for key, value in given.items() for part in (f"--{key}", value))]


def arrow_ids(folder: Path) -> set[int]:
    """The ids in the folder of Arrow streams that the hub's library writes."""
    import pyarrow

    found: set[int] = set()
    for file in folder.glob("*.arrow"):
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
            found.update(int(i) for batch in reader for i in batch.column("id").to_pylist())
    return found


def kept_ids(run: Path) -> set[int]:
    """The numbers of the documents that a run kept."""
    if (run / "kept" / "dataset_info.json").exists():
        return arrow_ids(run / "kept")
    if (run / "manifest.json").exists():
        from headwater.data.run import kept_texts

        return {int(row["facts"]["id"]) for row in kept_texts(run, 1 << 60)}
    import gzip

    files = (run / "kept").glob("*.jsonl.gz")
    return {int(json.loads(line)["id"]) for file in files for line in gzip.open(file, "rt", encoding="utf-8")}


def score(truth: np.ndarray, kept: set[int]) -> dict[str, float]:
    """Recall: planted pairs of which not both are left. Precision: removed documents that some other one resembles."""
    kind, origin = truth[:, 0], truth[:, 1]
    root = np.where(origin >= 0, origin, np.arange(len(truth)))
    alike = np.isin(kind, [KINDS.index(name) for name in ("copy", "near", "reworded")])
    group = np.bincount(root[alike], minlength=len(truth))[root] > 0
    # Junk is made of few sentences, so copies of it are many and nobody planted them.
    junk = kind == KINDS.index("junk")
    there = np.zeros(len(truth), bool)
    there[list(kept)] = True
    found = {"kept": float(there.sum())}
    for name in ("copy", "near"):
        planted = np.flatnonzero(kind == KINDS.index(name))
        found[f"recall {name}"] = float((~there[planted] | ~there[origin[planted]]).mean())
    gone = ~there & ~junk
    return found | {"precision": float(group[gone].mean()), "removed": float(gone.sum())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="headwater recipe data_peers", description=__doc__)
    parser.add_argument("--made", type=Path, default=Path("runs/million"), help="folder of recipes/million.py")
    parser.add_argument("--out", type=Path, default=Path("runs/data_peers"))
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--peer-python", default="", help="python of datatrove's environment")
    parser.add_argument("--text-dedup-python", default="", help="python of text-dedup's environment")
    parser.add_argument("--peer", nargs=2, type=Path, metavar=("IN", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peer:
        datatrove(*options.peer)
        return
    if not options.peer_python and not options.text_dedup_python:
        raise ValueError("give --peer-python or --text-dedup-python: the python of an environment with such a peer")
    cut(options.made, options.out, options.documents)
    truth = np.load(options.made / "truth.npy")[: options.documents]
    os.environ["PYTHONPATH"], os.environ["HF_HUB_OFFLINE"] = str(Path(__file__).parents[1]), "1"
    names = ["ours", *["datatrove"] * bool(options.peer_python), *["text-dedup"] * bool(options.text_dedup_python)]
    for turn in range(options.pairs):
        for name in names:
            run, result = options.out / f"{name}{turn}", options.out / f"{name}{turn}.json"
            if not result.exists():
                shutil.rmtree(run, ignore_errors=True)
                measured = watch(_command(name, options, run))
                write_json(result, measured | score(truth, kept_ids(run)))
            print(result.stem, json.dumps(read_json(result)))


def _command(name: str, options: argparse.Namespace, run: Path) -> list[str]:
    source = options.out / "in"
    if name == "text-dedup":
        return text_dedup(options.text_dedup_python, source, run)
    if name == "datatrove":
        return [options.peer_python, __file__, "--peer", str(source), str(run)]
    return ours(options.out, run)


if __name__ == "__main__":
    main()
