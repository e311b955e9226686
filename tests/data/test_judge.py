"""The jury against a real HTTP server on this machine that answers, stalls, drips, breaks and recovers on command."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_server import Server, vote

from headwater import cli
from headwater.data.endpoint import Endpoint, EndpointError
from headwater.data.judge import Judge, LocalJudge, Votes, parse_vote, question
from headwater.data.steps import Removed, Text

ROOT = Path(__file__).parents[2]
TEXTS = [Text(f"t{i}", f"Text number {i} about rivers.") for i in range(6)]


@pytest.fixture
def server():
    one = Server()
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.stop.set()
    one.shutdown()
    one.server_close()
    thread.join()


def judge(server, *models, endpoint=None, **options):
    rows = tuple({"url": server.url, "model": m, "timeout": 60, "pause": 0.01} | (endpoint or {}) for m in models)
    return Judge(judges=rows, **options)


def test_votes_are_kept_and_the_median_decides(server):
    (first, *_) = judge(server, "good", "flaky")(TEXTS)
    assert first.facts["votes"]["good"] == {"accuracy": 5, "relevance": 4, "helpfulness": 3}
    assert first.facts["judged"] == {"accuracy": 4, "relevance": 4, "helpfulness": 3}
    assert server.asked["flaky"] == 3 * len(TEXTS)
    lost = judge(server, "good", "bad")(TEXTS)
    assert all(isinstance(v, Removed) and v.reason == "judged_low" for v in lost)
    assert json.loads(lost[0].detail)["bad"]["accuracy"] == 1
    assert all(isinstance(v, Text) for v in judge(server, "good", "bad", "limited")(TEXTS))
    path, key, body = server.bodies[0]
    assert path == "/v1/chat/completions" and key is None and body["temperature"] == 0
    assert TEXTS[0].text in {line for _, _, b in server.bodies for line in b["messages"][1]["content"].splitlines()}


def test_a_stopped_run_does_not_ask_twice(server, tmp_path):
    cache = str(tmp_path / "votes.sqlite")
    first = judge(server, "good", cache=cache)(TEXTS[:4])
    again = judge(server, "good", cache=cache)(TEXTS)
    assert again[:4] == first and server.asked["good"] == len(TEXTS)
    judge(server, "good", cache=cache)([Text("other id", TEXTS[0].text)])
    assert server.asked["good"] == len(TEXTS)


def test_votes_survive_kill_9(tmp_path):
    """The process dies at its ninth question; what was voted is there, and only the rest is asked again."""
    cache = tmp_path / "votes.sqlite"
    code = f"""
import os, signal, sys
from headwater.data.judge import Judge, LocalJudge
from headwater.data.steps import Text
asked = 0
def ask(messages):
    global asked
    asked += 1
    if asked == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return {vote(4, 4, 4)!r}
step = Judge(judges=(LocalJudge("own", ask),), cache={str(cache)!r}, parallel=2)
out = step([Text(str(i), f"text {{i}}") for i in range(20)])
print(asked, len(out))
"""
    run = [sys.executable, "-c", code]
    died = subprocess.run([*run, "9"], cwd=ROOT, timeout=300, check=False)
    assert died.returncode == -signal.SIGKILL
    done = subprocess.run([*run, "0"], cwd=ROOT, timeout=300, capture_output=True, text=True, check=True)
    asked, out = map(int, done.stdout.split())
    assert out == 20 and 12 <= asked <= 14


@pytest.mark.parametrize("model", ["stall", "drip"])
def test_a_judge_that_times_out_is_counted(server, model):
    start = time.monotonic()
    step = judge(server, model, endpoint={"timeout": 0.5, "attempts": 1}, give_up=2, parallel=2)
    verdicts = step(TEXTS)
    assert [v.facts["votes"][model]["failed"] for v in verdicts] == ["timeout"] * 2 + ["skipped"] * 4
    assert "judged" not in verdicts[0].facts and server.asked[model] == 2
    assert time.monotonic() - start < 200  # the machine may be busy; a stalled judge alone would take longer
    both = Judge(judges=(*step.judges, LocalJudge("own", lambda _: vote(5, 5, 5))))
    assert both(TEXTS[:1])[0].facts["judged"]["accuracy"] == 5
    strict = Judge(judges=step.judges, keep_unjudged=False)
    assert strict(TEXTS[:1])[0].reason == "unjudged"
    assert step.count(verdicts) == {"votes": {f"{model}: skipped": 4, f"{model}: timeout": 2, "no verdict": 6}}
    assert strict.count(strict(TEXTS[:1])) == {"votes": {f"{model}: timeout": 1, "no verdict": 1}}


def test_the_command_tells_of_a_jury_that_gave_no_vote(server, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text.text}) + "\n" for text in TEXTS))
    judges = json.dumps([{"url": server.url, "model": "stall", "timeout": 0.5, "attempts": 1}])
    arguments = ["--workers", "0", "--steps", "judge", "--set", f"judge.judges={judges}", "--set", "judge.give_up=1"]
    assert cli.run(["data", "run", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert "no verdict 6" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "out/report.html").read_text()
    assert "stall: skipped" in page and "no verdict" in page


@pytest.mark.parametrize(
    ("model", "failed", "asked"),
    [("chatty", "invalid", 2), ("garbage", "garbage", 1), ("toolong", "refused", 1)],
)
def test_bad_answers_are_counted_by_name(server, model, failed, asked):
    (verdict,) = judge(server, model)(TEXTS[:1])
    assert verdict.facts["votes"] == {model: {"failed": failed}}
    assert server.asked[model] == asked


def test_a_wrong_key_stops_the_run(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with pytest.raises(ValueError, match="401: the key is wrong"):
        judge(server, "nokey", endpoint={"key_variable": "JUDGE_KEY"})(TEXTS[:1])
    assert server.bodies[-1][1] == "Bearer secret"


def test_nobody_there():
    step = Endpoint(url="http://127.0.0.1:9/v1", model="m", attempts=2, pause=0.01, timeout=5)
    with pytest.raises(EndpointError, match="unreachable"):
        step.ask([{"role": "user", "content": "?"}])
    (verdict,) = Judge(judges=(step,))(TEXTS[:1])
    assert verdict.facts["votes"]["m"] == {"failed": "unreachable"}


@pytest.mark.parametrize(
    "answer",
    ["", "5", "[1]", vote(0, 3, 3), vote(3, 6, 3), vote(3, 3.5, 3), '{"accuracy": 3, "relevance": 3}',
     "x" + vote(3, 3, 3), vote(True, 3, 3), vote("3", 3, 3), vote(3, 3, 3)[:-1] + ', "x": 1}', "[" * 100_000,
     "```" + vote(3, 3, 3)],
)  # fmt: skip
def test_only_exact_votes_count(answer):
    assert parse_vote(answer) is None


def test_good_votes_and_the_question():
    assert parse_vote(f" ```json\n{vote(1, 5, 3)}\n``` ") == {"accuracy": 1, "relevance": 5, "helpfulness": 3}
    system, user = question("a" * 50 + "b" * 50 + "c" * 50, 80)
    assert "JSON" in system["content"]
    marker, *text, end = user["content"].split("\n")
    assert marker == end and text == ["a" * 50 + "b" * 10, "[...]", "c" * 20]


def test_options_are_checked(tmp_path):
    good = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    for options, words in (
        ({"judges": (good, good)}, "a name of its own"),
        ({"judges": ({**good, "modle": "m"},)}, r"'modle' \(did you mean 'model'"),
        ({"judges": ({"url": "x"},)}, "needs the field 'model'"),
        ({"judges": ({**good, "url": "ftp://x"},)}, "url is 'ftp://x'"),
        ({"judges": ({**good, "timeout": 0},)}, "timeout is 0"),
        ({"judges": ({**good, "key_variable": "NO_SUCH"},)}, "no variable 'NO_SUCH'"),
        ({"judges": (good,), "quorum": 2}, "quorum 2"),
        ({"judges": (good,), "least": 9}, "least is 9"),
    ):
        with pytest.raises(ValueError, match=words):
            Judge(**options)
    with pytest.raises(ValueError, match="the jury is empty"):
        Judge()(TEXTS)
    (tmp_path / "no.sqlite").write_text("this is no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="cannot be used as a store of votes"):
        Votes(tmp_path / "no.sqlite")
