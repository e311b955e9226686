"""What every route needs: the front of the engine, the planner, the settings, the counters. Made by app.create_app."""

import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from headwater.serve.errors import ApiError, from_value_error
from headwater.serve.front import Front
from headwater.serve.job import Planner
from headwater.serve.metrics import Metrics
from headwater.serve.settings import Settings
from headwater.serve.sse import EventStream, attended

T = TypeVar("T")


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

    async def attended(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """sse.attended with this server's limit."""
        return await attended(request, work, self.settings.request_seconds)

    def stream(self, events: AsyncGenerator[bytes, None], fault: Callable[[Exception], bytes]) -> EventStream:
        """An event stream with this server's limits."""
        s = self.settings
        return EventStream(events, fault=fault, keep_alive=s.keep_alive_seconds, limit=s.request_seconds)
