"""POST /v1/chat/completions, in OpenAI's words."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headwater.completion import Logprob
from headwater.serve.call_stream import Part
from headwater.serve.errors import ApiError
from headwater.serve.grammar import Format
from headwater.serve.job import EFFORT_BUDGETS, Job, Plan
from headwater.serve.reply import Delta, Replies, call_arguments
from headwater.serve.schemas import AllowedTools, ChatRequest, NamedTool, Sampled
from headwater.serve.server import Server
from headwater.serve.sse import DONE, event
from headwater.tool_calls import ToolCall

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed",
)  # fmt: skip


def routes(server: Server) -> APIRouter:
    """The router of this API."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        name = server.check_model(body.model)
        user = who(request, body.user)
        plan = await server.prepare(ChatRequest.model_fields, lambda: server.planner.plan(job_of(body, server, user)))
        answer = _Answer(server, name, body, plan)
        if body.stream:
            return server.stream(answer, openai_fault)
        return await server.attended(request, answer)

    return router


def job_of(body: ChatRequest, server: Server, user: str) -> Job:
    """The request in the common form."""
    choice, named = tool_choice(body)
    kwargs = body.chat_template_kwargs
    thinking, budget, param = reasoning_of(body)
    return Job(
        messages=[m.plain() for m in body.messages],
        sampling=sampling_of(body, server, body.max_completion_tokens or body.max_tokens, logprobs_of(body)),
        tools=[t.model_dump(exclude_unset=True) for t in body.tools or ()],
        choice=choice, named=named, parallel=body.parallel_tool_calls is not False,
        format=format_of(body.response_format), thinking=thinking, budget=budget, thinking_param=param,
        keep_past_thinking=bool(kwargs and kwargs.keep_past_thinking), continued=body.continued(), n=body.n or 1,
        user=user,
    )  # fmt: skip


def who(request: Request, user: str | None) -> str:
    """Whose request this is, for a fair share of the engine."""
    key = getattr(request.state, "key", "")  # behind a proxy all come from one address
    return f"{request.client.host if request.client else ''}|{key}|{user or ''}"


def reasoning_of(body: ChatRequest) -> tuple[bool | None, int | None, str]:
    """(whether to reason, most tokens of it, the field that asks for it)."""
    kwargs, budget, name = body.chat_template_kwargs, body.thinking_budget, "chat_template_kwargs.enable_thinking"
    thinking = kwargs.enable_thinking if kwargs else None
    if body.reasoning_effort is not None:
        thinking, most = effort(body.reasoning_effort, thinking)
        budget, name = most if budget is None else budget, "reasoning_effort"
    if body.thinking_budget is not None:
        if thinking is not None and thinking != (body.thinking_budget > 0):
            said = "there shall be reasoning" if thinking else "there shall be none"
            raise ApiError(f"thinking_budget is {body.thinking_budget}, but {name} says that {said}; leave one out",
                           param="thinking_budget")  # fmt: skip
        name = "thinking_budget"
    return thinking, budget, name


def effort(name: str, thinking: bool | None = None) -> tuple[bool, int | None]:
    """(whether to reason, most tokens of it) of reasoning_effort."""
    if thinking is not None and thinking != (name != "none"):
        raise ApiError(f"reasoning_effort is {name!r}, but enable_thinking is {thinking}", param="reasoning_effort")
    return name != "none", EFFORT_BUDGETS[name]


def tool_choice(body: ChatRequest) -> tuple[Any, tuple[str, ...] | None]:
    """(auto, none or required; the names allowed)."""
    chosen = body.tool_choice
    if isinstance(chosen, NamedTool):
        return "required", (chosen.function.name,)
    if isinstance(chosen, AllowedTools):
        allowed = chosen.allowed_tools
        return allowed.mode, tuple(t.function.name for t in allowed.tools)
    return chosen or "auto", None


def sampling_of(body: Sampled, server: Server, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
    """The fields of SamplingParams that a request gives."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()) or None
    given = {name: getattr(body, name) for name in _SAMPLING}
    return {
        **given,
        "logit_bias": server.planner.bias(body.logit_bias),
        "stop": stop,
        "max_tokens": max_tokens,
        "logprobs": logprobs,
    }


def logprobs_of(body: ChatRequest) -> int | None:
    """How many likely tokens to report; None: none, not even the chosen one."""
    return (body.top_logprobs or 0) if body.logprobs else None


def format_of(asked: Any) -> Format | None:
    """response_format in the common form."""
    kind = None if asked is None else asked.type
    if kind == "json_object":
        return Format("json", {"type": "object"})
    if kind == "json_schema":
        return Format("json", asked.json_schema.schema_, "response_format.json_schema.schema")
    if kind == "regex":
        return Format("regex", asked.regex, "response_format.regex")
    if kind == "grammar":
        return Format("grammar", asked.grammar, "response_format.grammar")
    return None


def openai_fault(error: Exception) -> bytes:
    """A fault in the middle of a stream."""
    known = error if isinstance(error, ApiError) else ApiError("the server failed", status=500)
    return event(known.openai()) + DONE


class _Answer:
    """All choices of one request."""

    def __init__(self, server: Server, name: str, body: ChatRequest, plan: Plan) -> None:
        self._server, self._body, self._seed = server, body, plan.seed
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name,
            "system_fingerprint": server.fingerprint, "service_tier": "default",
        }  # fmt: skip
        self._replies = Replies(
            server.front, [plan.work], plan.splitter, calls=bool(plan.tool_names), stream=bool(body.stream)
        )

    def close(self) -> None:
        self._replies.close()

    async def whole(self) -> dict[str, Any]:
        await self._replies.whole()
        choices = [self._choice(i) for i in range(len(self._replies.choices))]
        return {**self._head, "object": "chat.completion", "choices": choices, **self._numbers()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        empty = {"usage": None} if with_usage else {}
        for i in range(len(self._replies.choices)):
            yield event(self._chunk(i, {"role": "assistant", "content": ""}) | empty)
        async with aclosing(self._replies.deltas()) as deltas:
            async for i, delta in deltas:
                if delta.kind == "end":
                    yield event(self._chunk(i, {}, self._replies.choices[i].finish_reason) | empty)
                elif (chunk := self._delta(i, delta)) is not None:
                    yield event(chunk | empty)
        if with_usage:
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], **self._numbers()})
        yield DONE

    def _numbers(self) -> dict[str, Any]:
        usage = self._replies.usage()
        return {"usage": usage.openai(), "timings": usage.timings(), "seed": self._seed}

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._replies.choices[index]
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [_call(c) for c in choice.calls]
            message["content"] = choice.content or None
        logprobs = self._logprobs(choice.logprobs) if self._body.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _delta(self, index: int, delta: Delta) -> dict[str, Any] | None:
        value: dict[str, Any] = {}
        if delta.part is not None:
            if not (delta.part.name or delta.part.arguments):
                return None
            value["tool_calls"] = [_call_part(delta.part)]
        elif delta.kind == "reasoning":
            value["reasoning_content"] = delta.text
        elif delta.kind == "content":
            value["content"] = delta.text
        if not value and not delta.logprobs:
            return None
        chunk = self._chunk(index, value)
        if delta.logprobs:
            chunk["choices"][0]["logprobs"] = self._logprobs(delta.logprobs)
        return chunk

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, found: Sequence[Logprob]) -> dict[str, Any]:
        tokenizer = self._server.planner.tokenizer

        def entry(token: int, logprob: float) -> dict[str, Any]:
            data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
            return {"token": data.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}

        rows = [entry(lp.token_id, lp.logprob) | {"top_logprobs": [entry(t, v) for t, v in lp.top]} for lp in found]
        return {"content": rows, "refusal": None}


def _call_part(part: Part) -> dict[str, Any]:
    """More of a call; the first one names it."""
    if part.name is None:
        return {"index": part.number, "function": {"arguments": part.arguments}}
    value = {"id": _call_id(), "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
    return {"index": part.number, **value}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": _call_id(), "type": "function",
        "function": {"name": call.name, "arguments": call_arguments(call)},
    }  # fmt: skip
