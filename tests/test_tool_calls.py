"""tool_calls.py: values survive the round trip, every split of a stream gives one result, nothing hostile raises."""

import contextlib
import itertools
import json
import random
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import tool_calls
from headwater.tool_calls import CALL_CLOSE, CALL_OPEN, OutputSplitter, ToolCall, ToolCallError, parse, render, split

NASTY = [
    "",
    "False",
    "None",
    "1",
    "1.0",
    "it's",
    'say "hi"',
    "a\\b",
    "\\",
    "\\'",
    "\n",
    "\r\n",
    "\t",
    ")",
    "]",
    ", ",
    "')]",
]
NASTY += [
    CALL_CLOSE,
    CALL_OPEN,
    "</think>",
    "x', y='z",
    "é漢👍",
    "\x00",
    "\u2028",
    "{",
    "\\u0041",
    "C:\\new\\table",
    "'",
]
strings = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(strings, v, max_size=3), max_leaves=8
)
names = st.sampled_from(["f", "get_weather", "a.b", "mod.sub_2.fn", "x-y", "é", "a1"]) | st.text(
    "abz_9.", min_size=1, max_size=6
)
calls = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=3))
call_lists = st.lists(calls, min_size=1, max_size=8)


def typed(value) -> str:
    """A text that differs for 1, 1.0 and True, for -0.0 and 0.0, and for "False" and False."""
    return json.dumps([[c.name, c.arguments] for c in value] if isinstance(value, list) else value)


Form = Literal["json", "python"]
forms: list[Form] = ["json", "python"]


def assert_round_trip(wanted: list[ToolCall], lists: Form, strings: Form) -> None:
    text = render(wanted, lists=lists, strings=strings)
    assert CALL_CLOSE not in text
    assert typed(parse(text)) == typed(wanted)


@settings(max_examples=150, deadline=None)
@given(call_lists, st.sampled_from(forms), st.sampled_from(forms))
def test_round_trip(wanted, lists, strings):
    assert_round_trip(wanted, lists, strings)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(call_lists, st.sampled_from(forms), st.sampled_from(forms))
def test_round_trip_long(wanted, lists, strings):
    assert_round_trip(wanted, lists, strings)


def random_string(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(NASTY)
    return "".join(rng.choice("'\"\\\n,)]}=: abé漢👍<|\t") for _ in range(rng.randrange(10)))


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth > 3 else 8)
    if kind < 2:
        return random_string(rng)
    if kind == 2:
        return rng.choice([None, True, False])
    if kind == 3:
        return rng.choice([0, -1, 10**30, rng.randrange(-(10**6), 10**6)])
    if kind < 6:
        return rng.choice(
            [0.0, -0.0, 1.0, 1e300, 5e-324, rng.gauss(0, 1), rng.gauss(0, 1) * 10.0 ** rng.randrange(-40, 40)]
        )
    items = [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind == 6 else {random_string(rng): item for item in items}


def test_round_trip_of_ten_thousand_calls():
    rng, seen = random.Random(0), 0
    while seen < 10_000:
        wanted = [
            ToolCall(
                rng.choice(["f", "a.b", "m.n_2.o", "é-x"]),
                {k: random_value(rng) for k in rng.sample("abcd", rng.randrange(4))},
            )
            for _ in range(rng.randint(1, 8))
        ]
        assert_round_trip(wanted, rng.choice(forms), rng.choice(forms))
        seen += len(wanted)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("[f()]", {}),
        ("f(a=1)", {"a": 1}),
        (' [ f ( a = 1 , b = "x" , ) , ] ', {"a": 1, "b": "x"}),
        ("[f(a=True, b=true, c=None, d=null, e=False, g=false)]",
         {"a": True, "b": True, "c": None, "d": None, "e": False, "g": False}),
        ("[f(a=-1, b=+2, c=1e3, d=-1.5E-2, e=.5, g=2.)]",
         {"a": -1, "b": 2, "c": 1e3, "d": -1.5e-2, "e": 0.5, "g": 2.0}),
        (r"""[f(a='it\'s', b="q\"q", c='\x41\u00e9\U0001F44D\ud83d\udc4d\t\0\101\
')]""", {"a": "it's", "b": 'q"q', "c": "Aé👍👍\t\0A"}),
        (r"[f(a='\d+\.')]", {"a": r"\d+\."}),
        ("[f(a=(1, 'x', (2,)), b=[[], {}], c={'k': [1.0, None]})]",
         {"a": [1, "x", [2]], "b": [[], {}], "c": {"k": [1.0, None]}}),
        ('[{"name": "f", "arguments": {"a": [1, {"b": null}]}}]', {"a": [1, {"b": None}]}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('[{"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}]', {"a": 1}),
        ('[{"name": "f", "parameters": {"a": 1}}]', {"a": 1}),
        # What the first LFM2.5 template writes: apostrophes as they come, lists in Python's form.
        ("[f(a='it's', b='don't stop')]", {"a": "it's", "b": "don't stop"}),
        ("[f(a=['it', \"it's\", True, None])]", {"a": ["it", "it's", True, None]}),
        ("[f(a='two\nlines')]", {"a": "two\nlines"}),
    ],
)  # fmt: skip
def test_forms(text, arguments):
    (call,) = parse(text)
    assert call.name == "f"
    assert json.dumps(call.arguments) == json.dumps(arguments)


def test_several_calls_and_none():
    assert parse('[a.b(x=1), c-d(), {"name": "e"}]') == [ToolCall("a.b", {"x": 1}), ToolCall("c-d"), ToolCall("e")]
    assert parse("[]") == parse(" [ ] ") == []


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("", "no call", 0),
        ("hello there", "expected '('", 6),
        ("[f(1)]", "positional argument in f()", 3),
        ("[f('x')]", "positional argument in f()", 3),
        ("[f(a='x', 'y')]", "positional argument in f()", 10),
        ("[f(a)]", "positional argument in f()", 3),
        ("[f(a=1, a=2)]", "stands twice", 8),
        ("[f(a={'k': 1, 'k': 2})]", "stands twice", 14),
        ("[f(a=b)]", "'b' is no value", 5),
        ("[f(a='x)]", "never closed", 5),
        ("[f(a=1)", "expected ',' or ']'", 7),
        ("[f(a=1", "expected ',' or ')'", 6),
        ("[f(", "expected ')'", 3),
        ("[f(a=1)] and", "text after", 9),
        ("[f(a=nan)]", "is no value", 5),
        ("[f(a=1e999)]", "too large", 5),
        ("[f(a=" + "9" * 5000 + ")]", "too large", 5),
        ("[f(a=" + "9" * 1000 + ")]", "too large", 5),
        ("[f(a=1-2)]", "no number", 5),
        (r"[f(a='\u12')]", "hexadecimal", 7),
        (r"[f(a='\ud800')]", "no character", 7),
        ("[f(a=" + "[" * 100 + "]" * 100 + ")]", "nested deeper", 36),
        ('[{"name": "f", "arguments": 3}]', "needs", 1),
        ('[{"arguments": {}}]', "needs", 1),
        ('[{"name": "f", "arguments": {}, "shell": 1}]', "'shell'", 1),
        ('[{"name": "get weather"}]', "'get weather' cannot be written", 1),
        ('[{"name": "f", "arguments": {"the city": 1}}]', "'the city' cannot be written", 1),
        ("[__import__('os').system('x')]", "positional", 12),
        ("[f(a=g())]", "'g' is no value", 5),
    ],
)
def test_faults_have_a_place_and_a_reason(text, reason, position):
    with pytest.raises(ToolCallError) as e:
        parse(text)
    assert reason in e.value.reason
    assert e.value.position == position


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=-" + "9" * 999 + ")]",
        "[f(a=" + "[" * 30 + "1" + "]" * 30 + ")]",
        '[{"name": "f", "arguments": {"a": ' + "[" * 20 + "]" * 20 + "}}]",
        json.dumps([{"name": "f", "arguments": '{"a": ' + "[" * 29 + "]" * 29 + "}"}]),
    ],
)
def test_whatever_is_read_can_be_written(text):
    """Else the server could not show it as text, nor a client send it back."""
    assert typed(parse(render(parse(text)))) == typed(parse(text))


def test_render_refuses_what_it_cannot_read_back():
    cyclic: list = []
    cyclic.append(cyclic)
    for value in (float("nan"), float("-inf"), (1,), {1: 2}, b"x", [{"a": [object()]}], 10**5000, cyclic):
        with pytest.raises(ValueError, match=r"f\(a\)"):
            render([ToolCall("f", {"a": value})])
    for name in ("", "a b", "f(", "x" * 1000, "a=b", None):
        with pytest.raises(ValueError, match="cannot be written"):
            render([ToolCall(name, {})])
        with pytest.raises(ValueError, match="cannot be written"):
            render([ToolCall("f", {name: 1})])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_calls_never_raise_anything_else(data):
    text = render(data.draw(call_lists))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.sampled_from([*"()[]{}'\"\\,=:-.", "\\u", "\\x", "", "1e", CALL_CLOSE]))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 2)) :]
    try:
        found = parse(text)
    except ToolCallError as e:
        assert 0 <= e.position <= len(text)
        assert e.reason
    else:
        assert typed(parse(render(found))) == typed(found)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="f(a=)[]{}'\"\\,: 1.-eux\ntrue", max_size=40) | st.text(max_size=40))
def test_any_text_never_raises_anything_else(text):
    try:
        parse(text)
    except ToolCallError as e:
        assert 0 <= e.position <= len(text)


def steps(run: Callable[[], object]) -> int:
    """Lines of this library executed by `run`: a clock that the machine's load cannot shift."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename != tool_calls.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def attempt(text: str) -> None:
    with contextlib.suppress(ToolCallError):
        parse(text)


HOSTILE = [
    "[",
    "[f(a=",
    "'",
    "f(a='",
    "[f(a='x', ",
    "\\",
    "[f(a='\\u00",
    "', a",
    "' ",
    "'a=",
    "f(),",
    "{",
    '{"a":',
    "<",
    "<|tool_call_",
]
HOSTILE += [CALL_OPEN, CALL_CLOSE, "<think>", "[f(", " ", "[ ", CALL_OPEN + "[f(a='" + CALL_CLOSE]


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_with_the_length_only(piece):
    def hostile(n: int) -> str:
        return "[f(a='" + piece * (n // len(piece))

    small, large = (steps(lambda n=n: attempt(hostile(n))) for n in (2_000, 8_000))
    assert large <= 4.5 * small + 200
    small, large = (steps(lambda n=n: split(piece * (n // len(piece)))) for n in (2_000, 8_000))
    assert large <= 4.5 * small + 200


@pytest.mark.parametrize("piece", ["'", "[", " ", "\\", CALL_OPEN])
def test_a_megabyte_is_read_or_refused(piece):
    text = CALL_OPEN + "[f(a='" + piece * (1_000_000 // len(piece))
    output = split(text)
    assert not output.calls and len(output.errors) == 1 and not output.content
    with pytest.raises(ToolCallError, match="longer than"):
        parse("x" * (tool_calls.Parser.max_chars + 1))


# -- streams -----------------------------------------------------------------------------------------------------


def fed(text: str, cuts: list[int], **options) -> tool_calls.Output:
    splitter, events = OutputSplitter(**options), []
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    for a, b in itertools.pairwise(edges):
        new = splitter.push(text[a:b])
        for e in new:
            if e.kind == "content":
                assert not any(
                    t.startswith("<") and t in e.text for t in ("<think>", "</think>", CALL_OPEN, CALL_CLOSE)
                )
        events += new
    return tool_calls.collect([*events, *splitter.finish()])


PIECES = [
    "<think>",
    "</think>",
    CALL_OPEN,
    CALL_CLOSE,
    "[f(a='x')]",
    '[{"name": "f", "arguments": {}}]',
    "text ",
    "<",
    "<|",
    "[",
]
PIECES += ["<|tool_call", "</thin", "\n", "f(", "it's", "é👍", "[link](url)"]


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.lists(st.integers(0, 120), max_size=8),
    st.sampled_from([None, (), ("f",), ("g",)]),
    st.booleans(),
)
def test_every_split_gives_the_same(text, cuts, tools, thinking):
    whole = split(text, tools=tools, thinking=thinking)
    assert repr(fed(text, cuts, tools=tools, thinking=thinking)) == repr(whole)
    assert repr(fed(text, list(range(len(text))), tools=tools, thinking=thinking)) == repr(whole)


@settings(max_examples=60, deadline=None)
@given(call_lists, strings, strings, st.lists(st.integers(0, 400), max_size=6))
def test_a_well_formed_answer_comes_apart(wanted, thought, content, cuts):
    for tag in ("<think>", "</think>", CALL_OPEN, CALL_CLOSE):
        thought, content = thought.replace(tag, ""), content.replace(tag, "")
    text = f"<think>{thought}</think>{content}{CALL_OPEN}{render(wanted)}{CALL_CLOSE}"
    output = fed(text, cuts)
    assert (output.reasoning, output.content, output.errors) == (thought, content, [])
    assert typed(output.calls) == typed(wanted)


def test_content_comes_at_once():
    splitter = OutputSplitter(tools=["f"])
    assert [e.text for e in splitter.push("Hello <b")] == ["Hello <b"]
    assert splitter.push("<|tool_ca") == []
    assert [e.text for e in splitter.push("n")] == ["<|tool_can"]


CALL = ToolCall("f", {"a": 1})
TAGGED = f"{CALL_OPEN}[f(a=1)]{CALL_CLOSE}"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (TAGGED, {}, ("", "", [CALL], 0)),
        (f"Sure. {TAGGED} Done.", {}, ("Sure.  Done.", "", [CALL], 0)),
        (TAGGED + TAGGED, {}, ("", "", [CALL, CALL], 0)),
        (f"<think>so {TAGGED}</think>no", {}, ("no", f"so {TAGGED}", [], 0)),
        (f"so {TAGGED}</think>no", {"thinking": True}, ("no", f"so {TAGGED}", [], 0)),
        (f"<think>{TAGGED}", {}, ("", TAGGED, [], 1)),
        (f"{CALL_OPEN}[f(a=1)]", {}, ("", "", [CALL], 0)),
        ("[f(a=1)]", {}, ("", "", [CALL], 0)),
        ("[f(a=1)]", {"tools": ["f"]}, ("", "", [CALL], 0)),
        ("[f(a=1)]", {"tools": ["g"]}, ("[f(a=1)]", "", [], 0)),
        ("[f(a=1)]", {"tools": ()}, ("[f(a=1)]", "", [], 0)),
        (f"[f(a=1)]{CALL_CLOSE}", {"tools": ["f"]}, ("", "", [CALL], 0)),
        (f"<think>hm</think>\n[f(a=1)]{CALL_CLOSE}", {"tools": ["f"]}, ("", "hm", [CALL], 0)),
        ('[{"name": "f", "arguments": {"a": 1}}]', {"tools": ["f"]}, ("", "", [CALL], 0)),
        ('[{"name": "f", "arguments": {"a": 1}}]', {}, ('[{"name": "f", "arguments": {"a": 1}}]', "", [], 0)),
        ("[f(a=1)] is how I would call", {}, ("[f(a=1)] is how I would call", "", [], 0)),
        (f"Look: [f(a=1)]{CALL_CLOSE}", {}, ("Look: [f(a=1)]", "", [], 1)),
        (f"{CALL_OPEN}[f(a=]{CALL_CLOSE}after", {}, ("after", "", [], 1)),
        ("</think>answer", {}, ("answer", "", [], 1)),
        ("a < b <= c <", {}, ("a < b <= c <", "", [], 0)),
    ],
)  # fmt: skip
def test_recovery_and_report(text, options, expected):
    output = split(text, **options)
    assert (output.content, output.reasoning, output.calls, len(output.errors)) == expected


@pytest.mark.parametrize("gap", [200, 256, 257, 600])
@pytest.mark.parametrize("form", ["{gap}[f(a=1)]", "[{gap}f(a=1)]", "[" + "f" * 250 + "{gap}(a=1)]", "[{gap}"])
def test_long_leads_are_judged_alike_in_every_split(form, gap):
    text = form.format(gap=" " * gap)
    whole = split(text)
    for step in (1, 7, 255, 300):
        assert repr(fed(text, list(range(0, len(text), step)))) == repr(whole)


def test_content_is_not_held_back_for_ever():
    assert OutputSplitter().push("[" + " " * 300) == [tool_calls.Event("content", "[" + " " * 300)]
    assert OutputSplitter().push("[" + "f" * 300) == [tool_calls.Event("content", "[" + "f" * 300)]
    assert OutputSplitter().push(" " * 300) == [tool_calls.Event("content", " " * 300)]
