"""A conversation with a model in memory: what was said, and how an answer becomes a message.

Knows no terminal: chat.py reads commands and prints. Answers come as the events of tool_calls.OutputSplitter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.chat import Chat
from headwater.commands.options import Speed
from headwater.files import read_json, write_json
from headwater.sampling import SamplingParams
from headwater.tool_calls import Event

if TYPE_CHECKING:
    from headwater.engine.conversation import Conversation

_ROLES_OF_USER = ("user", "tool")


class Session:
    """Messages in OpenAI's shape; `answer` adds the model's next one."""

    def __init__(
        self,
        model: Conversation,
        chat: Chat,
        params: SamplingParams,
        *,
        system: str = "",
        tools: list[Any] | None = None,
    ) -> None:
        self.model, self.chat, self.params, self.tools = model, chat, params, tools
        self.messages: list[dict[str, Any]] = []
        self.set_system(system)

    def set_system(self, text: str) -> None:
        """Replace the system message; "" removes it."""
        rest = [m for m in self.messages if m["role"] != "system"]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def say(self, text: str, role: str = "user") -> None:
        """Add what a person, or a tool, says."""
        self.messages.append({"role": role, "content": text})

    def take_back(self) -> bool:
        """Drop everything behind the last words of a person or a tool; False when there are none."""
        last = max((i for i, m in enumerate(self.messages) if m["role"] in _ROLES_OF_USER), default=-1)
        if last < 0:
            return False
        del self.messages[last + 1 :]
        return True

    def answer(self, on_event: Callable[[Event], None]) -> Speed:
        """Generate the next assistant message, calling `on_event` with each certain piece of it.

        KeyboardInterrupt passes through when the answer so far is kept as the message. ValueError when the prompt does
        not fit; the messages are then unchanged.
        """
        ids, _ = self.chat.render(self.messages, tools=self.tools, add_generation_prompt=True, today="now").encode()
        collected = _Collector(self.chat.splitter(tools=self.tools), on_event)
        try:
            completion, past = self.model.answer(ids, self.params, on_text=collected.push, skip_special=False)
        except KeyboardInterrupt:
            self.messages.append(collected.message())
            raise
        self.messages.append(collected.message())
        seconds = completion.prefill_seconds, completion.decode_seconds
        return Speed(len(ids), past, len(completion.ids), *seconds)

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON, atomically."""
        write_json(path, {"messages": self.messages, "tools": self.tools})

    def load(self, path: str | Path) -> None:
        """Read `save` output. ValueError, and nothing changed, when it is damaged or the chat style cannot say it."""
        value = read_json(path)
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
            raise ValueError(f'{path} is not a saved conversation; it needs an object with "messages"')
        tools = value.get("tools")
        if tools is not None and not isinstance(tools, list):
            raise ValueError(f"{path}: tools is a {type(tools).__name__}; allowed: a list, or null")
        if value["messages"]:
            self.chat.render(value["messages"], tools=tools, today="now")
        self.messages, self.tools = value["messages"], tools


class _Collector:
    """Passes the splitter's events on and keeps what they add up to."""

    def __init__(self, splitter: Any, on_event: Callable[[Event], None]) -> None:
        self._splitter, self._on_event = splitter, on_event
        self._events: list[Event] = []

    def push(self, text: str) -> None:
        self._take(self._splitter.push(text))

    def _take(self, events: list[Event]) -> None:
        self._events += events
        for event in events:
            self._on_event(event)

    def message(self) -> dict[str, Any]:
        """The assistant message, once."""
        self._take(self._splitter.finish())
        # What was meant as a call but cannot be read stays in the conversation as text.
        content = "".join(e.text for e in self._events if e.kind in ("content", "error"))
        message: dict[str, Any] = {"role": "assistant", "content": content}
        reasoning = "".join(e.text for e in self._events if e.kind == "reasoning")
        if reasoning:
            message["thinking"] = reasoning
        calls = [e.call for e in self._events if e.call is not None]
        if calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
            ]
        return message


def call_text(call: Any) -> str:
    """A tool call on one line for people."""
    arguments = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items())
    return f"{call.name}({arguments})"
