"""Which engine answers on the command line: the native core where it runs the model, else torch, saying why.

No torch at import, and none at all while the native engine reads a .gguf or .hwp file.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from headwater import hub, optional
from headwater.commands import options as o
from headwater.completion import Completion
from headwater.config import Config
from headwater.files import closest
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

ENGINES = ("auto", "native", "torch")
_NATIVE_FORMATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_QUANTIZED_FILES = (".gguf", ".hwp")


class Talker(Protocol):
    """A model that answers prompts one after another and keeps what it has read (engine.talk, torch_talk)."""

    name: str

    @property
    def config(self) -> Config: ...

    def answer(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        on_text: Callable[[str], None] | None = None,
        skip_special: bool = True,
    ) -> tuple[Completion, int]: ...


def check(engine: str, threads: int | None, dtype: str | None) -> None:
    """ValueError for options out of range, before anything is read."""
    if engine not in ENGINES:
        raise ValueError(f"--engine is {engine!r}{closest(engine, list(ENGINES))}; allowed: {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}; allowed: 1 or more")
    if dtype is not None:
        o.dtype_named(dtype)


def open_talk(model: str, engine: str, tokenizer: Tokenizer, *, threads: int | None, dtype: str | None) -> Talker:
    """Load the model. auto: with the native engine, or with torch and one line on stderr that says why.

    ValueError says what is wrong with the model, or why the engine asked for cannot run it.
    """
    check(engine, threads, dtype)
    if engine == "torch":
        return _torch(model, tokenizer, threads, dtype)
    try:
        return _native(model, tokenizer, threads, dtype)
    except (ValueError, ImportError) as e:
        if engine == "native":
            raise
        why = " ".join(str(e).split())
    try:
        talk = _torch(model, tokenizer, threads, dtype)
    except ImportError as e:
        raise ImportError(f"the native engine does not run this model ({why}); with torch: {e}") from e
    print(f"headwater: running on torch, because of the native engine: {why}", file=sys.stderr)
    return talk


def _torch(model: str, tokenizer: Tokenizer, threads: int | None, dtype: str | None) -> Talker:
    torch = optional.load("torch", extra="train")
    if threads is not None:
        torch.set_num_threads(threads)
    from headwater.commands.torch_talk import TorchTalk

    return TorchTalk(o.load_model(model, dtype), tokenizer)


def _native(model: str, tokenizer: Tokenizer, threads: int | None, dtype: str | None) -> Talker:
    from headwater.engine.engine import Engine
    from headwater.engine.talk import Talk

    path = hub.resolve(model)
    weights = weight_format(path, dtype)
    return Talk(Engine.from_pretrained(path, threads=threads, max_sequences=1, weights=weights, tokenizer=tokenizer))


def weight_format(path: Path, dtype: str | None) -> str:
    """The native engine's word for the number format of a directory's weights: the one asked for, or the files'."""
    if path.suffix in _QUANTIZED_FILES:
        if dtype is not None:
            raise ValueError(f"--dtype is {dtype!r}, but it computes with the numbers of {path.name} as they are")
        return "F32"  # of no effect there
    if dtype is not None:
        return _NATIVE_FORMATS[o.dtype_named(dtype)[0]]
    optional.load("torch", extra="train")  # it reads safetensors
    from headwater import checkpoint

    return _NATIVE_FORMATS[str(checkpoint.read(path)[2]).removeprefix("torch.")]
