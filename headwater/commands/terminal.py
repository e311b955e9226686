"""Lines from a person or a pipe, and what is shown to them: answers on stdout, everything else on stderr.

On a terminal prompt_toolkit edits the lines: history, several lines, completion. It is loaded there alone.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headwater.commands.options import utf8

# What a model writes must not move the cursor or change the terminal; new lines and tabs may stay.
_CONTROLS = {c: "\ufffd" for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t"}
_PATHS_AFTER = ("/save", "/load", "/tools")


def history_file() -> Path:
    """Where the lines of earlier chats stand: $XDG_STATE_HOME/headwater/history, by default below ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "headwater" / "history"


class Terminal:
    """The two ends of a chat. commands: words to complete; history: a file, or None for none."""

    def __init__(self, commands: Iterable[str] = (), *, history: Path | None = None) -> None:
        self.interactive = sys.stdin.isatty()
        self._commands, self._history = list(commands), history
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
        self._dims = sys.stderr.isatty() and not plain
        self._edits = self.interactive and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._session: Any = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr] # a terminal that is not UTF-8

    def lines(self) -> Iterator[str]:
        """Until the end of input. ValueError, in a pipe, for what is not UTF-8; on a terminal it is said there."""
        number = 0
        while True:
            number += 1
            try:
                line = self._line(number)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.note("(/exit or Ctrl-D leaves)")
            except EOFError:
                return
            except ValueError as e:
                if not self.interactive:
                    raise
                self.note(f"headwater: {e}")
            else:
                yield line

    def ask(self, question: str, answers: Sequence[str]) -> str:
        """One of `answers` by its first letter; the last of them for the end of input, or where nobody can be asked."""
        while self.interactive:
            try:
                said = self._ask_line(question).strip().lower()
            except EOFError:
                break
            found = [a for a in answers if said and a.startswith(said)]
            if found:
                return found[0]
            self.note(f"({', '.join(answers)}: one of them, please)")
        return answers[-1]

    def note(self, text: str, end: str = "\n") -> None:
        """Beside the conversation."""
        shown = self._visible(text)
        print(f"\x1b[2m{shown}\x1b[0m" if self._dims else shown, end=end, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A piece of an answer."""
        print(self._visible(text) if sys.stdout.isatty() else text, end="", flush=True)

    def _visible(self, text: str) -> str:
        return text.translate(_CONTROLS)

    def _line(self, number: int) -> str:
        if not self._edits:
            if self.interactive:
                print("> ", end="", file=sys.stderr, flush=True)
            raw = sys.stdin.buffer.readline()
            if not raw:
                raise EOFError
            return utf8(raw.rstrip(b"\r\n"), f"line {number} of stdin")
        if self._session is None:
            self._session = _editor(self._commands, self._history, self.note)
        return str(self._session.prompt("> "))

    def _ask_line(self, question: str) -> str:
        if not self._edits:
            print(question, end="", file=sys.stderr, flush=True)
            raw = sys.stdin.buffer.readline()
            if not raw:
                raise EOFError
            return raw.decode(errors="replace")
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        return str(PromptSession(output=create_output(sys.stderr)).prompt(question))


def _editor(commands: Sequence[str], history: Path | None, note: Callable[[str], None]) -> Any:
    """A session of prompt_toolkit. A history that cannot be written costs one line and is done without."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import create_output

    kept: Any = InMemoryHistory()
    if history is not None:
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(history, os.O_WRONLY | os.O_CREAT, 0o600))  # for nobody else to read
            kept = FileHistory(str(history))
        except OSError as e:
            note(f"(the history is not kept: {e})")
    return PromptSession(
        history=kept, completer=_completer(commands), key_bindings=_keys(), multiline=True, complete_while_typing=False,
        prompt_continuation="  ", output=create_output(sys.stderr), enable_open_in_editor=True, tempfile_suffix=".txt",
    )  # fmt: skip


def _keys() -> Any:
    """Enter sends, unless the line ends in a backslash; Alt-Enter always begins a new line. Pasted lines stay lines."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(commands: Sequence[str]) -> Any:
    """Tab: commands at the beginning, paths behind those that take one."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
            word, space, rest = document.text_before_cursor.partition(" ")
            if not word.startswith("/") or "\n" in rest:
                return
            if not space:
                yield from (Completion(c, start_position=-len(word)) for c in commands if c.startswith(word))
            elif word in _PATHS_AFTER:
                yield from paths.get_completions(Document(rest, len(rest)), event)

    return Commands()
