"""Files that are never half-written: everything is made under a temporary name beside the target and renamed.

Not for reading formats (weights, checkpoint) or for downloads (hub). Every start imports this file, so what only some
calls need is imported by them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on success fsync and rename it over `path`, on failure remove it.

    OSError (disk full, no permission) leaves `path` as it was. Who may read a file that was there stays as it was.
    """
    import tempfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(fd)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as f:
            os.fsync(f.fileno())
        os.chmod(part, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success its files replace their namesakes in `path`.

    Files of `path` that the writer did not make stay. On failure `path` is untouched and the temporary is removed.
    durable: force the files to the disk first, which takes as long as the disk does; without it they survive the end of
    the process, but a machine that loses power may keep parts of them.
    """
    import shutil
    import tempfile

    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a directory is needed to save into")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        for file in part.iterdir() if durable else ():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        if path.exists():
            for file in part.iterdir():
                file.replace(path / file.name)
        else:
            os.chmod(part, 0o777 & ~_umask())
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; ValueError names the file and the place of the fault."""
    import json

    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text (byte {e.start}); it is damaged or not a JSON file") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is not valid JSON: {e.msg} at line {e.lineno}, column {e.colno}") from e
    except RecursionError as e:
        raise ValueError(f"{path} is nested too deeply to be a configuration") from e


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    import json

    with atomic(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def closest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for the nearest of `known`, or ''."""
    from difflib import get_close_matches

    match = get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
