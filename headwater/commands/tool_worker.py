"""The process in which the functions of a tools file run: requests as lines of JSON on stdin, replies on stdout.

Apart from the chat, so that a call can be ended at any moment, and so that what a function prints is no answer: it goes
to stderr. Started by tools.Toolbox, with the path of the file as its argument.
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater import functions
from headwater.files import closest


def main(path: str) -> None:
    """Answer until stdin ends. The first line says which tools there are."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.argv = [path]

    def reply(value: dict[str, Any]) -> None:
        sys.stdout.flush()
        replies.write(json.dumps(value).encode() + b"\n")
        replies.flush()

    try:
        tools = {f.name: f for f in functions.of_file(path)}
    except BaseException as e:
        reply({"error": said(e, path)})
        return
    reply({"schemas": [f.schema for f in tools.values()]})
    for line in requests:
        request = json.loads(line)
        try:
            reply({"result": call(tools, request["name"], request["arguments"])})
        except BaseException as e:
            reply({"error": said(e, path)})


def call(tools: Mapping[str, functions.Function], name: str, arguments: Mapping[str, Any]) -> str:
    """The result of a tool as text. ValueError where there is no such tool."""
    if name not in tools:
        raise ValueError(f"there is no tool {name!r}{closest(name, list(tools))}; there are {', '.join(tools)}")
    return tools[name](arguments)


def said(error: BaseException, path: str) -> str:
    """What went wrong, with the line of the user's file where it did."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines = [error.lineno]
    where = f" ({Path(path).name}, line {lines[-1]})" if lines else ""
    kind = "" if type(error) is ValueError and not lines else f"{type(error).__name__}: "
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return functions.result_text(f"{kind}{text}{where}".strip())
