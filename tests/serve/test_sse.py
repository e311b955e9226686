"""Event streams towards clients that do not read, and faults in the middle of one. No server, no model."""

import asyncio
import json
import logging

import pytest

from headwater.serve import sse
from headwater.serve.sse import KEEP_ALIVE, EventStream

SECONDS = 60


class Events:
    """Yields `first`, then waits for ever; notes that it was closed."""

    def __init__(self, first=(), fault=None):
        self.first, self.fault, self.closed = first, fault, 0

    async def __call__(self):
        try:
            for data in self.first:
                yield data
            if self.fault is not None:
                raise self.fault
            await asyncio.Event().wait()
        finally:
            self.closed += 1


def serve(events, *, stuck_at=None, keep_alive=SECONDS, limit=SECONDS):
    """(bodies sent, number of calls of close) of a stream to a client that stays; it reads nothing from `stuck_at`."""
    sent, closed = [], []

    async def send(message):
        if message["type"] != "http.response.body":
            return
        if stuck_at is not None and stuck_at in (message["body"], b"any"):
            await asyncio.Event().wait()  # the socket's buffer is full
        sent.append(message["body"])

    async def receive():
        await asyncio.Event().wait()

    async def run():
        stream = EventStream(
            events(), close=lambda: closed.append(1), keep_alive=keep_alive, limit=limit,
            fault=lambda e: json.dumps(str(e)).encode(),
        )  # fmt: skip
        await asyncio.wait_for(stream({}, receive, send), SECONDS)

    asyncio.run(run())
    return sent, len(closed)


@pytest.mark.parametrize("stuck_at", [b"a", b"any"])
def test_a_client_that_reads_no_more_loses_its_place(monkeypatch, stuck_at):
    monkeypatch.setattr(sse, "_FAREWELL_SECONDS", 0.05)
    events = Events([b"a"])
    _, closed = serve(events, stuck_at=stuck_at, limit=0.05)
    assert (events.closed, closed) == (1, 1)


def test_a_client_that_is_stuck_at_a_sign_of_life_is_told_the_time_is_over():
    events = Events()
    sent, closed = serve(events, stuck_at=KEEP_ALIVE, keep_alive=0.01, limit=0.2)
    assert "took longer" in sent[0].decode()
    assert sent[-1] == b""
    assert (events.closed, closed) == (1, 1)


def test_a_fault_of_ours_in_a_stream_stands_in_the_log(caplog):
    with caplog.at_level(logging.ERROR, logger="headwater.serve"):
        sent, closed = serve(Events([b"a"], fault=KeyError("lost")))
    assert sent == [b"a", b"\"'lost'\"", b""]
    assert closed == 1
    assert [r.exc_info[0] for r in caplog.records if r.name == "headwater.serve"] == [KeyError]
