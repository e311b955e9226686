"""What each step kept and removed, and why: counts, a few samples of every reason, and the shape of what is left.

Ledgers of units add up to that of the run, and the samples are those with the smallest hash of their id, so the
result does not depend on the order or the number of workers.
"""

import hashlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from headwater.data.steps import Removed, Step, Text, Verdict

SAMPLES = 5
_SHOWN = 400  # characters of a sample
Entry = dict[str, Any]


def new_entry(name: str, source: str) -> Entry:
    """An empty account of one step."""
    return {
        "name": name, "source": source, "texts_in": 0, "texts_out": 0, "chars_in": 0, "chars_out": 0, "changed": 0,
        "seconds": 0.0, "removed": {}, "facts": {},
    }  # fmt: skip


def apply(step: Step, texts: Sequence[Text], entry: Entry, *, log: IO[str]) -> list[Text]:
    """Run a step over a batch, write down what it did, and give what is left. log: a JSON line for each text that
    leaves. ValueError: the step broke its contract.
    """
    started = time.perf_counter()
    verdicts = step(texts)
    entry["seconds"] += time.perf_counter() - started
    if len(verdicts) != len(texts):
        raise ValueError(f"step {step.name!r} gave {len(verdicts)} verdicts on {len(texts)} texts")
    kept = []
    for text, verdict in zip(texts, verdicts, strict=True):
        if isinstance(verdict, Removed):
            remove(entry, verdict.reason, len(text.text), sample(text, verdict.detail))
            log.write(removal(text.id, step.name, verdict.reason, verdict.detail))
            continue
        if verdict.id != text.id:
            raise ValueError(f"step {step.name!r} changed the id {text.id!r} to {verdict.id!r}; ids must stay")
        entry["changed"] += verdict.text is not text.text and verdict.text != text.text
        kept.append(verdict)
    flow(entry, texts, kept)
    if (count := getattr(step, "count", None)) is not None:
        _add(entry["facts"], count(verdicts))
    return kept


def _add(facts: Entry, more: Entry) -> None:
    """Add the counts of a batch, or of a unit, to those before."""
    for name, counts in more.items():
        facts[name] = dict(Counter(facts.get(name, {})) + Counter(counts))


def removal(id_: str, step: str, reason: str, detail: str = "") -> str:
    """The line of a removed text in the list of all of them."""
    row = {"id": id_, "step": step, "reason": reason} | ({"detail": shorten(detail)} if detail else {})
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of the block."""
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def peak_memory() -> int:
    """Most bytes that this process has held in memory so far, files mapped into it included."""
    try:  # what getrusage says begins, on Linux, with what the process that started this one held
        rows = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(row.split()[1]) for row in rows if row.startswith("VmHWM:"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def flow(entry: Entry, texts: Sequence[Verdict], kept: Sequence[Text]) -> None:
    """Count what came and what went on."""
    entry["texts_in"] += len(texts)
    entry["texts_out"] += len(kept)
    entry["chars_in"] += sum(len(t.text) for t in texts if isinstance(t, Text))
    entry["chars_out"] += sum(len(t.text) for t in kept)


def remove(entry: Entry, reason: str, chars: int, shown: Entry) -> None:
    """Count one text that left, and keep it as a sample if its turn comes."""
    row = entry["removed"].setdefault(reason, {"count": 0, "chars": 0, "samples": []})
    row["count"] += 1
    row["chars"] += chars
    samples = row["samples"]
    if len(samples) == SAMPLES and shown["order"] >= samples[-1]["order"]:
        return
    row["samples"] = sorted([*samples, shown], key=_order)[:SAMPLES]


def sample(text: Text, detail: str, *, like: Text | None = None) -> Entry:
    """A removed text as the report shows it; like: the text that stays in its place."""
    shown = {"order": order(text.id), "id": text.id, "text": shorten(text.text), "detail": shorten(detail)}
    return shown | ({"like_id": like.id, "like": shorten(like.text)} if like else {})


def order(id_: str) -> str:
    """A fixed random place of an id, as hex digits."""
    return f"{id_hash(id_):016x}"


def id_hash(id_: str) -> int:
    """64 bits that stand for an id."""
    return int.from_bytes(hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _order(shown: Entry) -> str:
    return shown["order"]


def merge(entries: Iterable[Entry]) -> Entry:
    """One account of the same step from several units."""
    total: Entry = {}
    for entry in entries:
        if not total:
            total = new_entry(entry["name"], entry["source"])
        for key in ("texts_in", "texts_out", "chars_in", "chars_out", "changed", "seconds"):
            total[key] += entry[key]
        for reason, row in entry["removed"].items():
            into = total["removed"].setdefault(reason, {"count": 0, "chars": 0, "samples": []})
            into["count"] += row["count"]
            into["chars"] += row["chars"]
            into["samples"] = sorted(into["samples"] + row["samples"], key=_order)[:SAMPLES]
        _add(total["facts"], entry["facts"])
    return total


class Shape:
    """Of a set of texts: how many, by source, by language and by length (powers of two of characters)."""

    def __init__(self) -> None:
        self.sources: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        self.texts = self.chars = 0

    def add(self, texts: Sequence[Text]) -> None:
        lengths = [len(t.text) for t in texts]
        self.texts += len(texts)
        self.chars += sum(lengths)
        self.sources.update(t.source for t in texts)
        self.languages.update(str(t.facts.get("language", "")) for t in texts)
        self.lengths.update(length.bit_length() for length in lengths)

    def to_dict(self) -> Entry:
        return {
            "texts": self.texts, "chars": self.chars, "sources": dict(self.sources),
            "languages": {k: v for k, v in self.languages.items() if k},
            "lengths": {str(k): v for k, v in self.lengths.items()},
        }  # fmt: skip


def merge_shapes(shapes: Iterable[Entry]) -> Entry:
    """The shape of several units together, keys in order."""
    total: Entry = {"texts": 0, "chars": 0, "sources": Counter(), "languages": Counter(), "lengths": Counter()}
    for shape in shapes:
        for key, value in shape.items():
            if isinstance(value, dict):
                total[key].update(value)
            else:
                total[key] += value
    return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in total.items()}
