"""`headwater recipe` as a process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_recipe_finds_its_parts_from_any_folder(tmp_path):
    (tmp_path / "recipes.py").write_text("raise SystemExit('not mine')")
    command = [sys.executable, "-m", "headwater.cli", "recipe", "corpus", "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert b"--out" in result.stdout
