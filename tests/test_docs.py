"""Every ```python and ```bash block of the pages runs, in order, where `runs/demo/model` is a tiny model.

The blocks of one page share their names, as a reader who follows it would. A bash line that is a plain `headwater ...`
runs in this process (the start of torch is paid once); any other line runs in bash, with `headwater` on its path.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headwater import cli
from headwater.chat import LFM2_TEMPLATE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, SHOWN = ("python", "bash"), ("console", "text", "json")
SHELL_SIGNS = set("|<>;&$`*")


def blocks(page):
    """(language, line number, code) of each fenced block."""
    found, language, start, lines = [], None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, start, lines = line[3:].strip(), number, []
        else:
            found.append((language, start, "\n".join(lines)))
            language = None
    assert language is None, f"{page}:{start}: the block never ends"
    return found


@pytest.fixture
def reader(tiny_model, tmp_path, monkeypatch):
    """A folder as it is after `make demo`."""
    model = shutil.copytree(tiny_model, tmp_path / "runs" / "demo" / "model")
    (model / "chat_template.jinja").write_text(LFM2_TEMPLATE)
    shim = tmp_path / "bin" / "headwater"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m headwater.cli "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def run_bash(code):
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["headwater"] and not SHELL_SIGNS & set(line):
            try:
                status = cli.run(words[1:])
            except SystemExit as e:  # argparse in a recipe
                status = e.code
            assert status == 0, line
        elif words:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, timeout=120)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_runs(page, reader):
    names = {"__name__": "__page__"}
    for language, line, code in blocks(page):
        assert language in RUN + SHOWN, f"{page}:{line}: the block's language is {language!r}"
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)
        elif language == "bash":
            run_bash(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for rest in page.read_text().split("](")[1:]:
        target = rest.split(")")[0]
        assert target.startswith("http") or (page.parent / target.split("#")[0]).exists(), target


def test_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "headwater").iterdir()):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            name = f"headwater/{path.name}" + ("/" if path.is_dir() else "")
            assert path.name == "__init__.py" or f"`{name}`" in text, name
