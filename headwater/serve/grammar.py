"""Answers that must have a form (JSON schema, regular expression, grammar, tool calls), through llguidance's masks.

What llguidance cannot apply is refused before anything runs, never ignored. A tool call is constrained in LFM2's own
form, `[name(key=value, ...)]`, each value by its part of the tool's schema; Python's and JSON's literals both fit.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from headwater import optional, tool_calls
from headwater.serve.errors import ApiError
from headwater.serve.guide import bits
from headwater.tokenizer import Tokenizer
from headwater.tool_calls import CALL_CLOSE, CALL_OPEN, ToolCall

MAX_GRAMMAR = 256 * 1024
MAX_CALLS = 32
"""Calls of one answer where the form of calls is asked for."""
_WHITESPACE = r"[ \n]{0,16}"
"""Between the parts of JSON: enough to indent, too little for a small model to run away into."""
_PYTHON_STRING = r"""/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"""


@dataclass(frozen=True)
class Format:
    """What the text of an answer must be. value: a JSON schema, a regular expression, or a grammar's text."""

    kind: Literal["json", "regex", "grammar"]
    value: Any
    param: str = "response_format"


class GrammarMask:
    """Allows the tokens that keep an answer inside its grammar. ApiError when that becomes too hard."""

    def __init__(self, matcher: Any, ends: Sequence[int], param: str) -> None:
        self._matcher, self._param = matcher, param
        self._only_ends = ~bits(32 * (max(ends) // 32 + 1), ends)

    def begin(self, ids: Sequence[int]) -> None:
        """What stands of the answer before its first token. ApiError where no such answer begins so."""
        if not self._matcher.consume_tokens(list(ids)):
            raise ApiError("no answer of this form begins as the last message does, which the answer continues",
                           param=self._param)  # fmt: skip

    def take(self, token: int) -> None:
        """The next token of the answer."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def allowed(self) -> np.ndarray:
        """The tokens that may come next as bits of uint32 words."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return self._only_ends
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error() or not words.any():
            why = _short(self._matcher.get_error()) or "no token fits here"
            raise ApiError(f"the form of this answer cannot be kept up: {why}", param=self._param)
        return words


class _Vocabulary:
    """The tokenizer as llguidance asks for one."""

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        self.tokens, self.special_token_ids = [], []
        for i in range(tokenizer.vocab_size):
            try:
                self.tokens.append(tokenizer.token_bytes(i))
            except ValueError:
                self.tokens.append(b"")
            if tokenizer.is_special(i) or tokenizer.markup_id(self.tokens[i].decode(errors="replace")) == i:
                self.special_token_ids.append(i)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class Grammars:
    """Makes masks for one vocabulary. ends: ids that end an answer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, list(ends)
        self._lock = threading.Lock()

    @cached_property
    def _library(self) -> Any:
        return optional.load("llguidance", extra="serve")

    @cached_property
    def _words(self) -> Any:
        wrapped = self._library.TokenizerWrapper(_Vocabulary(self._tokenizer, self._ends))
        return self._library.LLTokenizer(wrapped, eos_token=self._ends)

    def answer(
        self,
        form: Format | None,
        tools: Sequence[Mapping[str, Any]],
        *,
        must_call: bool,
        may_call: bool,
        parallel: bool,
        all_tools: bool,
    ) -> GrammarMask | None:
        """The mask of an answer; None where nothing is asked of it. ApiError for what cannot be applied."""
        callable_tools = tools if may_call else []
        strict = any(t["function"].get("strict") for t in callable_tools)
        if not must_call and form is None and not (callable_tools and (strict or not parallel or not all_tools)):
            return None
        rules = _Rules(self._tokenizer)
        starts = [] if must_call else [rules.content(form)]
        if callable_tools:
            starts.append(rules.calls(callable_tools, parallel))
            if form is None and not must_call:
                starts = [f"{starts[0]} {starts[1]}?"]
        return self.compile("\n".join([f"start: {' | '.join(starts)}", *rules.lines]), form.param if form else "tools")

    def compile(self, lark: str, param: str) -> GrammarMask:
        """The mask of a grammar in Lark's notation."""
        if len(lark) > MAX_GRAMMAR:
            raise ApiError(f"the grammar has {len(lark)} characters; allowed: {MAX_GRAMMAR}", param=param)
        if not self._ends:
            raise ApiError("this model has no end token, which a form of answer needs", param=param)
        with self._lock:
            words = self._words
        matcher = self._library.LLMatcher(words, self._library.LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise ApiError(f"this form of answer cannot be applied: {_short(matcher.get_error())}", param=param,
                           code="unsupported_grammar")  # fmt: skip
        return GrammarMask(matcher, self._ends, param)


class _Rules:
    """Collects the rules of one grammar."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.lines: list[str] = []

    def add(self, name: str, body: str) -> str:
        self.lines.append(f"{name}: {body}")
        return name

    def content(self, form: Format | None) -> str:
        if form is None:
            return self.add("free_text", r"/(.|\n)*/")
        if form.kind == "json":
            return self.add("content", _json(form.value))
        if form.kind == "regex":
            return self.add("content", f"/{_slashed(form.value)}/")
        return self.add("content", "%lark {\n" + _lark(form) + "\n}")

    def calls(self, tools: Sequence[Mapping[str, Any]], parallel: bool) -> str:
        names = [self._call(i, tool["function"]) for i, tool in enumerate(tools)]
        self.add("call", " | ".join(names))
        more = f' (", " call){{0,{MAX_CALLS - 1}}}' if parallel else ""
        return self.add("calls", f'{self._tag(CALL_OPEN)} "[" call{more} "]" {self._tag(CALL_CLOSE)}')

    def _tag(self, tag: str) -> str:
        return tag if self._tokenizer.markup_id(tag) is not None else json.dumps(tag)

    def _call(self, index: int, function: Mapping[str, Any]) -> str:
        """name(a=1, b='x'): arguments in the schema's order, those that are not required may be left out."""
        name, schema = function["name"], function.get("parameters") or {}
        where = f"tools[{index}].function.parameters"
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise ApiError(f"{where}: properties is an object and required a list", param=where)
        lost = [r for r in required if r not in properties]
        if lost:
            raise ApiError(f"{where}.required names {lost[0]!r}, which is no property", param=where)
        shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
        rule = f"call_{index}"
        keys = list(properties)
        for i, key in reversed(list(enumerate(keys))):
            _check_key(key, where)
            item = f"{json.dumps(key + '=')} {self._value(f'{rule}_value_{i}', properties[key], shared)}"
            after = "" if i + 1 == len(keys) else f" {rule}_rest_{i + 1}"
            skip_first = '""' if i + 1 == len(keys) else f"{rule}_first_{i + 1}"
            skip_rest = '""' if i + 1 == len(keys) else f"{rule}_rest_{i + 1}"
            optional_key = key not in required
            self.add(f"{rule}_first_{i}", item + after + (f" | {skip_first}" if optional_key else ""))
            self.add(f"{rule}_rest_{i}", f'", " {item}{after}' + (f" | {skip_rest}" if optional_key else ""))
        body = f" {rule}_first_0" if keys else ""
        return self.add(rule, f'{json.dumps(name + "(")}{body} ")"')

    def _value(self, rule: str, schema: Any, shared: Mapping[str, Any]) -> str:
        if not isinstance(schema, dict | bool):
            raise ApiError("a property of a tool's parameters is no schema", param="tools")
        if isinstance(schema, bool):
            return self.add(rule, _json({}))
        kind, choices = schema.get("type"), schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices):
            forms = {f for c in choices for f in (json.dumps(c, ensure_ascii=False), _python_string(c))}
            return self.add(rule, " | ".join(json.dumps(f) for f in sorted(forms)))
        plain = not set(schema) - {"type", "title", "description", "default", "examples"}
        either = {"string": _PYTHON_STRING, "boolean": '"True" | "False"', "null": '"None"'}.get(str(kind))
        inside = _json({**shared, **schema} if shared else schema)
        return self.add(rule, f"{inside} | {either}" if plain and either else inside)


def _json(schema: Any) -> str:
    """A JSON schema inside a grammar."""
    value = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    return "%json " + json.dumps({**value, "x-guidance": {"whitespace_pattern": _WHITESPACE}})


def _lark(form: Format) -> str:
    text = str(form.value)
    if "::=" not in text:
        return text
    convert = optional.load("llguidance.gbnf_to_lark", extra="serve")
    try:
        return convert.gbnf_to_lark(text)
    except Exception as e:  # its parser raises whatever it meets
        raise ApiError(f"the GBNF grammar cannot be read: {_short(str(e))}", param=form.param) from e


def _slashed(regex: str) -> str:
    """A regular expression between slashes."""
    out, escaped = [], False
    for c in regex:
        if c == "/" and not escaped:
            out.append("\\/")
        else:
            out.append({"\n": "\\n", "\r": "\\r"}.get(c, c))
        escaped = c == "\\" and not escaped
    return "".join(out)


def _python_string(text: str) -> str:
    whole = tool_calls.render([ToolCall("f", {"a": text})])
    return whole.removeprefix("[f(a=").removesuffix(")]")


def _check_key(key: str, where: str) -> None:
    try:
        tool_calls.render([ToolCall("f", {key: 0})])
    except ValueError as e:
        raise ApiError(f"{where} has a property that no call can name: {e}", param=where) from e


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
