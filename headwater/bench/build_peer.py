"""llama.cpp's own programs, built on this machine from the source that the llama-cpp-python package carries on PyPI.

`headwater bench --build-peer llama.cpp` does it once, into the cache folder, with the compiler's native flags, as its
users would build it. pip fetches the source, so its index and proxy settings hold. What was built must run a tiny model
before it is kept; where the compiler breaks AMX (see _AMX_PROBE), AMX is left out and that is said. A build that was
stopped goes on where it was, and one has the folder at a time.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
_TARGETS = ("llama-bench", "llama-quantize", "llama-perplexity", "llama-server")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF", "-DBUILD_SHARED_LIBS=OFF",
)  # fmt: skip
_AMX_PROBE = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
struct Config { unsigned char palette, start, reserved[14]; unsigned short bytes[16]; unsigned char rows[16]; };
__attribute__((noinline)) void dirty() {
  volatile unsigned char stack[4096];
  for (volatile unsigned char& b : stack) b = 255;
}
#if defined(__AMX_INT8__)
__attribute__((noinline)) void configure() {
  alignas(64) Config c = {};
  c.palette = 1, c.rows[0] = 8, c.bytes[0] = 64;
  _tile_loadconfig(&c);
  _tile_release();
}
int main() {
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0;  // not granted: llama.cpp asks the same and does without
  dirty();
  configure();
}
#else
int main() {}
#endif
"""
"""The header of GCC 12 says that loading a tile configuration reads 8 bytes of its 64, so the optimizer drops the
writes to the others; the processor faults on the garbage, and llama-bench dies in its first matrix product."""
_NO_AMX = ("-DCMAKE_C_FLAGS=-U__AMX_INT8__", "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__")


def cache_dir() -> Path:
    """Where benchmarks keep what they make: XDG_CACHE_HOME (or ~/.cache) / headwater / bench."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headwater" / "bench"


def built_binary(name: str = "llama-bench") -> Path | None:
    """A program of an earlier `build`, or None."""
    binary = cache_dir() / f"llama.cpp-{VERSION}" / name
    return binary if binary.is_file() else None


def build(jobs: int, write_tiny: Callable[[Path], None]) -> Path:
    """Fetch, build and try out on the model that `write_tiny` writes; the folder of the programs.

    ValueError says which step failed and its last words.
    """
    if shutil.which("cmake") is None:
        raise ValueError("building llama.cpp needs cmake, which is not on the PATH; cure: pip install cmake")
    target = cache_dir() / f"llama.cpp-{VERSION}"
    with _folder(cache_dir() / f"build-{VERSION}") as work:
        source = _source(work)
        tree = work / "out"
        options = (*_OPTIONS, *_launchers())
        if not amx_works(work):
            options = (*options, *_NO_AMX)
            _say("AMX code of this compiler crashes here, so llama.cpp is built without AMX; a newer compiler may do")
        _step("configure", ["cmake", "-S", str(source), "-B", str(tree), *options], work)
        _step("build", ["cmake", "--build", str(tree), "-j", str(jobs), "--target", *_TARGETS], work)
        write_tiny(work / "tiny.gguf")
        first = ["-m", str(work / "tiny.gguf"), "-p", "32", "-n", "2", "-r", "1", "-t", "2"]
        _step("first run", [str(tree / "bin" / "llama-bench"), *first], work)
        target.mkdir(exist_ok=True)
        for name in _TARGETS:
            shutil.copy2(tree / "bin" / name, target / name)
    return target


@contextlib.contextmanager
def _folder(work: Path) -> Iterator[Path]:
    """A folder to build in, for one process at a time; it stays until something was built whole."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise ValueError(f"{work} is being built in by another process; wait for it") from e
        yield work
        shutil.rmtree(work)


def _launchers() -> tuple[str, ...]:
    """ccache, where there is one: a second build takes a minute."""
    ccache = shutil.which("ccache")
    return (
        () if ccache is None else (f"-DCMAKE_C_COMPILER_LAUNCHER={ccache}", f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}")
    )


def amx_works(work: Path) -> bool:
    """Whether the compiler that cmake would take makes AMX code that runs here; True where nothing says otherwise."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise ValueError("building llama.cpp needs a C++ compiler, and there is no c++ on the PATH; cure: install g++")
    source, program = work / "amx.cc", work / "amx"
    source.write_text(_AMX_PROBE)
    command = [*shlex.split(compiler), "-O3", "-march=native", str(source), "-o", str(program)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return True
    return subprocess.run([str(program)], check=False).returncode >= 0


def _source(work: Path) -> Path:
    """The unpacked folder of llama.cpp."""
    wanted = f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not (work / wanted).exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
        _step("download", [*pip, "-d", str(work), f"{PACKAGE}=={VERSION}"], work)
    archives = sorted(work.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ValueError(f"pip fetched {len(archives)} archives of {PACKAGE}; expected: its source, once")
    unpacked = work / "source"
    if not unpacked.exists():
        part = work / "source.part"
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archives[0]) as tar:
            tar.extractall(part, filter="data")
        part.rename(unpacked)
    found = sorted(unpacked.glob("*/vendor/llama.cpp/CMakeLists.txt"))
    if len(found) != 1:
        raise ValueError(f"{archives[0].name} holds no vendor/llama.cpp; is the version {VERSION} complete?")
    return found[0].parent


def _step(name: str, command: list[str], work: Path) -> None:
    """Run one step; what it says goes into a file beside the build, where it can be watched."""
    said = work / f"{name.replace(' ', '-')}.log"
    _say(f"{name}: {' '.join(command[:4])} ... ({said})")
    with said.open("wb") as out:
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        last = " / ".join(said.read_text(errors="replace").strip().splitlines()[-3:])
        raise ValueError(f"llama.cpp: the {name} step failed ({done.returncode}): {last}")


def _say(line: str) -> None:
    print(f"headwater bench: {line}", file=sys.stderr)
