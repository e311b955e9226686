"""One answer as it comes: the engine's pieces become content, reasoning and calls, with counts and times.

The APIs turn these deltas into their own events. Stopping early for any reason frees the slot.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from headwater import tool_calls
from headwater.completion import Completion
from headwater.serve.errors import ApiError
from headwater.serve.front import Front, Piece, Ticket, Work
from headwater.tool_calls import Event, OutputSplitter, ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """What one token added. kind "none": nothing certain yet; pieces: the tokens since the last delta."""

    kind: Literal["content", "reasoning", "call", "none"]
    text: str = ""
    call: ToolCall | None = None
    piece: Piece | None = None


@dataclass
class Usage:
    """Tokens of one request; seconds from its arrival to the first token, and from there to the last."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    reasoning: int = 0
    first_seconds: float = 0.0
    rest_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            max(self.prompt, other.prompt), max(self.cached, other.cached), self.answer + other.answer,
            self.reasoning + other.reasoning, max(self.first_seconds, other.first_seconds),
            max(self.rest_seconds, other.rest_seconds),
        )  # fmt: skip

    def openai(self) -> dict[str, Any]:
        """As chat and completion answers carry it."""
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }  # fmt: skip

    def timings(self) -> dict[str, float | None]:
        """Not OpenAI's: what the page shows."""
        steps = self.answer - 1
        speed = steps / self.rest_seconds if steps > 0 and self.rest_seconds > 0 else None
        return {
            "first_token_seconds": round(self.first_seconds, 4),
            "answer_seconds": round(self.rest_seconds, 4),
            "tokens_per_second": None if speed is None else round(speed, 2),
        }


@dataclass
class Message:
    """A whole answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


class Reply:
    """The answer to one Work. splitter None: raw text, nothing is taken apart; tools: names a call may have."""

    def __init__(self, front: Front, work: Work, splitter: OutputSplitter | None, *, calls: bool = True) -> None:
        self._work, self._splitter, self._calls = work, splitter, calls
        self._begun = time.perf_counter()
        self._ticket: Ticket = front.submit(work)
        self.message = Message()
        self.usage = Usage(prompt=len(work.ids))
        self.finish_reason: FinishReason = "stop"

    def cancel(self) -> None:
        """Free the slot; nothing happens when the answer is complete."""
        self._ticket.cancel()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Every delta; afterwards message, usage and finish_reason are complete."""
        last = self._begun
        try:
            async for piece in self._ticket:
                now = time.perf_counter()
                self._count(piece, now - self._begun, now - last)
                if self.usage.answer > 1:
                    self.usage.rest_seconds += now - last
                last = now
                for delta in self._take(piece):
                    yield delta
            for event in self._splitter.finish() if self._splitter else []:
                for delta in self._of_event(event, None):
                    yield delta
            self._end()
        finally:
            self.cancel()

    async def whole(self) -> "Reply":
        """Wait for the end."""
        async for _ in self.deltas():
            pass
        return self

    def _count(self, piece: Piece, since_start: float, _gap: float) -> None:
        self.usage.answer += 1
        if self.usage.answer == 1:
            self.usage.first_seconds = since_start
        self.usage.reasoning += bool(self._splitter and self._splitter.reasoning)
        self.message.pieces.append(piece)

    def _take(self, piece: Piece) -> list[Delta]:
        if self._splitter is None:
            self.message.content += piece.text
            return [Delta("content", piece.text, piece=piece)]
        found = [d for e in self._splitter.push(piece.text) for d in self._of_event(e, piece)]
        return found or [Delta("none", piece=piece)]

    def _of_event(self, event: Event, piece: Piece | None) -> list[Delta]:
        if event.kind == "reasoning":
            self.message.reasoning += event.text
            return [Delta("reasoning", event.text, piece=piece)]
        if event.call is not None and self._calls:
            self.message.calls.append(event.call)
            return [Delta("call", call=event.call, piece=piece)]
        # What was meant as a call but is none stays as text: nothing of an answer is lost.
        text = event.text if event.call is None else tool_calls.render([event.call])
        self.message.content += text
        return [Delta("content", text, piece=piece)] if text else []

    def _end(self) -> None:
        done = self._ticket.completion
        assert isinstance(done, Completion), "a ticket that ends without a fault has its completion"
        fault = self._work.guide.fault if self._work.guide is not None else None
        if fault:
            raise ApiError(f"the form of the answer cannot be kept up: {fault}"[:400], param="response_format")
        self.usage.cached = self._ticket.cached_tokens
        self.finish_reason = "tool_calls" if self.message.calls else done.finish_reason


def call_arguments(call: ToolCall) -> str:
    """A call's arguments as the JSON text that both APIs carry."""
    return json.dumps(call.arguments, ensure_ascii=False)
