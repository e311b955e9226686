"""arguments.py: what it reads quickly, typer reads alike; what it cannot, it leaves to typer."""

from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import arguments
from headwater.commands.bench import bench
from headwater.commands.chat import chat
from headwater.commands.generate import generate
from headwater.commands.options import Running, Sampling

WORDS = [
    "model", "text", "", "-", "--", "7", "-7", "0.5", "1e3", "1_0", "--max-tokens", "--max-tokens=5", "--temperature",
    "--temperature=-1", "--stop", "--stop=x", "--top-k", "--json", "--json=1", "--bos", "--no-bos", "--engine",
    "--engine=torch", "--threads", "--greedy", "--system", "--system=Be brief.", "--tools", "--tools=f.json", "--help",
    "--max_tokens", "--max-tok", "--logprobs", "--seed", "-h",
]  # fmt: skip


def by_typer(function, words):
    """Keyword arguments that typer makes of the words, or None."""
    seen = []

    def record(**values):
        seen.append(values)

    record.__annotations__, record.__kwdefaults__ = dict(function.__annotations__), None
    written = arguments.for_typer(function)
    app = typer.Typer(add_completion=False)
    recorder = arguments.for_typer.__globals__["_collect"]

    def flat(**values):
        record(**recorder(function, values))

    flat.__signature__, flat.__annotations__, flat.__doc__ = written.__signature__, written.__annotations__, "."
    app.command()(flat)
    try:
        typer.main.get_command(app).main(list(words), standalone_mode=False)
    except (typer.TyperException, typer.Abort, typer.Exit):
        return None
    return seen[0] if seen else None


@pytest.mark.parametrize("function", [generate, chat])
def test_what_is_read_quickly_is_what_typer_reads(function):
    found = []

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.sampled_from(WORDS), max_size=7))
    def compare(words):
        quick = arguments.quick(function, words)
        if quick is not None:
            found.append(words)
            slow = by_typer(function, words)
            normal = {k: None if v == [] else v for k, v in (slow or {}).items()}
            assert {k: v for k, v in quick.items() if k != "sampling"} == {
                k: v for k, v in normal.items() if k != "sampling"
            }
            assert quick["sampling"].given() == normal["sampling"].given()

    compare()
    assert found


def test_plain_command_lines_are_quick():
    values = arguments.quick(
        generate,
        ["m.gguf", "Hello, you", "--max-tokens", "5", "--temperature=0.5", "--stop", "a", "--stop=b", "--no-bos"],
    )
    assert values == {
        "model": "m.gguf", "prompt": "Hello, you", "logprobs": None, "as_json": False, "bos": False,
        "sampling": Sampling(max_tokens=5, temperature=0.5, stop=["a", "b"]), "running": Running(),
    }  # fmt: skip
    values = arguments.quick(chat, ["m", "--tools", "t.json", "--greedy", "--engine", "native"])
    assert (values["tools"], values["greedy"], values["running"].engine) == (Path("t.json"), True, "native")


@pytest.mark.parametrize(
    "words",
    [[], ["m", "t", "u"], ["m", "--help"], ["m", "--bogus"], ["m", "--max-tokens"], ["m", "--max-tokens", "many"],
     ["m", "--json=1"], ["m", "--stop", "-x"], ["m", "-"]],
)  # fmt: skip
def test_faults_are_left_to_typer(words):
    assert arguments.quick(generate, words) is None


def test_a_function_of_typers_own_is_left_to_it():
    assert arguments.quick(bench, []) is None
