"""Functions as tools: schemas that a validator accepts, hints that are refused by name, arguments that are checked."""

import json
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest

from headwater.functions import Function, of_file, result_text


def weather(
    city: str,
    days: int = 1,
    unit: Literal["C", "F"] = "C",
    limits: Annotated[list[float] | None, "lowest and highest"] = None,
    more: dict[str, bool] | None = None,
) -> str:
    """The weather of the next days.

    Two sources are asked.

    Args:
        city: Name of the city,
            in any language.
        days (int): How many days.

    Returns:
        A sentence.
    """
    return f"{city} {days} {unit} {limits} {more}"


def test_a_schema_is_what_the_function_says():
    schema = Function(weather).schema
    assert schema["name"] == "weather"
    assert schema["description"] == "The weather of the next days.\n\nTwo sources are asked."
    properties = schema["parameters"]["properties"]
    assert schema["parameters"]["required"] == ["city"]
    assert properties == {
        "city": {"type": "string", "description": "Name of the city, in any language."},
        "days": {"type": "integer", "description": "How many days.", "default": 1},
        "unit": {"enum": ["C", "F"], "default": "C"},
        "limits": {
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}],
            "description": "lowest and highest", "default": None,
        },
        "more": {
            "anyOf": [{"type": "object", "additionalProperties": {"type": "boolean"}}, {"type": "null"}],
            "default": None,
        },
    }  # fmt: skip
    jsonschema.Draft202012Validator.check_schema(schema["parameters"])
    jsonschema.validate({"city": "Brest", "limits": [1, 2.5]}, schema["parameters"])


def test_sphinx_fields_and_optional():
    def f(a: Optional[int], b: Any = None):  # noqa: UP045
        """Does it.

        :param a: a number
            of things
        :returns: nothing
        """

    schema = Function(f).schema
    assert schema["description"] == "Does it."
    assert schema["parameters"]["properties"] == {
        "a": {"type": ["integer", "null"], "description": "a number of things"},
        "b": {"default": None},
    }


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"city": "Oslo"}, "Oslo 1 C None None"),
        ({"city": "水", "days": 2.0, "limits": [1, 2.5]}, "水 2 C [1.0, 2.5] None"),
        ({"city": "x", "more": {"a": True}, "unit": "F"}, "x 1 F None {'a': True}"),
    ],
)
def test_a_call_with_json_values(arguments, result):
    assert Function(weather)(arguments) == result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["needs the argument 'city'"]),
        ({"city": 3}, ["weather(city) is 3", "string"]),
        ({"city": "x", "dais": 1}, ["no argument 'dais'", "did you mean 'days'"]),
        ({"city": "x", "days": "2"}, ['weather(days) is "2"', "integer"]),
        ({"city": "x", "days": True}, ["weather(days) is true"]),
        ({"city": "x", "days": 1.5}, ["weather(days) is 1.5"]),
        ({"city": "x", "unit": "K"}, ['weather(unit) is "K"', '"C", "F"']),
        ({"city": "x", "limits": ["a"]}, ["weather(limits)", "array or null"]),
        ({"city": "x", "more": {"a": 1}}, ["weather(more)", "object or null"]),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError, match="weather") as fault:
        Function(weather)(arguments)
    for word in words:
        assert word in str(fault.value)


def bare(a):
    pass


def star(*a: int):
    pass


def odd(a: bytes):
    pass


def keys(a: dict[int, str]):
    pass


def gone(a: "Nowhere"):  # noqa: F821
    pass


def typo(city: str):
    """It.

    Args:
        citty: A city.
    """


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (bare, "bare(a) has no type hint; supported are str"),
        (star, "star(a): models call by name"),
        (odd, "odd(a): the hint bytes has no form in JSON"),
        (keys, "keys(a): the hint dict[int, str]"),
        (gone, "gone(): its type hints cannot be read (NameError"),
        (typo, "describes 'citty', which is no parameter (did you mean 'city'?)"),
    ],
)
def test_what_cannot_be_a_tool_says_why(function, words):
    with pytest.raises(ValueError) as fault:
        Function(function)
    assert words in str(fault.value)


def test_a_file_gives_its_own_public_functions(tmp_path):
    path = tmp_path / "tools.py"
    path.write_text(
        "from __future__ import annotations\nfrom math import floor\nfrom json import dumps\n"
        "async def later(n: int) -> int:\n    return n + 1\n"
        "def _hidden(): pass\nclass Thing: pass\ndef add(a: int, b: int = 2) -> int:\n    return a + b\n"
    )
    later, add = of_file(path)
    assert (later.name, add.name) == ("later", "add")
    assert (later({"n": 3}), add({"a": 1})) == ("4", "3")
    path.write_text(path.read_text() + "__all__ = ['add']\n")
    assert [f.name for f in of_file(path)] == ["add"]
    path.write_text("__all__ = ['add']\n")
    with pytest.raises(ValueError, match="__all__ names 'add'"):
        of_file(path)
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="there is no tool in it"):
        of_file(path)


def test_results_are_text_for_the_model():
    assert result_text("as it is\n") == "as it is\n"
    assert result_text(None) == "null"
    assert json.loads(result_text({"é": [1, 2.5]})) == {"é": [1, 2.5]}
    assert result_text({1, 2}) in ('"{1, 2}"',)
    assert result_text("caf\udce9.txt") == "caf?.txt"
    assert result_text(["\ud83d\udc4d", "caf\udce9"]) == '["??", "caf?"]'
    assert result_text("x" * 30_000).endswith("(cut: 30,000 characters, of which these are the first 20,000)")
