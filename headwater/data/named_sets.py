"""What files of evaluation items have in common (fingerprints.py, meaning.py): sets with names, rows that belong to one
of them, plain arrays in an .npz. Not for what a row is.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.files import closest


def choose(names: Sequence[str], owners: np.ndarray, wanted: Sequence[str]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(index into `names` of each wanted set; which rows belong to one; the index into the wanted sets of those rows).

    owners: of each row the index into `names`. ValueError names an unknown set and the closest one.
    """
    for name in wanted:
        if name not in names:
            raise ValueError(f"no evaluation set {name!r}{closest(name, list(names))}; there are {', '.join(names)}")
    chosen = [names.index(name) for name in dict.fromkeys(wanted)]
    new = np.full(len(names), -1)
    new[chosen] = np.arange(len(chosen))
    kept = new[owners] >= 0
    return chosen, kept, new[owners[kept]].astype(np.uint16)


def concatenate(many: Sequence[tuple[Sequence[str], np.ndarray]]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of all sets of several files, and the owners of all their rows; ValueError: two sets have one name."""
    names = [name for mine, _ in many for name in mine]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two files have a set {twice[0]!r}; cure: rename one of them")
    starts = np.cumsum([0, *(len(mine) for mine, _ in many)]).tolist()
    owners = [mine + np.uint16(start) for (_, mine), start in zip(many, starts[:-1], strict=True)]
    return tuple(names), np.concatenate(owners)


def read_arrays(path: str | Path, what: str) -> dict[str, Any]:
    """The arrays of an .npz; {}: it is no such file. ValueError: it is damaged. what: the kind of file, for errors."""
    with open(path, "rb") as f:
        try:
            if not zipfile.is_zipfile(f):
                return {}
            with np.load(f, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as e:
            raise ValueError(f"{path} is damaged and no file of {what} any more: {e}") from e
