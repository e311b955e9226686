"""POST /v1/messages, in Anthropic's words: blocks of thinking, text and tool use, and their events."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from headwater.serve.api_chat import who
from headwater.serve.call_stream import Part
from headwater.serve.errors import ApiError
from headwater.serve.grammar import Format
from headwater.serve.job import Job, Plan
from headwater.serve.reply import Choice, Replies, Usage
from headwater.serve.schemas_more import (
    CountRequest,
    MessageRequest,
    ResultBlock,
    TextBlock,
    ThinkingBlock,
    Turn,
    UseBlock,
)
from headwater.serve.server import Server
from headwater.serve.sse import event

_CHOICES = {"auto": "auto", "none": "none", "any": "required", "tool": "required"}


def routes(server: Server) -> APIRouter:
    """The router of this API."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: Request, body: MessageRequest) -> Response:
        """Answer a conversation."""
        name = server.check_model(body.model)
        user = who(request, str((body.metadata or {}).get("user_id", "")))
        plan = await server.prepare(MessageRequest.model_fields, lambda: server.planner.plan(_job(body, user)))
        answer = _Answer(server, name, body, plan)
        if body.stream:
            request_id = request.state.request_id
            return server.stream(answer, lambda e: event(_fault(e, request_id), "error"))
        return await server.attended(request, answer)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> Response:
        """How many tokens a conversation has."""
        server.check_model(body.model)
        asked = MessageRequest(**body.model_dump(exclude_unset=True, by_alias=True), max_tokens=1)
        count = await server.prepare(MessageRequest.model_fields, lambda: server.planner.count(_job(asked, "")))
        return JSONResponse({"input_tokens": count})

    return router


def _job(body: MessageRequest, user: str) -> Job:
    chosen = body.tool_choice
    thinking = body.thinking
    on = None if thinking is None or thinking.type == "adaptive" else thinking.type == "enabled"
    form = body.output_config.format if body.output_config else None
    system = _text(body.system)
    return Job(
        messages=[{"role": "system", "content": system}] * bool(system) + [m for t in body.messages for m in _turn(t)],
        sampling={"max_tokens": body.max_tokens, "temperature": body.temperature, "top_p": body.top_p,
                  "top_k": body.top_k, "stop": tuple(body.stop_sequences or ()) or None},
        tools=[_tool(t) for t in body.tools or ()], choice=_CHOICES[chosen.type] if chosen else "auto",  # type: ignore[arg-type]
        named=(chosen.name,) if chosen and chosen.name else None,
        parallel=not (chosen and chosen.disable_parallel_tool_use), thinking=on,
        budget=thinking.budget_tokens if thinking and on else None, thinking_param="thinking",
        format=None if form is None else Format("json", form.schema_, "output_config.format.schema"), user=user,
    )  # fmt: skip


def _tool(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def _text(value: str | list[TextBlock] | None) -> str:
    return value if isinstance(value, str) else "".join(b.text for b in value or ())


def _turn(turn: Turn) -> list[dict[str, Any]]:
    """A turn as messages: results of tools are messages of their own, before the rest."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role == "system" and not all(isinstance(b, TextBlock) for b in turn.content):
        raise ApiError("a system turn holds something else than text", param="messages")
    results = [{"role": "tool", "content": _text(b.content)} for b in turn.content if isinstance(b, ResultBlock)]
    if results and turn.role == "assistant":
        raise ApiError("an assistant's turn holds a tool_result; results stand in a user's turn", param="messages")
    message: dict[str, Any] = {"role": turn.role, "content": ""}
    for block in turn.content:
        if isinstance(block, TextBlock):
            message["content"] += block.text
        elif isinstance(block, ThinkingBlock):
            message["thinking"] = message.get("thinking", "") + block.thinking
        elif isinstance(block, UseBlock):
            call = {"type": "function", "function": {"name": block.name, "arguments": block.input}}
            message.setdefault("tool_calls", []).append(call)
    return [*results, message] if len(message) > 2 or message["content"] or not results else results


def _fault(error: Exception, request_id: str) -> dict[str, Any]:
    known = error if isinstance(error, ApiError) else ApiError("the server failed", status=500)
    return known.anthropic(request_id)


class _Answer:
    """The one answer of a request."""

    def __init__(self, server: Server, name: str, body: MessageRequest, plan: Plan) -> None:
        self._name, self._body, self._plan = name, body, plan
        self._replies = Replies(
            server.front, [plan.work], plan.splitter, calls=bool(plan.tool_names), stream=bool(body.stream)
        )
        self._id = f"msg_{secrets.token_hex(12)}"

    @property
    def _choice(self) -> Choice:
        return self._replies.choices[0]

    def close(self) -> None:
        self._replies.close()

    async def whole(self) -> dict[str, Any]:
        await self._replies.whole()
        c = self._choice
        blocks: list[dict[str, Any]] = []
        if c.reasoning:
            blocks.append({"type": "thinking", "thinking": c.reasoning, "signature": ""})
        if c.content or not c.calls:
            blocks.append({"type": "text", "text": c.content})
        blocks += [
            {"type": "tool_use", "id": _use_id(), "name": call.name, "input": call.arguments} for call in c.calls
        ]
        return self._message(blocks, self._stop_reason(), _usage(c.usage))

    async def events(self) -> AsyncGenerator[bytes, None]:
        yield event(
            {"type": "message_start", "message": self._message([], None, _usage(self._choice.usage))}, "message_start"
        )
        blocks = _Blocks()
        async with aclosing(self._replies.deltas()) as deltas:
            async for _, delta in deltas:
                if delta.part is not None:
                    for data in blocks.call(delta.part):
                        yield data
                elif delta.text:
                    for data in blocks.text(delta.kind, delta.text):
                        yield data
        if not blocks.count:
            for data in blocks.text("content", ""):
                yield data
        for data in blocks.close():
            yield data
        end = {"stop_reason": self._stop_reason(), "stop_sequence": self._choice.stopped_by}
        yield event({"type": "message_delta", "delta": end, "usage": _usage(self._choice.usage)}, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    def _message(self, blocks: list[dict[str, Any]], reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._name, "content": blocks,
                "stop_reason": reason, "stop_sequence": self._choice.stopped_by, "usage": usage}  # fmt: skip

    def _stop_reason(self) -> str:
        if self._choice.stopped_by is not None:
            return "stop_sequence"
        return {"tool_calls": "tool_use", "length": "max_tokens", "stop": "end_turn"}[self._choice.finish_reason]


class _Blocks:
    """The events of the blocks of a message: one is open at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._open: str | None = None

    def text(self, kind: str, text: str) -> list[bytes]:
        """More text or reasoning."""
        found = []
        if self._open != kind:
            thinking = {"type": "thinking", "thinking": "", "signature": ""}
            found = [
                *self.close(),
                self._start(kind, thinking if kind == "reasoning" else {"type": "text", "text": ""}),
            ]
        delta = (
            {"type": "thinking_delta", "thinking": text}
            if kind == "reasoning"
            else {"type": "text_delta", "text": text}
        )
        return [*found, self._delta(delta)] if text else found

    def call(self, part: Part) -> list[bytes]:
        """More of a call; its last part closes the block."""
        found = []
        if part.name is not None:
            block = {"type": "tool_use", "id": _use_id(), "name": part.name, "input": {}}
            found = [*self.close(), self._start("call", block)]
        if part.arguments:
            found.append(self._delta({"type": "input_json_delta", "partial_json": part.arguments}))
        return found if part.call is None else [*found, *self.close()]

    def close(self) -> list[bytes]:
        """End the open block."""
        if self._open is None:
            return []
        self._open = None
        return [event({"type": "content_block_stop", "index": self.count - 1}, "content_block_stop")]

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open = kind
        self.count += 1
        value = {"type": "content_block_start", "index": self.count - 1, "content_block": block}
        return event(value, "content_block_start")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        value = {"type": "content_block_delta", "index": self.count - 1, "delta": delta}
        return event(value, "content_block_delta")


def _use_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what the cache held apart from the rest of the input."""
    return {"input_tokens": usage.prompt - usage.cached, "cache_read_input_tokens": usage.cached,
            "cache_creation_input_tokens": 0, "output_tokens": usage.answer,
            "output_tokens_details": {"thinking_tokens": usage.reasoning}}  # fmt: skip
