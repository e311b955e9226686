"""The small routes: models, tokenize, detokenize, health, metrics."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from headwater import tokenizer as tokenizer_module
from headwater.serve.errors import ApiError
from headwater.serve.job import goes_on
from headwater.serve.schemas import DetokenizeRequest, TokenizeRequest
from headwater.serve.server import Server


def routes(server: Server) -> APIRouter:
    """The router of these."""
    router = APIRouter()
    planner = server.planner

    def card() -> dict[str, Any]:
        return {"id": server.settings.model_name, "object": "model", "created": server.created, "owned_by": "headwater",
                "context_length": planner.context, "thinking": bool(planner.chat and planner.chat.style.thinking),
                "tools": bool(planner.chat and planner.chat.style.tools and planner.chat.style.calls),
                "sampling": _sampling(server)}  # fmt: skip

    @router.get("/v1/models")
    async def models() -> Response:
        """The one model of this server."""
        return JSONResponse({"object": "list", "data": [card()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """The model, by name."""
        server.check_model(name)
        return JSONResponse(card())

    @router.get("/health")
    async def health() -> Response:
        """Whether the engine's thread lives."""
        alive = server.front.alive
        return JSONResponse({"status": "ok" if alive else "dead"}, status_code=200 if alive else 503)

    router.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)  # as many probes ask

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Ids of a text, or of messages as they would be sent to the model."""
        ids = await server.prepare(TokenizeRequest.model_fields, lambda: _ids(body, server))
        found: dict[str, Any] = {"tokens": ids, "count": len(ids), "context_length": planner.context}
        if body.pieces:
            found["pieces"] = [planner.tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
        return JSONResponse(found)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of ids."""
        text = await server.prepare(
            DetokenizeRequest.model_fields,
            lambda: planner.tokenizer.decode(body.tokens, skip_special=body.skip_special),
        )
        return JSONResponse({"text": text})

    return router


def _ids(body: TokenizeRequest, server: Server) -> list[int]:
    planner = server.planner
    if body.text is not None:
        tokenizer: tokenizer_module.Tokenizer = planner.tokenizer
        return tokenizer.encode(body.text, bos=body.bos)
    if planner.chat is None:
        raise ApiError("this model has no chat template; send text", param="messages")
    tools = [t.model_dump(exclude_unset=True) for t in body.tools or ()]
    messages = [m.plain() for m in body.messages or ()]
    more = goes_on(messages)
    rendered = planner.chat.render(
        messages, tools=tools, add_generation_prompt=not more, continue_last=more, today="now"
    )
    return rendered.encode()[0]


def _sampling(server: Server) -> dict[str, Any]:
    s = server.settings.sampling
    return {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty}  # fmt: skip
