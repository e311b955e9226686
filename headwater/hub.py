"""Where a model's files are: local paths as they are, hub ids downloaded through huggingface_hub (resumed, verified).

Knows files only, not what is in them. HF_HUB_OFFLINE=1 keeps everything on this machine; HF_HOME moves the cache.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from headwater.records import record

_WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "LICENSE*")
_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_LFM = "LFM Open License v1.0 (free below a revenue limit; read it on the model's page)"
_LICENCES = {"LiquidAI/": _LFM, "LFM": _LFM}


def resolve(path_or_id: str | os.PathLike[str], files: Sequence[str] | None = None) -> Path:
    """The local path of a directory or file, or of the downloaded snapshot of a hub id such as `LiquidAI/LFM2-350M`.

    files: patterns to download (default: configuration, tokenizer, template and safetensors). ValueError when the
    path does not exist, the id is unknown, or the hub cannot be reached and the files are not in the cache.
    """
    path = Path(path_or_id).expanduser()
    if path.exists():
        return path
    if not is_id(str(path_or_id)):
        raise ValueError(f"{path_or_id}: no such file or directory, and not a hub id of the form owner/name")
    return download(str(path_or_id), files)


def is_id(text: str) -> bool:
    """Whether `text` has the form of a hub id, owner/name."""
    return re.fullmatch(_ID, text) is not None


def download(repo_id: str, files: Sequence[str] | None = None) -> Path:
    """Fetch a snapshot with a progress bar; files already in the cache are not fetched again."""
    import huggingface_hub as hf
    from huggingface_hub import errors

    wanted = list(files or _WEIGHTS)
    try:
        return Path(hf.snapshot_download(repo_id, allow_patterns=wanted, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    print(f"Downloading {repo_id}. Licence: {licence(repo_id)}", file=sys.stderr)
    try:
        return Path(hf.snapshot_download(repo_id, allow_patterns=wanted))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as e:
        raise ValueError(f"{repo_id}: not on the hub, or private or gated; log in with `hf auth login` if it is") from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ValueError(
            f"{repo_id} is not in the cache and the hub cannot be reached{offline}: {str(e).splitlines()[0]}; go "
            f"online and run `headwater pull {repo_id}`, or copy the model's directory here and give its path"
        ) from e


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
    hashes = [rev.commit_hash for r in info.repos if r.repo_id == repo_id for rev in r.revisions]
    plan = info.delete_revisions(*hashes)
    plan.execute()
    return plan.expected_freed_size
