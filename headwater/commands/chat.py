"""`headwater chat`: talk with a model on the terminal, or through a pipe line by line.

Answers go to stdout, everything else (prompt sign, speed, notices) to stderr, so that a pipe carries answers alone.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from headwater.arguments import Option
from headwater.commands import options as o
from headwater.files import read_json
from headwater.sampling import PRESETS

if TYPE_CHECKING:
    from headwater.chat import Chat
    from headwater.config import Config
    from headwater.tokenizer import Tokenizer

_MAX_TOKENS = 1024
_TOOL_SECONDS = 30.0


def chat(
    model: o.Model,
    *,
    system: Annotated[str, Option("The system message.")] = "",
    tools: Annotated[
        Path | None, Option("A .py file whose functions become tools (loading it runs it), or a .json list of schemas.")
    ] = None,
    yes: Annotated[
        bool, Option("Load the file of tools and run the model's calls without asking.", ("--yes",))
    ] = False,
    tool_seconds: Annotated[float, Option("A call of a tool that takes longer is ended.")] = _TOOL_SECONDS,
    history: Annotated[bool, Option("Keep what is typed for the next chat.")] = True,
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
    python = tools is not None and tools.suffix == ".py"
    if yes and tools is not None and not python:
        raise ValueError(f"--yes runs the calls of Python tools; {tools} has schemas alone")
    if tool_seconds <= 0:
        raise ValueError(f"--tool-seconds is {tool_seconds:g}; allowed: above 0")
    schemas = None if tools is None or python else _schemas(tools)
    from headwater.commands import engines
    from headwater.commands.repl import Repl
    from headwater.commands.session import Session
    from headwater.commands.terminal import Terminal, history_file

    talk = _chat_of(model, engines.tokenizer(model, running), style)
    lfm = engines.open_talk(model, talk.tokenizer, running)
    name = "greedy" if greedy else recommended(lfm.config)
    params = sampling.on(replace(PRESETS[name], max_tokens=_MAX_TOKENS))
    session = Session(lfm, talk, params, system=system, tools=schemas, name=model)
    repl = Repl(
        session, lambda words: Terminal(words, history=history_file() if history else None), unasked=yes,
        seconds=tool_seconds,
    )  # fmt: skip
    print(
        f"{model}: {lfm.config.num_parameters():,} parameters; engine: {lfm.name}; sampling: {name}; /help: commands",
        file=sys.stderr,
    )
    if python:
        assert tools is not None
        repl.load_tools(tools)
    repl.run()


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
    from headwater.chat import STYLES, Chat
    from headwater.tokenizer import LFM2_SPECIAL

    if style is not None:
        return Chat(tokenizer, style)
    if tokenizer.chat_template is not None:
        return Chat.of(tokenizer)
    if tokenizer.special_tokens[: len(LFM2_SPECIAL)] != [*LFM2_SPECIAL]:
        raise ValueError(f"{model} has no chat template (a base model?); choose one with --style: {', '.join(STYLES)}")
    print(f"{model} has no chat template; its control tokens are those of style lfm2, which is used", file=sys.stderr)
    return Chat(tokenizer, "lfm2")
