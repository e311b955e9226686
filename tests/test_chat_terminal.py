"""`headwater chat` in a real pseudo-terminal, as a person has it: keys, history, tools, Ctrl-C. And in pipes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
from chat_taught import teach

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # real keys at a real terminal: minutes on a busy machine
PATIENCE = 90
"""Seconds until a test says what it waits for in vain."""
LEFT, UP, BACKSPACE, ALT_ENTER, TAB = "\x1b[D", "\x1b[A", "\x7f", "\x1b\r", "\t"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    directory = tmp_path_factory.mktemp("taught") / "model"
    teach(directory)
    return directory


@pytest.fixture
def home(taught, tmp_path, monkeypatch):
    """An empty folder to be in, with the file of tools."""
    (tmp_path / "tools.py").write_text((taught / "tools.py").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(home, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    return kept | {
        "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home / "state"), "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm-256color", **more,
    }  # fmt: skip


def command(taught, *options):
    return ["-m", "headwater.cli", "chat", str(taught), "--greedy", "--engine", "native", "--threads", "1",
            "--max-tokens", "40", *map(str, options)]  # fmt: skip


class Person:
    """Someone at a terminal."""

    def __init__(self, taught, home, *options, words=None, **env):
        self.p = pexpect.spawn(
            sys.executable, words or command(taught, *options), cwd=str(home), env=environment(home, **env),
            encoding="utf-8", timeout=1, dimensions=(40, 100),
        )  # fmt: skip
        self.p.delaybeforesend = None
        self._screen = self.p.logfile_read = io.StringIO()
        # The editor asks for bracketed pastes before each prompt, and moves the cursor instead of writing its space.
        self.prompt = "> " if env.get("TERM") == "dumb" else "\x1b[?2004h"

    def types(self, keys):
        self.p.send(keys)

    def sees(self, *texts):
        for text in texts:
            self.awaits(self.p.expect_exact, text)

    def awaits(self, expect, wanted):
        """What `expect` gives, within seconds of a machine that runs: one that was frozen meanwhile spends one try."""
        for _ in range(PATIENCE):
            with contextlib.suppress(pexpect.TIMEOUT):
                return expect(wanted)
        self.p.close(force=True)
        pytest.fail(
            f"{wanted!r} did not come in {PATIENCE} s. The screen ends with:\n{self._screen.getvalue()[-3000:]}"
        )

    def awaits_file(self, path):
        for _ in range(10 * PATIENCE):
            if path.exists():
                return
            time.sleep(0.1)
        pytest.fail(f"{path} did not come in {PATIENCE} s. The screen ends with:\n{self._screen.getvalue()[-3000:]}")

    def says(self, text, *seen):
        self.prompted()
        self.types(text + "\r")
        self.sees(*seen)

    def prompted(self):
        self.sees(self.prompt)

    def leaves(self, keys="\x04"):
        self.prompted()
        self.types(keys)
        self.awaits(self.p.expect, pexpect.EOF)
        self.p.close()
        assert self.p.exitstatus == 0


def saved(home, name="talk.json"):
    return json.loads((home / name).read_text())["messages"]


def test_keys_history_and_wide_characters(taught, home):
    me = Person(taught, home)
    me.says("Hello!", "水 and 👩‍🚀, hello.", "tokens/s")
    me.says("水水" + LEFT + "xy" + BACKSPACE, "Wide.")
    me.says("one" + ALT_ENTER + "two", "Two lines.")
    me.says("one\\\rtwo", "Two lines.")
    me.says("\x1b[200~one\ntwo\x1b[201~", "Two lines.")
    me.prompted()
    me.types("/sa" + TAB)
    me.sees("ve\x1b")  # what Tab adds
    me.types(" talk.json\r")
    me.sees("saved to talk.json")
    me.says("/sav talk.json", "did you mean '/save'")
    me.says("/reset", "is empty")
    me.says("Hello!", "hello.")
    me.leaves("\x04")
    said = [m["content"] for m in saved(home) if m["role"] == "user"]
    assert said == ["Hello!", "水x水", "one\ntwo", "one\ntwo", "one\ntwo"]
    history = home / "state" / "headwater" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    again = Person(taught, home)
    again.says(UP + UP + UP, "did you mean '/save'")  # the newest line first
    again.says(UP + UP + UP, "is empty")
    again.says("Hello!", "hello.")
    again.leaves("/exit\r")


def test_a_call_is_shown_asked_for_and_made(taught, home):
    me = Person(taught, home, "--tools", "tools.py", "--tool-seconds", "5")
    me.sees("loading it runs it with all your rights. Load it? [yes/no]")
    me.types("y\r")
    me.sees("(tools: add)")
    me.says("Add 20 and 1.", "-> add(a=20, b=1)", "run add(a=20, b=1)? [yes/no/always]")
    me.types("n\r")
    me.sees("As you wish.")
    assert not (home / "calls").exists()
    me.says("/reset")
    me.says("Add 20 and 1.", "[yes/no/always]")
    me.types("maybe\r")
    me.sees("one of them, please", "[yes/no/always]")
    me.types("a\r")
    me.sees("<- 21", "It is 21.")
    me.says("/undo", "taken back: Add 20 and 1.")
    me.says("Add x and 1.", '-> add(a="x", b=1)', '<- error: add(a) is "x"; allowed: integer', "x is no number.")
    me.says("/reset")
    me.says("Add 5 and 7.", "<- error: it took longer than 5 seconds and was stopped", "It takes too long.")
    me.says("/tools", "add(a, b)  Add two numbers.")
    me.says("/stats", "messages  4", "of 1,024 tokens", "in the cache", "in 8 answers")
    me.says("/save --state talk.json", "saved")
    me.says("/tools off", "no tools")
    me.leaves()
    assert (home / "calls").read_text() == "20+1\n5+7\n"
    roles = [m["role"] for m in saved(home)]
    assert roles == ["user", "assistant", "tool", "assistant"]
    other = Person(taught, home)
    other.says("/load talk.json", "4 messages from talk.json; ", "tokens of its state are loaded")
    other.says("Hello!", "from the cache")
    other.leaves()


def test_ctrl_c_ends_a_call_and_what_was_said_stays(taught, home):
    me = Person(taught, home)
    me.says("/tools tools.py", "Load it? [yes/no]")
    me.types("n\r")
    me.sees("(not loaded)")
    me.says("/tools tools.py", "Load it? [yes/no]")
    me.types("yes\r")
    me.says("Add 5 and 7.", "[yes/no/always]")
    me.types("y\r")
    me.awaits_file(home / "calls")
    me.types("\x03")
    me.sees("(stopped)")
    me.says("\x03", "Ctrl-D leaves")
    me.says("/save talk.json", "saved")
    me.leaves()
    assert [(m["role"], m["content"]) for m in saved(home)][-1] == ("tool", "stopped by the user")


def test_ctrl_c_in_an_answer_keeps_it(taught, home):
    options = [w if w != "--greedy" else "--temperature=9" for w in command(taught, "--max-tokens", 900)]
    me = Person(taught, home, words=[*options, "--top-k", "0"])
    for _ in range(20):
        me.says("Say something long", "\x1b[?2004l")
        me.awaits(me.p.expect, r"\w")
        me.types("\x03")
        if me.awaits(me.p.expect_exact, ["(stopped)", "tokens/s"]) == 0:
            break
        me.says("/undo", "taken back")
    me.says("/save talk.json", "saved")
    me.leaves()
    assert [m["role"] for m in saved(home)] == ["user", "assistant"]
    assert saved(home)[1]["content"]


def test_a_models_escapes_do_not_reach_the_terminal(taught, home):
    me = Person(taught, home, NO_COLOR="1")
    me.says("Escape", "a\ufffd[31mb\ufffdc")
    me.leaves()


def test_a_dumb_terminal_has_plain_lines(taught, home):
    me = Person(taught, home, TERM="dumb")
    me.says("Hello!", "水 and 👩‍🚀, hello.")
    me.prompted()
    me.types("\x04")
    me.awaits(me.p.expect, pexpect.EOF)
    assert "\x1b" not in me.p.before


def piped(taught, home, lines, *options):
    return subprocess.run(
        [sys.executable, *command(taught, *options)], input="".join(line + "\n" for line in lines),
        capture_output=True, text=True, cwd=home, env=environment(home), check=False, timeout=600,
    )  # fmt: skip


def test_in_a_pipe_nothing_is_run_unasked_and_nothing_is_coloured(taught, home):
    done = piped(taught, home, ["Add 20 and 1."], "--tools", "tools.py")
    assert done.returncode == 2
    assert "tools.py is a program, and stdin is no terminal to ask on; --yes runs it unasked" in done.stderr
    done = piped(taught, home, ["Add 20 and 1.", "/reset", "Escape"], "--tools", "tools.py", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-> add(a=20, b=1)\n\nIt is 21.\n")
    assert "<- 21" in done.stderr
    assert "\x1b" not in done.stderr
    assert "prompt_toolkit" not in done.stderr
    assert not (home / "state").exists()


def test_schemas_alone_are_shown_and_answered_by_hand(taught, home):
    from headwater.functions import of_file

    (home / "tools.json").write_text(json.dumps([f.schema for f in of_file(home / "tools.py")]))
    done = piped(taught, home, ["Add 20 and 1.", "/tool 21"], "--tools", "tools.json")
    assert done.stdout == "-> add(a=20, b=1)\n\nIt is 21.\n"
    done = piped(taught, home, [], "--tools", "tools.json", "--yes")
    assert (done.returncode, "has schemas alone" in done.stderr) == (2, True)


def test_the_editor_is_loaded_on_a_terminal_alone(taught, home):
    code = "import sys\nfrom headwater import cli\ncli.run(sys.argv[1:])\nprint('prompt_toolkit' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *command(taught)[2:]], input="Hello!\n", capture_output=True, text=True, cwd=home,
        env=environment(home), check=True, timeout=600,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"


def test_killed_while_saving_leaves_a_whole_conversation(taught, home):
    """kill -9 at any moment of /save --state: the file loads, as the old or as the new conversation."""
    whole = 0
    for wait in (0, 7, 60):
        p = subprocess.Popen(
            [sys.executable, *command(taught)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=home, env=environment(home), text=True, bufsize=1,
        )  # fmt: skip
        for line in ["Hello!", "/save --state talk.json"]:
            p.stdin.write(line + "\n")
        p.stdin.flush()
        while "saved to" not in (line := p.stderr.readline()):
            assert line, f"the chat ended with {p.wait()} before it saved"
        for _ in range(200):
            p.stdin.write("/save --state talk.json\n")
        p.stdin.flush()
        for _ in range(wait):
            p.stderr.readline()
        p.send_signal(signal.SIGKILL)
        p.wait()
        for pipe in (p.stdin, p.stdout, p.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        done = piped(taught, home, ["/load talk.json", "Escape"])
        assert done.returncode == 0, done.stderr
        assert "messages from talk.json; " in done.stderr
        whole += "tokens of its state are loaded" in done.stderr
    assert whole == 3
