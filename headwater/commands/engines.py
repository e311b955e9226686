"""Which engine answers on the command line: the native core where it runs the model, else torch, saying why.

No torch at import, and none at all while the native engine runs the model.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import hub, optional
from headwater.commands import options as o
from headwater.tokenizer import Tokenizer

if TYPE_CHECKING:
    from headwater.engine.conversation import Conversation
    from headwater.engine.native import GgufFile

_NATIVE_FORMATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_QUANTIZED_FILES = (".gguf", ".hwp")


def opened(model: str, begun: Any) -> "GgufFile | None":
    """The model's file from what core.begun gave, which may be None."""
    if begun is None:
        return None
    from headwater.engine.native import GgufFile

    return GgufFile(hub.resolve(model), begun)


def tokenizer(model: str, running: o.Running, file: "GgufFile | None" = None) -> Tokenizer:
    """The model's tokenizer, read by the native core where the engine will be it. ValueError when there is none.

    file: the model's, where it is open.
    """
    path = hub.resolve(model)
    if running.engine != "torch" and path.suffix in _QUANTIZED_FILES:
        try:
            from headwater.engine import native
        except ImportError:
            pass  # open_talk says so
        else:
            found = native.tokenizer(file or path)
            if found is not None:
                return found
    return Tokenizer.from_pretrained(path)


def open_talk(
    model: str, tokenizer: Tokenizer, running: o.Running, *, kept: bool = False, file: "GgufFile | None" = None
) -> "Conversation":
    """Load the model. auto: with the native engine, or with torch and one line on stderr that says why.

    kept: from its packed copy, where there is one; the conversation's state is then not for files. file: the model's,
    where it is open and begun: there is no copy then.
    ValueError says what is wrong with the model, or why the engine asked for cannot run it.
    """
    if running.engine == "torch":
        return _torch(model, tokenizer, running)
    try:
        return _native(model, tokenizer, running, kept, file)
    except (ValueError, ImportError) as e:
        if running.engine == "native":
            raise
        why = " ".join(str(e).split())
    try:
        talk = _torch(model, tokenizer, running)
    except ImportError as e:
        raise ImportError(f"the native engine does not run this model ({why}); with torch: {e}") from e
    print(f"headwater: running on torch, because of the native engine: {why}", file=sys.stderr)
    return talk


def _torch(model: str, tokenizer: Tokenizer, running: o.Running) -> "Conversation":
    torch = optional.load("torch", extra="train")
    if running.threads is not None:
        torch.set_num_threads(running.threads)
    from headwater.engine.torch import TorchTalk

    return TorchTalk(o.load_model(model, running.dtype), tokenizer)


def _native(
    model: str, tokenizer: Tokenizer, running: o.Running, kept: bool, file: "GgufFile | None"
) -> "Conversation":
    from headwater.engine import kept as copies
    from headwater.engine.engine import Engine
    from headwater.engine.scheduler import BLOCK
    from headwater.engine.talk import Talk

    path = hub.resolve(model)
    weights = weight_format(path, running.dtype)

    def talk(source: "Path | GgufFile") -> Talk:  # which keeps what it has read itself: no prefix cache
        return Talk(Engine.from_pretrained(  # one prompt loses nothing by smaller runs, which take less memory
            source, threads=running.threads, max_sequences=1, weights=weights, tokenizer=tokenizer, cache_bytes=0,
            chunk_size=6 * BLOCK,
        ))  # fmt: skip

    copy = copies.find(path) if kept and file is None else None
    if copy is not None:
        try:
            return talk(copy)
        except ValueError as e:
            copies.drop(path)
            print(f"headwater: the packed copy {copy} is of no use ({e}); it was deleted", file=sys.stderr)
    return talk(file or path)


def keep(model: str, running: o.Running) -> None:
    """After an answer, with its engine gone: leave a packed copy where that makes the next start faster. What prevents
    it is said in one line, since the answer is there."""
    from headwater.engine import kept as copies

    path = hub.resolve(model)
    if not copies.wanted(path):
        return
    try:
        copy = copies.keep(path, threads=running.threads)
    except (ValueError, OSError, MemoryError) as e:
        print(f"headwater: no packed copy for the next start: {e}", file=sys.stderr)
    else:
        print(f"[kept {copy} for the next start; {copies.SWITCH}=0 keeps none]", file=sys.stderr)


def weight_format(path: Path, dtype: str | None) -> str | None:
    """The native engine's word for the number format of a directory's weights; None keeps that of the files."""
    if dtype is None:
        return None
    if path.suffix in _QUANTIZED_FILES:
        raise ValueError(f"--dtype is {dtype!r}, but it computes with the numbers of {path.name} as they are")
    return _NATIVE_FORMATS[o.dtype_named(dtype)[0]]
