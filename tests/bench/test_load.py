"""Users at a real server process: what they ask is seeded, what they see is counted right, runs are taken up again."""

import http.server
import json
import random
import threading
import time

import pytest
from bench_models import tiny

from headwater import cli
from headwater.bench import load, load_report, load_servers, synthetic
from headwater.bench.load import Mix, Request, Target, Words
from headwater.engine import native


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "tiny.gguf"
    synthetic.write(path, tiny("lfm2"), "q4_0")
    return path


def spaces(text):
    return text.count(" ") + 1


def some(seed, user, count=30, mix=None):
    talks = load.conversations(Words(spaces), mix or Mix(), seed, user)
    return [next(talks) for _ in range(count)]


def test_conversations_depend_on_seed_and_user_alone():
    assert some(1, 2) == some(1, 2)
    assert some(1, 2) != some(1, 3)
    assert some(1, 2) != some(2, 2)
    systems = [{system for system, _ in some(1, user)} for user in range(4)]
    assert systems[0] == systems[1] == systems[2] == systems[3], "system prompts are shared"
    turns = [len(t) for _, t in some(1, 0, 300)]
    assert min(turns) == 1 and max(turns) == Mix().most_turns and 2 < sum(turns) / 300 < 4


def test_lengths_are_those_of_the_mix():
    mix = Mix()
    talks = [turns for user in range(10) for _, turns in some(0, user)]
    first = sorted(spaces(t[0].question) for t in talks)
    assert 120 < first[len(first) // 2] < 190 and first[0] >= 12 and first[-1] <= 1500
    answers = [turn.answer_tokens for t in talks for turn in t]
    assert min(answers) >= mix.answer[2] and max(answers) <= mix.answer[3]
    short = [turns for _, turns in some(0, 0, mix=Mix(context=1024))]
    assert max(spaces(t[0].question) for t in short) <= 375


def test_words_are_as_many_tokens_as_asked(model):
    tokenizer = native.tokenizer(model)
    words = Words(lambda text: len(tokenizer.encode(text, bos=False)))
    for asked in (400, 2000):
        assert abs(len(tokenizer.encode(words.text(random.Random(0), asked), bos=False)) - asked) < 0.2 * asked


class _Peer(http.server.BaseHTTPRequestHandler):
    """Answers as a server of OpenAI's API: three pieces of text 20 ms apart, of five tokens by its own count."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if len(self.server.bodies) % 5 == 0:
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        chunks += [{"choices": [{"delta": {"content": f"{i} "}}]} for i in range(3)]
        for chunk in [*chunks, {"choices": [], "usage": usage}]:
            time.sleep(0.02)
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def peer():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Peer)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_counted(peer):
    target = Target(url=f"http://127.0.0.1:{peer.server_port}", model="m")
    seen, _ = load.drive(target, Words(spaces), Mix(), users=2, seconds=3.0, watch=lambda: 7)
    whole = [r for r in seen if r.whole]
    failed = [r for r in seen if r.error]
    assert len(whole) > 4 and failed
    assert all("503" in r.error for r in failed)
    assert all((len(r.events), r.answer_tokens, r.prompt_tokens, r.cached) == (3, 5, 10, 4) for r in whole)
    assert all(r.events[0] > 0.02 and r.events[2] - r.events[0] > 0.03 for r in whole)
    assert len(seen) - len(whole) - len(failed) <= 2, "but for what the end of the window cut off"
    second = next(b for b in peer.bodies if len(b["messages"]) == 4)
    assert second["messages"][2] == {"role": "assistant", "content": "0 1 2 "}
    assert second["temperature"] == 0 and second["user"] in ("user-0", "user-1")


def test_rows_of_pieces():
    def piece(users, begin):
        asked = [Request(0, 0, 0.0, [begin, begin + 0.1, begin + 0.3], 100, 6, 50, whole=True),
                 Request(0, 1, 1.0, [], error="503")]  # fmt: skip
        memory = [(100, 1), (200, 2), (210, 3)]
        return {"server": "a", "users": users, "seconds": 2.0, "memory": memory,
                "requests": [load.as_dict(r) for r in asked]}  # fmt: skip

    one, four = load_report.rows([piece(4, 1.0), piece(1, 1.0), piece(1, 2.0)])
    assert (one["users"], four["users"], one["seconds"], one["requests"], one["errors"]) == (1, 4, 4.0, 2, 2)
    assert one["answer_tokens_per_second"] == four["answer_tokens_per_second"] == 3.0
    assert one["cached_share"] == 0.5 and one["memory"] == {"peak": 210, "late_growth": 10}
    assert one["first_token"]["p50"] == pytest.approx(1.5)
    assert one["between_tokens"]["p50"] == pytest.approx(0.15)
    assert one["first_token_later_turns"]["p50"] != one["first_token_later_turns"]["p50"], "nothing was heard: NaN"
    said = json.loads(json.dumps(load_report.finite([one]), allow_nan=False))
    assert said[0]["first_token_later_turns"]["p50"] is None and said[0]["first_token"] == one["first_token"]


def test_the_verb_saves_pieces_and_goes_on(model, tmp_path, capsys):
    out, plot = tmp_path / "out", tmp_path / "plot.png"
    line = ["load-test", str(model), "--out", str(out), "--users", "1,2", "--seconds", "2", "--ctx", "256"]
    line += ["--cache-mib", "0"]
    assert cli.run([*line, "--stop-after", "1"]) == 0
    assert not list(out.glob("headwater-*")), "no piece ends within a second"
    assert cli.run([*line, "--plot", str(plot), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(r["users"], r["errors"]) for r in rows] == [(1, 0), (2, 0)]
    assert all(r["answer_tokens_per_second"] > 0 and r["memory"]["peak"] > 1 << 20 for r in rows)
    assert all(r["cached_share"] == 0 for r in rows), "the server was told to keep nothing"
    assert plot.stat().st_size > 10_000
    saved = {f: f.stat().st_mtime_ns for f in out.glob("headwater-*")}
    assert cli.run(line) == 0
    assert saved == {f: f.stat().st_mtime_ns for f in out.glob("headwater-*")}, "nothing was run again"
    assert cli.run([*line, "--seed", "1"]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err


def test_faults(model, tmp_path, capsys):
    for more, says in (
        (["--server", "headwatr"], "did you mean 'headwater'"),
        (["--users", "1,x"], "--users is '1,x'"),
        (["--cache-mib", "-1"], "--cache-mib is -1"),
        (["--server", "llama-server=/no/such"], "cannot start llama-server"),
        (["--server", "headwater=/bin/false"], "headwater ended with 1 while it started"),
    ):
        assert cli.run(["load-test", str(model), "--out", str(tmp_path / "x"), "--seconds", "1", *more]) == 2
        assert says in capsys.readouterr().err
    assert load_servers.memory(2**22 + 1) == (0, 0)
