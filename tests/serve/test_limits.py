"""Keys, sizes, queues, times, lost clients, the end of the server: what a server in the open needs."""

import asyncio
import contextlib
import json
import socket

import httpx2 as httpx
import pytest
from serve_running import running, wait
from starlette.requests import Request

from headwater.commands.serve import _listen
from headwater.serve.api_chat import who
from headwater.serve.guard import Guard
from headwater.serve.settings import Settings

SAY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
LONG = SAY | {"max_tokens": 480, "logit_bias": {"7": -100}}  # 7: the end token, so that the answer is long


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=300)


def post(url, body=SAY, *, path="/v1/chat/completions", **options):
    return httpx.post(f"{url}{path}", json=body, timeout=600, **options)


@pytest.fixture(scope="module")
def locked(tiny_model):
    with running(tiny_model, api_keys=("right", "other"), slots=2, queue_limit=1, request_seconds=300) as server:
        yield server


KEY = {"Authorization": "Bearer right"}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"},
                                     {"x-api-key": "righ"}])  # fmt: skip
def test_a_wrong_key_is_refused(locked, headers):
    answer = post(locked.url, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{locked.url}/metrics", headers=headers).status_code == 401


@pytest.mark.parametrize("headers", [KEY, {"x-api-key": "other"}, {"Authorization": "bearer other"}])
def test_every_right_key_opens(locked, headers):
    assert post(locked.url, headers=headers).status_code == 200


def test_health_needs_no_key(locked):
    assert httpx.get(f"{locked.url}/health").json() == {"status": "ok"}
    for path in ("/health", "/"):
        asked = httpx.head(f"{locked.url}{path}")
        assert (asked.status_code, asked.content) == (200, b"")


def test_the_key_does_not_stand_in_the_settings_text():
    assert "secret" not in repr(Settings(model_name="m", api_keys=("secret",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"host": "0.0.0.0"}, "no --api-key"), ({"port": 70000}, "port is 70000"), ({"api_keys": ("",)}, "key is empty"),
     ({"cors_origins": ("*",)}, "every web page"), ({"request_seconds": 0}, "request_seconds")],
)  # fmt: skip
def test_settings_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        Settings(model_name="m", **options)


@pytest.mark.parametrize("port", [0, 8080])
def test_where_it_listens_is_told_even_at_a_port_of_the_systems_choice(port, monkeypatch, capsys):
    bound = []

    class Fake:
        def run(self, sockets=None):
            bound.append(sockets[0].getsockname()[1] if sockets else 8080)

    monkeypatch.setattr("headwater.serve.listen.uvicorn_server", lambda app, settings: Fake())
    _listen(None, Settings(model_name="m", port=port), "8 slots")
    assert bound[0] > 0
    assert capsys.readouterr().err == f"headwater: m at http://127.0.0.1:{bound[0]}, 8 slots\n"


def test_a_full_queue_says_when_to_come_back(locked):
    with contextlib.ExitStack() as stack, httpx.Client(timeout=600, headers=KEY) as client:
        stack.enter_context(locked.paused())
        for _ in range(3):
            url = f"{locked.url}/v1/chat/completions"
            opened = stack.enter_context(client.stream("POST", url, json=LONG | {"stream": True}))
            assert opened.status_code == 200
        assert locked.front.open == 3
        refused = post(locked.url, headers=KEY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    wait(lambda: locked.front.open == 0)
    assert post(locked.url, headers=KEY).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_client_frees_its_slot(idle, stream):
    before = idle.front.engine.counters.cancelled
    body = json.dumps(LONG | {"stream": stream}).encode()
    with idle.paused():
        with connection(idle) as raw:
            raw.sendall(HEAD % len(body) + body)
            wait(lambda: idle.front.engine.waiting == 1)
        wait(lambda: idle.front.open == 0)
    wait(lambda: idle.front.engine.counters.cancelled == before + 1)
    assert post(idle.url).status_code == 200


def test_a_body_over_the_limit_is_refused(tiny_model):
    with running(tiny_model, max_body_bytes=1000, slots=1) as server:
        assert post(server.url, SAY | {"user": "x" * 1000}).status_code == 413

        def chunks():
            yield b'{"user": "'
            for _ in range(50):
                yield b"x" * 100

        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert post(server.url).status_code == 200


@pytest.mark.parametrize(("sent", "words"), [(HEAD % 50 + b"{", b"408"), (b"POST /v1", b"")])
def test_slow_clients_are_let_go(tiny_model, sent, words):
    with running(tiny_model, body_seconds=0.3, slots=1) as server:
        with connection(server) as raw:
            raw.sendall(sent)
            assert words in raw.recv(4096)
        assert post(server.url).status_code == 200


def test_an_answer_that_takes_too_long_ends(tiny_model):
    with running(tiny_model, request_seconds=0.3, slots=1) as server, server.paused():
        refused = post(server.url, LONG)
        assert refused.status_code == 504
        assert refused.json()["error"]["code"] == "timeout"
        assert refused.headers["x-should-retry"] == "false"
        streamed = post(server.url, LONG | {"stream": True})
        assert '"code":"timeout"' in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
        events = post(server.url, {"input": "Hello", "stream": True}, path="/v1/responses").text.split("\n\n")
        told = [json.loads(e.partition("data: ")[2]) for e in events if "data: " in e]
        assert [e["type"] for e in told] == ["response.created", "response.in_progress", "error"]
        assert [e["sequence_number"] for e in told] == [0, 1, 2]
        assert server.front.open == 0


def test_a_silent_stream_shows_signs_of_life(tiny_model):
    with running(tiny_model, keep_alive_seconds=0.05, slots=1) as server, httpx.Client(timeout=600) as client:
        url = f"{server.url}/v1/chat/completions"
        with contextlib.ExitStack() as stack:
            stack.enter_context(server.paused())
            answer = stack.enter_context(client.stream("POST", url, json=SAY | {"stream": True}))
            lines = answer.iter_lines()
            assert ": keep-alive" in lines


def test_shutdown_lets_streams_finish(tiny_model):
    with running(tiny_model, slots=1) as server, httpx.Client(timeout=600) as client:
        with server.paused():
            stream = client.stream("POST", f"{server.url}/v1/chat/completions", json=LONG | {"stream": True})
            answer = stream.__enter__()
            server.server.should_exit = True
            wait(lambda: not server.server.servers[0].is_serving())
        lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        stream.__exit__(None, None, None)


def test_other_sites_are_kept_out(idle, tiny_model):
    url = f"{idle.url}/v1/chat/completions"
    rebound = post(idle.url, headers={"Host": "evil.example"})
    assert rebound.status_code == 403
    simple = httpx.post(url, content=json.dumps(SAY), headers={"content-type": "text/plain"})
    assert simple.status_code == 415
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(url, headers=asked).headers
    assert "access-control-allow-origin" not in post(idle.url, headers={"Origin": "https://a.example"}).headers
    with running(tiny_model, cors_origins=("https://a.example",), slots=1) as server:
        open_to = httpx.options(f"{server.url}/v1/chat/completions", headers=asked).headers
        assert open_to["access-control-allow-origin"] == "https://a.example"
        theirs = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,anthropic-version"
        asked_more = asked | {"Access-Control-Request-Headers": theirs}
        assert httpx.options(f"{server.url}/v1/messages", headers=asked_more).status_code == 200


def test_metrics_count(idle):
    post(idle.url)
    text = httpx.get(f"{idle.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['headwater_requests_total{route="/v1/chat/completions",status="200"}']) >= 1
    assert float(values["headwater_generated_tokens_total"]) >= 1
    assert float(values["headwater_first_token_seconds_count"]) >= 1
    assert float(values["headwater_slots"]) == 4


def test_failures_are_counted(idle, monkeypatch):
    def broken(job):
        raise KeyError("lost")

    monkeypatch.setattr(idle.app.state.server.planner, "plan", broken)
    failed = post(idle.url)
    assert failed.status_code == 500
    assert len(failed.headers.get_list("x-request-id")) == 1
    failed = post(idle.url, path="/v1/messages")
    assert failed.headers["request-id"] == failed.headers["x-request-id"] == failed.json()["request_id"] != ""
    text = httpx.get(f"{idle.url}/metrics").text
    assert 'headwater_requests_total{route="/v1/chat/completions",status="500"} 1.0' in text


def test_users_behind_one_address_are_told_apart_by_their_keys():
    def whose(key, user=None):
        found = []

        async def app(scope, receive, send):
            found.append(who(Request(scope), user))

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "client": ("10.0.0.1", 1),
                 "headers": [(b"x-api-key", key)]}  # fmt: skip
        asyncio.run(Guard(app, Settings(model_name="m", api_keys=("a", "b")))(scope, None, None))
        return found[0]

    assert whose(b"a") == whose(b"a")
    assert len({whose(b"a"), whose(b"b"), whose(b"a", "ann"), whose(b"b", "ann")}) == 4


def test_many_users_get_what_one_gets(idle):
    texts = ["The river", "A boat is", "Hello, who", "the sea", "wide", "I am a", "é ☃", "small model", "on the water"]
    bodies = [{"messages": [{"role": "user", "content": t}], "max_tokens": 24, "temperature": 0} for t in texts]
    alone = [post(idle.url, b).json()["choices"][0]["message"] for b in bodies]

    async def together():
        async with httpx.AsyncClient(timeout=600) as client:
            asked = [client.post(f"{idle.url}/v1/chat/completions", json=b) for b in bodies]
            return [(await a).json()["choices"][0]["message"] for a in map(asyncio.ensure_future, asked)]

    assert asyncio.run(together()) == alone


@pytest.mark.parametrize(
    "path", ["/web/..%2f..%2fetc/passwd", "/web/../app.py", "/v1/models/..%2f..%2fetc%2fpasswd", "/nothing"]
)
def test_no_path_reaches_the_file_system(idle, path):
    answer = httpx.get(f"{idle.url}{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]
