"""What the start of a command loads: a start costs what it imports; a clock would measure the machine's other work."""

import os
import subprocess
import sys

import pytest
from test_cli import ROOT

from headwater import cli

_HELP_NEEDS = 130
"""Modules in a process that prints --help, CPython's own 60 to 80 among them."""
_SLOW = {
    "asyncio", "concurrent", "ctypes", "dataclasses", "difflib", "email", "hashlib", "http", "inspect",
    "logging", "multiprocessing", "numpy", "rich", "shutil", "socket", "ssl", "subprocess",
    "tempfile", "torch", "typer", "unittest",
}  # fmt: skip


def test_help_loads_little():
    code = "import sys\nfrom headwater import cli\nassert cli.run(['--help']) == 0\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *shown, modules = result.stdout.splitlines()
    for verb in cli.VERBS:
        assert any(line.startswith(f"  {verb} ") for line in shown), verb
    loaded = set(modules.split())
    ours = {m for m in loaded if m.startswith("headwater")}
    assert ours == {"headwater", "headwater.cli", "headwater.files"}
    assert not _SLOW & loaded
    assert len(loaded) < _HELP_NEEDS, sorted(loaded)


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "transformers", "numpy", "typer", "rich", "tokenizers", "huggingface_hub"}),
        (["info", "--help"], {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}),
        (["chat", "--help"], {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}),
        (["info", "LFM2-350M", "--json"], {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}),
        (["info", "MODEL"], {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}),
        (["tokenize", "MODEL", "a"], {"torch", "transformers"}),
        (["list"], {"torch", "transformers"}),
        (
            ["generate", "MODEL", "The river", "--max-tokens", "2", "--engine", "native"],
            {"torch", "transformers", "numpy", "typer", "rich", "tokenizers", "huggingface_hub", "gguf", "safetensors"},
        ),
        (["recipe"], {"torch", "transformers"}),
    ],
)
def test_light_verbs_load_nothing_heavy(arguments, heavy, tiny_model):
    arguments = [str(tiny_model) if a == "MODEL" else a for a in arguments]
    code = f"import sys\nfrom headwater import cli\nassert cli.run({arguments!r}) == 0\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not heavy & set(result.stdout.splitlines()[-1].split())


_WATCHED = """
import sys
from headwater.engine import core
opens, seen, real_open, real_begin = [], [], core.module.Gguf, core.begin

def counted(path):
    opens.append(path)
    return real_open(path)

def begin(gguf, threads):
    seen.append(sorted(m for m in sys.modules if m.startswith("headwater")))
    return real_begin(gguf, threads)

core.module.Gguf, core.begin = counted, begin
from headwater import cli
assert cli.run(sys.argv[1:]) == 0
print(len(opens), len(seen))
print(*seen[0])
print(*sys.modules)
"""


def test_a_gguf_file_is_opened_once_and_begun_before_the_engine_is_imported(tiny_model, tmp_path):
    path = tmp_path / "m.gguf"
    assert cli.run(["export", "gguf", str(tiny_model), str(path)]) == 0
    arguments = ["generate", str(path), "The river", "--max-tokens", "2", "--engine", "native"]
    result = subprocess.run(
        [sys.executable, "-c", _WATCHED, *arguments], capture_output=True, text=True, cwd=ROOT, check=True,
        env=os.environ | {"HEADWATER_KEEP": "0"},
    )  # fmt: skip
    counts, before, after = result.stdout.splitlines()[-3:]
    assert counts == "1 1"
    assert "headwater.engine.core" in before.split()
    assert not {"headwater.config", "headwater.tokenizer", "headwater.engine.native"} & set(before.split())
    assert not {"numpy", "dataclasses", "inspect", "typer", "tokenizers", "threading"} & set(after.split())
