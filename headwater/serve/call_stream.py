"""A list of calls while it is being written: its names, and the JSON of its arguments, as far as they are certain.

Reads LFM2's form `[name(key=value), ...]` character by character with the grammar of tool_calls.Parser, which has the
last word: what is told here is always the beginning of `json.dumps` of what the parser finds at the end. A form that
this reader does not follow (calls as JSON objects, quotes left unescaped) is told then, in one piece.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass

from headwater.tool_calls import ToolCall, ToolCallError, is_name_char, literal

_SPACE, _NUMBER, _OCTAL = frozenset(" \t\r\n"), frozenset("0123456789+-.eE_"), frozenset("01234567")
_HEX = {"x": 2, "u": 4, "U": 8}
_AFTER = frozenset(",)]}")
"""What may follow a string; anything else may mean that its quote was a part of it."""
_MOST_NAME, _MOST_DEPTH = 256, 32

Read = Generator[None, str, str]
"""Is sent characters; returns the first one that it did not take."""


class _Unclear(Exception):
    """The rest is the parser's to read."""


@dataclass(frozen=True)
class Part:
    """More of a call. number: of the call in its list; name: with the first part; call: with the last."""

    number: int
    name: str | None = None
    arguments: str = ""
    call: ToolCall | None = None


class CallStream:
    """One list of calls, without its tags."""

    def __init__(self) -> None:
        self._told: list[int] = []  # characters of each call's arguments
        self._parts: list[Part] = []
        self._reader: Read | None = self._calls()
        next(self._reader)

    def __len__(self) -> int:
        """Calls that have begun."""
        return len(self._told)

    def push(self, text: str) -> list[Part]:
        """What became certain with this piece."""
        try:
            for c in text:
                if self._reader is None:
                    break
                self._reader.send(c)
        except (StopIteration, _Unclear, ToolCallError):
            self._reader = None
        parts, self._parts = self._parts, []
        return parts

    def last(self, number: int, call: ToolCall) -> Part:
        """What is left to tell of a call that the parser has read."""
        whole = json.dumps(call.arguments, ensure_ascii=False)
        if number == len(self._told):
            self._told.append(len(whole))
            return Part(number, call.name, whole, call)
        return Part(number, None, whole[self._told[number] :], call)

    def _say(self, text: str) -> None:
        number = len(self._told) - 1
        self._told[number] += len(text)
        if self._parts and self._parts[-1].number == number:
            before = self._parts.pop()
            self._parts.append(Part(number, before.name, before.arguments + text))
        else:
            self._parts.append(Part(number, None, text))

    def _calls(self) -> Read:
        c = yield from _space((yield))
        if c == "[":
            c = yield from _space((yield))
        while True:
            name, c = yield from _name(c)
            if (yield from _space(c)) != "(":
                raise _Unclear
            self._told.append(0)
            self._parts.append(Part(len(self._told) - 1, name))
            c = yield from self._items(")", 1)
            if c != ",":
                return c
            c = yield from _space((yield))

    def _items(self, end: str, depth: int) -> Read:
        """What stands between brackets, up to `end`: of a call, of a dict, or of a list."""
        if depth > _MOST_DEPTH:
            raise _Unclear
        keyed = end not in ("]", "tuple")
        close, first, keys = ")" if end == "tuple" else end, True, set[str]()
        c = yield from _space((yield))
        while c != close:
            if not first:
                if c != ",":
                    raise _Unclear
                c = yield from _space((yield))
                if c == close:
                    break
            lead = ", " if not first else "{" if keyed else "["
            if keyed:
                key, c = yield from (_name(c) if end == ")" else _key(c))
                if key in keys or (yield from _space(c)) != ("=" if end == ")" else ":"):
                    raise _Unclear
                keys.add(key)
                lead += f"{json.dumps(key, ensure_ascii=False)}: "
                c = yield from _space((yield))
            self._say(lead)
            c = yield from self._value(c, depth + 1)
            first = False
        self._say(("{}" if keyed else "[]") if first else ("}" if keyed else "]"))
        return (yield from _space((yield)))

    def _value(self, c: str, depth: int) -> Read:
        if c in "'\"":
            return (yield from self._string(c))
        if c in "{[(":
            return (yield from self._items({"{": "}", "[": "]", "(": "tuple"}[c], depth))
        number = c in _NUMBER and c not in "eE_"
        text = ""
        while c in _NUMBER if number else is_name_char(c):
            text, c = text + c, (yield)
            if len(text) > _MOST_NAME:
                raise _Unclear
        self._say(json.dumps(literal(text)))
        return (yield from _space(c))

    def _string(self, quote: str) -> Read:
        self._say('"')
        c = yield
        while c != quote:
            if c == "\\":
                piece, c = yield from _escaped()
                self._say(json.dumps(piece, ensure_ascii=False)[1:-1])
            else:
                self._say(json.dumps(c, ensure_ascii=False)[1:-1])
                c = yield
        c = yield from _space((yield))
        if c not in _AFTER:
            raise _Unclear
        self._say('"')
        return c


def _space(c: str) -> Read:
    while c in _SPACE:
        c = yield
    return c


def _name(c: str) -> Generator[None, str, tuple[str, str]]:
    name = ""
    while is_name_char(c) and len(name) <= _MOST_NAME:
        name, c = name + c, (yield)
    if not 0 < len(name) <= _MOST_NAME:
        raise _Unclear
    return name, c


def _key(quote: str) -> Generator[None, str, tuple[str, str]]:
    """A quoted key of a dict."""
    if quote not in "'\"":
        raise _Unclear
    key, c = "", (yield)
    while c != quote:
        piece, c = (yield from _escaped()) if c == "\\" else (c, (yield))
        key += piece
    return key, (yield)


def _escaped() -> Generator[None, str, tuple[str, str]]:
    """What stands for itself behind a backslash, and the next character."""
    raw = c = yield
    if c in _OCTAL:
        c = yield
        while c in _OCTAL and len(raw) < 3:
            raw, c = raw + c, (yield)
        return literal(f'"\\{raw}"'), c
    for _ in range(_HEX.get(c, 0)):
        raw += yield
    if c == "u" and raw[1:3].lower() in ("d8", "d9", "da", "db"):  # JSON's pair for one character
        for _ in range(6):
            raw += yield
    return literal(f'"\\{raw}"'), (yield)
