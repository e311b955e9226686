"""The functions of a file as tools, in their own process: results, errors, time limits, deaths."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from headwater.commands.tools import Toolbox

FILE = """
import os, subprocess, sys, time

CALLS = []

def add(a: int, b: int) -> int:
    "Add two numbers."
    CALLS.append((a, b))
    print("adding")
    return a + b

def count() -> int:
    return len(CALLS)

def fail(text: str) -> str:
    raise KeyError(text)

def sleep(seconds: float) -> str:
    subprocess.Popen(["sleep", "1000"], stdout=open("child", "w"))
    time.sleep(seconds)
    return "slept"

def become(seconds: int) -> None:
    os.execvp("sleep", ["sleep", str(seconds)])

def leave(code: int) -> None:
    os._exit(code)

def quit() -> None:
    sys.exit("enough")

def read() -> str:
    return sys.stdin.read()
"""


@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools.py").write_text(FILE)
    toolbox = Toolbox("tools.py", seconds=60)
    yield toolbox
    toolbox.close()


def test_calls_keep_their_state_and_print_to_stderr(capfd, box):
    box.close()  # the next call starts it with this test's stderr
    assert [s["name"] for s in box.schemas] == ["add", "count", "fail", "sleep", "become", "leave", "quit", "read"]
    assert box.schemas[0]["description"] == "Add two numbers."
    assert box.call("add", {"a": 20, "b": 1.0}) == (True, "21")
    assert box.call("add", {"a": 2, "b": 3}) == (True, "5")
    assert box.call("count", {}) == (True, "2")
    assert box.call("read", {}) == (True, "")
    box.close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "adding\nadding\n")


def test_errors_are_text_and_the_process_lives_on(box):
    assert box.call("fail", {"text": "é"}) == (False, "KeyError: 'é' (tools.py, line 16)")
    assert box.call("quit", {}) == (False, "SystemExit: enough (tools.py, line 30)")
    assert box.call("add", {"a": "x", "b": 1}) == (False, 'add(a) is "x"; allowed: integer')
    ok, text = box.call("ad", {})
    assert (ok, text.split(";")[0]) == (False, "there is no tool 'ad' (did you mean 'add'?)")
    assert box.call("count", {}) == (True, "0")


def test_a_death_is_an_error_and_the_next_call_starts_anew(box):
    box.call("add", {"a": 1, "b": 1})
    assert box.call("leave", {"code": 3}) == (False, "the process of the tools has ended (exit code 3)")
    assert box.call("count", {}) == (True, "0")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_tool_that_becomes_another_program_is_ended(box):
    pid = box._process.pid
    assert box.call("become", {"seconds": 1000}) == (False, "the process of the tools has ended (exit code -9)")
    assert not alive(pid)
    assert box.call("count", {}) == (True, "0")


def children_of(pid):
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(entry.name):
            try:
                session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
            except OSError:
                continue
            found += [int(entry.name)] if session == pid else []
    return found


def test_what_takes_too_long_is_ended_with_all_that_it_started(box):
    box.seconds = 1.0
    pid = box._process.pid
    ok, text = box.call("sleep", {"seconds": 1000})
    assert (ok, text) == (False, "it took longer than 1 seconds and was stopped")
    for _ in range(1000):
        if not children_of(pid):
            break
        time.sleep(0.01)
    assert children_of(pid) == []
    box.seconds = 60
    assert box.call("count", {}) == (True, "0")


@pytest.fixture
def heeding_ctrl_c():
    """As on a terminal: what a shell begins in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_ends_a_call(box):
    pid = box._process.pid

    def interrupt():
        while len(children_of(pid)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        pytest.fail(f"nothing was raised; the call said {box.call('sleep', {'seconds': 1000})}")
    assert box.call("add", {"a": 1, "b": 2}) == (True, "3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (tools.py, line 1)"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' (tools.py, line 1)"),
        ("x = 1\n", "there is no tool in it"),
        ("def f(a): pass\n", "f(a) has no type hint"),
        ("raise SystemExit(4)\n", "SystemExit: 4"),
        ("import os; os._exit(5)\n", "has ended (exit code 5)"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(tmp_path, text, words):
    (tmp_path / "tools.py").write_text(text)
    with pytest.raises(ValueError, match=r"tools\.py") as fault:
        Toolbox(tmp_path / "tools.py", seconds=5)
    assert words in str(fault.value)
    with pytest.raises(ValueError, match="is no file"):
        Toolbox(tmp_path / "none.py", seconds=5)
