"""Models that GGUF has no words for, in our own architecture: all comes back, both engines run it, others refuse it."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_cli import headwater  # noqa: F401 (a fixture)
from test_engine_files import IDS, engine, plain
from test_native_program import F16_CACHE, config, model, rel

from headwater import checkpoint
from headwater.bench.build_peer import built_binary
from headwater.export import gguf
from headwater.weights import unstack

OURS = ["lfm3", "biased", "biased_post_norms", "conv_only", "gemma3"]


def tensors(m):
    """Float tensors as the exporter wants them."""
    return {n: SimpleNamespace(shape=tuple(t.shape), read=t.detach().float().numpy) for n, t in unstack(m.state_dict())}


@pytest.mark.parametrize("name", OURS)
def test_every_part_comes_back_and_runs(name, tmp_path):
    """gemma3 is here with a scale of attention that its own architecture does not say."""
    m = model(config(name))
    path = tmp_path / "m.gguf"
    gguf.write(path, m.config, tensors(m), None, type="f32")
    back, sources, _ = checkpoint.read(path)
    assert back == m.config
    ours = {n: t.float() for n, t in unstack(m.state_dict())}
    assert sources.keys() == ours.keys()
    for n, t in ours.items():
        near = m.config.norm_offset and "norm" in n  # one was added and taken off again
        assert torch.allclose(sources[n].read(), t, rtol=0, atol=1e-6) if near else torch.equal(sources[n].read(), t), n
    with torch.inference_mode():
        want = m(torch.tensor([IDS]))[0].numpy()
    assert rel(plain(path), want) < 1e-5
    assert rel(engine(path).logits(IDS), want) < F16_CACHE


def test_rounded_it_is_what_the_directory_is_rounded_to(tmp_path):
    m = model(config("lfm3"))
    m.save_pretrained(tmp_path / "model")
    path = tmp_path / "m.gguf"
    done = gguf.write(path, m.config, tensors(m), None, type="q8_0")
    matrices = {n for n, t in m.named_parameters() if t.ndim == 2 and "g_proj" not in n}
    assert done.tensors["q8_0"] == len(matrices)
    assert (engine(path).logits(IDS) == engine(tmp_path / "model", weights="Q8_0").logits(IDS)).all()


def test_export_says_that_others_refuse_it(headwater, tmp_path):  # noqa: F811
    model(config("lfm3")).save_pretrained(tmp_path / "model")
    code, _, err = headwater("export", "gguf", tmp_path / "model", tmp_path / "m.gguf", "--no-tokenizer")
    assert code == 0
    assert "no words for gated attention heads (LFM3)" in err
    model(config("lfm2")).save_pretrained(tmp_path / "plain")
    code, _, err = headwater("export", "gguf", tmp_path / "plain", tmp_path / "p.gguf", "--no-tokenizer")
    assert (code, err) == (0, "")


def test_llama_cpp_refuses_it_by_name(tmp_path):
    binary = built_binary() or shutil.which("llama-bench")
    if binary is None:
        pytest.skip("no llama-bench here")
    m = model(config("lfm3"))
    gguf.write(tmp_path / "m.gguf", m.config, tensors(m), None, type="f32")
    done = subprocess.run(
        [Path(binary), "-m", tmp_path / "m.gguf", "-p", "1", "-n", "0", "-v"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "unknown model architecture: 'headwater'" in done.stderr
