"""The lines of `headwater chat`: what begins with / is a command, anything else is said to the model.

The model's calls are run here, one after another, where a Toolbox holds the function and the person says yes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.commands.session import Session, call_text
from headwater.commands.terminal import Terminal
from headwater.commands.tools import Toolbox
from headwater.files import closest
from headwater.sampling import SamplingParams
from headwater.tool_calls import Event, ToolCall

_MULTI_END = "/end"
_MAX_ROUNDS = 10
"""Answers in a row that call tools, before the person is asked again."""
_YES, _ALWAYS, _NO = "yes", "always", "no"


class Repl:
    """Reads lines until the end. unasked: calls run without a question; seconds: most of one call."""

    def __init__(
        self, session: Session, terminal: Callable[[list[str]], Terminal], *, unasked: bool = False, seconds: float = 30
    ) -> None:
        self._session, self._unasked, self._seconds = session, unasked, seconds
        self._toolbox: Toolbox | None = None
        self._always: set[str] = set()
        self._regenerated = 0
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "these lines"),
            "/exit": (self._exit, "leave (Ctrl-D too)"),
            "/reset": (self._reset, "forget the conversation, keep the system message"),
            "/undo": (self._undo, "take back the last message and its answer"),
            "/regen": (self._regen, "another answer to the last message"),
            "/system": (self._system, "TEXT: set the system message; nothing: show it"),
            "/multi": (self._multi, f"say several lines, up to a line {_MULTI_END}; on a terminal Alt-Enter, or \\ at "
                                    "the end of a line, does it too"),
            "/tools": (self._tools, "FILE.py: its functions become tools; nothing: list them; off: none"),
            "/tool": (self._tool, "TEXT: give the result of a tool call yourself"),
            "/save": (self._save, "[--state] FILE: write the conversation as JSON; --state: what the engine holds too"),
            "/load": (self._load, "FILE: go on with a saved conversation"),
            "/stats": (self._stats, "tokens, speed, what of the context is used"),
        }  # fmt: skip
        self._terminal = terminal(list(self.commands))

    def run(self) -> None:
        """Until /exit or the end of input. On a terminal a fault costs one message; in a pipe it ends the program."""
        self._lines = self._terminal.lines()
        try:
            for line in self._lines:
                try:
                    self._take(line)
                except (ValueError, OSError) as e:
                    if not self._terminal.interactive:
                        raise
                    self._terminal.note(f"headwater: {' '.join(str(e).split())}")
                except KeyboardInterrupt:
                    if not self._terminal.interactive:
                        raise
                    self._terminal.note("\n(stopped)")
                except EOFError:
                    return
        finally:
            self._drop_tools()

    def load_tools(self, path: str | Path) -> None:
        """Run a file, if the person agrees, and take its functions as tools. ValueError where nobody can be asked."""
        path = _path(str(path), "/tools FILE.py")
        if not self._unasked and path.is_file():
            if not self._terminal.interactive:
                raise ValueError(f"{path} is a program, and stdin is no terminal to ask on; --yes runs it unasked")
            question = f"{path} is a program: loading it runs it with all your rights. Load it? [yes/no] "
            if self._terminal.ask(question, (_YES, _NO)) == _NO:
                self._terminal.note("(not loaded)")
                return
        toolbox = Toolbox(path, seconds=self._seconds)
        try:
            self._session.chat.render([{"role": "user", "content": "."}], tools=toolbox.schemas, today="now")
        except ValueError:
            toolbox.close()
            raise
        self._drop_tools()
        self._toolbox, self._session.tools = toolbox, toolbox.schemas
        self._terminal.note(f"(tools: {', '.join(s['name'] for s in toolbox.schemas)})")

    def _take(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if not word:
            return
        if not word.startswith("/"):
            self._say(line)
        elif word in self.commands:
            self.commands[word][0](rest.strip())
        else:
            raise ValueError(f"no command {word!r}{closest(word, list(self.commands))}; /help lists them")

    # --- what is said ---

    def _say(self, text: str, role: str = "user") -> None:
        before = list(self._session.messages)
        self._session.say(text, role)
        self._answer(before)

    def _answer(self, before: list[dict[str, Any]]) -> None:
        """An answer, and as long as it calls tools that are run, the next. before: the messages to go back to where the
        first cannot be given."""
        for round_ in range(_MAX_ROUNDS):
            try:
                if not self._one_answer():
                    return
            except ValueError:
                if not round_:
                    self._session.messages = before
                raise
            if not self._run_calls():
                return
        self._terminal.note(f"({_MAX_ROUNDS} answers in a row called tools; say something to go on)")

    def _one_answer(self) -> bool:
        """Stream an answer; False when Ctrl-C ended it. What was said so far stays."""
        try:
            speed = self._session.answer(self._show)
        except KeyboardInterrupt:
            self._terminal.say("\n")
            self._terminal.note("(stopped)")
            if not self._terminal.interactive:
                raise
            return False
        self._terminal.say("\n")
        self._terminal.note(f"[{speed}]")
        return True

    def _show(self, event: Event) -> None:
        if event.call is not None:
            self._terminal.say(f"-> {call_text(event.call)}\n")
        elif event.error is not None:
            self._terminal.note(f"({event.error})")
        elif event.kind == "reasoning":
            self._terminal.note(event.text, end="")
        else:
            self._terminal.say(event.text)

    # --- tools ---

    def _run_calls(self) -> bool:
        """Run the calls of the last answer; False when there are none, or none that anybody agreed to run."""
        calls = self._session.calls()
        if not calls or self._toolbox is None:
            return False
        if not (self._unasked or self._terminal.interactive):
            self._terminal.note("(not run: stdin is no terminal to ask on; --yes runs calls unasked)")
            return False
        stopped = False
        for call in calls:
            text = "stopped by the user" if stopped else None
            if text is None:
                try:
                    text = self._result(call["name"], call["arguments"])
                except KeyboardInterrupt:
                    text, stopped = "stopped by the user", True
                    self._terminal.note("\n(stopped)")
            self._session.say(text, "tool")
        return not stopped

    def _result(self, name: str, arguments: dict[str, Any]) -> str:
        """What the model is told of one call."""
        assert self._toolbox is not None
        if not self._unasked and name not in self._always:
            question = f"run {call_text(ToolCall(name, arguments))}? [yes/no/always] "
            said = self._terminal.ask(question, (_YES, _ALWAYS, _NO))
            if said == _NO:
                return "the user did not allow this call"
            if said == _ALWAYS:
                self._always.add(name)
        well, text = self._toolbox.call(name, arguments)
        shown = text if len(text) <= 500 else f"{text[:500]}... ({len(text):,} characters)"
        self._terminal.note(f"<- {shown}" if well else f"<- error: {shown}")
        return text if well else f"error: {text}"

    def _drop_tools(self) -> None:
        if self._toolbox is not None:
            self._toolbox.close()
            self._toolbox, self._session.tools, self._always = None, None, set()

    def _tools(self, path: str) -> None:
        if path == "off":
            self._drop_tools()
            self._session.tools = None
        elif path:
            self.load_tools(path)
            return
        schemas = self._session.tools or []
        for schema in schemas:
            function = schema.get("function") or schema
            arguments = ", ".join((function.get("parameters") or {}).get("properties", ()))
            self._terminal.note(f"  {function.get('name')}({arguments})  {_first_line(function.get('description'))}")
        if not schemas:
            self._terminal.note("(no tools)")

    def _tool(self, text: str) -> None:
        self._say(_needed(text, "/tool TEXT"), "tool")

    # --- commands ---

    def _help(self, _: str) -> None:
        for word, (_run, says) in self.commands.items():
            self._terminal.note(f"  {word:<8} {says}")

    def _exit(self, _: str) -> None:
        raise EOFError

    def _reset(self, _: str) -> None:
        self._session.reset()
        self._terminal.note("(the conversation is empty)")

    def _undo(self, _: str) -> None:
        said = self._session.undo()
        if said is None:
            raise ValueError("there is no message to take back")
        self._terminal.note(f"(taken back: {_first_line(said)})")

    def _system(self, text: str) -> None:
        if text:
            self._session.set_system(text)
        else:
            first = self._session.messages[:1]
            found = first[0]["content"] if first and first[0]["role"] == "system" else "(no system message)"
            self._terminal.note(found)

    def _multi(self, first: str) -> None:
        lines = [first] if first else []
        for line in self._lines:
            if line.strip() == _MULTI_END:
                break
            lines.append(line)
        if lines:
            self._say("\n".join(lines))

    def _regen(self, _: str) -> None:
        before = list(self._session.messages)
        if not self._session.take_back():
            raise ValueError("there is no message to answer yet")
        kept = self._session.params
        self._regenerated += 1
        self._session.params = with_other_seed(kept, self._regenerated)
        try:
            self._answer(before)
        finally:
            self._session.params = kept

    def _save(self, rest: str) -> None:
        word, _, named = rest.partition(" ")
        state = word == "--state"
        path = _path(named if state else rest, "/save FILE, or /save --state FILE")
        self._session.save(path, state=state)
        self._terminal.note(f"(saved to {path})")

    def _load(self, path: str) -> None:
        file = _path(path, "/load FILE")
        said = self._session.load(file)
        self._terminal.note(f"({len(self._session.messages)} messages from {file}{said and '; ' + said})")

    def _stats(self, _: str) -> None:
        t, context = self._session.totals, self._session.model.context
        read = t.prompt_tokens - t.reused_tokens
        rows = (
            ("messages", f"{len(self._session.messages):,}"),
            ("context", f"{t.in_context:,} of {context:,} tokens after the last answer"),
            ("read", f"{read:,} tokens, {read / max(t.prefill_seconds, 1e-9):,.1f} tokens/s; "
                     f"{t.reused_tokens:,} more were in the cache"),
            ("written", f"{t.answer_tokens:,} tokens in {t.answers:,} answers, "
                        f"{max(0, t.answer_tokens - t.answers) / max(t.decode_seconds, 1e-9):,.1f} tokens/s"),
        )  # fmt: skip
        for name, text in rows:
            self._terminal.note(f"  {name:<9} {text}")


def with_other_seed(params: SamplingParams, add: int) -> SamplingParams:
    """The same options with another seed, for another answer to the same question."""
    return replace(params, seed=params.seed + add)


def _needed(text: str, form: str) -> str:
    if not text:
        raise ValueError(f"something is missing; the form is {form}")
    return text


def _first_line(text: str | None) -> str:
    line = (text or "").strip().partition("\n")[0]
    return line if len(line) <= 80 else line[:77] + "..."


def _path(text: str, form: str) -> Path:
    """A file that was named; ~ is the home folder, as completion writes it. ValueError."""
    try:
        return Path(_needed(text.strip(), form)).expanduser()
    except RuntimeError as e:
        raise ValueError(f"{text.strip()}: nobody of that name has a home folder here; give the whole path") from e
