"""One case on our engine in a process of its own: `python -m headwater.bench.worker '{"model": ..., ...}'`.

Prints one JSON line: {"seconds": [one per repetition], "load": seconds, "at": the system-wide monotonic clock at the
end}. Started by measure.py and by nobody else. Start-up and memory are not its business: those of `headwater generate`
are measured (peers.py).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from headwater.bench.cases import Case, named

_CHUNK = 512


def tokens(count: int, vocab_size: int) -> list[int]:
    """Ids all over the vocabulary, the same in every run (a linear congruence; special ones are tokens as others)."""
    out, state = [], 12345
    for _ in range(count):
        state = (state * 1103515245 + 12345) % (1 << 31)
        out.append((state >> 8) % vocab_size)
    return out


def run(model: str, case: Case, threads: int) -> dict[str, Any]:
    from headwater.engine import native, program

    begin = time.perf_counter()
    config, weights = native.open_weights(Path(model), "Q8_0", threads=threads)
    core = native.build(
        program.lower(config, weights), capacity=case.tokens + case.depth + 1, max_tokens=_CHUNK, threads=threads
    )
    del weights
    load = time.perf_counter() - begin
    sampler = native.Sampler(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, logprobs=-1, seed=0
    )
    slot = core.open()
    prompt = tokens(case.tokens if case.kind == "prefill" else case.depth, config.vocab_size)

    def read() -> None:
        core.rewind(slot, 0)
        for start in range(0, len(prompt), _CHUNK):
            piece = prompt[start : start + _CHUNK]
            core.run([(slot, piece, "last" if start + len(piece) == len(prompt) else "none")])

    def once(count: int) -> float:
        if case.kind == "prefill":
            t = time.perf_counter()
            read()
            return time.perf_counter() - t
        core.rewind(slot, 0)
        read()
        t = time.perf_counter()
        core.decode(slot, 1, count, sampler, [])
        return time.perf_counter() - t

    if not case.long:
        once(1)
    return {"seconds": [once(case.tokens) for _ in range(case.repetitions)], "load": load}


def main() -> None:
    job = json.loads(sys.argv[1])
    result = run(job["model"], named(job["case"]), job["threads"])
    print(json.dumps(result | {"at": time.clock_gettime(time.CLOCK_MONOTONIC)}), flush=True)


if __name__ == "__main__":
    main()
