"""Packed copies of GGUF files that were run before, in the user's cache: the next start maps one and repacks nothing.

A copy belongs to one file as it is now and to the core that made it: another inode, size, time of change or another
build of the core never finds it. Copies are made after an answer, of files whose repacking is felt and whose size
nobody minds twice; larger ones when `headwater pack` asks for it. The oldest go when there are too many.
HEADWATER_KEEP=0 makes and uses none. Not for files to give away, and not for engines whose states are saved by name.
"""

import contextlib
import os
import time
from pathlib import Path

from headwater.engine import core

SWITCH = "HEADWATER_KEEP"
LEAST, MOST = 64 << 20, 1 << 30
"""Bytes of a file that is kept without being asked for: below, repacking takes no time."""
TOTAL = 8 << 30
"""Bytes of all copies; one that was asked for may be larger by itself."""
_FREE = 4
"""Times the file's size that the disk must have free."""
_ABANDONED = 600
"""Seconds since a copy that is being made was written to: whoever made it was killed."""


def folder() -> Path:
    """XDG_CACHE_HOME (or ~/.cache) / headwater / packed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater" / "packed"


def _place(path: Path) -> Path:
    """Where the copy of a file stands, or would."""
    file, build = path.stat(), os.stat(core.compiled_file())
    facts = (file.st_ino, file.st_size, file.st_ctime_ns, build.st_size, build.st_mtime_ns)
    return folder() / f"{path.stem}-{'-'.join(f'{n:x}' for n in facts)}-v{core.PACKED_VERSION}.hwp"


def find(path: Path) -> Path | None:
    """The copy of a .gguf file, noted as used, or None."""
    if path.suffix != ".gguf" or os.environ.get(SWITCH) == "0":
        return None
    place = _place(path)
    try:
        os.utime(place)  # the order in which copies go
    except OSError:
        return place if place.exists() else None
    return place


def drop(path: Path) -> None:
    """Delete the copy of a file, which turned out to be damaged."""
    _place(path).unlink(missing_ok=True)


def wanted(path: Path) -> bool:
    """Whether a run of this file should leave a copy."""
    if path.suffix != ".gguf" or os.environ.get(SWITCH) == "0":
        return False
    size = path.stat().st_size
    return LEAST <= size <= MOST and not _place(path).exists() and _room(size)


def _room(size: int) -> bool:
    where = next(p for p in (folder(), *folder().parents) if p.exists())
    disk = os.statvfs(where)
    return disk.f_bavail * disk.f_frsize >= _FREE * size


def keep(path: Path, *, threads: int | None = None) -> Path:
    """Make the copy of a .gguf file and delete the oldest ones beyond TOTAL. ValueError, OSError."""
    from headwater.engine import native, packed
    from headwater.engine.program import lower

    if path.suffix != ".gguf":
        raise ValueError(f"{path}: copies are kept of .gguf files; name a file to pack into: headwater pack SRC DST")
    size = path.stat().st_size
    if not _room(size):
        raise ValueError(f"{folder()}: a copy needs {_FREE} times {size >> 20} MiB free on its disk; make room")
    place = _place(path)
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    config, weights = native.open_weights(path, None, threads=threads or core.default_threads())
    recorder = packed.Recorder(weights)
    lower(config, recorder)
    packed.write(place, config, recorder, None)  # the tokenizer is read from the file itself
    _forget(place)
    return place


def _forget(newest: Path) -> None:
    """Delete the oldest copies beyond TOTAL, and those that were never finished. Another process may do the same."""
    files: dict[Path, os.stat_result] = {}
    for file in folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            files[file] = file.stat()
    held = files.pop(newest).st_size if newest in files else 0
    for file, facts in sorted(files.items(), key=lambda f: f[1].st_mtime_ns, reverse=True):
        over = file.suffix == ".part" and time.time() - facts.st_mtime > _ABANDONED
        if file.suffix == ".hwp":
            held += facts.st_size
            over = held > TOTAL
        if over:
            file.unlink(missing_ok=True)
