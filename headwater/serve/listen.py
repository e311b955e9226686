"""Listening: uvicorn with the patience of this server, ended by a signal that lets streams finish."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from headwater import optional
from headwater.serve.settings import Settings


def uvicorn_server(app: FastAPI, settings: Settings, *, log_level: str = "warning") -> Any:
    """A uvicorn.Server that is not running yet."""
    uvicorn = optional.load("uvicorn", extra="serve")
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level=log_level, lifespan="on", access_log=False,
        http=_patient(settings.body_seconds), ws="none", timeout_keep_alive=30, server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_seconds), h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    return uvicorn.Server(config)


def _patient(seconds: float) -> type:
    """uvicorn's protocol, closing connections that do not finish a request's head in time (uvicorn itself waits)."""
    protocol = optional.load("uvicorn.protocols.http.h11_impl", extra="serve").H11Protocol

    class Patient(protocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(seconds, self._head_is_late)

        def _head_is_late(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_timer.cancel()
            super().connection_lost(exc)

    return Patient


@contextlib.contextmanager
def free_socket(host: str) -> Iterator[socket.socket]:
    """A listening socket on any free port, for tests and tools."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        yield found
