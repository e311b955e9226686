"""What the parameters of a verb look like on the command line, declared without typer, which takes longer to import
than a model to load.

`Option` and `Argument` stand in Annotated types; a parameter whose type is a record is a group: its fields are
options of their own. `quick` reads a command line that is plainly right; whatever it does not understand (a fault,
--help) goes to typer, for which `for_typer` writes the same function out.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from headwater import records
from headwater.records import REQUIRED, record


@record(frozen=True)
class Option:
    """An option: its help and, where they are not the parameter's own, its names ("--a", or "--a/--no-a")."""

    help: str
    names: tuple[str, ...] = ()


@record(frozen=True)
class Argument:
    """A word that stands by its place."""

    help: str


@record(frozen=True)
class _Parameter:
    name: str
    type: Any
    declared: Any
    default: Any
    group: str | None


_NUMBERS = {int: r"-?\d{1,18}", float: r"-?\d+(\.\d+)?([eE]-?\d+)?"}  # compiled when first needed


def _parameters(function: Callable[..., None]) -> Iterator[_Parameter]:
    """Every parameter, groups written out."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = dict(zip(names[: code.co_argcount][::-1], (function.__defaults__ or ())[::-1], strict=False))
    defaults |= function.__kwdefaults__ or {}
    for name in names:
        type_ = function.__annotations__.get(name)
        if records.is_record(type_):
            for f in records.fields(type_):
                yield _Parameter(f.name, *_declared(f.type), f.default, name)
        else:
            yield _Parameter(name, *_declared(type_), defaults.get(name, REQUIRED), None)


def _declared(annotation: Any) -> tuple[Any, Any]:
    """(the type, what is declared of it or None)."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)
    return annotation, None


def _collect(function: Callable[..., None], values: dict[str, Any]) -> dict[str, Any]:
    """Values by parameter -> keyword arguments, groups put together."""
    arguments: dict[str, Any] = {}
    for p in _parameters(function):
        if p.group is None:
            arguments[p.name] = values[p.name]
        else:
            arguments.setdefault(p.group, {})[p.name] = values[p.name]
    groups = {p.group for p in _parameters(function)} - {None}
    return {k: function.__annotations__[k](**v) if k in groups else v for k, v in arguments.items()}


def _plain(type_: Any) -> Any:
    """The one type of `X | None`, else the type itself."""
    if isinstance(type_, UnionType):
        rest = [t for t in type_.__args__ if t is not type(None)]
        return rest[0] if len(rest) == 1 else type_
    return type_


class _Unclear(Exception):
    """A command line that is typer's to judge."""


def _value(text: str, type_: Any) -> Any:
    if type_ in _NUMBERS:
        if not re.fullmatch(_NUMBERS[type_], text):
            raise _Unclear
        return type_(text)
    if type_ not in (str, Path) or text.startswith("-"):
        raise _Unclear
    return type_(text)


def _spellings(p: _Parameter) -> dict[str, Any]:
    """--name -> the value it stands for, or REQUIRED where one follows."""
    written = f"--{p.name.replace('_', '-')}"
    flag = _plain(p.type) is bool
    names = p.declared.names or ((f"{written}/--no-{written[2:]}",) if flag else (written,))
    found: dict[str, Any] = {}
    for name in names:
        yes, _, no = name.partition("/")
        found[yes] = True if flag else REQUIRED
        if no:
            found[no] = False
    return found


def quick(function: Callable[..., None], words: Sequence[str]) -> dict[str, Any] | None:
    """Keyword arguments for `function`, or None when typer has to look at the words."""
    parameters = list(_parameters(function))
    if not all(isinstance(p.declared, Option | Argument) for p in parameters):
        return None
    options = {name: (p, v) for p in parameters if isinstance(p.declared, Option) for name, v in _spellings(p).items()}
    places = [p for p in parameters if isinstance(p.declared, Argument)]
    values = {p.name: p.default for p in parameters}
    try:
        _read(iter(words), options, places, values)
    except _Unclear:
        return None
    if any(value is REQUIRED for value in values.values()):
        return None
    return _collect(function, values)


def _read(
    words: Iterator[str], options: dict[str, tuple[_Parameter, Any]], places: list[_Parameter], values: dict[str, Any]
) -> None:
    for word in words:
        if not word.startswith("-"):
            if not places:
                raise _Unclear
            place = places.pop(0)
            values[place.name] = _value(word, _plain(place.type))
            continue
        name, equals, text = word.partition("=")
        if name not in options:
            raise _Unclear
        p, value = options[name]
        type_ = _plain(p.type)
        if value is not REQUIRED:
            if equals:
                raise _Unclear
            values[p.name] = value
            continue
        following = text if equals else next(words, None)
        if following is None:
            raise _Unclear
        if get_origin(type_) is list:
            values[p.name] = [*(values[p.name] or []), _value(following, get_args(type_)[0])]
        else:
            values[p.name] = _value(following, type_)


def for_typer(function: Callable[..., None]) -> Callable[..., None]:
    """The same function as typer wants it: its own annotations, every group written out; others stay as they are."""
    kept = list(_parameters(function))
    if not any(p.group or isinstance(p.declared, Option | Argument) for p in kept):
        return function
    import inspect

    import typer

    def written_out(**values: Any) -> None:
        function(**_collect(function, values))

    def annotation(p: _Parameter) -> Any:
        if isinstance(p.declared, Argument):
            shown = p.default is not REQUIRED
            return Annotated[p.type, typer.Argument(help=p.declared.help, show_default=shown)]
        if isinstance(p.declared, Option):
            return Annotated[p.type, typer.Option(*p.declared.names, help=p.declared.help)]
        return p.type if p.declared is None else Annotated[p.type, p.declared]

    written_out.__doc__, written_out.__name__ = function.__doc__, function.__name__
    written_out.__annotations__ = {p.name: annotation(p) for p in kept}
    written_out.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(
            p.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation(p),
            default=inspect.Parameter.empty if p.default is REQUIRED else p.default,
        )
        for p in kept
    ])  # fmt: skip
    return written_out
