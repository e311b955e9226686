"""Building the peer: the probe of the compiler, and steps that fail with their own words. The build itself takes half
an hour; `headwater bench --build-peer llama.cpp` runs it."""

import shutil
import subprocess
import sys

import pytest

from headwater.bench import build_peer, synthetic
from headwater.engine.engine import Engine

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@needs_compiler
def test_the_probe_says_what_happens_to_a_program(tmp_path, monkeypatch):
    """The verdict is whether the probe dies by a signal, whatever the compiler does with it."""
    expected = build_peer.amx_works(tmp_path)
    assert (subprocess.run([tmp_path / "amx"], check=False).returncode >= 0) == expected
    monkeypatch.setattr(build_peer, "_AMX_PROBE", "#include <csignal>\nint main() { raise(SIGSEGV); }")
    assert not build_peer.amx_works(tmp_path)
    monkeypatch.setattr(build_peer, "_AMX_PROBE", "int main() { return 3; }")
    assert build_peer.amx_works(tmp_path)
    monkeypatch.setattr(build_peer, "_AMX_PROBE", "this compiles nowhere")
    assert build_peer.amx_works(tmp_path)


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="no c\\+\\+ on the PATH"):
        build_peer.amx_works(tmp_path)
    with pytest.raises(ValueError, match="needs cmake"):
        build_peer.build(1, synthetic.write_tiny)


def test_a_failed_step_brings_its_last_words(capsys):
    with pytest.raises(ValueError, match=r"the build step failed \(3\): no space"):
        build_peer._step("build", [sys.executable, "-c", "import sys; print('no space', file=sys.stderr); sys.exit(3)"])
    assert "headwater bench: build:" in capsys.readouterr().err


def test_the_tiny_model_runs(tmp_path):
    synthetic.write_tiny(tmp_path / "tiny.gguf")
    assert Engine.from_pretrained(tmp_path / "tiny.gguf", threads=1).logits([1, 2, 3]).shape == (3, 512)
