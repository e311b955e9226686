"""`headwater fit`: the memory that a model needs to be served, before it is downloaded or loaded."""

import json
from typing import Annotated

import typer

from headwater.commands.options import Json


def fit(
    model: Annotated[
        str,
        typer.Argument(help="A .gguf file, a directory, a hub id, or owner/name/file.gguf.", show_default=False),
    ],
    ctx: Annotated[int | None, typer.Option(help="Tokens of one sequence. Default: 32,768, or all there are.")] = None,
    slots: Annotated[int, typer.Option(help="Sequences at a time.")] = 8,
    weights: Annotated[
        str | None, typer.Option(help="Number format of a directory's matrices. Default: the files', as in serve.")
    ] = None,
    cache_mib: Annotated[
        int | None, typer.Option(help="MiB of the prefix cache. Default: an eighth of the limit, at most 2048.")
    ] = None,
    limit_mib: Annotated[int | None, typer.Option(help="MiB to fit into. Default: what the system has.")] = None,
    as_json: Json = False,
) -> None:
    """Weights, sequences and scratch of a model at --ctx and --slots, from its header. Fails when it does not fit."""
    from headwater.engine import fit as fitting
    from headwater.engine import native

    limit = fitting.available_bytes() if limit_mib is None else limit_mib << 20
    cache = fitting.cache_share(limit) if cache_mib is None else cache_mib << 20
    config, of = fitting.of(model, weights=weights, threads=native.default_threads(), cache_bytes=cache)
    context = min(config.max_positions, 32_768) if ctx is None else ctx
    found = fitting.check(limit, of, context, slots, config.max_positions)
    facts = fitting.as_dict(found)
    if as_json:
        print(json.dumps(facts))
        return
    for part in (*fitting.PARTS, "total"):
        print(f"{part:<8} {facts[part] / (1 << 20):>10,.1f} MiB")
    print(f"fits: {slots} slots of {context} tokens in {limit / (1 << 20):,.0f} MiB")
