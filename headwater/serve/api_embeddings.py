"""POST /v1/embeddings, in OpenAI's words: mean-pooled hidden states of the language model, of length 1."""

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from headwater.serve.api_chat import who
from headwater.serve.api_completions import prompts_of
from headwater.serve.errors import ApiError
from headwater.serve.schemas import EmbeddingRequest
from headwater.serve.server import Server


def routes(server: Server) -> APIRouter:
    """The router of this API."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """A vector for each text."""
        name = server.check_model(body.model)
        texts = await server.prepare(EmbeddingRequest.model_fields, lambda: _texts(body, server))
        return await server.attended(request, _Answer(server, name, body, texts, who(request, body.user)))

    return router


def _texts(body: EmbeddingRequest, server: Server) -> list[list[int]]:
    texts = prompts_of(body.input, server, "input")
    most = server.planner.context
    for i, ids in enumerate(texts):
        if not 0 < len(ids) <= most:
            raise ApiError(f"input[{i}] has {len(ids)} tokens; allowed: 1 to {most}", param="input",
                           code="context_length_exceeded")  # fmt: skip
    return texts


class _Answer:
    """All vectors of one request; at most `slots` of them are on their way at a time."""

    def __init__(self, server: Server, name: str, body: EmbeddingRequest, texts: list[list[int]], user: str) -> None:
        self._server, self._name, self._body, self._texts, self._user = server, name, body, texts, user

    def close(self) -> None:
        pass  # whole() gives back what it takes

    async def whole(self) -> dict[str, Any]:
        front = self._server.front
        vectors: list[np.ndarray] = []
        for start in range(0, len(self._texts), front.slots):
            some = self._texts[start : start + front.slots]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(ids)) for ids in some]
            results = [task.result() for task in tasks]
            for found in results:
                if isinstance(found, ApiError):
                    raise found
                vectors.append(found)
        count = sum(map(len, self._texts))
        data = [{"object": "embedding", "index": i, "embedding": self._shown(v)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": self._name, "data": data, "usage": usage}

    async def _one(self, ids: list[int]) -> np.ndarray | ApiError:
        try:
            return await self._server.front.embed(ids, self._user)
        except ApiError as e:  # a group would wrap it
            return e

    def _shown(self, vector: np.ndarray) -> Any:
        if self._body.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return [float(v) for v in vector]
