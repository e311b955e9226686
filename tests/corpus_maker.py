"""A small corpus with planted copies and faults for the tests of the pipeline, and how to read what a run kept."""

import json
import random

from headwater.data.plan import Plan
from headwater.data.run import kept_texts

WORDS = [a + b for a in ("stone", "river", "cloud", "paper", "glass", "north") for b in "abcdefghijklmnopqrstuvwxyz"]


def write_corpus(folder, texts=600, files=3):
    """Files of texts, a fifth of which are copies or near copies of others, and one line that is no JSON."""
    rng = random.Random(11)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(texts):
        if number > 20 and number % 5 == 0:
            words = rng.choice(made).split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            made.append(" ".join(words))
        else:
            made.append(" ".join(rng.choice(WORDS) for _ in range(rng.randint(40, 80))))
    for file in range(files):
        rows = [json.dumps({"text": t}) for t in made[file::files]]
        rows.insert(7, "{torn")
        (folder / f"{file}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def plan_for(folder, **changes):
    """Exact, near and semantic deduplication in units of some kilobytes."""
    values = {
        "sources": [{"path": str(folder), "name": "made"}],
        "steps": ["exact", "near", {"step": "semantic", "cluster": 50}],
        "unit_bytes": 8 << 10,
        "sample": 300,
    }
    return Plan.from_dict(values | changes)


def kept(out):
    """[(id, text)] of a finished run, in order."""
    return [(row["id"], row["text"]) for row in kept_texts(out, 10**9)]
