"""`headwater recipe` (and `train`): run one of the recipe files, which bring their own options.

Recipes are plain Python over the library: recipes/ in a clone, headwater/recipes/ in an installed wheel.
"""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

import headwater
from headwater import optional
from headwater.files import closest


def folder() -> Path:
    """Where this installation keeps its recipes."""
    package = Path(headwater.__file__).parent
    return next((p for p in (package / "recipes", package.parent / "recipes") if p.is_dir()), package / "recipes")


def recipe(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A recipe; its own options follow.")] = None,
) -> None:
    """Run a recipe; without a name, list them. `headwater recipe NAME --help` shows a recipe's options."""
    known = _known()
    if name in (None, "--help", "-h"):
        print("Usage: headwater recipe NAME [OPTIONS]\n")
        for stem, path in known.items():
            print(f"  {stem}  {_summary(path)}")
        print("\n`headwater recipe NAME --help` lists a recipe's options.")
        return
    if name not in known:
        raise ValueError(f"no recipe {name!r}{closest(str(name), list(known))}; there are {', '.join(known) or 'none'}")
    _run(known[name], f"headwater recipe {name}", ctx.args)


def hybridize(ctx: typer.Context) -> None:
    """Turn a transformer into an LFM2-style hybrid: the recipe of that name."""
    _run(_known()["hybridize"], "headwater hybridize", ctx.args)


# Everything behind the name belongs to the recipe.
for _verb in (recipe, hybridize):
    _verb.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}  # type: ignore[attr-defined]


def _known() -> dict[str, Path]:
    """The files that can be run; the others are parts of these."""
    runnable = '\nif __name__ == "__main__":\n'
    return {p.stem: p for p in sorted(folder().glob("[!_]*.py")) if runnable in p.read_text(encoding="utf-8")}


def _run(path: Path, program: str, arguments: list[str]) -> None:
    optional.load("torch", extra="train")
    # A recipe may use another: `import recipes.other` must find this folder, wherever the command is called.
    spec = importlib.util.spec_from_file_location(
        "recipes", path.parent / "__init__.py", submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None
    sys.modules.setdefault("recipes", importlib.util.module_from_spec(spec))
    sys.argv = [program, *arguments]
    from headwater.train.loop import Unhealthy  # loads torch

    try:
        runpy.run_path(str(path), run_name="__main__")
    except Unhealthy as e:
        raise ValueError(str(e)) from e


def _summary(path: Path) -> str:
    """The first sentence of a recipe's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
