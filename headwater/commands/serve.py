"""`headwater serve`: a model for OpenAI's and Anthropic's clients, and for people, in a page."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.commands import options as o

if TYPE_CHECKING:
    from fastapi import FastAPI

    from headwater.chat import Chat
    from headwater.engine.engine import Engine
    from headwater.serve.settings import Settings

KEY_VARIABLE = "HEADWATER_API_KEY"
_CacheMib = Annotated[
    int | None,
    typer.Option(help="MiB of the prefix cache; 0: none. Default: an eighth of what is free, 2048 at most."),
]
_CacheDir = Annotated[
    Path | None, typer.Option(help="Folder where the prefix cache outlives the server. Default: none.")
]
_Cors = Annotated[list[str] | None, typer.Option(help="An origin whose pages may call; several times. Default: none.")]
_AllowHost = Annotated[list[str] | None, typer.Option(help="A Host name to accept on loopback beside localhost.")]
_ApiKey = Annotated[list[str] | None, typer.Option(help=f"A key that clients must send. Default: ${KEY_VARIABLE}.")]
_Host = Annotated[str, typer.Option(help="Address to listen on; others than this machine's need --api-key.")]


def serve(
    model: o.Model,
    host: _Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8080,
    slots: Annotated[int, typer.Option(help="Answers written at a time.")] = 8,
    context: Annotated[int | None, typer.Option("--ctx", help="Most tokens of one conversation.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 64,
    api_key: _ApiKey = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients. Default: its file's.")] = None,
    style: Annotated[str | None, typer.Option(help="Chat style, where the model has no known chat template.")] = None,
    threads: o.Threads = None,
    dtype: o.Dtype = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take, waiting included.")] = 600.0,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 10 * 1024 * 1024,
    cors: _Cors = None,
    allow_host: _AllowHost = None,
    cache_mib: _CacheMib = None,
    cache_dir: _CacheDir = None,
    web: Annotated[bool, typer.Option(help="The chat page at /.")] = True,
) -> None:
    """Serve a model over HTTP. Ctrl-C or SIGTERM lets running answers finish; a second one does not."""
    from headwater.commands.chat import recommended
    from headwater.sampling import PRESETS
    from headwater.serve.settings import Settings

    keys = tuple(api_key or filter(None, [os.environ.get(KEY_VARIABLE)]))
    shown = name or Path(model.rstrip("/")).name
    settings = Settings(
        model_name=shown, host=host, port=port, api_keys=keys, queue_limit=queue, max_body_bytes=max_body,
        request_seconds=timeout, cors_origins=tuple(cors or ()), allowed_hosts=tuple(allow_host or ()), web=web,
    )  # fmt: skip
    if slots < 1:
        raise ValueError(f"--slots is {slots}; allowed: 1 or more")
    from headwater.serve.app import create_app

    if cache_mib is not None and cache_mib < 0:
        raise ValueError(f"--cache-mib is {cache_mib}; allowed: 0 (no prefix cache) and more")
    engine, chat = _load(
        model,
        style,
        slots=slots,
        context=context,
        threads=threads,
        dtype=dtype,
        cache_mib=cache_mib,
        cache_dir=cache_dir,
    )
    preset = recommended(engine.config)
    settings = dataclasses.replace(settings, sampling=PRESETS[preset])
    app = create_app(engine, chat, settings)
    _listen(app, settings, f"{slots} slots of {engine.context} tokens; sampling: {preset}")


def _listen(app: "FastAPI", settings: "Settings", about: str) -> None:
    """Until a signal; says where, which the system chooses where the port is 0."""
    from headwater.serve.listen import free_socket, uvicorn_server

    host = settings.host
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(free_socket(host))] if settings.port == 0 else None
        port = sockets[0].getsockname()[1] if sockets else settings.port
        where = f"http://{host if ':' not in host else f'[{host}]'}:{port}"
        print(f"headwater: {settings.model_name} at {where}, {about}", file=sys.stderr)
        uvicorn_server(app, settings).run(sockets=sockets)


def _load(
    model: str,
    style: str | None,
    *,
    slots: int,
    context: int | None,
    threads: int | None,
    dtype: str | None,
    cache_mib: int | None,
    cache_dir: Path | None,
) -> "tuple[Engine, Chat | None]":
    """The engine, and how conversations are written; a base model without a style serves plain continuations."""
    from headwater import hub
    from headwater.commands import engines
    from headwater.commands.chat import _chat_of
    from headwater.engine import fit
    from headwater.engine.engine import Engine

    running = o.Running(engine="native", threads=threads, dtype=dtype)
    running.check()
    path = hub.resolve(model)
    weights = engines.weight_format(path, dtype)
    cache = fit.cache_share(fit.available_bytes()) if cache_mib is None else cache_mib << 20
    context = _room(path, weights, slots, context, threads, cache)
    try:
        chat = _chat_of(model, engines.tokenizer(str(path), running), style)
    except ValueError as e:
        if style is not None:
            raise
        chat = None
        print(f"headwater: no chat: {e}", file=sys.stderr)
    engine = Engine.from_pretrained(
        path, threads=threads, context=context, max_sequences=slots, weights=weights, cache_bytes=cache,
        cache_dir=cache_dir, tokenizer=None if chat is None else chat.tokenizer,
    )  # fmt: skip
    return engine, chat


def _room(path: Path, weights: str | None, slots: int, context: int | None, threads: int | None, cache: int) -> int:
    """Tokens of one sequence: what was asked for, or as many as fit. ValueError, before anything is loaded, says what
    would fit."""
    from headwater.engine import fit, native

    config, of = fit.of(str(path), weights=weights, threads=threads or native.default_threads(), cache_bytes=cache)
    found = fit.choose(fit.available_bytes(), of, context, slots, config.max_positions)
    if context is None and found.context < min(config.max_positions, fit.DEFAULT_CONTEXT):
        print(f"headwater: --ctx {found.context}, the most that fits into memory {slots} times", file=sys.stderr)
    return found.context
