"""What peers print, read with suspicion; what they are started with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_models import tiny

from headwater.bench import cases, peers, synthetic
from headwater.bench.fresh import Run
from headwater.engine import kept
from headwater.tokenizer import Tokenizer

# Printed by llama-bench of llama.cpp 0c1e570 (-p 32 -n 0 -r 1 -o jsonl), as it came.
PRINTED = (
    '{"build_commit": "0c1e570", "build_number": 1, "cpu_info": "Intel(R) Xeon(R) Processor", "gpu_info": "", '
    '"backends": "CPU", "model_filename": "m.gguf", "model_type": "lfm2 350M (guessed) Q4_0", '
    '"model_size": 216923136, "model_n_params": 354483968, "n_batch": 2048, "n_ubatch": 512, "n_threads": 1, '
    '"cpu_mask": "0x0", "cpu_strict": false, "poll": 50, "type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, '
    '"n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": false, "flash_attn": -1, '
    '"devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "auto", '
    '"lazy_mode": "auto", "embeddings": false, "no_op_offload": 0, "no_host": false, "repack": true, '
    '"fit_target": 0, "fit_min_ctx": 0, "n_prompt": 32, "n_gen": 0, "n_depth": 0, '
    '"test_time": "2026-11-22T01:08:27Z", "avg_ns": 267734575, "stddev_ns": 0, "avg_ts": 119.521358, '
    '"stddev_ts": 0.000000, "samples_ns": [ 267734575 ],"samples_ts": [ 119.521 ]}\n'
)


def run_of(*lines, at=1.5):
    return Run(list(lines), [at] * len(lines), 100.0, 2.0, 5e8, 2e8, 0.0, 0.0)


LLAMA = peers.LlamaCpp(Path("m.gguf"), Path("llama-bench"), ("-lm", "none"))


def test_llama_bench_is_read():
    case = cases.named("prefill_32")
    assert LLAMA.read(case, run_of("loading\n", PRINTED)) == {"prefill_32": 119.521}
    assert LLAMA.read(cases.MEMORY, run_of(PRINTED)) == {"peak_memory": 5e8, "peak_anonymous": 2e8}


def test_the_first_token_is_the_first_line():
    printed = PRINTED.replace('"n_prompt": 32', f'"n_prompt": {cases.FIRST_TOKEN.tokens}')
    read = LLAMA.read(cases.FIRST_TOKEN, run_of(printed))
    assert read["first_token"] == 1.5
    assert read["load"] == pytest.approx(1.5 - 0.267734575)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "printed 0 tests"),
        (PRINTED.replace('"n_prompt": 32', '"n_prompt": 64'), "none or several"),
        (PRINTED + PRINTED, "printed 2 tests|not JSON"),
        (PRINTED[:-30] + "\n", "not JSON"),
        (PRINTED.replace("[ 119.521 ]", "[ ]"), "samples_ts = "),
        (PRINTED.replace("[ 119.521 ]", "[ -1 ]"), "positive numbers"),
        (PRINTED.replace("[ 119.521 ]", "[ NaN ]"), "positive numbers"),
        (PRINTED.replace("[ 119.521 ]", "[ Infinity ]"), "positive numbers"),
        (PRINTED.replace("[ 119.521 ]", '"fast"'), "positive numbers"),
        (PRINTED.replace("samples_ts", "samples"), "samples_ts = None"),
    ],
)
def test_odd_output_is_a_fault_with_a_name(line, says):
    with pytest.raises(ValueError, match=says):
        LLAMA.read(cases.named("prefill_32"), run_of(*line.splitlines(keepends=True)))


def test_llama_bench_is_told_the_case():
    def told(name):
        words = LLAMA.command(cases.named(name), 3)
        return {w: words[i + 1] for i, w in enumerate(words) if w in ("-p", "-n", "-d", "-t", "-r", "-lm")}, words

    options, words = told("decode_128@4096")
    assert options == {"-p": "0", "-n": "128", "-d": "4096", "-t": "3", "-r": "1", "-lm": "none"}
    assert "--no-warmup" in words
    options, words = told("prefill_512")
    assert options == {"-p": "512", "-n": "0", "-d": "0", "-t": "3", "-r": "2", "-lm": "none"}
    assert "--no-warmup" not in words
    assert told("memory")[0]["-p"] == "512"


def test_a_worker_is_read():
    worker = peers.ours(Path("m.gguf"))
    line = json.dumps({"seconds": [2.0, 4.0], "load": 0.5, "at": 100.75})
    assert worker.read(cases.named("decode_30"), run_of(line)) == {"decode_30": 10.0}
    transformers = peers.transformers({"model": "m"}, "float32")
    assert transformers.read(cases.FIRST_TOKEN, run_of(line)) == {"first_token": 0.75, "load": 0.5}
    for bad in ("", "[]", "{}", line.replace("[2.0, 4.0]", "[0]"), line.replace("0.5", "null")):
        with pytest.raises(ValueError, match="headwater printed"):
            worker.read(cases.named("decode_30"), run_of(bad))


def test_our_start_and_memory_are_those_of_the_command(tmp_path):
    """Measured as people run it: the printed line is the clock, and the prompt has as many tokens as the case says."""
    path = tmp_path / "m.gguf"
    synthetic.write(path, tiny("lfm2"), "q4_0")
    ours = peers.ours(path)
    command = ours.command(cases.FIRST_TOKEN, 1)
    assert command[3:8] == ["-m", "headwater.cli", "generate", str(path), "Hello"]
    printed = json.dumps({"prefill_seconds": 0.25, "ids": [3]})
    assert ours.read(cases.FIRST_TOKEN, run_of(printed)) == {"first_token": 1.5, "load": 1.25}
    assert ours.read(cases.MEMORY, run_of(printed)) == {"peak_memory": 5e8, "peak_anonymous": 2e8}
    prompt = ours.command(cases.MEMORY, 1)[7]
    assert abs(len(Tokenizer.from_pretrained(path).encode(prompt)) - cases.MEMORY.depth) <= 2
    with pytest.raises(ValueError, match="headwater printed prefill_seconds = \\[None\\]"):
        ours.read(cases.FIRST_TOKEN, run_of("{}"))


def test_where_llama_bench_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(peers.BINARY_VARIABLE, raising=False)
    model = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match=r"headwater bench --build-peer llama\.cpp"):
        peers.llama_cpp(model, None)
    with pytest.raises(ValueError, match="is no program"):
        peers.llama_cpp(model, tmp_path)
    with pytest.raises(ValueError, match=r"reads \.gguf files"):
        peers.llama_cpp(tmp_path, Path(sys.executable))
    monkeypatch.setenv(peers.BINARY_VARIABLE, sys.executable)
    assert peers.llama_cpp(model, None).binary == Path(sys.executable)
    built = tmp_path / "headwater" / "bench" / f"llama.cpp-{peers.built_binary.__globals__['VERSION']}" / "llama-bench"
    built.parent.mkdir(parents=True)
    os.symlink(sys.executable, built)
    monkeypatch.delenv(peers.BINARY_VARIABLE)
    assert peers.llama_cpp(model, None).binary == built


def test_our_starts_are_of_the_file_that_was_named(tmp_path):
    """Not of a packed copy that an earlier run left in the cache, and they leave none."""
    command = peers.ours(tmp_path / "m.gguf").command(cases.FIRST_TOKEN, 1)
    words = command[: command.index(sys.executable)]
    said = subprocess.run([*words, "sh", "-c", f"echo ${kept.SWITCH}"], check=True, capture_output=True, text=True)
    assert said.stdout == "0\n"
