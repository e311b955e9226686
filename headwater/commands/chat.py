"""`headwater chat`: talk with a model on the terminal, or through a pipe line by line.

Answers go to stdout, everything else (prompt sign, speed, notices) to stderr, so that a pipe carries answers alone.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from headwater.arguments import Option
from headwater.commands import options as o
from headwater.files import closest, read_json
from headwater.sampling import PRESETS, SamplingParams

if TYPE_CHECKING:
    from headwater.chat import Chat
    from headwater.commands.session import Session
    from headwater.config import Config
    from headwater.tokenizer import Tokenizer
    from headwater.tool_calls import Event

_MAX_TOKENS = 1024
_MULTI_END = "/end"


def chat(
    model: o.Model,
    *,
    system: Annotated[str, Option("The system message.")] = "",
    tools: Annotated[Path | None, Option("A JSON file: a list of tool schemas.")] = None,
    style: Annotated[str | None, Option("Chat style, where the model has no known chat template.")] = None,
    greedy: Annotated[bool, Option("Always the likeliest token.", ("--greedy",))] = False,
    sampling: o.Sampling,
    running: o.Running,
) -> None:
    """Talk with a model; sampling starts from what its publisher recommends. /help lists the commands inside."""
    if greedy and sampling.given().keys() - {"max_tokens", "stop"}:
        raise ValueError("--greedy came with sampling options; leave one of them out")
    sampling.on(PRESETS["greedy"])  # a value out of range is known before the weights are read
    running.check()
    schemas = None if tools is None else _schemas(tools)
    from headwater.commands import engines
    from headwater.commands.session import Session

    talk = _chat_of(model, engines.tokenizer(model, running), style)
    lfm = engines.open_talk(model, talk.tokenizer, running)
    name = "greedy" if greedy else recommended(lfm.config)
    params = sampling.on(replace(PRESETS[name], max_tokens=_MAX_TOKENS))
    session = Session(lfm, talk, params, system=system, tools=schemas)
    _note(f"{model}: {lfm.config.num_parameters():,} parameters; engine: {lfm.name}; sampling: {name}; /help: commands")
    Repl(session).run()


def recommended(c: "Config") -> str:
    """The row of PRESETS for a model of this shape: convolutions are this family's, gated windows among them its
    third's."""
    mixers = [layer.mixer for layer in c.layers]
    if all(m.kind == "attention" for m in mixers):
        return "greedy"
    return "lfm3" if any(getattr(m, "window", None) and getattr(m, "output_gate", False) for m in mixers) else "lfm2"


def _schemas(path: Path) -> list[Any]:
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(schema, dict) for schema in value):
        raise ValueError(f"{path} holds no list of tool schemas; allowed: [{{...}}, ...]")
    return value


def _chat_of(model: str, tokenizer: "Tokenizer", style: str | None) -> "Chat":
    """The model's chat template, or the style that was asked for, or the one its control tokens fit."""
    from headwater.chat import STYLES, Chat, style_of
    from headwater.tokenizer import LFM2_SPECIAL

    if style is not None:
        return Chat(tokenizer, style)
    if tokenizer.chat_template is not None:
        return Chat(tokenizer, style_of(tokenizer.chat_template))
    if tokenizer.special_tokens[: len(LFM2_SPECIAL)] != [*LFM2_SPECIAL]:
        raise ValueError(f"{model} has no chat template (a base model?); choose one with --style: {', '.join(STYLES)}")
    _note(f"{model} has no chat template; its control tokens are those of style lfm2, which is used")
    return Chat(tokenizer, "lfm2")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


class Repl:
    """Reads lines until the end; a line that begins with / is a command, anything else is said to the model."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._terminal = sys.stdin.isatty()
        self._regenerated = 0
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "these lines"),
            "/exit": (self._exit, "leave (Ctrl-D too)"),
            "/reset": (self._reset, "forget the conversation, keep the system message"),
            "/system": (self._system, "TEXT: set the system message; nothing: show it"),
            "/multi": (self._multi, f"say several lines, up to a line {_MULTI_END}"),
            "/tool": (self._tool, "TEXT: give the result of a tool call"),
            "/regen": (self._regen, "another answer to the last message"),
            "/save": (self._save, "FILE: write the conversation as JSON"),
            "/load": (self._load, "FILE: go on with a saved conversation"),
        }

    def run(self) -> None:
        """Until /exit or the end of input. On a terminal a fault costs one message; in a pipe it ends the program."""
        if self._terminal:
            import readline  # noqa: F401 (line editing for input())
        self._lines = self._read_lines()
        for line in self._lines:
            try:
                self._take(line)
            except (ValueError, OSError) as e:
                if not self._terminal:
                    raise
                _note(f"headwater: {' '.join(str(e).split())}")
            except EOFError:
                return

    def _read_lines(self) -> Iterator[str]:
        if not self._terminal:
            for number, raw in enumerate(sys.stdin.buffer, 1):
                yield o.utf8(raw.rstrip(b"\r\n"), f"line {number} of stdin")
            return
        while True:
            try:
                sys.stderr.flush()
                yield input("> ")
            except KeyboardInterrupt:
                _note("\n(/exit leaves)")
            except EOFError:
                print(file=sys.stderr)
                return

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

    def _say(self, text: str, role: str = "user") -> None:
        self._session.say(text, role)
        try:
            self._answer()
        except ValueError:
            self._session.messages.pop()
            raise

    def _answer(self) -> None:
        """Stream an answer; Ctrl-C ends it and what was said so far stays."""
        try:
            speed = self._session.answer(self._show)
        except KeyboardInterrupt:
            print(flush=True)
            _note("(stopped)")
            if not self._terminal:
                raise
            return
        print(flush=True)
        _note(f"[{speed}]")

    def _show(self, event: "Event") -> None:
        from headwater.commands.session import call_text

        if event.call is not None:
            print(f"-> {call_text(event.call)}", flush=True)
        elif event.error is not None:
            _note(f"({event.error})")
        elif event.kind == "reasoning":
            print(event.text, end="", file=sys.stderr, flush=True)
        else:
            print(event.text, end="", flush=True)

    def _help(self, _: str) -> None:
        for word, (_run, says) in self.commands.items():
            _note(f"  {word:<8} {says}")

    def _exit(self, _: str) -> None:
        raise EOFError

    def _reset(self, _: str) -> None:
        self._session.reset()
        _note("(the conversation is empty)")

    def _system(self, text: str) -> None:
        if text:
            self._session.set_system(text)
        else:
            first = self._session.messages[:1]
            _note(first[0]["content"] if first and first[0]["role"] == "system" else "(no system message)")

    def _multi(self, first: str) -> None:
        lines = [first] if first else []
        for line in self._lines:
            if line.strip() == _MULTI_END:
                break
            lines.append(line)
        if lines:
            self._say("\n".join(lines))

    def _tool(self, text: str) -> None:
        self._say(_needed(text, "/tool TEXT"), "tool")

    def _regen(self, _: str) -> None:
        before = list(self._session.messages)
        if not self._session.take_back():
            raise ValueError("there is no message to answer yet")
        kept = self._session.params
        self._regenerated += 1
        self._session.params = with_other_seed(kept, self._regenerated)
        try:
            self._answer()
        except ValueError:
            self._session.messages = before
            raise
        finally:
            self._session.params = kept

    def _save(self, path: str) -> None:
        self._session.save(_needed(path, "/save FILE"))
        _note(f"(saved to {path})")

    def _load(self, path: str) -> None:
        self._session.load(_needed(path, "/load FILE"))
        _note(f"({len(self._session.messages)} messages from {path})")


def with_other_seed(params: SamplingParams, add: int) -> SamplingParams:
    """The same options with another seed, for another answer to the same question."""
    return replace(params, seed=params.seed + add)


def _needed(text: str, form: str) -> str:
    if not text:
        raise ValueError(f"something is missing; the form is {form}")
    return text
