"""POST /v1/completions, in OpenAI's words: text is continued as it is, no template and nothing taken apart."""

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headwater.serve.api_chat import format_of, openai_fault, sampling_of
from headwater.serve.errors import ApiError
from headwater.serve.front import Piece, Work
from headwater.serve.merge import merged
from headwater.serve.reply import Reply, Usage
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
        works = await server.prepare(CompletionRequest.model_fields, lambda: _works(body, server))
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


def _works(body: CompletionRequest, server: Server) -> list[Work]:
    planner, n = server.planner, body.n or 1
    bias = planner.check_bias(body.logit_bias)
    given = sampling_of(body, body.max_tokens or _MAX_TOKENS, body.logprobs)
    if body.echo and body.logprobs is not None:
        raise ApiError("echo with logprobs is not supported by this server; leave one of them out", param="echo")
    prompts = prompts_of(body.prompt, server, "prompt")
    if n * len(prompts) > _MOST_CHOICES:
        raise ApiError(f"n times prompts is {n * len(prompts)}; allowed: up to {_MOST_CHOICES}", param="n")
    works = []
    for ids in prompts:
        if not ids:
            raise ApiError("prompt is empty; allowed: at least one token", param="prompt")
        params = planner.params(given, len(ids))
        for i in range(n):
            form = format_of(body.response_format)
            grammar = planner.grammars.answer(form, [], must_call=False, may_call=False, parallel=True, all_tools=True)
            guide = planner.shaped(bias, body.frequency_penalty or 0.0, body.presence_penalty or 0.0, grammar)
            works.append(Work(ids, planner.with_seed(params, i), guide, skip_special=True))
    return works


class _Answer:
    def __init__(self, server: Server, name: str, body: CompletionRequest, works: list[Work]) -> None:
        self._server, self._body = server, body
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                      "model": name, "system_fingerprint": server.fingerprint}  # fmt: skip
        self._works, self._replies = works, list[Reply]()
        try:
            for work in works:
                self._replies.append(Reply(server.front, work, None))
        except ApiError:
            self.close()
            raise
        self._offsets = [0] * len(works)

    async def whole(self) -> dict[str, Any]:
        try:
            for reply in self._replies:
                await reply.whole()
        finally:
            self.close()
        choices = []
        for i, r in enumerate(self._replies):
            text = self._echo(i) + r.message.content
            choices.append(self._choice(i, text, r.message.pieces, r.finish_reason))
        usage = self._usage()
        return {**self._head, "choices": choices, "usage": usage.openai(), "timings": usage.timings()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        empty = {"usage": None} if with_usage else {}
        try:
            for i in range(len(self._replies)):
                if echo := self._echo(i):
                    yield event({**self._head, "choices": [self._choice(i, echo, [], None)]} | empty)
            async for i, delta in merged([r.deltas() for r in self._replies]):
                if delta is None:
                    choice = self._choice(i, "", [], self._replies[i].finish_reason)
                elif delta.text or self._body.logprobs is not None:
                    choice = self._choice(i, delta.text, [delta.piece] if delta.piece else [], None)
                else:
                    continue
                yield event({**self._head, "choices": [choice]} | empty)
            if with_usage:
                usage = self._usage()
                yield event({**self._head, "choices": [], "usage": usage.openai(), "timings": usage.timings()})
            yield DONE
        finally:
            self.close()

    def close(self) -> None:
        for reply in self._replies:
            reply.cancel()

    def _usage(self) -> Usage:
        """Every prompt counts once, however many choices it has."""
        total = sum((r.usage for r in self._replies[1:]), self._replies[0].usage)
        firsts = self._replies[:: self._body.n or 1]
        total.prompt, total.cached = sum(r.usage.prompt for r in firsts), sum(r.usage.cached for r in firsts)
        return total

    def _echo(self, index: int) -> str:
        if not self._body.echo:
            return ""
        ids, bos = self._works[index].ids, self._server.planner.tokenizer.bos_id
        return self._server.planner.tokenizer.decode(ids[1:] if ids[:1] == [bos] else ids, skip_special=False)

    def _choice(self, index: int, text: str, pieces: list[Piece], reason: str | None) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else self._logprobs(index, pieces)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        tokenizer = self._server.planner.tokenizer

        def name(token: int) -> str:
            return tokenizer.decode([token], skip_special=False) if token < tokenizer.vocab_size else ""

        found = [p.logprob for p in pieces if p.logprob is not None]
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
