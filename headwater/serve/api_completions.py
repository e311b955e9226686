"""POST /v1/completions, in OpenAI's words: text is continued as it is, no template and nothing taken apart."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headwater.completion import Logprob
from headwater.serve.api_chat import format_of, openai_fault, sampling_of, who
from headwater.serve.errors import ApiError
from headwater.serve.front import Work
from headwater.serve.reply import Replies
from headwater.serve.schemas import CompletionRequest
from headwater.serve.server import Server
from headwater.serve.sse import DONE, event

_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""
_MOST_CHOICES = 128


def routes(server: Server) -> APIRouter:
    """The router of this API."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text."""
        name = server.check_model(body.model)
        user = who(request, body.user)
        works = await server.prepare(CompletionRequest.model_fields, lambda: _works(body, server, user))
        answer = _Answer(server, name, body, works)
        if body.stream:
            return server.stream(answer, openai_fault)
        return await server.attended(request, answer)

    return router


def prompts_of(value: Any, server: Server, param: str) -> list[list[int]]:
    """Ids of each of the texts or id lists that a prompt or an input can be."""
    texts = [value] if isinstance(value, str) or isinstance(value[0], int) else value
    return [server.planner.encode(t, param) if isinstance(t, str) else _checked_ids(t, server, param) for t in texts]


def _checked_ids(ids: list[int], server: Server, param: str) -> list[int]:
    size = server.front.engine.config.vocab_size
    wrong = next((t for t in ids if not 0 <= t < size), None)
    if wrong is not None or not ids:
        raise ApiError(f"{param} holds {'no tokens' if not ids else f'the token id {wrong}'}; allowed: 0 to {size - 1}",
                       param=param)  # fmt: skip
    return ids


def _works(body: CompletionRequest, server: Server, user: str) -> list[Work]:
    planner, n = server.planner, body.n or 1
    given = sampling_of(body, server, body.max_tokens or _MAX_TOKENS, body.logprobs)
    if body.echo and body.logprobs is not None:
        raise ApiError("echo with logprobs is not supported by this server; leave one of them out", param="echo")
    prompts = prompts_of(body.prompt, server, "prompt")
    if n * len(prompts) > _MOST_CHOICES:
        raise ApiError(f"n times prompts is {n * len(prompts)}; allowed: up to {_MOST_CHOICES}", param="n")
    form = format_of(body.response_format)
    works = []
    for ids in prompts:
        if not ids:
            raise ApiError("prompt is empty; allowed: at least one token", param="prompt")
        params = planner.params(given, len(ids), "prompt")
        masks = [
            planner.mask(
                planner.grammars.answer(form, [], must_call=False, may_call=False, parallel=True, all_tools=True)
            )
            for _ in range(n)
        ]
        each = [planner.with_seed(params, i) for i in range(n)]
        works.append(Work(ids, each, masks, skip_special=True, user=user))
    return works


class _Answer:
    """All choices of one request: n for the first prompt, n for the next."""

    def __init__(self, server: Server, name: str, body: CompletionRequest, works: list[Work]) -> None:
        self._server, self._body = server, body
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                      "model": name, "system_fingerprint": server.fingerprint}  # fmt: skip
        self._prompts = [w.ids for w in works for _ in w.params]
        self._replies = Replies(server.front, works, None)
        self._offsets = [0] * len(self._prompts)

    def close(self) -> None:
        self._replies.close()

    async def whole(self) -> dict[str, Any]:
        await self._replies.whole()
        choices = [
            self._choice(i, self._echo(i) + c.content, c.logprobs, c.finish_reason)
            for i, c in enumerate(self._replies.choices)
        ]
        return {**self._head, "choices": choices, **self._numbers()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        empty = {"usage": None} if with_usage else {}
        for i in range(len(self._prompts)):
            if echo := self._echo(i):
                yield event({**self._head, "choices": [self._choice(i, echo, (), None)]} | empty)
        async with aclosing(self._replies.deltas()) as deltas:
            async for i, delta in deltas:
                reason = self._replies.choices[i].finish_reason if delta.kind == "end" else None
                choice = self._choice(i, delta.text, delta.logprobs, reason)
                yield event({**self._head, "choices": [choice]} | empty)
        if with_usage:
            yield event({**self._head, "choices": [], **self._numbers()})
        yield DONE

    def _numbers(self) -> dict[str, Any]:
        usage = self._replies.usage()
        return {"usage": usage.openai(), "timings": usage.timings()}

    def _echo(self, index: int) -> str:
        if not self._body.echo:
            return ""
        ids, bos = self._prompts[index], self._server.planner.tokenizer.bos_id
        return self._server.planner.tokenizer.decode(ids[1:] if ids[:1] == [bos] else ids, skip_special=False)

    def _choice(self, index: int, text: str, found: Sequence[Logprob], reason: str | None) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else self._logprobs(index, found)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, found: Sequence[Logprob]) -> dict[str, Any]:
        tokenizer = self._server.planner.tokenizer

        def name(token: int) -> str:
            return tokenizer.decode([token], skip_special=False) if token < tokenizer.vocab_size else ""

        offsets = []
        for lp in found:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(name(lp.token_id))
        return {
            "tokens": [name(lp.token_id) for lp in found],
            "token_logprobs": [max(lp.logprob, -9999.0) for lp in found],
            "top_logprobs": [{name(t): max(v, -9999.0) for t, v in lp.top} for lp in found],
            "text_offset": offsets,
        }
