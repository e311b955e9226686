"""What every route needs: the front of the engine, the planner, the settings, the counters. Made by app.create_app."""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from headwater.serve.errors import ApiError, from_value_error
from headwater.serve.front import Front
from headwater.serve.job import Planner
from headwater.serve.metrics import Metrics
from headwater.serve.settings import Settings
from headwater.serve.sse import EventStream, attended

T = TypeVar("T")


class Whole(Protocol):
    """The answer to one request, in the words of an API."""

    async def whole(self) -> Any:
        """The body of an answer in one piece."""

    def close(self) -> None:
        """Free the slots; nothing happens when the answer is complete."""


class Answer(Whole, Protocol):
    """An answer that can stream."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""


@dataclass(frozen=True)
class Server:
    """fingerprint: names the weights and the program, for those who want the same answer again."""

    settings: Settings
    front: Front
    planner: Planner
    metrics: Metrics
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> str:
        """The model's name for the answer. ApiError 404 for a name that no model here has; none given will do."""
        known = self.settings.model_name
        if name in (None, "", known, "default"):
            return known
        raise ApiError(
            f"The model {name!r:.100} does not exist here; this server runs {known!r}. Any of that name, 'default' or"
            " no name will do.", status=404, param="model", code="model_not_found",
        )  # fmt: skip

    async def prepare(self, fields: Any, make: Callable[[], T]) -> T:
        """Run `make` (rendering, tokenizing, compiling) off the event loop; its ValueError becomes a refusal."""
        try:
            return await run_in_threadpool(make)
        except ValueError as e:
            raise from_value_error(e, fields) from e

    async def attended(self, request: Request, answer: Whole) -> JSONResponse:
        """The answer in one piece, unless the client goes away or it takes too long; its slot is freed in any case."""
        limit = self.settings.request_seconds
        return JSONResponse(await attended(request, answer.whole(), answer.close, limit))

    def stream(self, answer: Answer, fault: Callable[[Exception], bytes]) -> EventStream:
        """The answer as an event stream with this server's limits; its slot is freed in any case."""
        s = self.settings
        return EventStream(
            answer.events(), close=answer.close, fault=fault, keep_alive=s.keep_alive_seconds, limit=s.request_seconds
        )
