"""Whatever is sent, the server answers below 500 and goes on: odd bytes, deep JSON, fuzzed bodies."""

import json
import socket

import httpx2 as httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_running import wait

POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
         "/v1/embeddings", "/tokenize", "/detokenize")  # fmt: skip
JSON = {"content-type": "application/json"}
GOOD = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def client(served):
    with httpx.Client(base_url=served.url, timeout=600) as c:
        yield c


def send(client, path, content):
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code < 500, (path, content[:200], answer.text)
    return answer


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b'{"messages": "\xc3\x28"}', b"[" * 100_000,
     b'{"a":' * 900 + b"1" + b"}" * 900,
     b'{"messages": [{"role": "user", "content": "\\ud800"}], "input": "\\ud800", "prompt": "\\ud800",'
     b' "text": "\\udfff"}',
     b'{"max_tokens": 1e999}', b'{"seed": ' + b"9" * 5000 + b"}", b'{"model": "\\u0000"}', b'{"temperature": NaN}'],
    ids=str,
)  # fmt: skip
def test_odd_bodies_are_refused(client, path, content):
    answer = send(client, path, content)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_refused_wherever_they_stand(client, word):
    """Python's reader takes them; an answer that repeats what was sent could not be written."""
    parameters = '{"type": "object", "properties": {}, "default": ' + word + "}"
    for path, body in (
        ("/v1/responses", '{"input": "x", "max_output_tokens": 2, "metadata": {"a": [' + word + "]}}"),
        ("/v1/responses", '{"input": "x", "max_output_tokens": 2, "tools": [{"type": "function", "name": "f",'
                          ' "parameters": ' + parameters + "}]}"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "tools":'
                                 ' [{"type": "function", "function": {"name": "f", "parameters": '
                                 + parameters + "}}]}"),
    ):  # fmt: skip
        answer = send(client, path, body.encode())
        assert answer.status_code == 400
        assert "no number of JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", POSTS)
def test_a_missing_body_is_called_that(client, path):
    assert send(client, path, b"").json()["error"]["message"] == "The request has no body; a JSON object is needed."


@pytest.mark.parametrize("path", POSTS)
def test_ten_megabytes(client, path):
    text = "river " * 1_700_000
    for body in ({"messages": [{"role": "user", "content": text}], "max_tokens": 2}, {"input": text}, {"prompt": text},
                 {"tools": [text]}):  # fmt: skip
        assert 400 <= send(client, path, json.dumps(body).encode()).status_code < 500
    assert send(client, path, b'{"user": "' + b"x" * 11_000_000 + b'"}').status_code == 413


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "model", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "logit_bias", "logprobs",
     "tools", "top_logprobs", "tool_choice", "response_format", "stream", "stream_options", "reasoning_effort",
     "thinking_budget", "chat_template_kwargs", "parallel_tool_calls", "presence_penalty",
     "max_completion_tokens", "user", "metadata"]
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
        optional={
            "content": st.text(max_size=20) | VALUES,
            "tool_calls": VALUES,
            "name": VALUES,
            "tool_call_id": VALUES,
        },
    ),
    max_size=4,
)
SCHEMAS = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["object", "array", "string", "integer", "x"]), "properties": VALUES,
                  "items": VALUES,
                  "required": VALUES, "enum": VALUES, "pattern": st.text(max_size=8), "$ref": st.text(max_size=6)}
)  # fmt: skip
FORMATS = st.one_of(
    st.builds(lambda s: {"type": "json_schema", "json_schema": {"name": "a", "schema": s}}, SCHEMAS),
    st.builds(lambda r: {"type": "regex", "regex": r}, st.text(max_size=10)),
    st.builds(lambda r: {"type": "grammar", "grammar": r}, st.text(max_size=20)),
)
TOOLS = st.lists(
    st.builds(lambda s: {"type": "function", "function": {"name": "f", "parameters": s, "strict": True}}, SCHEMAS),
    max_size=2,
)
BODIES = st.builds(
    lambda messages, extra, form, tools: {"messages": messages, "max_tokens": 3} | extra | form | tools,
    MESSAGES, st.dictionaries(FIELDS, VALUES, max_size=3),
    st.just({}) | st.builds(lambda f: {"response_format": f}, FORMATS),
    st.just({}) | st.builds(lambda t: {"tools": t}, TOOLS),
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(body=BODIES)
def test_fuzzed_chat_bodies(client, body):
    send(client, "/v1/chat/completions", json.dumps(body).encode())


def test_it_still_answers_after_all_that(client, served):
    assert send(client, "/v1/chat/completions", json.dumps(GOOD).encode()).status_code == 200
    wait(lambda: served.front.open == 0)


@pytest.mark.slow
def test_the_specification(served):
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")

    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            if isinstance(case.body, dict):
                case.body["max_tokens"] = 2
            assert case.call(timeout=600).status_code < 500

        check()


@pytest.mark.slow
def test_a_thousand_aborted_streams_leave_nothing(served):
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps(GOOD | {"max_tokens": 400, "stream": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    sizes = []
    for i in range(1000):
        with socket.create_connection((host, int(port)), timeout=300) as raw:
            raw.sendall(head % len(body) + body)
            if i % 2:
                raw.recv(200)
        if i in (200, 999):
            wait(lambda: served.front.open == 0)
            sizes.append(psutil.Process().memory_info().rss)
    assert served.front.engine.running == served.front.engine.waiting == 0
    assert sizes[1] - sizes[0] < 20 << 20
    assert httpx.post(f"{served.url}/v1/chat/completions", json=GOOD, timeout=600).status_code == 200
