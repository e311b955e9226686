"""Answers as they come: the engine's deltas become content, reasoning and calls, with counts and times.

`Replies` runs all choices of one request; the APIs turn what it yields into their own events.
"""

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from headwater import tool_calls
from headwater.completion import Logprob
from headwater.engine import aio
from headwater.serve.call_stream import CallStream, Part
from headwater.serve.errors import ApiError
from headwater.serve.front import Front, Ticket, Work
from headwater.serve.merge import merged
from headwater.tool_calls import Event, OutputSplitter, ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """What was added to a choice. kind "none": tokens of which no text is certain yet; "end": nothing follows.

    part: of a call, whose number counts over all of the choice's; in an answer that does not stream the only one.
    """

    kind: Literal["content", "reasoning", "call", "none", "end"]
    text: str = ""
    part: Part | None = None
    logprobs: tuple[Logprob, ...] = ()


@dataclass
class Usage:
    """Tokens; seconds from the request's arrival to the first token, and from there to the last."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    reasoning: int = 0
    first_seconds: float = 0.0
    rest_seconds: float = 0.0

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
class Choice:
    """One answer so far, and at its end why it ended. splitter None: raw text; calls_known: whether there are tools.

    A call that streams is told while it is written; one that is then cut off, or cannot be read, stays as it was told,
    where an answer in one piece has its text.
    """

    splitter: OutputSplitter | None
    calls_known: bool = True
    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stopped_by: str | None = None
    usage: Usage = field(default_factory=Usage)
    _list: CallStream = field(default_factory=CallStream)  # of calls that are being written, or the last one
    _writing: bool = False
    _begun: int = 0  # calls told of in the lists before it
    _read: int = 0  # calls of this list that the parser has given

    def take(self, delta: aio.Delta, begun: float) -> list[Delta]:
        """The engine's delta, taken apart."""
        self._count(len(delta.ids), time.perf_counter() - begun)
        self.logprobs += delta.logprobs
        found = self._split(delta.text) if delta.text else []
        if delta.completion is not None:
            left = self.splitter.finish() if self.splitter else []
            for event in left:
                found += self._of_event(event)
            self.usage.cached = delta.completion.cached_tokens
            cut = any(e.kind == "error" and e.text for e in left)  # a list of calls that has no end
            self.finish_reason = "tool_calls" if self.calls and not cut else delta.completion.finish_reason
            self.stopped_by = delta.completion.stopped_by if self.finish_reason == "stop" else None
        if delta.logprobs:
            first, *rest = found or [Delta("none")]
            found = [Delta(first.kind, first.text, first.part, delta.logprobs), *rest]
        return [*found, Delta("end")] if delta.completion is not None else found

    def _count(self, tokens: int, since: float) -> None:
        usage = self.usage
        if tokens and not usage.answer:
            usage.first_seconds = since
        usage.answer += tokens
        usage.rest_seconds = since - usage.first_seconds
        usage.reasoning += tokens if self.splitter and self.splitter.reasoning else 0

    def _split(self, text: str) -> list[Delta]:
        if self.splitter is None:
            self.content += text
            return [Delta("content", text)]
        return [d for e in self.splitter.push(text) for d in self._of_event(e)]

    def _of_event(self, event: Event) -> list[Delta]:
        if event.kind == "reasoning":
            self.reasoning += event.text
            return [Delta("reasoning", event.text)]
        if event.kind == "calling":
            return self._calling(event.text) if self.calls_known else []
        if event.call is not None and self.calls_known:
            self.calls.append(event.call)
            part, self._read, self._writing = self._list.last(self._read, event.call), self._read + 1, False
            return self._parts([part])
        if event.kind == "error" and self._writing:
            self._writing = False
            if len(self._list):  # its beginning is told already
                return []
        # What was meant as a call but is none stays as text: nothing of an answer is lost.
        text = event.text if event.call is None else tool_calls.render([event.call])
        self.content += text
        return [Delta("content", text)] if text else []

    def _calling(self, text: str) -> list[Delta]:
        if not self._writing:
            self._begun += len(self._list)
            self._list, self._read, self._writing = CallStream(), 0, True
        return self._parts(self._list.push(text))

    def _parts(self, parts: Sequence[Part]) -> list[Delta]:
        return [Delta("call", part=replace(p, number=self._begun + p.number)) for p in parts]


class Replies:
    """All choices of one request: those of its first work, then those of the next. Close it in any case."""

    def __init__(
        self,
        front: Front,
        works: Sequence[Work],
        splitter: Callable[[bool], OutputSplitter] | None,
        *,
        calls: bool = True,
        stream: bool = False,
    ) -> None:
        """splitter: makes one of a choice's text, None for raw text; stream: calls are told piece by piece."""
        self._tickets: list[Ticket] = []
        self.choices: list[Choice] = []
        self._firsts: list[int] = []
        try:
            for work in works:
                self._tickets.append(front.submit(work))
                self._firsts.append(len(self.choices))
                for _ in work.params:
                    choice = Choice(splitter(stream) if splitter else None, calls)
                    choice.usage.prompt = len(work.ids)
                    self.choices.append(choice)
        except ApiError:
            self.close()
            raise

    def close(self) -> None:
        """Give the places in the engine back."""
        for ticket in self._tickets:
            ticket.close()

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice, delta) as they come; an "end" is the last of each choice."""
        try:
            async with aclosing(merged([t.deltas() for t in self._tickets])) as found:
                async for source, raw in found:
                    index = self._firsts[source] + raw.index
                    for delta in self.choices[index].take(raw, self._tickets[source].begun):
                        yield index, delta
        finally:
            self.close()

    async def whole(self) -> None:
        """Wait until every choice is complete."""
        async with aclosing(self.deltas()) as deltas:
            async for _ in deltas:
                pass

    def usage(self) -> Usage:
        """Of all choices together; a prompt counts once, and what other choices took from it is no cache."""
        total = Usage()
        for index, choice in enumerate(self.choices):
            u = choice.usage
            if index in self._firsts:
                total.prompt += u.prompt
                total.cached += u.cached
            total.answer += u.answer
            total.reasoning += u.reasoning
            total.first_seconds = max(total.first_seconds, u.first_seconds)
            total.rest_seconds = max(total.rest_seconds, u.rest_seconds)
        return total


def call_arguments(call: ToolCall) -> str:
    """A call's arguments as the JSON text that both APIs carry."""
    return json.dumps(call.arguments, ensure_ascii=False)
