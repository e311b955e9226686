"""`headwater export` and `headwater quantize`: models as files for other programs, and smaller.

Both write one GGUF file; `export` keeps the number format of the source unless told otherwise, `quantize` rounds.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater import hub
from headwater.files import closest

if TYPE_CHECKING:
    from headwater.export.gguf import OnTensor, Written
    from headwater.tokenizer import Tokenizer

FORMS = ("gguf",)
_FLOATS = ("f32", "f16", "bf16")

Source = Annotated[str, typer.Argument(help="A model directory, a .gguf file or a hub id.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="The file to write.", show_default=False)]
Pure = Annotated[bool, typer.Option("--pure", help="The type for the head too, which is q6_k otherwise.")]
Head = Annotated[str | None, typer.Option(help="The head's type: q8_0, q5_1 ... Default: q6_k, or TYPE if finer.")]
Force = Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")]
Pre = Annotated[
    str | None, typer.Option(help="GGUF's name of the pre-tokenizer, where it cannot be found out: lfm2, llama-bpe ...")
]
NoTokenizer = Annotated[bool, typer.Option("--no-tokenizer", help="Leave the vocabulary out.")]
Threads = Annotated[int | None, typer.Option(help="Processors to round with. Default: all.")]


def export(
    form: Annotated[str, typer.Argument(help=f"What to write: {', '.join(FORMS)}.", show_default=False)],
    src: Source,
    dst: Target,
    type: Annotated[str | None, typer.Option(help="f32, f16, bf16, q8_0, q4_0 ... Default: the source's.")] = None,
    pure: Pure = False,
    head: Head = None,
    force: Force = False,
    pre: Pre = None,
    no_tokenizer: NoTokenizer = False,
    threads: Threads = None,
) -> None:
    """Write a model as one GGUF file with its configuration, vocabulary and chat template."""
    if form not in FORMS:
        raise ValueError(f"no format {form!r}{closest(form, list(FORMS))}; there are {', '.join(FORMS)}")
    _run(_Job(src, dst, type, pure, head, force, pre, no_tokenizer, threads))


def quantize(
    src: Source,
    dst: Target,
    type: Annotated[str, typer.Option(help="q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k or q8_0.")] = "q4_0",
    pure: Pure = False,
    head: Head = None,
    force: Force = False,
    pre: Pre = None,
    no_tokenizer: NoTokenizer = False,
    threads: Threads = None,
) -> None:
    """Round a model's matrices to fewer bits, as a GGUF file. Norms, convolutions and routers stay fp32."""
    from headwater.quant.formats import FORMATS, named

    if named(type).is_float:
        rounded = ", ".join(f.name for f in FORMATS.values() if not f.is_float)
        raise ValueError(f"--type is {type!r}, which rounds nothing; allowed: {rounded} (or `headwater export gguf`)")
    _run(_Job(src, dst, type, pure, head, force, pre, no_tokenizer, threads))


@dataclass(frozen=True)
class _Job:
    src: str
    dst: Path
    type: str | None
    pure: bool
    head: str | None
    force: bool
    pre: str | None
    no_tokenizer: bool
    threads: int | None


def _run(job: _Job) -> None:
    from headwater.quant.formats import named

    if job.type is not None:
        named(job.type)
    if job.threads is not None and job.threads < 1:
        raise ValueError(f"--threads is {job.threads}; allowed: 1 or more")
    path = hub.resolve(job.src)
    _check_target(job, path)
    if path.suffix == ".gguf":
        written, size = _from_gguf(job, path)
    elif path.is_dir():
        written, size = _from_directory(job, path)
    else:
        raise ValueError(f"{path} is neither a directory nor a .gguf file")
    print(summary(job.dst, written, size))


def _check_target(job: _Job, source: Path) -> None:
    if job.dst.is_dir():
        raise ValueError(f"{job.dst} is a directory; give the name of a file, such as {job.dst / 'model.gguf'}")
    if job.dst.exists() and job.dst.samefile(source):
        raise ValueError(f"{job.dst} is the source itself; give another name")
    if job.dst.exists() and not job.force:
        raise ValueError(f"{job.dst} exists; --force replaces it")
    parent = next(p for p in (job.dst.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{job.dst} cannot be written: {parent} is no directory that this user may write to")


def _threads(job: _Job) -> int:
    return job.threads or len(os.sched_getaffinity(0))


def _from_gguf(job: _Job, path: Path) -> tuple["Written", int]:
    from headwater.export import gguf
    from headwater.gguf_file import GgufFile

    for option, value in (("--pre", job.pre), ("--no-tokenizer", job.no_tokenizer)):
        if value:
            raise ValueError(f"{option} has no effect on a .gguf source, whose vocabulary is kept as it is")
    if job.type is None:
        raise ValueError(f"{path} is GGUF already; say with --type what to round it to")
    with progress(job.dst.name) as on_tensor:
        written = gguf.requantize(
            job.dst,
            GgufFile(path),
            type=job.type,
            pure=job.pure,
            head=job.head,
            threads=_threads(job),
            on_tensor=on_tensor,
        )
    return written, path.stat().st_size


def _from_directory(job: _Job, path: Path) -> tuple["Written", int]:
    from headwater import optional

    optional.load("torch", extra="train")  # it reads safetensors
    from headwater import checkpoint
    from headwater.checkpoint.gguf_layout import unsayable
    from headwater.export import gguf

    config, sources, dtype = checkpoint.read(path)
    tensors: dict[str, Any] = {name: _Floats(source) for name, source in sources.items()}
    own = {"torch.bfloat16": "bf16", "torch.float16": "f16"}.get(str(dtype), "f32")
    with progress(job.dst.name) as on_tensor:
        written = gguf.write(
            job.dst, config, tensors, _tokenizer(job, path), type=job.type or own, pure=job.pure, head=job.head,
            name=Path(job.src).name, pre=job.pre, threads=_threads(job), on_tensor=on_tensor,
        )  # fmt: skip
    if (alien := unsayable(config)) is not None:
        print(
            f"headwater: GGUF has no words for {alien}; the file's architecture is headwater, "
            "which other programs refuse by its name",
            file=sys.stderr,
        )
    return written, sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _tokenizer(job: _Job, path: Path) -> "Tokenizer | None":
    from headwater.tokenizer import Tokenizer

    if job.no_tokenizer:
        return None
    try:
        return Tokenizer.from_pretrained(path)
    except ValueError as e:
        raise ValueError(f"{e}; or --no-tokenizer leaves the vocabulary out") from e


class _Floats:
    """A tensor of a checkpoint as the exporter reads it: fp32 in numpy."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    def read(self) -> Any:
        return self._source.read().float().numpy()


@contextmanager
def progress(title: str) -> Iterator["OnTensor"]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name or title)


def summary(path: Path, written: "Written", source_bytes: int) -> str:
    """What was written, on one line, and on a second what could not be rounded as asked."""
    kinds = ", ".join(f"{count} {name}" for name, count in written.tensors.items())
    line = (
        f"{path}: {written.num_weights:,} weights, {source_bytes / 1e6:,.1f} MB -> "
        f"{path.stat().st_size / 1e6:,.1f} MB, "
        f"{written.bits_per_weight:.2f} bits per weight; tensors: {kinds}"
    )
    if written.misfits:
        line += (
            f"\n{len(written.misfits)} tensors have rows that are not whole blocks of the type and got a finer one, "
            f"first {written.misfits[0]}"
        )
    return line
