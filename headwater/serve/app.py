"""The application: routes, the door in front of them, faults in each API's words, and the engine's life around it.

`create_app` needs an Engine; `run` listens. Nothing here reads the file system on behalf of a request.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from headwater.chat import Chat
from headwater.engine.engine import Engine
from headwater.serve import api_chat, api_completions, api_embeddings, api_messages, api_plain, api_responses, api_web
from headwater.serve.errors import ApiError, from_validation
from headwater.serve.front import Front
from headwater.serve.guard import Guard, named, refuse
from headwater.serve.job import Planner
from headwater.serve.metrics import Metrics
from headwater.serve.server import Server
from headwater.serve.settings import Settings
from headwater.serve.sse import Disconnected

log = logging.getLogger("headwater.serve")
_APIS = (api_chat, api_completions, api_responses, api_messages, api_embeddings, api_plain, api_web)
_CLIENT_CLOSED = 499


def create_app(engine: Engine, chat: Chat | None, settings: Settings) -> FastAPI:
    """The application around an engine. chat: how conversations are written; None: no chat routes will answer."""
    if engine.tokenizer is None:
        raise ValueError("the model came without a tokenizer, which a server needs; put tokenizer.json beside it")
    front = Front(engine, settings.queue_limit)
    config, tokenizer = engine.config, engine.tokenizer
    ends = sorted({*config.eos_ids, *tokenizer.eos_ids})
    planner = Planner(tokenizer, chat, settings.sampling, engine.context, config.vocab_size, ends)
    fingerprint = _fingerprint([config.to_dict(), settings.model_name, engine.core.isa])
    server = Server(settings, front, planner, Metrics(front), fingerprint)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        front.start()
        try:
            yield
        finally:
            await front.close()

    app = FastAPI(title="Headwater", lifespan=lifespan, docs_url=None, redoc_url=None)
    for api in _APIS:
        app.include_router(api.routes(server))
    _faults(app)
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:
        # Whatever headers a client adds (x-stainless-..., anthropic-version): the origin was allowed.
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-request-id", "request-id", "retry-after"],
        )  # fmt: skip
    app.add_middleware(_Counted, metrics=server.metrics)
    app.state.server = server
    return app


class _Counted:
    """Counts answers by route and status; unknown paths count as one route."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        def count(status: int) -> None:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()

        begun = False

        async def counted(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not begun:
                count(500)  # it is answered further out
            raise


def _faults(app: FastAPI) -> None:
    """Every fault leaves in the shape of the API that was called."""

    async def answer(request: Request, error: ApiError) -> Response:
        return _Refusal(error)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        fields = _fields_of(request)
        return _Refusal(from_validation(list(error.errors()), fields))

    async def http(request: Request, error: HTTPException) -> Response:
        known = ApiError(f"{request.method} {request.url.path[:100]}: {error.detail}", status=error.status_code)
        return _Refusal(known)

    async def gone(request: Request, error: Disconnected) -> Response:
        return Response(status_code=_CLIENT_CLOSED)

    async def unknown(request: Request, error: Exception) -> Response:
        log.error("the server failed", exc_info=error)
        return _Refusal(ApiError("the server failed; its log says why", status=500), outside=True)

    for kind, handler in ((ApiError, answer), (RequestValidationError, invalid), (HTTPException, http),
                          (Disconnected, gone), (Exception, unknown)):  # fmt: skip
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]


class _Refusal(Response):
    """An ApiError as a response; the shape depends on the path. outside: it does not pass the guard, which names it."""

    def __init__(self, error: ApiError, *, outside: bool = False) -> None:
        super().__init__(status_code=error.status)
        self._error, self._outside = error, outside

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await refuse(self._error, scope, named(scope, send) if self._outside else send)


def _fields_of(request: Request) -> list[str]:
    """Names of the fields that the body of this route may have."""
    route = request.scope.get("route")
    body = getattr(getattr(route, "body_field", None), "field_info", None)
    return list(getattr(getattr(body, "annotation", None), "model_fields", {}))


def _fingerprint(config: Any) -> str:
    """Names what decides the answers beside the request."""
    text = json.dumps(config, sort_keys=True, default=str)
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
