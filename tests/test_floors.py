"""Laws 1 to 3 of CONTRIBUTING.md as tests: who may import whom, what starts without torch, how long things may be.

The imports are read from the source, so one inside a function or behind TYPE_CHECKING counts as well.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    "records",
    "files optional hub vocabulary",
    "gguf_file bpe arguments tokenizer_json",
    "safetensors_file",
    "ops config functions sampling tokenizer tool_calls weights quant",
    "cache chat checkpoint completion layout objectives merge train",
    "model data export",
    "generate vision audio retrieval",
    "engine",
    "serve evals bench",
    "search",
    "cli commands recipes",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
MODEL_USERS = {"generate", "vision", "audio", "retrieval", "engine", "search", "recipes"}
FACE_USERS = {"cli", "commands", "recipes"}
TORCH_FREE = (
    "completion", "engine", "engine.conversation", "engine.talk", "engine.aio", "export.gguf", "quant.formats",
    "config", "sampling",
    "functions", "tokenizer", "tool_calls", "chat", "hub", "files", "optional", "checkpoint", "cli", "serve.app",
)  # fmt: skip
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_DOCSTRING_LINES = 600, 60, 12


@dataclass(frozen=True)
class Import:
    """One imported module; type_only: behind TYPE_CHECKING, so it couples nothing at run time."""

    module: str
    line: int
    type_only: bool


def sources():
    """Every module of the library and the recipes: dotted name -> file."""
    files = sorted([*(ROOT / "headwater").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
    return {dotted(file): file for file in files}


def dotted(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The first floor-bearing part of a dotted name: headwater.ops.rope -> ops, headwater itself -> ""."""
    parts = module.split(".")
    return parts[0] if parts[0] == "recipes" else parts[1] if len(parts) > 1 else ""


@cache
def imports(module):
    """What a module imports of this project, at any depth of its code."""
    found = []

    def visit(node, type_only):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            type_only = True
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write the whole name of the module"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in sources() else node.module for name in full]
        mine = [name for name in names if name.split(".")[0] in ("headwater", "recipes")]
        found.extend(Import(name, getattr(node, "lineno", 0), type_only) for name in mine)
        for child in ast.iter_child_nodes(node):
            visit(child, type_only)

    visit(ast.parse(sources()[module].read_text()), False)
    return tuple(dict.fromkeys(found))


def test_every_room_has_a_floor():
    assert {room(m) for m in sources()} - {""} <= FLOOR_OF.keys()


@pytest.mark.parametrize("module", sources())
def test_imports_only_from_lower_floors(module):
    here = room(module)
    if not here:
        return  # the lazy face names modules as text
    for found in imports(module):
        there = room(found.module)
        where = f"{module}:{found.line} imports {found.module}"
        if not there:
            assert here in FACE_USERS, f"{where}: the face is for users of the library, and for the top floor"
        elif there != here:
            assert FLOOR_OF[there] < FLOOR_OF[here], f"{where}, which is not on a lower floor"


def test_there_is_no_circle():
    graph = {m: {i.module for i in imports(m) if i.module != m} for m in sources()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("headwater.config") < order.index("headwater.model")


def test_only_its_users_import_the_model():
    users = {room(m) for m in sources() for i in imports(m) if i.module == "headwater.model" and not i.type_only}
    assert "generate" in users
    assert users <= MODEL_USERS


def test_torch_free_modules_start_without_torch():
    """One process imports them all, in which torch and transformers cannot be imported."""
    verbs = [m for m in sources() if room(m) == "commands"]
    names = [f"headwater.{name}" for name in TORCH_FREE] + verbs
    code = "import sys\nsys.modules.update(torch=None, transformers=None)\n" + "".join(
        f"import {name}\n" for name in names
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_face_is_small_and_lazy():
    assert len((ROOT / "headwater" / "__init__.py").read_text().splitlines()) < 40
    assert imports("headwater") == ()


@pytest.mark.parametrize("file", [*sources().values(), *sorted((ROOT / "tests").rglob("*.py"))], ids=str)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    tree = ast.parse(text)
    head = ast.get_docstring(tree)
    if text.strip():
        assert head, "a module opens with what it is for"
        assert len(head.splitlines()) <= MAX_DOCSTRING_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length < MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
