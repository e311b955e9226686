"""The rounds: our engine and a peer in turn, each run a fresh process, a probe of the limits around every pair.

A pair during which other processes and the host took more than QUIET_CORES is run again, up to `retries` times; pairs
that stayed noisy are counted, and used only where a row has no clean one. Medians, spread and ratios are made of the
rest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from headwater.bench import fresh
from headwater.bench.cases import Case, row, rows_of
from headwater.bench.limits import Probe, Work, peak_kind, probe, spread
from headwater.bench.peers import Contender, median
from headwater.engine import native

QUIET_CORES = 0.15


@dataclass(frozen=True)
class Plan:
    """How to measure. neighbours: busy processes to measure beside; retries: further tries of a noisy pair;
    probe_seconds: length of one probe of one limit; timeout: seconds one run may take."""

    threads: int
    rounds: int = 5
    neighbours: int = 0
    retries: int = 2
    probe_seconds: float = 0.3
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        least = {"threads": 1, "rounds": 1, "neighbours": 0, "retries": 0}
        for name, at_least in least.items():
            value = getattr(self, name)
            if value < at_least:
                raise ValueError(f"--{name} is {value}; allowed: at least {at_least}")


@dataclass(frozen=True)
class Pair:
    """One turn of each engine at one case: rows -> values by engine, the limits around it, and the noise."""

    case: Case
    values: tuple[dict[str, float], ...]
    before: Probe
    after: Probe
    foreign: float
    stolen: float

    @property
    def clean(self) -> bool:
        return self.foreign + self.stolen <= QUIET_CORES

    def bandwidth(self, threads: int) -> float:
        """Bytes per second around this pair: the mean of before and after."""
        return (self.before.bandwidth[threads] + self.after.bandwidth[threads]) / 2

    @property
    def peak(self) -> float:
        """Multiply-adds per second: the better probe, since a peak does not move and a disturbed probe only loses."""
        return max(self.before.peak, self.after.peak)


@dataclass
class Measured:
    """All kept pairs by case name, and how many tries were thrown away as noisy."""

    engines: tuple[str, ...]
    work: Work
    plan: Plan
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    repeated: int = 0

    def used(self, case: str) -> list[Pair]:
        """The clean pairs, or all where none is."""
        return [p for p in self.pairs[case] if p.clean] or self.pairs[case]

    def cases(self) -> Iterator[tuple[str, Case]]:
        """(row, its case)."""
        for pairs in self.pairs.values():
            for name in rows_of(pairs[0].case):
                yield name, pairs[0].case

    def values(self, engine: int, name: str, case: Case) -> list[float]:
        return [p.values[engine][name] for p in self.used(case.name)]

    def shares(self, engine: int, name: str, case: Case) -> list[float]:
        """Of each pair: the part of the limit reached; empty for rows without a limit."""
        found = []
        for p in self.used(case.name):
            limit = self.work.limit(case, p.bandwidth(self.plan.threads), p.peak)
            if limit is not None:
                found.append(p.values[engine][name] / limit)
        return found


OnStep = Callable[[str, int, int], None]


def measure(
    engines: Sequence[Contender], cases: Sequence[Case], work: Work, plan: Plan, on_step: OnStep | None = None
) -> Measured:
    """Run everything. on_step(what, pairs done, pairs in all). ValueError: an engine failed or printed nonsense."""
    out = Measured(tuple(e.name for e in engines), work, plan, {c.name: [] for c in cases})
    total, done = plan.rounds * len(cases), 0
    before = probe(plan.threads, plan.probe_seconds)
    for number in range(plan.rounds):
        for case in cases:
            for attempt in range(plan.retries + 1):
                if on_step:
                    again = f", try {attempt + 1}" if attempt else ""
                    on_step(f"{case.name}, round {number + 1} of {plan.rounds}{again}", done, total)
                pair = _pair(engines, case, plan, before)
                before = pair.after
                if pair.clean or attempt == plan.retries:
                    break
                out.repeated += 1
            out.pairs[case.name].append(pair)
            done += 1
    if on_step:
        on_step("done", done, total)
    return out


def _pair(engines: Sequence[Contender], case: Case, plan: Plan, before: Probe) -> Pair:
    values, foreign, stolen = [], 0.0, 0.0
    for engine in engines:
        command = engine.command(case, plan.threads)
        run = fresh.run(command, timeout=plan.timeout, neighbours=plan.neighbours)
        values.append(engine.read(case, run))
        foreign, stolen = max(foreign, run.foreign), max(stolen, run.stolen)
    return Pair(case, tuple(values), before, probe(plan.threads, plan.probe_seconds), foreign, stolen)


def report(m: Measured, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a benchmark: ratios (ours / peer), ours, peer, limits; then pair_ratios and what was run.

    about: at least the name of the "model", and whatever else is to stand there.
    """
    rows = dict(m.cases())
    engines = [{name: _row(m, e, name, case) for name, case in rows.items()} for e in range(len(m.engines))]
    ratios, pair_ratios = {}, {}
    if len(engines) > 1:
        for name, case in rows.items():
            ours, peer = m.values(0, name, case), m.values(1, name, case)
            ratios[name] = median(ours) / median(peer)
            pair_ratios[name] = median([a / b for a, b in zip(ours, peer, strict=True)])
    return {
        "ratios": ratios,
        "ours": engines[0],
        "peer": engines[1] if len(engines) > 1 else None,
        "limits": _limits(m),
        "pair_ratios": pair_ratios,
        "noise": _noise(m),
        "about": {
            "parameters": m.work.config.num_parameters(), "cpu": native.cpu_name().strip("\0 "), "isa": native.isa(),
            "rounds": m.plan.rounds, **about, "engines": list(m.engines), "threads": m.plan.threads,
            "neighbours": m.plan.neighbours,
        },
    }  # fmt: skip


def _row(m: Measured, engine: int, name: str, case: Case) -> dict[str, Any]:
    values, shares = m.values(engine, name, case), m.shares(engine, name, case)
    share = {"share_of_limit": median(shares)} if shares else {}
    return {**spread(values), "runs": values, "unit": row(name).unit.replace("MB", "bytes"), **share}


def _limits(m: Measured) -> dict[str, Any]:
    probes = [q for pairs in m.pairs.values() for p in pairs for q in (p.before, p.after)]
    bandwidth = {str(n): spread([q.bandwidth[n] for q in probes]) for n in sorted(probes[0].bandwidth)}
    return {
        "read_bandwidth": bandwidth,
        "peak_kind": peak_kind(),
        "peak_macs": spread([q.peak for q in probes]),
        "weight_bytes_per_token": m.work.weight_bytes,
        "macs_per_prompt_token": m.work.macs,
    }


def _noise(m: Measured) -> dict[str, Any]:
    """Which pairs were clean: nobody should quote a row that has none."""
    kept = {name: [p.clean for p in pairs] for name, pairs in m.pairs.items()}
    return {
        "quiet_cores": QUIET_CORES,
        "clean": all(all(k) for k in kept.values()),
        "clean_pairs": {name: sum(k) for name, k in kept.items()},
        "pairs": {name: len(k) for name, k in kept.items()},
        "repeated": m.repeated,
        "foreign_cores": spread([p.foreign for pairs in m.pairs.values() for p in pairs]),
        "stolen_cores": spread([p.stolen for pairs in m.pairs.values() for p in pairs]),
    }
