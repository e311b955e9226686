"""`headwater pack`: a model in the native core's own layout, so that the next start maps it instead of repacking."""

from pathlib import Path
from typing import Annotated

from headwater import hub
from headwater.arguments import Argument, Option
from headwater.commands import options as o


def pack(
    model: o.Model,
    target: Annotated[str | None, Argument("A .hwp file to write. Default: a copy in the cache.")] = None,
    *,
    type: Annotated[
        str | None, Option("With a directory: q8_0, f16, ... to round to. Default: the weights' own.")
    ] = None,
    force: Annotated[bool, Option("Replace TARGET if it exists.", ("--force",))] = False,
    threads: o.Threads = None,
) -> None:
    """Write a packed file: whole, with its tokenizer, to TARGET; or a copy in the cache, which `headwater generate` of
    the same .gguf file then finds by itself."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}; allowed: 1 or more")
    path = hub.resolve(model)
    from headwater.engine import kept, native

    if target is None:
        if type is not None or force:
            raise ValueError("--type and --force are for a TARGET, which was not given")
        print(kept.keep(path, threads=threads))
        return
    file = Path(target)
    if file.suffix != ".hwp":
        raise ValueError(f"TARGET is {target!r}; allowed: a name that ends in .hwp")
    if path.suffix == ".hwp":
        raise ValueError(f"{path} is packed already; copy it")
    if type is not None and not path.is_dir():
        raise ValueError(f"--type is {type!r}, but the numbers of {path.name} are packed as they are")
    if file.exists() and not force:
        raise ValueError(f"{file} exists; cure: --force, or another name")
    native.pack(path, file, formats=None if type is None else type.upper(), threads=threads)
    print(file)
