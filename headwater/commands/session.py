"""A conversation with a model in memory: what was said, and how an answer becomes a message.

Knows no terminal: chat.py reads commands and prints. Answers come as the events of tool_calls.OutputSplitter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.chat import Chat
from headwater.commands.options import Speed
from headwater.files import closest, read_json, write_json
from headwater.sampling import SamplingParams
from headwater.tool_calls import Event, ToolCall

if TYPE_CHECKING:
    from headwater.engine.conversation import Conversation

_ROLES_OF_USER = ("user", "tool")
_FORMAT, _VERSION = "headwater-conversation", 1
_KEYS = ("format", "version", "model", "messages", "tools", "state")


@dataclass
class Totals:
    """What the answers of a session took."""

    answers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    answer_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    in_context: int = 0

    def add(self, speed: Speed) -> None:
        self.answers += 1
        self.prompt_tokens += speed.prompt_tokens
        self.reused_tokens += speed.reused_tokens
        self.answer_tokens += speed.answer_tokens
        self.prefill_seconds += speed.prefill_seconds
        self.decode_seconds += speed.decode_seconds
        self.in_context = speed.prompt_tokens + speed.answer_tokens


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
        name: str = "",
    ) -> None:
        self.model, self.chat, self.params, self.tools, self.name = model, chat, params, tools, name
        self.messages: list[dict[str, Any]] = []
        self.totals = Totals()
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

    def undo(self) -> str | None:
        """Drop the last words of a person and everything behind them; those words, or None when there are none."""
        last = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=-1)
        if last < 0:
            return None
        said = self.messages[last]["content"]
        del self.messages[last:]
        return str(said)

    def calls(self) -> list[dict[str, Any]]:
        """The calls of the last message: {"name", "arguments"} each."""
        return [c["function"] for c in (self.messages[-1].get("tool_calls") or ())] if self.messages else []

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
        speed = Speed(len(ids), past, len(completion.ids), *seconds)
        self.totals.add(speed)
        return speed

    def save(self, path: str | Path, *, state: bool = False) -> None:
        """Write the conversation as JSON, atomically; state: and beside it, as PATH.state, what the engine holds, so
        that loading it needs no reading. ValueError where the engine holds nothing; OSError."""
        beside = Path(f"{path}.state")
        if state:  # first: a state without its conversation is of no harm, it says itself which tokens it is of
            self.model.save(beside)
        value = {"format": _FORMAT, "version": _VERSION, "model": self.name, "messages": self.messages}
        write_json(path, value | {"tools": self.tools, "state": beside.name if state else None})

    def load(self, path: str | Path) -> str:
        """Read `save` output, or any {"messages": [...]}; what is to be said of its state, or "".

        ValueError, and nothing changed, when it is damaged or the chat style cannot say it. A state that does not fit
        is not used: the conversation is read again, and the text returned says why.
        """
        value = _checked(path)
        messages, tools, state = value["messages"], value.get("tools"), value.get("state")
        if messages:
            self.chat.render(messages, tools=tools, today="now")
        self.messages = messages
        self.tools = tools if tools is not None else self.tools
        if state is None:
            return ""
        try:
            return f"{self.model.load(Path(path).parent / state)} tokens of its state are loaded"
        except (ValueError, OSError) as e:
            return f"its state is not used, the conversation will be read again: {e}"


def _checked(path: str | Path) -> dict[str, Any]:
    """The fields of a saved conversation. ValueError."""
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise ValueError(f'{path} is not a saved conversation; it needs an object with "messages"')
    if unknown := [k for k in value if k not in _KEYS]:
        raise ValueError(f"{path} has the key {unknown[0]!r}{closest(unknown[0], list(_KEYS))}; read are {_KEYS}")
    if value.get("format", _FORMAT) != _FORMAT or value.get("version", _VERSION) != _VERSION:
        raise ValueError(
            f"{path} is {value.get('format')!r} of version {value.get('version')!r}; this program reads {_FORMAT!r} of "
            f"version {_VERSION}"
        )
    if not isinstance(value.get("tools"), list | None):
        raise ValueError(f"{path}: tools is a {type(value['tools']).__name__}; allowed: a list, or null")
    state = value.get("state")
    if not isinstance(state, str | None) or (state and Path(state).name != state):
        raise ValueError(f"{path}: state is {state!r}; allowed: the name of a file beside it, or null")
    return value


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


def call_text(call: ToolCall) -> str:
    """A tool call on one line for people; no character of it can move the cursor or turn the line around."""
    arguments = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items())
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in f"{call.name}({arguments})")
