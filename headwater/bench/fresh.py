"""A command as a fresh process, watched from outside: wall time, peak memory, and what everybody else did meanwhile.

Linux only: the watching reads /proc. Not for what the command prints (peers.py, measure.py).
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY = 0.02
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """What a process printed and took. line_seconds: when each line of stdout came, counted from the start;
    memory in bytes at its peak; foreign: processor cores that other processes used meanwhile (NaN: not known);
    stolen: cores that the host took from this machine."""

    lines: list[str]
    line_seconds: list[float]
    started: float
    seconds: float
    peak_memory: float
    peak_anonymous: float
    foreign: float
    stolen: float


def busy_and_stolen() -> tuple[float, float]:
    """Processor seconds that this machine spent working, and seconds that its host took, since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(f) / _TICK for f in [*fields, *["0"] * 8][:8])
    return user + nice + system + irq + softirq, steal


def _memory(pid: int) -> tuple[float, float]:
    """Bytes (largest resident set so far, anonymous part now) of a process; zeros once it is gone."""
    found = {"VmHWM": 0.0, "RssAnon": 0.0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = 1024.0 * int(value.split()[0])
    return found["VmHWM"], found["RssAnon"]


@contextlib.contextmanager
def busy_neighbours(count: int) -> Iterator[list[int]]:
    """Processes that only burn processor time, for measuring beside them; their ids."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if burners:
            time.sleep(0.2)  # they should run before the clock does
        yield [b.pid for b in burners]
    finally:
        for b in burners:
            b.kill()
            b.wait()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def run(command: Sequence[str], *, timeout: float, neighbours: int = 0) -> Run:
    """Run `command` to its end beside `neighbours` busy processes. ValueError: it failed, it hung, it is not there."""
    with busy_neighbours(neighbours) as burning:
        before = [_cpu_seconds(p) for p in burning]
        busy, stolen = busy_and_stolen()
        mine = time.process_time()
        watched = _Watched(command)
        usage = watched.wait(timeout)
        seconds = time.monotonic() - watched.started
        busy_after, stolen_after = busy_and_stolen()
        known = usage + time.process_time() - mine
        known += sum(_cpu_seconds(p) - b for p, b in zip(burning, before, strict=True))
    if watched.process.returncode:
        last = (watched.errors.strip().splitlines() or ["it printed no error"])[-1]
        raise ValueError(f"{Path(command[0]).name} ended with {watched.process.returncode}: {last}")
    return Run(
        lines=watched.lines, line_seconds=watched.line_seconds, started=watched.started, seconds=seconds,
        peak_memory=watched.peak[0], peak_anonymous=watched.peak[1],
        foreign=max(0.0, busy_after - busy - known) / seconds, stolen=(stolen_after - stolen) / seconds,
    )  # fmt: skip


class _Watched:
    """A started process, its two streams read by threads, its memory looked at until it ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self.lines: list[str] = []
        self.line_seconds: list[float] = []
        self.errors = ""
        self.name = Path(command[0]).name
        self.peak = (0.0, 0.0)
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace",
            )  # fmt: skip
        except OSError as e:
            raise ValueError(f"cannot start {command[0]}: {e.strerror}") from e
        self._readers = [threading.Thread(target=t, daemon=True) for t in (self._read_lines, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.line_seconds.append(time.monotonic() - self.started)
            self.lines.append(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = (self.errors + line)[-4000:]

    def wait(self, timeout: float) -> float:
        """Processor seconds of the process and its children, once it ended."""
        try:
            while True:
                seen = _memory(self.process.pid)
                self.peak = (max(self.peak[0], seen[0]), max(self.peak[1], seen[1]))
                pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - self.started > timeout:
                    raise ValueError(f"{self.name} ran longer than {timeout:.0f} s; raise --timeout")
                time.sleep(_LOOK_EVERY)
            self.process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if self.process.returncode is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        return usage.ru_utime + usage.ru_stime
