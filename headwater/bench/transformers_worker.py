"""One case on transformers in a process of its own; the job and the answer are those of worker.py.

The job holds "model" (a directory) or "config" (contents of a config.json; random weights), "dtype", "case", "threads".
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headwater import optional
from headwater.bench.cases import Case, named
from headwater.bench.worker import tokens


def load(job: dict[str, Any]) -> Any:
    """The model in memory, in evaluation mode."""
    torch = optional.load("torch", extra="train")
    hf = optional.load("transformers", extra="dev")
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    if "model" in job:
        return hf.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, local_files_only=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(job["config"]))
        config = hf.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("cpu"):
        return hf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def run(model: Any, case: Case) -> list[float]:
    """Seconds of each repetition."""
    torch = optional.load("torch", extra="train")
    vocab = model.config.get_text_config().vocab_size
    prompt = case.tokens if case.kind in ("prefill", "first_token") else case.depth
    ids = torch.tensor([tokens(max(prompt, 1), vocab)])

    def read() -> Any:
        return model(ids, use_cache=True, logits_to_keep=1)

    def once(count: int) -> float:
        t = time.perf_counter()
        out = read()
        if case.kind in ("prefill", "first_token"):
            int(out.logits[0, -1].argmax())
            return time.perf_counter() - t
        t = time.perf_counter()
        for _ in range(count):
            nearest = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(nearest, past_key_values=out.past_key_values, use_cache=True)
        int(out.logits[0, -1].argmax())
        return time.perf_counter() - t

    with torch.inference_mode():
        if case.kind == "first_token":
            return [once(1)]
        if not case.long:
            once(1)
        return [once(case.tokens) for _ in range(case.repetitions)]


def main() -> None:
    job = json.loads(sys.argv[1])
    begin = time.perf_counter()
    model = load(job)
    taken = time.perf_counter() - begin
    seconds = run(model, named(job["case"]))
    print(json.dumps({"seconds": seconds, "load": taken, "at": time.clock_gettime(time.CLOCK_MONOTONIC)}), flush=True)


if __name__ == "__main__":
    main()
