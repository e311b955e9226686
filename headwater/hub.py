"""Where a model's files are: local paths as they are, hub ids downloaded through huggingface_hub (resumed, verified).

Knows files only, not what is in them. HF_HUB_OFFLINE=1 keeps everything on this machine; HF_HOME moves the cache.
"""

import os
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from headwater.records import record

_WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "LICENSE*")
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.(?:safetensors|gguf)")
_GGUF_FIRST = ("q4_0", "q4_k_m", "q4_k", "q8_0", "q6_k", "q5_k", "bf16", "f16")
"""In the names of GGUF files: which one of a repository is taken, the fastest here first."""
_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_LFM = "LFM Open License v1.0 (free below a revenue limit; read it on the model's page)"
_LICENCES = {"LiquidAI/": _LFM, "LFM": _LFM}


def resolve(path_or_id: str | os.PathLike[str], files: Sequence[str] | None = None) -> Path:
    """The local path of a directory or file, or of the downloaded snapshot of a hub id such as `LiquidAI/LFM2-350M`;
    of `owner/name/file.gguf`, and of a repository of GGUF files (`gguf`), the path of that file.

    files: patterns to download of other repositories, see `download`. ValueError when the path does not exist, the id
    or the file is unknown, or the hub cannot be reached and the files are not in the cache.
    """
    path = Path(path_or_id).expanduser()
    if path.exists():
        return path
    found = gguf(str(path_or_id))
    if found is not None:
        repo_id, name = found
        file = download(repo_id, [name]) / name
        if not file.is_file():
            raise ValueError(f"{repo_id} has no file {name!r} on the hub; its page lists what it has")
        return file
    if not is_id(str(path_or_id)):
        raise ValueError(
            f"{path_or_id}: no such file or directory, and not a hub id of the form owner/name or owner/name/file.gguf"
        )
    return download(str(path_or_id), files)


def is_id(text: str) -> bool:
    """Whether `text` has the form of a hub id, owner/name."""
    return re.fullmatch(_ID, text) is not None


def gguf(model: str) -> tuple[str, str] | None:
    """(owner/name, file) of owner/name/file.gguf, and of a repository whose name ends in -GGUF, which holds the same
    model in several formats: the file of it that is taken. None for everything else. ValueError as `resolve`.
    """
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    repo_id = f"{owner}/{name}"
    if not is_id(repo_id):
        return None
    if not file:
        return (repo_id, _taken(repo_id)) if _holds_gguf(repo_id) else None
    plain = file.endswith(".gguf") and not set(file) & set("*?[\\") and not {"", ".", ".."} & set(file.split("/"))
    return (repo_id, file) if plain and not Path(owner).exists() else None  # else a path with a slip in it


def _holds_gguf(repo_id: str) -> bool:
    return repo_id.lower().endswith("-gguf")


def _taken(repo_id: str) -> str:
    """One file of a repository of GGUF files: of those in the cache, else of all on the hub."""
    import huggingface_hub as hf
    from huggingface_hub import errors

    try:
        here = Path(hf.snapshot_download(repo_id, allow_patterns=[], local_files_only=True))
        names = _models([p.name for p in here.glob("*.gguf")])
    except errors.LocalEntryNotFoundError:
        names = []
    if not names:
        try:
            names = _models(hf.list_repo_files(repo_id))
        except (errors.RepositoryNotFoundError, errors.GatedRepoError) as e:
            raise _absent(repo_id) from e
        except Exception as e:  # the hub's client has changed its library, and with it its exceptions, before
            raise _unreachable(repo_id, e) from e
    if not names:
        raise ValueError(f"{repo_id} has no model in one .gguf file; give owner/name of its safetensors instead")
    return next((n for kind in _GGUF_FIRST for n in names if kind in n.lower()), names[0])


def _models(names: Sequence[str]) -> list[str]:
    """GGUF files that are a whole model: not a part of one, nor what projects images."""
    return sorted(n for n in names if n.endswith(".gguf") and not _PART.fullmatch(n) and "mmproj" not in n.lower())


def download(repo_id: str, files: Sequence[str] | None = None) -> Path:
    """Fetch a snapshot with a progress bar; files already in the cache are not fetched again.

    files: patterns, of which the first must be met for a snapshot to be whole; default: safetensors, configuration,
    tokenizer and template, or one file of a repository of GGUF files.
    """
    import huggingface_hub as hf
    from huggingface_hub import errors

    wanted = list(files or ([_taken(repo_id)] if _holds_gguf(repo_id) else _WEIGHTS))
    try:
        found = Path(hf.snapshot_download(repo_id, allow_patterns=wanted, local_files_only=True))
        if _whole(found, wanted[0]):
            return found
    except errors.LocalEntryNotFoundError:
        pass
    print(f"Downloading {repo_id}. Licence: {licence(repo_id)}", file=sys.stderr)
    try:
        return Path(hf.snapshot_download(repo_id, allow_patterns=wanted))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as e:
        raise _absent(repo_id) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        raise _unreachable(repo_id, e) from e


def _whole(snapshot: Path, pattern: str) -> bool:
    """Whether a snapshot meets a pattern with all parts of each file. The cache is shared: another program, or a
    download that was cut off, leaves a snapshot with its configuration alone, which the client passes for whole where
    it has no list of the repository."""
    names = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
    found = [n for n in names if fnmatch(n, pattern)]
    parts = [m.groups() for n in found if (m := _PART.fullmatch(n))]
    return bool(found) and all(parts.count(part) == int(part[1]) for part in parts)


def _absent(repo_id: str) -> ValueError:
    return ValueError(f"{repo_id}: not on the hub, or private or gated; log in with `hf auth login` if it is")


def _unreachable(repo_id: str, e: Exception) -> ValueError:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    said = (str(e).splitlines() or [type(e).__name__])[0]
    return ValueError(
        f"{repo_id} is not in the cache and the hub cannot be reached{offline}: {said}; go "
        f"online and run `headwater pull {repo_id}`, or copy the model's directory here and give its path"
    )


def licence(model: str) -> str:
    """The licence of a hub id or released size, to name before a download."""
    return next((text for start, text in _LICENCES.items() if model.startswith(start)), "as stated on the model's page")


@record(frozen=True)
class Cached:
    """One downloaded model."""

    repo_id: str
    num_bytes: int
    path: Path


def cached() -> list[Cached]:
    """Downloaded models, by id."""
    import huggingface_hub as hf
    from huggingface_hub import errors

    try:
        repos = hf.scan_cache_dir().repos
    except errors.CacheNotFound:
        return []
    return sorted(
        (Cached(r.repo_id, r.size_on_disk, r.repo_path) for r in repos if r.repo_type == "model"),
        key=lambda c: c.repo_id,
    )


def remove(repo_id: str) -> int:
    """Delete a downloaded model; bytes freed. ValueError when it is not in the cache."""
    import huggingface_hub as hf

    if repo_id not in [c.repo_id for c in cached()]:
        known = ", ".join(c.repo_id for c in cached()) or "nothing"
        raise ValueError(f"{repo_id} is not in the cache; it holds {known}")
    info = hf.scan_cache_dir()
    model = [r for r in info.repos if r.repo_id == repo_id and r.repo_type == "model"]  # a dataset may share its name
    plan = info.delete_revisions(*[rev.commit_hash for r in model for rev in r.revisions])
    plan.execute()
    return plan.expected_freed_size
