"""`headwater pull`, `list` and `rm`: models in the cache that huggingface_hub shares with other programs."""

import json
from typing import Annotated

import typer

from headwater import hub
from headwater.commands.options import Json

HubId = Annotated[str, typer.Argument(help="A hub id: owner/name.", show_default=False)]


def pull(
    model: HubId,
    include: Annotated[
        list[str] | None, typer.Option(help="File pattern to fetch instead of the usual ones, e.g. '*Q4_0.gguf'.")
    ] = None,
) -> None:
    """Download a model, naming its licence; print where it lies. What is there already is not fetched again."""
    if not hub.is_id(model):
        raise ValueError(f"{model!r} is not a hub id; allowed: owner/name")
    print(hub.download(model, include))


def list_models(as_json: Json = False) -> None:
    """Downloaded models with their sizes."""
    models = hub.cached()
    if as_json:
        print(json.dumps([{"model": m.repo_id, "bytes": m.num_bytes, "path": str(m.path)} for m in models]))
        return
    if not models:
        print("no models here yet; `headwater pull OWNER/NAME` downloads one")
    for m in models:
        print(f"{m.num_bytes / 1e6:>12,.1f} MB  {m.repo_id}")


def rm(model: HubId) -> None:
    """Delete a downloaded model."""
    print(f"removed {model}, {hub.remove(model) / 1e6:,.1f} MB freed")
