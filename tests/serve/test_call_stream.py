"""Calls told while they are written: always the beginning of what the parser finds at the end."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import tool_calls
from headwater.completion import Completion
from headwater.engine import aio
from headwater.serve.call_stream import CallStream
from headwater.serve.reply import Choice
from headwater.tool_calls import CALL_CLOSE, CALL_OPEN, OutputSplitter, ToolCall, ToolCallError

names = st.text("abc_.", min_size=1, max_size=6).filter(lambda n: n not in ("True", "None"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("'\"\\,)](= ab\n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'\"\\{", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
calls = st.lists(st.builds(ToolCall, names, st.dictionaries(names, values, max_size=3)), min_size=1, max_size=3)
literals = st.sampled_from([
    r"[f(a='it\'s', b=[1, (2, 3)], c={'x': {}})]", "[f(a='it's so', b=2)]", "f(a=1e5, b=-0.5), g(x=None)", "[f()]",
    r"[f(a='\u00e9\ud83d\ude00\x41\101\7z\
', b=())]", '[{"name": "f", "arguments": {"a": [1, 2]}}]', "[f(a='x: y': z')]", "[f(a='say 'x', then', b=1)]",
    "[ f ( a = 'x' , ) , g(b=[1,],) , ]", "[f(a={'k': 'v', \"k2\": true,}), f(a=False)]", "[f(a=[[[[]]]], b={})]",
])  # fmt: skip


def told(text, cuts):
    """(name, arguments) of each call as it is told, and what was told before the end."""
    stream, found, edges = CallStream(), [], sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    parts = [p for start, end in itertools.pairwise(edges) for p in stream.push(text[start:end])]
    for part in parts:
        if part.number == len(found):
            assert part.name is not None
            found.append([part.name, ""])
        assert (part.number, part.call) == (len(found) - 1, None)
        found[-1][1] += part.arguments
    return stream, found


def check(text, cuts):
    stream, found = told(text, cuts)
    assert len(stream) == len(found)
    try:
        whole = tool_calls.parse(text)
    except ToolCallError:
        return found, None
    for i, call in enumerate(whole):
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        name, before = found[i] if i < len(found) else (call.name, "")
        last = stream.last(i, call)
        assert (name, before + last.arguments, last.call) == (call.name, arguments, call)
        assert (last.name is None) == (i < len(found))
    assert len(found) <= len(whole)
    return found, whole


@settings(max_examples=400, deadline=None)
@given(calls, st.sampled_from(["json", "python"]), st.sampled_from(["json", "python"]), st.lists(st.integers(0, 400)))
def test_what_is_rendered_is_told_whole(wanted, lists, strings, cuts):
    text = tool_calls.render(wanted, lists=lists, strings=strings)
    found, whole = check(text, cuts)
    assert [f[0] for f in found] == [c.name for c in whole]
    for (_, arguments), call in zip(found, whole, strict=True):
        assert arguments == json.dumps(call.arguments, ensure_ascii=False)  # nothing was left for the end


@settings(max_examples=1500, deadline=None)
@given(calls.map(tool_calls.render) | literals, st.data())
def test_whatever_is_written_the_told_is_a_beginning(text, data):
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([*"'\"\\()[]{},=: \n1ae-", ""])) + text[at + 1 :]
    check(text, data.draw(st.lists(st.integers(0, 200), max_size=5)))


@settings(max_examples=300, deadline=None)
@given(st.text("f(a='\"\\),[]{}:= 1eu0\n", max_size=30), st.lists(st.integers(0, 40)))
def test_any_text_at_all(text, cuts):
    check(text, cuts)


def answer(pieces, reason="stop", *, stream=True):
    """What a choice tells of an answer that comes in these pieces."""
    choice, found = Choice(OutputSplitter(calling=stream)), []
    for piece in pieces:
        found += choice.take(aio.Delta(0, piece, (1,), ()), 0.0)
    end = Completion(prompt_tokens=1, finish_reason=reason)
    return choice, [*found, *choice.take(aio.Delta(0, "", (), (), end), 0.0)]


def test_several_lists_count_on():
    text = f'Well.{CALL_OPEN}[f(a=1), g(b=\'x\')]{CALL_CLOSE} And{CALL_OPEN}[{{"name": "h"}}, f()]{CALL_CLOSE}'
    choice, deltas = answer(text)
    parts = [d.part for d in deltas if d.part]
    assert [(p.number, p.name) for p in parts if p.name] == [(0, "f"), (1, "g"), (2, "h"), (3, "f")]
    joined = ["".join(p.arguments for p in parts if p.number == i) for i in range(4)]
    assert joined == ['{"a": 1}', '{"b": "x"}', "{}", "{}"]
    assert [c.name for c in choice.calls] == ["f", "g", "h", "f"]
    assert (choice.content, choice.finish_reason) == ("Well. And", "tool_calls")


def test_a_call_cut_off_stays_as_told_and_as_text_in_one_piece():
    text = f"{CALL_OPEN}[f(a='long"
    choice, deltas = answer(text, "length")
    assert "".join(d.part.arguments for d in deltas if d.part) == '{"a": "long'
    assert (choice.content, choice.calls, choice.finish_reason) == ("", [], "length")
    choice, deltas = answer(text, "length", stream=False)
    assert (choice.content, choice.finish_reason) == ("[f(a='long", "length")


def test_what_was_never_a_call_is_text():
    choice, _ = answer(f"{CALL_OPEN}[1, 2]{CALL_CLOSE}{CALL_OPEN}f(x=1){CALL_CLOSE}")
    assert choice.content == "[1, 2]"
    assert choice.calls == [ToolCall("f", {"x": 1})]


@pytest.mark.parametrize("stream", [False, True])
def test_a_list_that_is_cut_off_behind_a_whole_one_says_so(stream):
    """tool_calls would promise that all calls are there; the second one's arguments are no JSON."""
    pieces = [f"{CALL_OPEN}[f(a=1)]{CALL_CLOSE}", f"{CALL_OPEN}[g(b='lon"]
    choice, deltas = answer(pieces, "length", stream=stream)
    assert choice.finish_reason == "length"
    assert choice.calls == [ToolCall("f", {"a": 1})]
    told = "".join(d.part.arguments for d in deltas if d.part and d.part.number == 1)
    assert (told, choice.content) == (('{"b": "lon', "") if stream else ("", "[g(b='lon"))
    whole, _ = answer(pieces[:1], "length", stream=stream)
    assert whole.finish_reason == "tool_calls"
