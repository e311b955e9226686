"""The servers that `headwater load-test` starts, each as a table row, and one of them as a process while it is loaded.

Every server gets the same file, threads, number of sequences at a time and tokens for each of them.
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.bench.build_peer import built_binary

_PATIENCE = 300.0
"""Seconds that a server may take to start or to stop."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every server is started with. context: tokens of one sequence; cache_mib: of headwater's prefix cache, None
    for its own choice."""

    model: Path
    slots: int
    context: int
    threads: int
    port: int = 0
    cache_mib: int | None = None


def _headwater(program: str, s: Setting) -> list[str]:
    return [
        *program.split(), "serve", str(s.model), "--slots", str(s.slots), "--ctx", str(s.context),
        "--threads", str(s.threads), "--port", str(s.port), "--name", "model", "--queue", "1000",
        *([] if s.cache_mib is None else ["--cache-mib", str(s.cache_mib)]),
    ]  # fmt: skip


def _llama_server(program: str, s: Setting) -> list[str]:
    return [
        program, "-m", str(s.model), "-np", str(s.slots), "-c", str(s.slots * s.context), "-t", str(s.threads),
        "-tb", str(s.threads), "--port", str(s.port), "--alias", "model",
    ]  # fmt: skip


def _llama_cpp_python(program: str, s: Setting) -> list[str]:
    return [
        program, "-m", "llama_cpp.server", "--model", str(s.model), "--n_ctx", str(s.context),
        "--n_threads", str(s.threads), "--n_threads_batch", str(s.threads), "--port", str(s.port),
        "--model_alias", "model", "--interrupt_requests", "False",
    ]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """program: the default one, where `--build-peer` built none; ready: a path that answers 200 once the model is
    loaded."""

    program: str
    command: Callable[[str, Setting], list[str]]
    ready: str


KINDS = {
    "headwater": Kind(f"{sys.executable} -m headwater.cli", _headwater, "/health"),
    "llama-server": Kind("llama-server", _llama_server, "/health"),
    "llama_cpp.server": Kind(sys.executable, _llama_cpp_python, "/v1/models"),
}


@contextlib.contextmanager
def started(name: str, program: str | None, setting: Setting) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a server that is ready; it is told to stop at the end. ValueError: it does not come up."""
    kind = KINDS[name]
    setting = Setting(**{**vars(setting), "port": _free_port()})
    built = built_binary(name)
    command = kind.command(program or str(built or kind.program), setting)
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as e:
            raise ValueError(
                f"cannot start {name} ({command[0]}): {e.strerror}; say where: --server {name}=PATH"
            ) from e
        try:
            url = f"http://127.0.0.1:{setting.port}"
            _await(url + kind.ready, process, log, name)
            yield url, process.pid
            if process.poll() is not None:
                raise ValueError(f"{name} ended by itself with {process.returncode}: {_last_words(log)}")
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(url: str, process: subprocess.Popen, log: object, name: str) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ValueError(f"{name} ended with {process.returncode} while it started: {_last_words(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ValueError(f"{name} was not ready within {_PATIENCE:.0f} s: {_last_words(log)}")


def _last_words(log: object) -> str:
    log.seek(0)  # type: ignore[attr-defined]
    lines = log.read().decode(errors="replace").strip().splitlines()  # type: ignore[attr-defined]
    return " / ".join(lines[-3:]) or "it said nothing"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def memory(pid: int) -> tuple[int, int]:
    """Bytes (resident, of them not of files) of a process now; zeros once it is gone."""
    found = {"VmRSS": 0, "RssAnon": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0]) << 10
    return found["VmRSS"], found["RssAnon"]
