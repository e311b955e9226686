"""POST /v1/responses, in OpenAI's words: items of reasoning, messages and function calls, and their events.

Stateless: nothing is stored, so a conversation is sent whole each time.
"""

import itertools
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headwater.serve.api_chat import effort, who
from headwater.serve.call_stream import Part
from headwater.serve.errors import ApiError
from headwater.serve.grammar import Format
from headwater.serve.job import Job, Plan
from headwater.serve.reply import Delta, Replies, Usage
from headwater.serve.schemas_more import (
    InputCall,
    InputMessage,
    InputReasoning,
    InputResult,
    InputText,
    ResponseAllowed,
    ResponseRequest,
    ResponseToolName,
)
from headwater.serve.server import Server
from headwater.serve.sse import event


def routes(server: Server) -> APIRouter:
    """The router of this API."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(request: Request, body: ResponseRequest) -> Response:
        """Answer a conversation."""
        name = server.check_model(body.model)
        user = who(request, body.user)
        plan = await server.prepare(ResponseRequest.model_fields, lambda: server.planner.plan(_job(body, user)))
        answer = _Answer(server, name, body, plan)
        return server.stream(answer, answer.fault) if body.stream else await server.attended(request, answer)

    return router


def _job(body: ResponseRequest, user: str) -> Job:
    thinking, budget = (None, None)
    if body.reasoning and body.reasoning.effort:
        thinking, budget = effort(body.reasoning.effort)
    choice, named = _choice(body)
    return Job(
        messages=_messages(body),
        sampling={"max_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p},
        tools=[_tool(t.model_dump(exclude_none=True)) for t in body.tools or ()],
        choice=choice, named=named,
        parallel=body.parallel_tool_calls is not False, format=_format(body), thinking=thinking, budget=budget,
        thinking_param="reasoning.effort", continued=False, user=user,
    )  # fmt: skip


def _choice(body: ResponseRequest) -> tuple[Any, tuple[str, ...] | None]:
    """(auto, none or required; the names allowed)."""
    chosen = body.tool_choice
    if isinstance(chosen, ResponseToolName):
        return "required", (chosen.name,)
    if isinstance(chosen, ResponseAllowed):
        return chosen.mode, tuple(t.name for t in chosen.tools)
    return chosen or "auto", None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As a chat request has it."""
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _format(body: ResponseRequest) -> Format | None:
    form = body.text.format if body.text else None
    if form is None or form.type == "text":
        return None
    schema = {"type": "object"} if form.type == "json_object" else form.schema_
    return Format("json", schema, "text.format.schema")


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    """The items as messages: reasoning, text and calls of one turn belong together."""
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*found, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, InputResult):
            found.append({"role": "tool", "content": _text(item.output)})
        elif isinstance(item, InputMessage) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            found.append({"role": role, "content": _text(item.content)})
        else:
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            _extend(found[-1], item)
    return found


def _extend(turn: dict[str, Any], item: InputMessage | InputCall | InputReasoning) -> None:
    if isinstance(item, InputMessage):
        turn["content"] += _text(item.content)
    elif isinstance(item, InputCall):
        call = {"type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        turn.setdefault("tool_calls", []).append(call)
    else:
        parts = item.content or item.summary
        turn["thinking"] = turn.get("thinking", "") + "".join(p.text for p in parts)


def _text(value: str | list[InputText]) -> str:
    return value if isinstance(value, str) else "".join(p.text for p in value)


class _Answer:
    """The one answer of a request."""

    def __init__(self, server: Server, name: str, body: ResponseRequest, plan: Plan) -> None:
        self._replies = Replies(
            server.front, [plan.work], plan.splitter, calls=bool(plan.tool_names), stream=bool(body.stream)
        )
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        chosen = body.tool_choice
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()), "model": name,
            "error": None, "instructions": body.instructions, "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False, "temperature": body.temperature,
            "top_p": body.top_p, "max_output_tokens": body.max_output_tokens, "previous_response_id": None,
            "tool_choice": (chosen or "auto") if isinstance(chosen, str | None) else chosen.model_dump(),
            "tools": [t.model_dump() for t in body.tools or ()], "text": {"format": {"type": "text"}} | text,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "truncation": "disabled", "store": False, "background": False, "service_tier": "default", "user": body.user,
        }  # fmt: skip
        self._items: list[dict[str, Any]] = []
        self._numbers = itertools.count()  # of events

    def close(self) -> None:
        self._replies.close()

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self._replies.deltas()) as deltas:
            async for _, delta in deltas:
                for _event in self._take(delta):
                    pass
        for _event in self._close(self._end()):
            pass
        return self._response()

    def fault(self, error: Exception) -> bytes:
        """The event that ends a stream with an error."""
        known = error if isinstance(error, ApiError) else ApiError("the server failed", status=500)
        inner = known.openai()["error"]
        said = {"code": inner["code"] or inner["type"], "message": inner["message"], "param": inner["param"]}
        return self._write({"type": "error"} | said)

    def _write(self, value: dict[str, Any]) -> bytes:
        return event(value | {"sequence_number": next(self._numbers)}, value["type"])

    async def events(self) -> AsyncGenerator[bytes, None]:
        started = {**self._head, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        yield self._write({"type": "response.created", "response": started})
        yield self._write({"type": "response.in_progress", "response": started})
        async with aclosing(self._replies.deltas()) as deltas:
            async for _, delta in deltas:
                for value in self._take(delta):
                    yield self._write(value)
        for value in self._close(self._end()):
            yield self._write(value)
        done = self._response()
        yield self._write({"type": f"response.{done['status']}", "response": done})

    def _end(self) -> str:
        return "incomplete" if self._replies.choices[0].finish_reason == "length" else "completed"

    def _response(self) -> dict[str, Any]:
        choice = self._replies.choices[0]
        status = self._end()
        return {
            **self._head, "status": status, "output": self._items, "usage": _usage(choice.usage),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        }  # fmt: skip

    def _take(self, delta: Delta) -> list[dict[str, Any]]:
        """The events of a delta; the items grow with them."""
        if delta.part is not None:
            return self._call(delta.part)
        if not delta.text:
            return []
        kind = "reasoning" if delta.kind == "reasoning" else "message"
        found = [] if self._open_kind() == kind else [*self._close(), *self._open(kind)]
        item = self._items[-1]
        item["content"][0]["text"] += delta.text
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        extra: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        return [*found, {"type": name, "delta": delta.text, **self._place(), **extra}]

    def _open_kind(self) -> str:
        last = self._items[-1] if self._items else {"status": "completed"}
        return last["type"] if last["status"] == "in_progress" else ""

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _open(self, kind: str) -> list[dict[str, Any]]:
        if kind == "reasoning":
            item = {"type": kind, "id": f"rs_{secrets.token_hex(12)}", "summary": [], "status": "in_progress"}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"type": kind, "id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._items.append(item | {"content": []})
        added = {
            "type": "response.output_item.added",
            "output_index": len(self._items) - 1,
            "item": dict(self._items[-1]),
        }
        self._items[-1]["content"] = [part]
        return [added, {"type": "response.content_part.added", "part": dict(part), **self._place()}]

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        """The last events of the item that is open; status: of it, if it is not a call, whose end is its own."""
        kind = self._open_kind()
        if not kind:
            return []
        if kind == "function_call":  # cut off
            return self._end_call("incomplete")
        item = self._items[-1]
        item["status"] = status
        part, text = item["content"][0], item["content"][0]["text"]
        name = "response.reasoning_text.done" if kind == "reasoning" else "response.output_text.done"
        extra: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        return [
            {"type": name, "text": text, **self._place(), **extra},
            {"type": "response.content_part.done", "part": part, **self._place()},
            {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item},
        ]

    def _call(self, part: Part) -> list[dict[str, Any]]:
        """The events of a part of a call."""
        found = []
        if part.name is not None:
            item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "name": part.name,
                    "call_id": f"call_{secrets.token_hex(12)}", "arguments": "", "status": "in_progress"}  # fmt: skip
            found = self._close()
            self._items.append(item)
            found.append({"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": {**item}})
        if part.arguments:
            self._items[-1]["arguments"] += part.arguments
            found.append(
                {"type": "response.function_call_arguments.delta", "delta": part.arguments, **self._call_place()}
            )
        return found if part.call is None else [*found, *self._end_call("completed")]

    def _end_call(self, status: str) -> list[dict[str, Any]]:
        item = self._items[-1]
        item["status"] = status
        said = {"arguments": item["arguments"], "name": item["name"]}
        return [
            {"type": "response.function_call_arguments.done", **said, **self._call_place()},
            {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item},
        ]

    def _call_place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.answer, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.answer,
    }  # fmt: skip
