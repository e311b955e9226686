"""Classes of named values, made as `dataclasses` makes them but without compiling code: for what every start imports.

`dataclasses` imports `inspect` and compiles up to six methods a class, 48 of the 306 ms from the start of a small model
to its first token (docs/native.md). Here all classes share their methods, which walk the fields. `dataclasses.fields`,
`replace` and `asdict` work on these classes too: they describe themselves to that module when it asks. Records do not
inherit from each other. Not for objects made by the thousand: `__init__` takes about three times as long.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
REQUIRED: Any = type("_Required", (), {"__repr__": lambda self: "REQUIRED"})()
"""The default of a field that has none."""


class Field:
    """One field. type: its annotation; init: given to the class; compare: part of equality and hash."""

    __slots__ = ("compare", "default", "factory", "init", "name", "repr", "type")

    def __init__(self, default: Any, factory: Callable[[], Any] | None, init: bool, repr: bool, compare: bool) -> None:
        self.name, self.type = "", Any
        self.default, self.factory, self.init, self.repr, self.compare = default, factory, init, repr, compare

    @property
    def required(self) -> bool:
        return self.default is REQUIRED and self.factory is None

    def value(self) -> Any:
        """The default, or a new one."""
        return self.default if self.factory is None else self.factory()


def field(
    *, default: Any = REQUIRED, default_factory: Callable[[], Any] | None = None, init: bool = True, repr: bool = True,
    compare: bool = True,
) -> Any:  # fmt: skip
    """The options of a field, in the place of its default, by the names that `dataclasses` has for them."""
    return Field(default, default_factory, init, repr, compare)


@overload
def record(cls: type[_T], /) -> type[_T]: ...
@overload
def record(*, frozen: bool = ..., kw_only: bool = ..., eq: bool = ...) -> Callable[[type[_T]], type[_T]]: ...
@dataclass_transform(field_specifiers=(field,))
def record(cls: Any = None, /, *, frozen: bool = False, kw_only: bool = False, eq: bool = True) -> Any:
    """Make a class a record of its annotated names; the options are those of `dataclasses.dataclass`."""
    if cls is None:
        return lambda cls: _made(cls, frozen, kw_only, eq)
    return _made(cls, frozen, kw_only, eq)


def fields(cls: Any) -> tuple[Field, ...]:
    """The fields of a record or of its class, in order."""
    return cls.__record__


def replace(instance: _T, **changes: Any) -> _T:
    """The same record with other values of some fields, checked as a new one."""
    kept: dict[str, Any] = {f.name: getattr(instance, f.name) for f in fields(instance) if f.init}
    return type(instance)(**kept | changes)


def is_record(cls: Any) -> bool:
    """Whether `cls` is the class of a record."""
    return isinstance(cls, type) and hasattr(cls, "__record__")


def _made(cls: Any, frozen: bool, kw_only: bool, eq: bool) -> Any:
    assert cls.__bases__ == (object,), f"{cls.__name__}: records do not inherit"
    found = []
    for name, type_ in vars(cls).get("__annotations__", {}).items():
        default = cls.__dict__.get(name, REQUIRED)
        assert not isinstance(default, list | dict | set), f"{cls.__name__}.{name}: one default for all; use a factory"
        f = default if isinstance(default, Field) else field(default=default)
        f.name, f.type = name, type_
        if f.default is not REQUIRED:
            setattr(cls, name, f.default)
        elif f.factory is not None:
            delattr(cls, name)
        found.append(f)
    places = () if kw_only else tuple(f.name for f in found if f.init)
    methods: dict[str, Any] = {"__init__": _init, "__repr__": _repr}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
    own = {"__record__": tuple(found), "__record_places__": places, "__record_options__": (frozen, kw_only, eq)}
    told = {name: _Told(name) for name in ("__dataclass_fields__", "__signature__")}
    for name, value in {**methods, **own, **told}.items():
        setattr(cls, name, value)
    return cls


def _init(self: Any, /, *given: Any, **named: Any) -> None:
    values = self.__dict__
    if given:
        _place(self, given, named)
    missing = []
    for f in self.__record__:
        if f.init and f.name in named:
            values[f.name] = named.pop(f.name)
        elif f.required:
            missing.append(f.name)
        else:
            values[f.name] = f.value()
    if missing:
        raise TypeError(f"{type(self).__name__}.__init__() lacks {', '.join(map(repr, missing))}")
    if named:
        raise TypeError(f"{type(self).__name__}.__init__() got an unexpected argument {next(iter(named))!r}")
    if (check := getattr(self, "__post_init__", None)) is not None:
        check()


def _place(self: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Values by place become values by name."""
    places = self.__record_places__
    if len(given) > len(places):
        raise TypeError(f"{type(self).__name__}.__init__() takes {len(places)} values by place, {len(given)} came")
    for name, value in zip(places, given, strict=False):
        if name in named:
            raise TypeError(f"{type(self).__name__}.__init__() got two values of {name!r}")
        named[name] = value


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in self.__record__ if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, f.name) for f in self.__record__ if f.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _refuse(self: Any, name: str, value: Any = None) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__name__}.{name} is part of a frozen record; use replace")


class _Told:
    """What `dataclasses` or `inspect` wants to know of a record, taken from a dataclass of the same fields."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, cls: Any) -> Any:
        import dataclasses
        import inspect

        frozen, kw_only, eq = cls.__record_options__
        twin: Any = dataclasses.make_dataclass(cls.__name__, _declared(cls), frozen=frozen, kw_only=kw_only, eq=eq)
        cls.__dataclass_fields__ = twin.__dataclass_fields__
        cls.__signature__ = inspect.signature(twin)
        return cls.__dict__[self._name]


def _declared(cls: Any) -> Iterable[tuple[str, Any, Any]]:
    import dataclasses

    for f in fields(cls):
        options: dict[str, Any] = {"init": f.init, "repr": f.repr, "compare": f.compare}
        if not f.required:
            options |= {"default": f.default} if f.factory is None else {"default_factory": f.factory}
        yield f.name, f.type, dataclasses.field(**options)
