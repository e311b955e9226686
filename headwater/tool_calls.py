"""Tool calls as LFM2 models write them, `[fn(a="x", n=3), mod.fn2()]`: rendering, parsing, and splitting a stream.

One grammar reads every form the released templates and models produce: Python and JSON literals, dotted names, call
lists as JSON objects. Text is scanned by hand, once, with bounded depth and length; nothing is ever evaluated.
Running the calls, matching them with a tool's schema and the chat markup around them are not done here.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

CALL_OPEN, CALL_CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"} | {c: c for c in "\\'\"/"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_NAME_EXTRA = frozenset("_-.$@/:")
_SPACE = frozenset(" \t\r\n")
_NUMBER = frozenset("0123456789+-.eE_")
_MAX_NUMBER = 1000  # characters; Python itself refuses to read integers of more than 4300 digits
_MAX_NAME = 256
_JSON_CALL_KEYS = frozenset({"name", "arguments", "parameters", "function", "type", "id"})


@dataclass(frozen=True)
class ToolCall:
    """One call: `arguments` holds JSON values only (dict, list, str, int, float, bool, None)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class ToolCallError(ValueError):
    """Text that is no call: `reason`, and `position`, the character at which reading stopped."""

    def __init__(self, reason: str, position: int):
        super().__init__(f"tool call not readable at character {position}: {reason}")
        self.reason, self.position = reason, position


# -- rendering ---------------------------------------------------------------------------------------------------


def render(
    calls: Sequence[ToolCall],
    *,
    lists: Literal["json", "python"] = "json",
    strings: Literal["json", "python"] = "python",
) -> str:
    """The calls as one bracketed list without tags; parse() gives equal calls back, types included.

    Dicts are JSON, numbers, booleans and None are Python's. lists, strings: how an argument of that type is written
    (templates differ): Python's form of a string has single quotes and \\ ' newline and return escaped.
    ValueError for values that JSON has not (nan, tuples, keys that are no strings) and for unreadable names.
    """
    body = ", ".join(f"{_checked_name(c.name)}({_render_arguments(c, lists, strings)})" for c in calls)
    # A string that holds the closing tag would end the call early; both literal forms read this escape.
    return f"[{body}]".replace(CALL_CLOSE, "\\u003c" + CALL_CLOSE[1:])


def _render_arguments(call: ToolCall, lists: str, strings: str) -> str:
    parts = []
    for key, value in call.arguments.items():
        _check_value(value, f"{call.name}({_checked_name(key)})", 0)
        if isinstance(value, str) and strings == "python":
            escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
            text = f"'{escaped}'"
        elif isinstance(value, dict | str) or (isinstance(value, list) and lists == "json"):
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = str(value)
        parts.append(f"{key}={text}")
    return ", ".join(parts)


def _check_value(value: Any, where: str, depth: int) -> None:
    if depth > Parser.max_depth - 2:
        raise ValueError(f"{where} is nested deeper than {Parser.max_depth - 2} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; keys must be strings")
            _check_value(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, f"{where}[]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; JSON has no such number, send null or a string")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10 ** (_MAX_NUMBER - 1):
        raise ValueError(f"{where} is an integer of more than {_MAX_NUMBER - 1} digits")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{where} is a {type(value).__name__}; dict, list, str, int, float, bool or None are allowed")


def _checked_name(name: Any) -> str:
    if not (isinstance(name, str) and 0 < len(name) <= _MAX_NAME and all(map(is_name_char, name))):
        raise ValueError(
            f"the name {name!r:.80} cannot be written in a call; letters, digits and {''.join(sorted(_NAME_EXTRA))}"
            f" are allowed, 1 to {_MAX_NAME} of them"
        )
    return name


def is_name_char(c: str) -> bool:
    """Whether names of functions and arguments may hold it."""
    return c.isalnum() or c in _NAME_EXTRA


# -- parsing -----------------------------------------------------------------------------------------------------


def parse(text: str) -> list[ToolCall]:
    """The calls in `text` (without tags): a bracketed list, or calls separated by commas; "[]" gives none.

    Each is `name(key=value, ...)` or `{"name": ..., "arguments": {...}}`. Tuples become lists. A string argument with
    apostrophes left unescaped, as the first LFM2.5 template writes it, is read where its end is beyond doubt.
    ToolCallError (a ValueError) otherwise. Time is linear in the length; at most Parser.max_chars are read.
    """
    try:
        return Parser(text).calls()
    except ToolCallError as strict:
        if "'" not in text:
            raise
        try:
            return Parser(text, loose_quotes=True).calls()
        except ToolCallError:
            raise strict from None


def literal(text: str) -> Any:
    """The value of one Python or JSON literal. ToolCallError."""
    return Parser(text).only_value()


class Parser:
    """Recursive descent over one text; every method leaves `at` behind what it read."""

    max_depth = 32
    max_chars = 1 << 20

    def __init__(self, text: str, *, loose_quotes: bool = False):
        self._text, self._at, self._loose = text, 0, loose_quotes

    def calls(self) -> list[ToolCall]:
        if len(self._text) > self.max_chars:
            raise ToolCallError(f"longer than {self.max_chars} characters", self.max_chars)
        calls: list[ToolCall] = []
        bracketed = self._skip("[")
        end = "]" if bracketed else ""
        while self._peek() != end:
            if calls and not self._skip(","):
                raise self._fault(f"expected ',' or {end or 'the end'!r}")
            if calls and bracketed and self._peek() == end:
                break  # a trailing comma
            calls.append(self._json_call() if self._peek() == "{" else self._call())
        if not calls and not bracketed:
            raise self._fault("no call")
        if bracketed:
            self._expect("]")
        if self._peek():
            raise self._fault("text after the last call")
        return calls

    def _call(self) -> ToolCall:
        name = self._name("a function name")
        self._expect("(")
        arguments: dict[str, Any] = {}
        while self._peek() != ")":
            if arguments and not self._skip(","):
                raise self._fault("expected ',' or ')'")
            if arguments and self._peek() == ")":
                break
            if not self._peek():
                raise self._fault("expected ')'")
            start = self._at
            key = self._name("an argument name") if is_name_char(self._peek() or " ") else ""
            if not (key and self._skip("=")):
                self._at = start
                raise self._fault(f"positional argument in {name}(); write name=value")
            if key in arguments:
                self._at = start
                raise self._fault(f"argument {key!r} stands twice in {name}()")
            arguments[key] = self._string(loose=self._loose) if self._peek() == "'" else self._value(2)
        self._expect(")")
        return ToolCall(name, arguments)

    def _json_call(self) -> ToolCall:
        start = self._at
        value = self._dict(2)
        if "function" in value and isinstance(value["function"], dict):
            value = value | value.pop("function")
        unknown = [k for k in value if k not in _JSON_CALL_KEYS]
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # some servers send the arguments as JSON text
            arguments = Parser(arguments).only_dict() if arguments.strip() else {}
        name = value.get("name")
        if unknown or not isinstance(name, str) or not name or not isinstance(arguments, dict):
            self._at = start
            raise self._fault(
                f"unknown key {unknown[0]!r} in a JSON call"
                if unknown
                else 'a JSON call needs "name" and "arguments" {}'
            )
        try:
            for written in (name, *arguments):
                _checked_name(written)
        except ValueError as e:  # the conversation could not be rendered again
            self._at = start
            raise self._fault(str(e)) from e
        return ToolCall(str(name), arguments)

    def only_value(self) -> Any:
        """The whole text as one value."""
        value = self._value(2)
        if self._peek():
            raise self._fault("text after the value")
        return value

    def only_dict(self) -> dict[str, Any]:
        """The whole text as one dict literal."""
        if len(self._text) > self.max_chars or self._peek() != "{":
            raise self._fault("expected an object")
        value = self._dict(2)
        if self._peek():
            raise self._fault("text after the object")
        return value

    def _value(self, depth: int) -> Any:
        if depth > self.max_depth:
            raise self._fault(f"nested deeper than {self.max_depth} levels")
        c = self._peek()
        if c and c in "'\"":
            return self._string()
        if c == "{":
            return self._dict(depth)
        if c and c in "[(":
            return self._list(depth, "]" if c == "[" else ")")
        if c and (c.isdecimal() or c in "+-."):
            return self._number()
        start = self._at
        word = self._name("a value")
        if word in _WORDS:
            return _WORDS[word]
        self._at = start
        raise self._fault(f"{word!r:.40} is no value; quote it if it is a string")

    def _list(self, depth: int, end: str) -> list[Any]:
        self._at += 1
        items: list[Any] = []
        while self._peek() != end:
            if items and not self._skip(","):
                raise self._fault(f"expected ',' or {end!r}")
            if items and self._peek() == end:
                break
            items.append(self._value(depth + 1))
        self._at += 1
        return items

    def _dict(self, depth: int) -> dict[str, Any]:
        self._at += 1
        items: dict[str, Any] = {}
        while self._peek() != "}":
            if items and not self._skip(","):
                raise self._fault("expected ',' or '}'")
            c = self._peek()
            if items and c == "}":
                break
            start = self._at
            if not c or c not in "'\"":
                raise self._fault("expected a quoted key")
            key = self._string()
            if key in items:
                self._at = start
                raise self._fault(f"key {key!r:.40} stands twice")
            self._expect(":")
            items[key] = self._value(depth + 1)
        self._at += 1
        return items

    def _number(self) -> int | float:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in _NUMBER and self._at - start <= _MAX_NUMBER:
            self._at += 1
        digits = self._text[start : self._at]
        try:
            if len(digits) > _MAX_NUMBER or "_" in digits or not digits.isascii():
                raise ValueError
            value: int | float = float(digits) if any(c in ".eE" for c in digits) else int(digits)
        except ValueError:
            value = math.nan
        if (isinstance(value, float) and not math.isfinite(value)) or abs(value) >= 10 ** (_MAX_NUMBER - 1):
            self._at = start
            raise self._fault(f"{digits!r:.40} is no number, or too large")
        return value

    def _string(self, *, loose: bool = False) -> str:
        """A quoted string. Unknown escapes stay as written, as in Python (models write regexes without doubling)."""
        text, start = self._text, self._at
        quote = text[start]
        parts: list[str] = []
        self._at = run = start + 1
        while self._at < len(text):
            c = text[self._at]
            if c == quote and not (loose and not self._closes(self._at + 1)):
                parts.append(text[run : self._at])
                self._at += 1
                return "".join(parts)
            self._at += 1
            if c == "\\":
                parts.append(text[run : self._at - 1])
                parts.append(self._escape())
                run = self._at
        self._at = start
        raise self._fault("string never closed")

    def _closes(self, at: int) -> bool:
        """Whether a quote before `at` ends an argument: what follows is `)` and the rest of a list, or `, key=`."""
        at = self._after_space(at)
        follow = self._text[at : at + 1]
        if follow == ")":
            end = self._after_space(at + 1)
            if self._text[end : end + 1] in ("", ",", "]"):
                return True
        elif follow == ",":
            start = name_end = self._after_space(at + 1)
            while name_end < len(self._text) and is_name_char(self._text[name_end]):
                name_end += 1
            equals = self._after_space(name_end)
            if name_end > start and self._text[equals : equals + 1] == "=":
                return True
        if not follow or follow in ",)]}'":
            raise self._fault("an unescaped quote that may or may not end the string")
        return False

    def _escape(self) -> str:
        """What follows a backslash."""
        text, start = self._text, self._at
        c = text[start : start + 1]
        self._at += 1
        if c in _ESCAPES:
            return _ESCAPES[c]
        if c == "\n":
            return ""
        if c and c in "01234567":
            while self._at < min(start + 3, len(text)) and text[self._at] in "01234567":
                self._at += 1
            return chr(int(text[start : self._at], 8))
        if c not in _HEX_ESCAPES:
            return "\\" + c
        code = self._hex(_HEX_ESCAPES[c], start)
        if 0xD800 <= code < 0xDC00 and text[self._at : self._at + 2] == "\\u":  # JSON's pair for one character
            self._at += 2
            low = self._hex(4, start)
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) if 0xDC00 <= low < 0xE000 else code
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            self._at = start
            raise self._fault(f"escape \\{c} gives no character")
        return chr(code)

    def _hex(self, length: int, start: int) -> int:
        digits = self._text[self._at : self._at + length]
        if len(digits) < length or not all(d in "0123456789abcdefABCDEF" for d in digits):
            self._at = start
            raise self._fault(f"escape \\{self._text[start]} needs {length} hexadecimal digits")
        self._at += length
        return int(digits, 16)

    def _name(self, what: str) -> str:
        self._peek()
        start = self._at
        while self._at < len(self._text) and is_name_char(self._text[self._at]):
            self._at += 1
        if not 0 < self._at - start <= _MAX_NAME:
            self._at = start
            raise self._fault(f"expected {what}")
        return self._text[start : self._at]

    def _after_space(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in _SPACE:
            at += 1
        return at

    def _peek(self) -> str:
        """The next character that is no space, "" at the end."""
        self._at = self._after_space(self._at)
        return self._text[self._at : self._at + 1]

    def _skip(self, c: str) -> bool:
        found = self._peek() == c
        self._at += found
        return found

    def _expect(self, c: str) -> None:
        if not self._skip(c):
            raise self._fault(f"expected {c!r}")

    def _fault(self, reason: str) -> ToolCallError:
        return ToolCallError(reason, self._at)


# -- splitting a model's output ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A piece of output: text of "content" or "reasoning", a "call", or an "error" about text that was no call.

    "calling", where it is asked for: text between the tags of a call list, ahead of its calls or its error.
    """

    kind: Literal["content", "reasoning", "call", "error", "calling"]
    text: str = ""
    call: ToolCall | None = None
    error: ToolCallError | None = None


@dataclass(frozen=True)
class Output:
    """A whole answer taken apart."""

    content: str
    reasoning: str
    calls: list[ToolCall]
    errors: list[ToolCallError]


class OutputSplitter:
    """Takes a model's text in pieces of any size and gives events; the sum of the events is the same for every split.

    Tags never show in content. Text between think tags is reasoning, whatever it holds: a call in it is no call. A call
    without its closing tag is read at the end; an answer that is nothing but a call list counts as calls although
    the opening tag is missing, if every name is one of `tools` (None: any name, in the Pythonic form; (): never).
    thinking: the prompt has already opened the reasoning. calling: with events of that kind. Error positions count from
    the start of the call's text.
    """

    _TAGS: Mapping[str, tuple[str, ...]] = {
        "content": (THINK_OPEN, THINK_CLOSE, CALL_OPEN, CALL_CLOSE),
        "reasoning": (THINK_CLOSE,),
        "call": (CALL_CLOSE,),
    }

    def __init__(self, *, tools: Collection[str] | None = None, thinking: bool = False, calling: bool = False):
        self._tools, self._state, self._calling = tools, "reasoning" if thinking else "content", calling
        self._tail = ""  # an unfinished tag
        self._call: list[str] = []
        self._lead: list[str] | None = [] if tools is None or tools else None  # content that may be an untagged call
        self._lead_sure = False

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._state == "reasoning"

    def push(self, text: str) -> list[Event]:
        """The events that are certain after this piece."""
        events: list[Event] = []
        text, self._tail = self._tail + text, ""
        at = start = 0
        while (at := text.find("<", at)) >= 0:
            tags = self._TAGS[self._state]
            tag = next((t for t in tags if text.startswith(t, at)), None)
            if tag is not None:
                self._text(text[start:at], events)
                self._tag(tag, events)
                at = start = at + len(tag)
            elif len(text) - at < len(CALL_OPEN) and any(t.startswith(text[at:]) for t in tags):
                break
            else:
                at += 1
        end = len(text) if at < 0 else at
        self._tail = text[end:]
        self._text(text[start:end], events)
        return _merged(events)

    def finish(self) -> list[Event]:
        """The rest. Call once, after the last piece."""
        events: list[Event] = []
        tail, self._tail = self._tail, ""
        self._text(tail, events)
        if self._state == "call":
            self._end_call(events)
        elif self._state == "reasoning":
            _report(events, "the reasoning was never closed")
        else:
            self._end_lead(events, recover=True)
        return _merged(events)

    def _text(self, text: str, events: list[Event]) -> None:
        if not text:
            return
        if self._state == "call":
            self._call.append(text)
            if self._calling:
                events.append(Event("calling", text))
        elif self._state == "reasoning":
            events.append(Event("reasoning", text))
        elif self._lead is None:
            events.append(Event("content", text))
        else:
            self._lead.append(text)
            if not self._lead_sure:
                verdict = _starts_like_calls("".join(self._lead), self._tools is not None)
                self._lead_sure = verdict is True
                if verdict is False:
                    self._end_lead(events, recover=False)

    def _tag(self, tag: str, events: list[Event]) -> None:
        if self._state == "content":
            recovered = self._end_lead(events, recover=tag == CALL_CLOSE)
            if tag == CALL_CLOSE and not recovered:
                _report(events, f"{CALL_CLOSE} without {CALL_OPEN}")
            elif tag == THINK_CLOSE:
                _report(events, f"{THINK_CLOSE} without {THINK_OPEN}")
        if tag == CALL_OPEN:
            self._state = "call"
        elif tag == THINK_OPEN:
            self._state = "reasoning"
        else:
            if self._state == "call":
                self._end_call(events)
            elif self._state == "reasoning" and (self._tools is None or self._tools):
                self._lead, self._lead_sure = [], False
            self._state = "content"

    def _end_call(self, events: list[Event]) -> None:
        text, self._call = "".join(self._call), []
        try:
            events += [Event("call", call=c) for c in parse(text)]
        except ToolCallError as e:
            events.append(Event("error", text, error=e))

    def _end_lead(self, events: list[Event], *, recover: bool) -> bool:
        """Decide what the held-back start of the content was; True if it was calls."""
        text, self._lead = "".join(self._lead or ()), None
        if recover and self._lead_sure:
            try:
                calls = parse(text)
            except ToolCallError:
                calls = []
            if calls and (self._tools is None or all(c.name in self._tools for c in calls)):
                events += [Event("call", call=c) for c in calls]
                return True
        if text:
            events.append(Event("content", text))
        return False


def split(text: str, *, tools: Collection[str] | None = None, thinking: bool = False) -> Output:
    """A whole answer taken apart as OutputSplitter does."""
    splitter = OutputSplitter(tools=tools, thinking=thinking)
    return collect([*splitter.push(text), *splitter.finish()])


def collect(events: Sequence[Event]) -> Output:
    """The sum of a splitter's events."""
    return Output(
        content="".join(e.text for e in events if e.kind == "content"),
        reasoning="".join(e.text for e in events if e.kind == "reasoning"),
        calls=[e.call for e in events if e.call is not None],
        errors=[e.error for e in events if e.error is not None],
    )


def _report(events: list[Event], reason: str) -> None:
    events.append(Event("error", error=ToolCallError(reason, 0)))


def _merged(events: list[Event]) -> list[Event]:
    merged: list[Event] = []
    for e in events:
        if merged and e.kind == merged[-1].kind and e.kind in ("content", "reasoning", "calling"):
            merged[-1] = Event(e.kind, merged[-1].text + e.text)
        else:
            merged.append(e)
    return merged


def _starts_like_calls(text: str, json_too: bool) -> bool | None:
    """Whether content begins as an untagged call list does; None while it is too short to tell."""
    rest = text.lstrip()
    if len(text) - len(rest) > _MAX_NAME or (rest and rest[0] != "["):
        return False
    inner = rest[1:].lstrip()
    if len(rest) - len(inner) > _MAX_NAME:
        return False
    if not inner:
        return None
    if inner[0] == "{":
        return json_too
    name = next(
        (i for i, c in enumerate(inner[: _MAX_NAME + 1]) if not is_name_char(c)), min(len(inner), _MAX_NAME + 1)
    )
    if name > _MAX_NAME or name == 0:
        return False
    return None if name == len(inner) else inner[name] == "("
