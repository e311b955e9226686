"""Building the peer: the probe of the compiler, and steps that fail with their own words. The build itself takes half
an hour; `headwater bench --build-peer llama.cpp` runs it."""

import fcntl
import shutil
import subprocess
import sys
import tarfile

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


def test_a_failed_step_brings_its_last_words(tmp_path, capsys):
    command = [sys.executable, "-c", "import sys; print('no space', file=sys.stderr); sys.exit(3)"]
    with pytest.raises(ValueError, match=r"the build step failed \(3\): no space"):
        build_peer._step("build", command, tmp_path)
    said = capsys.readouterr().err
    assert "headwater bench: build:" in said
    assert str(tmp_path / "build.log") in said
    assert "no space" in (tmp_path / "build.log").read_text()


_CMAKE = """#!/bin/sh
case $1 in
  -S) mkdir -p "$4/bin"; echo "$@" >> "$4/configured" ;;
  --build)
    test -e "$2/stop" || { touch "$2/stop"; echo 'interrupted' >&2; exit 2; }
    for name in llama-bench llama-quantize llama-perplexity llama-server; do
      printf '#!/bin/sh\\ntest -s "$2"' > "$2/bin/$name"; chmod +x "$2/bin/$name"
    done ;;
esac
"""


@needs_compiler
def test_a_stopped_build_goes_on_and_only_a_whole_one_is_kept(tmp_path, monkeypatch):
    """With an archive that is there already and a cmake that stops once: the compiler's half hour is not in here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cmake").write_text(_CMAKE)
    (tmp_path / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    work = build_peer.cache_dir() / f"build-{build_peer.VERSION}"
    top = f"llama_cpp_python-{build_peer.VERSION}"
    source = tmp_path / top / "vendor" / "llama.cpp"
    source.mkdir(parents=True)
    (source / "CMakeLists.txt").touch()
    work.mkdir(parents=True)
    with tarfile.open(work / f"{top}.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / top, top)
    with pytest.raises(ValueError, match=r"the build step failed \(2\): interrupted"):
        build_peer.build(2, synthetic.write_tiny)
    assert build_peer.built_binary() is None
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="by another process"):
            build_peer.build(2, synthetic.write_tiny)
    target = build_peer.build(2, synthetic.write_tiny)
    assert build_peer.built_binary() == target / "llama-bench"
    assert build_peer.built_binary("llama-server") == target / "llama-server"
    assert not work.exists()


def test_the_tiny_model_runs(tmp_path):
    synthetic.write_tiny(tmp_path / "tiny.gguf")
    assert Engine.from_pretrained(tmp_path / "tiny.gguf", threads=1).logits([1, 2, 3]).shape == (3, 512)
