"""KL divergence between engines: against the definition, against a known distance, and from llama.cpp's file."""

import json
import math
import struct

import numpy as np
import pytest
from bench_models import tiny

from headwater import cli
from headwater.bench import synthetic
from headwater.evals import divergence as kl

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((50, 50)).astype(np.float32) * 2


def of(ids):
    return TABLE[np.asarray(ids)]


def shifted(ids):
    return of(ids) + np.linspace(0, 1, 50, dtype=np.float32) + 7.0


def test_the_definition():
    chunks = kl.chunks_of(RNG.integers(0, 50, 64).tolist(), 16, 4, None)
    same, other = kl.divergence(of, [of, shifted], chunks)
    assert (same.kl, same.same_top, same.same_top_error, same.tokens) == (0, 1, 0, 4 * 7)
    means = []
    for chunk in chunks:
        rows = []
        for t in range(8, 15):
            p = np.exp(of(chunk)[t].astype(np.float64))
            q = np.exp(shifted(chunk)[t].astype(np.float64))
            p, q = p / p.sum(), q / q.sum()
            rows.append((p * np.log(p / q)).sum())
        means.append(np.mean(rows))
    assert other.kl == pytest.approx(np.mean(means), rel=1e-4)
    assert other.kl_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(4), rel=1e-3)


def test_chunks():
    assert kl.chunks_of(range(20), 5, 2, 99) == [[99, 1, 2, 3, 4], [99, 6, 7, 8, 9]]
    with pytest.raises(ValueError, match="has 20 tokens, 25 are needed"):
        kl.chunks_of(range(20), 5, 5, None)
    with pytest.raises(ValueError, match="vocabulary"):
        kl.divergence(of, [lambda ids: of(ids)[:, :40]], [[1] * 8] * 2)


def saved(path, chunks, logits):
    """A file as llama-perplexity writes it: per row its scale, its least value and 16-bit steps above it."""
    context = len(chunks[0])
    with path.open("wb") as f:
        f.write(b"_logits_" + struct.pack("<iii", context, 50, len(chunks)))
        f.write(np.asarray(chunks, np.int32).tobytes())
        for chunk in chunks:
            for row in kl.log_softmax(logits(chunk))[kl.scored(context)]:
                scale = (row.max() - row.min()) / 65535
                head = np.array([scale, row.min()], np.float32)
                f.write(head.tobytes() + np.round((row - row.min()) / scale).astype(np.uint16).tobytes())


def test_llama_cpps_file(tmp_path):
    chunks = kl.chunks_of(RNG.integers(0, 50, 48).tolist(), 16, 3, None)
    saved(tmp_path / "l", chunks, shifted)
    ours, theirs = kl.divergence(of, [shifted, kl.SavedLogits(tmp_path / "l")], chunks)
    assert theirs.kl == pytest.approx(ours.kl, rel=1e-3)
    with pytest.raises(ValueError, match="other tokens"):
        kl.SavedLogits(tmp_path / "l")(list(reversed(chunks[0])))
    (tmp_path / "l").write_bytes((tmp_path / "l").read_bytes()[:-2])
    with pytest.raises(ValueError, match="cut off"):
        kl.SavedLogits(tmp_path / "l")
    (tmp_path / "l").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="holds no logits"):
        kl.SavedLogits(tmp_path / "l")


def test_the_command(tmp_path, capsys):
    for kind in ("q8_0", "q4_0"):
        synthetic.write(tmp_path / f"{kind}.gguf", tiny("lfm2"), kind)
    (tmp_path / "text").write_text("the boat and the sea, again and again. " * 30)
    common = ["--reference", str(tmp_path / "q8_0.gguf"), "--text", str(tmp_path / "text"), "--chunks", "3"]
    files = [str(tmp_path / f"{kind}.gguf") for kind in ("q8_0", "q4_0")]
    assert cli.run(["eval", "kl", *files, *common, "--context", "32", "--threads", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["q8_0.gguf, headwater"]["kl"] == 0
    assert results["q4_0.gguf, headwater"]["kl"] > 0.1
    assert cli.run(["eval", "kl", *files, *common, "--context", "3000"]) == 2
    assert cli.run(["eval", "lk", *files, *common]) == 2
    assert "there are kl" in capsys.readouterr().err
