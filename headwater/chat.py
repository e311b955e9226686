"""Messages to text, ids and loss mask: the chat templates of the LFM2 family and ChatML, one renderer for all.

A conversation is a list of dicts in OpenAI's shape. What a template does is a row of STYLES; training, serving and
evals render through the same code. A checkpoint's Jinja text is only recognised, never run.

The text equals the published template's wherever that is well defined. It departs where the template loses meaning:
string arguments with quotes, backslashes or newlines are escaped (LFM2.5's does not; tool_calls.parse reads both), past
calls are kept (the first LFM2 template drops them, as style "lfm2-first" does), text parts are joined (LFM2's prints
JSON), an empty list of calls prints nothing. Source: the templates of the LFM2, LFM2.5 and SmolLM2 checkpoints.
"""

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headwater import files, tool_calls
from headwater.tokenizer import Tokenizer
from headwater.tool_calls import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN, OutputSplitter, ToolCall

IM_START, IM_END, IMAGE = "<|im_start|>", "<|im_end|>", "<image>"
ROLES = ("system", "user", "assistant", "tool")
_THINKING_KEYS = ("thinking", "reasoning", "reasoning_content")
_READ_KEYS = ("role", "content", "tool_calls", *_THINKING_KEYS)
_IGNORED_KEYS = ("name", "id", "tool_call_id", "refusal", "annotations", "audio")
_IMAGE_PARTS = ("image", "image_url", "input_image")


@dataclass(frozen=True, kw_only=True)
class Style:
    """What one template does.

    tools: how tool schemas stand in the system turn (tagged with control tokens, plain, after a date line, or not at
    all); calls: where an assistant turn writes its calls; thinking: in which turns reasoning stays (None: never).
    """

    bos: bool = True
    default_system: str = ""
    tools: Literal["tagged", "plain", "dated"] | None = None
    tagged_results: bool = False
    calls: Literal["last", "first", "dropped"] | None = None
    lists: Literal["json", "python"] = "json"
    strings: Literal["json", "python"] = "python"
    thinking: Literal["after_last_user", "last_assistant"] | None = None
    images: bool = False


STYLES: dict[str, Style] = {
    "lfm2": Style(tools="tagged", tagged_results=True, calls="last"),
    "lfm2-first": Style(tools="tagged", tagged_results=True, calls="dropped"),
    "lfm2.5": Style(tools="plain", calls="last", lists="python", thinking="after_last_user", images=True),
    "lfm2.5-vl": Style(tools="plain", calls="last", thinking="after_last_user", images=True),
    "lfm2.5-dated": Style(
        tools="dated", calls="first", lists="python", strings="json", thinking="last_assistant", images=True
    ),
    "smollm2": Style(bos=False, default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "chatml": Style(bos=False),
}

LFM2_TEMPLATE = r"""{{- bos_token -}}
{%- macro argument(value) -%}
  {%- if value is string -%}
    {{- "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r") + "'" -}}
  {%- elif value is mapping or (value is iterable and value is not string) -%}
    {{- value | tojson -}}
  {%- else -%}
    {{- value | string -}}
  {%- endif -%}
{%- endmacro -%}
{%- set found = namespace(head="", tools="") -%}
{%- if messages[0]["role"] == "system" -%}
  {%- set found.head = messages[0]["content"] -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for tool in tools or [] -%}
  {%- set found.tools = found.tools + (", " if found.tools else "") + (tool if tool is string else tool | tojson) -%}
{%- endfor -%}
{%- if found.tools -%}
  {%- set listed = "List of tools: <|tool_list_start|>[" + found.tools + "]<|tool_list_end|>" -%}
  {%- set found.head = found.head + ("\n" if found.head else "") + listed -%}
{%- endif -%}
{%- if found.head -%}
  {{- "<|im_start|>system\n" + found.head + "<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set said = message["content"] or "" -%}
  {{- "<|im_start|>" + message["role"] + "\n" -}}
  {{- "<|tool_response_start|>" + said + "<|tool_response_end|>" if message["role"] == "tool" else said -}}
  {%- if message["tool_calls"] -%}
    {{- "<|tool_call_start|>[" -}}
    {%- for call in message["tool_calls"] -%}
      {%- set function = call["function"] or call -%}
      {{- ("" if loop.first else ", ") + function["name"] + "(" -}}
      {%- for name, value in function["arguments"].items() -%}
        {{- ("" if loop.first else ", ") + name + "=" + argument(value) -}}
      {%- endfor -%}
      {{- ")" -}}
    {%- endfor -%}
    {{- "]<|tool_call_end|>" -}}
  {%- endif -%}
  {{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\n" -}}
{%- endif -%}
"""
"""Style "lfm2" for programs that run Jinja: what our own models are saved with."""

# A template is of a style if it holds all of the first and none of the second; the first row that fits wins.
_FINGERPRINTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "lfm2.5-dated",
        ("Today's date: ", "List of tools: ", "render_tool_calls"),
        ("tool_list_start", "enable_thinking"),
    ),
    ("lfm2", ("List of tools: <|tool_list_start|>[", "<|tool_response_start|>"), ("<think>", "enable_thinking")),
    ("lfm2.5-vl", ("List of tools: [", "arg_value is iterable", "<think>"), ("enable_thinking",)),
    ("lfm2.5", ("List of tools: [", "render_tool_calls", "<think>"), ("enable_thinking",)),
    ("smollm2", ("<|im_start|>", STYLES["smollm2"].default_system), ("tools",)),
    ("chatml", ("<|im_start|>' + message['role'] + '", "<|im_end|>"), ("tool", "system", "think", "bos_token")),
)


def style_of(template: str) -> str:
    """The style whose published template this Jinja text is; ValueError, with the known ones, for any other."""
    for name, needed, absent in _FINGERPRINTS:
        if all(n in template for n in needed) and not any(a in template for a in absent):
            return name
    raise ValueError(
        f"the checkpoint's chat template ({template[:60]!r}...) is none of those known here: {', '.join(STYLES)};"
        " cure: if one of them fits, choose it with Chat(tokenizer, style=...)"
    )


@dataclass(frozen=True)
class Segment:
    """A piece of rendered text. special: template markup, encoded as control tokens; loss: written by the model."""

    text: str
    special: bool = False
    loss: bool = False


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation. images: the image parts in the order of their `<image>` places."""

    segments: tuple[Segment, ...]
    images: tuple[dict[str, Any], ...]
    tokenizer: Tokenizer = field(repr=False)

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.segments)

    def begun(self) -> tuple[str, bool]:
        """What stands of the answer already: its text without reasoning, and whether it is inside of reasoning."""
        start = max((i for i, s in enumerate(self.segments) if s.special and s.text == IM_START), default=0)
        text, thinking = "", False
        for s in self.segments[start:]:
            if s.special and s.text in (THINK_OPEN, THINK_CLOSE):
                thinking = s.text == THINK_OPEN
            elif s.loss and not thinking:
                text += s.text
        return text, thinking

    def encode(self) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether the model writes it (assistant text, calls, the end tag).

        Only markup gives control tokens. Where the model begins to write, text is cut, as it is in generation; apart
        from that ids are those of the whole text.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for piece in self._runs():
            token = self.tokenizer.markup_id(piece.text) if piece.special else None
            new = [token] if token is not None else self.tokenizer.encode(piece.text)
            ids += new
            mask += [piece.loss] * len(new)
        return ids, mask

    def _runs(self) -> Iterator[Segment]:
        """Control tokens, and between them text as long as it can be; markup that is no token here is text."""
        text, loss = "", False
        for s in self.segments:
            control = s.special and self.tokenizer.markup_id(s.text) is not None
            if text and (control or s.loss != loss):
                yield Segment(text, loss=loss)
                text = ""
            if control:
                yield s
            else:
                text, loss = text + s.text, s.loss
        if text:
            yield Segment(text, loss=loss)


class Chat:
    """A tokenizer with the style of its chat template."""

    def __init__(self, tokenizer: Tokenizer, style: str | Style):
        if isinstance(style, str) and style not in STYLES:
            raise ValueError(f"style is {style!r}; known are {', '.join(STYLES)}{files.closest(style, list(STYLES))}")
        self.tokenizer = tokenizer
        self.style = STYLES[style] if isinstance(style, str) else style
        missing = [t for t in (IM_START, IM_END) if tokenizer.markup_id(t) is None]
        if missing or (self.style.bos and tokenizer.bos_id is None):
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing) or 'a BOS token'}, which chat turns are written with;"
                " cure: use the tokenizer of a chat model"
            )

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, style: str | None = None) -> "Chat":
        """The tokenizer of a checkpoint and the style of its template; `style` overrides what the template says."""
        tokenizer = Tokenizer.from_pretrained(path_or_id)
        if style is None:
            if tokenizer.chat_template is None:
                raise ValueError(
                    f"{path_or_id} has no chat template (a base model?); choose a style: {', '.join(STYLES)}"
                )
            style = style_of(tokenizer.chat_template)
        return cls(tokenizer, style)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Chat":
        """The style of a tokenizer's own template. ValueError where that is none of those known, or missing."""
        return cls(tokenizer, style_of(tokenizer.chat_template or ""))

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any] | str] | None = None,
        add_generation_prompt: bool = False,
        continue_last: bool = False,
        keep_past_thinking: bool = False,
        enable_thinking: bool | None = None,
        today: datetime.date | Literal["now"] | None = None,
    ) -> Rendered:
        """Render a conversation. ValueError for what the style cannot say, naming the message.

        tools: schemas as dicts or JSON text. keep_past_thinking: keep the reasoning of earlier turns too.
        enable_thinking: with add_generation_prompt, open the reasoning for the model (True), or close it at once
        (False); None leaves it to the model. continue_last: the text ends with that of the last message, an assistant's
        without calls; enable_thinking=False then closes a reasoning before it. today: for the style that writes a date
        above its tools; "now" reads the clock. Reasoning and dates are left out by styles that have none.
        """
        if add_generation_prompt and continue_last:
            raise ValueError("add_generation_prompt begins a turn, continue_last goes on with one; ask for one")
        if enable_thinking is not None and not (add_generation_prompt or continue_last):
            raise ValueError("enable_thinking shapes the generation prompt; it needs add_generation_prompt=True")
        if enable_thinking and not self.style.thinking:
            raise ValueError("enable_thinking=True, but this model's chat style has no reasoning")
        if not messages:
            raise ValueError("messages is empty; a conversation has at least one message")
        writer = _Writer(self.style)
        if self.style.bos:
            writer.mark(self.tokenizer.token_bytes(self.tokenizer.bos_id or 0).decode())
        turns = [_checked(m, i, self.style) for i, m in enumerate(messages)]
        if continue_last:
            _check_continued(turns[-1], enable_thinking if self.style.thinking else None)
        first = turns.pop(0) if turns and turns[0]["role"] == "system" else None
        writer.system(first, self._tool_list(tools), self._date(today) if tools else "")
        kept = _kept_thinking(turns, self.style, keep_past_thinking)
        begun = turns.pop() if continue_last else None
        for turn, keep in zip(turns, kept, strict=False):
            writer.turn(turn, keep)
        if add_generation_prompt or begun is not None:
            writer.begin(enable_thinking)
        if begun is not None:
            writer.assistant(begun, True)
        return Rendered(tuple(writer.segments), tuple(writer.images), self.tokenizer)

    def splitter(
        self, *, tools: Sequence[dict[str, Any] | str] | None = None, enable_thinking: bool | None = None
    ) -> OutputSplitter:
        """What takes the answer to a prompt rendered with these arguments apart, as it streams."""
        names = [_tool_name(json.loads(t) if isinstance(t, str) else t) for t in tools or ()]
        return OutputSplitter(tools=names, thinking=bool(enable_thinking))

    def _tool_list(self, tools: Sequence[dict[str, Any] | str] | None) -> str:
        if not tools:
            return ""
        if self.style.tools is None:
            raise ValueError("this model's chat style has no place for tools; render without them")
        if isinstance(tools, str | dict):
            raise ValueError(f"tools is a {type(tools).__name__}; a list of tool schemas is needed")
        return "[" + ", ".join(t if isinstance(t, str) else json.dumps(t, ensure_ascii=False) for t in tools) + "]"

    def _date(self, today: datetime.date | Literal["now"] | None) -> str:
        if self.style.tools != "dated":
            return ""
        if today is None:
            raise ValueError("this chat style writes a date before the tools; pass today=a date, or today='now'")
        return f"{datetime.date.today() if isinstance(today, str) else today:%Y-%m-%d}"


class _Writer:
    """Collects segments in the order of the text."""

    def __init__(self, style: Style):
        self._style = style
        self.segments: list[Segment] = []
        self.images: list[dict[str, Any]] = []

    def mark(self, tag: str, *, loss: bool = False) -> None:
        self.segments.append(Segment(tag, special=True, loss=loss))

    def say(self, text: str, *, loss: bool = False) -> None:
        if text:
            self.segments.append(Segment(text, loss=loss))

    def content(self, turn: dict[str, Any]) -> None:
        for part in turn["content"]:
            if isinstance(part, str):
                self.say(part)
            else:
                self.images.append(part)
                self.mark(IMAGE)

    def system(self, turn: dict[str, Any] | None, tool_list: str, date: str) -> None:
        if turn is None and self._style.default_system:
            turn = {"role": "system", "content": [self._style.default_system]}
        filled = turn is not None and any(turn["content"])
        if not (filled or tool_list or (turn is not None and self._style.tools is None)):
            return  # the LFM templates leave an empty system turn out, ChatML's do not
        self.mark(IM_START)
        self.say("system\n")
        if turn is not None:
            self.content(turn)
        if tool_list:
            gap = "\n\n" if date else "\n"
            self.say((gap if filled else "") + (f"Today's date: {date}\n\n" if date else "") + "List of tools: ")
            tagged = self._style.tools == "tagged"
            if tagged:
                self.mark("<|tool_list_start|>")
            self.say(tool_list)
            if tagged:
                self.mark("<|tool_list_end|>")
        self.end()

    def begin(self, enable_thinking: bool | None) -> None:
        """The head of an answer."""
        self.mark(IM_START)
        self.say("assistant\n")
        if enable_thinking is not None and self._style.thinking:
            self.mark(THINK_OPEN)
            if not enable_thinking:
                self.mark(THINK_CLOSE)

    def turn(self, turn: dict[str, Any], keep_thinking: bool) -> None:
        self.mark(IM_START)
        self.say(turn["role"] + "\n")
        if turn["role"] == "assistant":
            self.assistant(turn, keep_thinking)
            self.end(loss=True)
        elif turn["role"] == "tool" and self._style.tagged_results:
            self.mark("<|tool_response_start|>")
            self.content(turn)
            self.mark("<|tool_response_end|>")
            self.end()
        else:
            self.content(turn)
            self.end()

    def assistant(self, turn: dict[str, Any], keep_thinking: bool) -> None:
        """The body of an assistant's turn, without its end."""
        text = "".join(turn["content"])
        if self._style.thinking:
            if turn["thinking"] and keep_thinking:
                self.mark(THINK_OPEN, loss=True)
                self.say(turn["thinking"], loss=True)
                self.mark(THINK_CLOSE, loss=True)
            if not keep_thinking and THINK_CLOSE in text:
                text = text.rpartition(THINK_CLOSE)[2].strip()
        if self._style.calls == "first":
            self.calls(turn["calls"])
        self.answer(text)
        if self._style.calls == "last":
            self.calls(turn["calls"])

    def answer(self, text: str) -> None:
        """Assistant text; reasoning that was left inside it keeps its tags as markup."""
        while self._style.thinking:
            tag = min((t for t in (THINK_OPEN, THINK_CLOSE) if t in text), key=text.index, default=None)
            if tag is None:
                break
            before, _, text = text.partition(tag)
            self.say(before, loss=True)
            self.mark(tag, loss=True)
        self.say(text, loss=True)

    def calls(self, calls: list[ToolCall]) -> None:
        if calls:
            self.mark(CALL_OPEN, loss=True)
            self.say(tool_calls.render(calls, lists=self._style.lists, strings=self._style.strings), loss=True)
            self.mark(CALL_CLOSE, loss=True)

    def end(self, *, loss: bool = False) -> None:
        self.mark(IM_END, loss=loss)
        self.say("\n")


def _kept_thinking(turns: list[dict[str, Any]], style: Style, keep_all: bool) -> list[bool]:
    """For every turn whether its reasoning stays."""
    if keep_all or not style.thinking:
        return [True] * len(turns)
    last = {role: max((i for i, t in enumerate(turns) if t["role"] == role), default=-1) for role in ROLES}
    if style.thinking == "last_assistant":
        return [i == last["assistant"] for i in range(len(turns))]
    return [i > last["user"] for i in range(len(turns))]


def _checked(message: dict[str, Any], index: int, style: Style) -> dict[str, Any]:
    """A message as {"role", "content": [text or image part], "thinking": str, "calls": [ToolCall]}."""
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise ValueError(f"{where} is a {type(message).__name__}; a dict with 'role' and 'content' is needed")
    for key in message:
        if key not in _READ_KEYS + _IGNORED_KEYS:
            raise ValueError(
                f"{where} has the key {key!r}{files.closest(str(key), list(_READ_KEYS))}; read are {_READ_KEYS}"
            )
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(
            f"{where}.role is {role!r}; allowed are {', '.join(ROLES)}{files.closest(str(role), list(ROLES))}"
        )
    content = _parts(message.get("content"), where, style.images and role != "assistant")
    thinking = next((message[k] for k in _THINKING_KEYS if message.get(k)), "")
    if not isinstance(thinking, str):
        raise ValueError(f"{where}: the reasoning is a {type(thinking).__name__}; text is needed")
    calls = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(message.get("tool_calls") or ())]
    if calls and role != "assistant":
        raise ValueError(f"{where}.tool_calls: only an assistant makes calls, not the role {role!r}")
    if calls and style.calls is None:
        raise ValueError(f"{where}.tool_calls: this model's chat style has no form for calls")
    return {"role": role, "content": content, "thinking": thinking, "calls": calls}


def _check_continued(turn: dict[str, Any], enable_thinking: bool | None) -> None:
    """ValueError where an answer cannot go on with this message. enable_thinking: None where the style has none."""
    where = "messages: the last one, which the answer continues,"
    if turn["role"] != "assistant":
        raise ValueError(f"{where} has the role {turn['role']!r}; it must be an assistant's")
    if turn["calls"]:
        raise ValueError(f"{where} has tool_calls, which nothing can follow; add their results, or leave them out")
    text = "".join(turn["content"])
    if enable_thinking and (text or turn["thinking"]):
        raise ValueError(f"{where} has begun, so no reasoning can be opened before it (enable_thinking is True)")
    if enable_thinking is False and (turn["thinking"] or THINK_OPEN in text or THINK_CLOSE in text):
        raise ValueError(f"{where} has reasoning, but enable_thinking is False; leave one of the two out")


def _parts(content: Any, where: str, images: bool) -> list[Any]:
    if content is None or isinstance(content, str):
        return [content or ""]
    if isinstance(content, dict):  # a tool's result, not yet text
        return [json.dumps(content, ensure_ascii=False)]
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where}.content is a {type(content).__name__}; text or a list of parts is needed")
    parts: list[Any] = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind in _IMAGE_PARTS and images:
            parts.append(part)
        else:
            allowed = "'text'" + (" or 'image'" if images else " (images have no place here)")
            raise ValueError(f"{where}.content[{i}] has type {kind!r}; allowed is {allowed}")
    return parts


def _call(call: Any, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f'{where} is {call!r:.80}; {{"function": {{"name": ..., "arguments": {{}}}}}} is needed')
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"{where}: the arguments of {function['name']!r} are not valid JSON: {e}") from e
    if not isinstance(arguments or {}, dict):
        raise ValueError(
            f"{where}: the arguments of {function['name']!r} are a {type(arguments).__name__}, not an object"
        )
    return ToolCall(function["name"], dict(arguments or {}))


def _tool_name(schema: dict[str, Any]) -> str:
    return str((schema.get("function") or schema).get("name", ""))
