"""Where a model's files are: a local path is returned as it is."""

from collections.abc import Sequence
from pathlib import Path


def resolve(path_or_id: str | Path, files: Sequence[str] | None = None) -> Path:
    """The local path of `path_or_id`; ValueError if nothing is there. `files` names the files the caller wants."""
    path = Path(path_or_id)
    if path.exists():
        return path
    wanted = f" (wanted: {', '.join(files)})" if files else ""
    raise ValueError(f"{path} does not exist{wanted}; give a model directory or a file")
