"""llama.cpp's own benchmark, built on this machine from the source that the llama-cpp-python package carries on PyPI.

`headwater bench --build-peer llama.cpp` does it once, into the cache folder, with the compiler's native flags, as its
users would build it. pip fetches the source, so its index and proxy settings hold.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
_TARGETS = ("llama-bench", "llama-quantize", "llama-perplexity")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DBUILD_SHARED_LIBS=OFF",
)  # fmt: skip


def cache_dir() -> Path:
    """Where benchmarks keep what they make: XDG_CACHE_HOME (or ~/.cache) / headwater / bench."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headwater" / "bench"


def built_binary() -> Path | None:
    """llama-bench of an earlier `build`, or None."""
    binary = cache_dir() / f"llama.cpp-{VERSION}" / "llama-bench"
    return binary if binary.is_file() else None


def build(jobs: int) -> Path:
    """Fetch and build; the folder of the programs. ValueError says which step failed and its last words."""
    if shutil.which("cmake") is None:
        raise ValueError("building llama.cpp needs cmake, which is not on the PATH; cure: pip install cmake")
    home = cache_dir()
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"llama.cpp-{VERSION}"
    with tempfile.TemporaryDirectory(dir=home, prefix="build-") as work:
        source = _source(Path(work))
        tree = Path(work) / "out"
        _step("configure", ["cmake", "-S", str(source), "-B", str(tree), *_OPTIONS])
        _step("build", ["cmake", "--build", str(tree), "-j", str(jobs), "--target", *_TARGETS])
        target.mkdir(exist_ok=True)
        for name in _TARGETS:
            shutil.copy2(tree / "bin" / name, target / name)
    return target


def _source(work: Path) -> Path:
    """The unpacked folder of llama.cpp."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(work)]
    _step("download", [*pip, f"{PACKAGE}=={VERSION}"])
    archives = sorted(work.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ValueError(f"pip fetched {len(archives)} archives of {PACKAGE}; expected: its source, once")
    with tarfile.open(archives[0]) as tar:
        tar.extractall(work, filter="data")
    found = sorted(work.glob("*/vendor/llama.cpp/CMakeLists.txt"))
    if len(found) != 1:
        raise ValueError(f"{archives[0].name} holds no vendor/llama.cpp; is the version {VERSION} complete?")
    return found[0].parent


def _step(name: str, command: list[str]) -> None:
    print(f"headwater bench: {name}: {' '.join(command[:4])} ...", file=sys.stderr)
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ValueError(f"llama.cpp: the {name} step failed ({done.returncode}): {last}")
