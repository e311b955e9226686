"""Python functions as tools: a JSON schema from type hints and docstring, and a call with checked arguments.

    def weather(city: str, days: int = 1) -> str:
        '''The weather of the next days.

        Args:
            city: Name of the city.
        '''

Nothing is run here but the function itself; asking a person first, time limits and a process apart are the caller's
(commands.tools). How a call stands in a model's text is tool_calls'.
"""

import asyncio
import importlib.util
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from headwater.files import closest

_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SUPPORTED = "str, int, float, bool, None, list[...], dict[str, ...], Literal[...], X | Y, Any, Annotated[X, 'text']"
_MAX_RESULT = 20_000


class Function:
    """A function with its schema: {"name", "description", "parameters"}, as LFM2's prompts list tools."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """ValueError names the parameter whose hint is missing or has no form in JSON."""
        self.name, self._function = function.__name__, function
        described, arguments = _docstring(inspect.getdoc(function) or "")
        signature = inspect.signature(function)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception as e:  # a name in a hint that is not defined can fail in any way
            raise ValueError(f"{self.name}(): its type hints cannot be read ({type(e).__name__}: {e})") from e
        properties, required = {}, []
        for name, p in signature.parameters.items():
            where = f"{self.name}({name})"
            if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                raise ValueError(f"{where}: models call by name; *args, **kwargs and positional-only have none")
            if name not in hints:
                raise ValueError(f"{where} has no type hint; supported are {_SUPPORTED}")
            properties[name] = _schema(hints[name], where)
            if name in arguments:
                properties[name].setdefault("description", arguments[name])
            if p.default is p.empty:
                required.append(name)
            elif _is_json(p.default):
                properties[name]["default"] = p.default
        if lost := [a for a in arguments if a not in properties]:
            hint = closest(lost[0], list(properties))
            raise ValueError(f"{self.name}(): the docstring describes {lost[0]!r}, which is no parameter{hint}")
        self._hints = {name: hints[name] for name in properties}
        self.schema: dict[str, Any] = {
            "name": self.name,
            "description": described,
            "parameters": {"type": "object", "properties": properties, "required": required},
        }

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Call with JSON values; the result as text. ValueError where an argument does not fit its hint; what the
        function raises passes through."""
        required = self.schema["parameters"]["required"]
        for name in arguments:
            if name not in self._hints:
                raise ValueError(
                    f"{self.name}() has no argument {name!r}{closest(name, list(self._hints))}; "
                    f"it has {', '.join(self._hints) or 'none'}"
                )
        if missing := [name for name in required if name not in arguments]:
            raise ValueError(f"{self.name}() needs the argument {missing[0]!r}")
        values = {k: _value(v, self._hints[k], f"{self.name}({k})") for k, v in arguments.items()}
        result = self._function(**values)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        return result_text(result)


def of_file(path: str | Path) -> list[Function]:
    """Run a Python file and take its public functions: those that it defines, without a leading underscore, or the
    names of its __all__. ValueError when there are none or one cannot be a tool; what the file raises passes through.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(
        f"_tools_{path.stem}", path, loader=SourceFileLoader(f"_tools_{path.stem}", str(path))
    )
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: dataclasses and pickle look there
    spec.loader.exec_module(module)
    chosen = getattr(module, "__all__", None)
    if chosen is not None and (lost := [n for n in chosen if not inspect.isfunction(getattr(module, n, None))]):
        raise ValueError(f"{path}: __all__ names {lost[0]!r}, which is no function there")
    names = chosen or [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not names:
        raise ValueError(f"{path} defines no function whose name begins without an underscore; there is no tool in it")
    return [Function(getattr(module, name)) for name in names]


def result_text(value: Any) -> str:
    """What a function returned as text for the model: text as it is, else JSON; cut where it is very long.

    A lone surrogate (a file's name that is not UTF-8 has some) becomes "?": no tokenizer could read it, ever again."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode()
    if len(text) > _MAX_RESULT:
        return f"{text[:_MAX_RESULT]}\n(cut: {len(text):,} characters, of which these are the first {_MAX_RESULT:,})"
    return text


async def _awaited(value: Any) -> Any:
    return await value


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """A type hint as JSON schema. ValueError for one that JSON has no form of."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if hint is Any:
        return {}
    if origin is Annotated:
        text = next((a for a in inside[1:] if isinstance(a, str)), None)
        return _schema(inside[0], where) | ({} if text is None else {"description": text})
    if origin is Literal and all(_is_json(v) for v in inside):
        return {"enum": list(inside)}
    if origin in (Union, types.UnionType):
        options = [_schema(i, where) for i in inside]
        if all(set(o) == {"type"} for o in options):
            return {"type": [o["type"] for o in options]}
        return {"anyOf": options}
    if hint is list or origin is list:
        return {"type": "array"} | ({"items": _schema(inside[0], where)} if inside else {})
    if hint is dict or (origin is dict and inside[0] is str):
        return {"type": "object"} | ({"additionalProperties": _schema(inside[1], where)} if inside else {})
    shown = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) and not inside else str(hint)
    raise ValueError(f"{where}: the hint {shown} has no form in JSON; supported are {_SUPPORTED}")


def _value(value: Any, hint: Any, where: str) -> Any:
    """A JSON value checked against a hint. ValueError says what came and what is allowed."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _value(value, inside[0], where)
    if origin in (Union, types.UnionType):
        return _one_of(value, inside, where)
    if origin is Literal:
        if any(value == v and type(value) is type(v) for v in inside):
            return value
        raise ValueError(f"{where} is {_short(value)}; allowed: {', '.join(map(_short, inside))}")
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and math.isfinite(value) and value == int(value):
        return int(value)  # models write 2.0 for 2
    base = origin or hint
    if type(value) is not base:
        raise ValueError(f"{where} is {_short(value)}; allowed: {_wanted(hint)}")
    if base is list and inside:
        return [_value(v, inside[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if base is dict and inside:
        return {k: _value(v, inside[1], f"{where}[{k!r}]") for k, v in value.items()}
    return value


def _one_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    exact = [h for h in hints if h is type(value)]
    for hint in exact or hints:
        try:
            return _value(value, hint, where)
        except ValueError:
            continue
    raise ValueError(f"{where} is {_short(value)}; allowed: {' or '.join(map(_wanted, hints))}")


def _wanted(hint: Any) -> str:
    return str(_schema(hint, "").get("type", hint)) if get_origin(hint) is not Annotated else _wanted(get_args(hint)[0])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    return type(value) in (str, int, bool, type(None)) or (type(value) is float and math.isfinite(value))


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(what a docstring says of the function, of each argument). Reads "Args:" sections and ":param name:" lines."""
    said: list[str] = []
    arguments: dict[str, str] = {}
    section, name, indent = "", "", 0
    for line in text.splitlines():
        bare, depth = line.strip(), len(line) - len(line.lstrip())
        if bare.startswith(":"):
            section = "fields"
            head, _, rest = bare[1:].partition(":")
            name = head.split()[-1] if head.startswith("param ") else ""
            if name:
                arguments[name] = rest.strip()
        elif depth == 0 and bare in ("Args:", "Arguments:", "Parameters:"):
            section, name, indent = "arguments", "", 0
        elif depth == 0 and bare in ("Returns:", "Raises:", "Yields:", "Example:", "Examples:", "Note:", "Notes:"):
            section = "rest"
        elif section == "arguments" and bare:
            indent = indent or depth
            head, colon, rest = bare.partition(":")
            if depth == indent and colon:
                name = head.split("(")[0].strip().lstrip("*")
                arguments[name] = rest.strip()
            elif name:
                arguments[name] = f"{arguments[name]} {bare}".strip()
        elif section == "fields" and bare and name:
            arguments[name] = f"{arguments[name]} {bare}"
        elif not section:
            said.append(bare)
    return "\n".join(said).strip(), arguments
