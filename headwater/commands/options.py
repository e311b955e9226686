"""What several verbs share: options of sampling and engines, number formats, text from stdin. No torch, no typer."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

from headwater import optional
from headwater.arguments import Argument, Option
from headwater.files import closest
from headwater.records import fields, record, replace
from headwater.sampling import SamplingParams

if TYPE_CHECKING:
    from headwater.model import Lfm2

DTYPES = {"bf16": ("bfloat16", 2), "fp16": ("float16", 2), "fp32": ("float32", 4)}
"""Name on the command line: (torch's name, bytes of a value)."""
ENGINES = ("auto", "native", "torch")

MODEL_HELP = "A model directory, a .gguf file or a hub id (owner/name)."
Model = Annotated[str, Argument(MODEL_HELP)]
Json = Annotated[bool, Option("Print one JSON object.", ("--json",))]
Dtype = Annotated[str | None, Option(f"Number format of the weights: {', '.join(DTYPES)}. Default: the file's.")]
Threads = Annotated[int | None, Option("Threads to compute with. Default: all processors.")]


@record(frozen=True, kw_only=True)
class Sampling:
    """How tokens are picked, as options: None where none was given."""

    max_tokens: Annotated[int | None, Option("Most tokens of an answer.")] = None
    temperature: Annotated[float | None, Option("0 is greedy; higher is more varied.")] = None
    top_k: Annotated[int | None, Option("Draw from the k likeliest tokens; 0: all.")] = None
    top_p: Annotated[float | None, Option("Draw from the likeliest tokens that hold this probability.")] = None
    min_p: Annotated[float | None, Option("Drop tokens less likely than this share of the likeliest.")] = None
    repetition_penalty: Annotated[float | None, Option("Above 1, tokens already seen become less likely.")] = None
    seed: Annotated[int | None, Option("Same seed, same answer.")] = None
    stop: Annotated[list[str] | None, Option("A text that ends the answer; may be given several times.")] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by their names in SamplingParams."""
        found = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, [])}
        return found | ({"stop": tuple(self.stop)} if self.stop else {})

    def on(self, base: SamplingParams, **more: Any) -> SamplingParams:
        """`base` with what was given. ValueError names a value out of range."""
        return replace(base, **self.given(), **more)


@record(frozen=True, kw_only=True)
class Running:
    """What a model runs on, as options."""

    dtype: Dtype = None
    engine: Annotated[str, Option("native, torch, or auto: native where it runs the model.")] = "auto"
    threads: Threads = None

    def check(self) -> None:
        """ValueError for values out of range, before anything is read."""
        if self.engine not in ENGINES:
            raise ValueError(
                f"--engine is {self.engine!r}{closest(self.engine, list(ENGINES))}; allowed: {', '.join(ENGINES)}"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; allowed: 1 or more")
        if self.dtype is not None:
            dtype_named(self.dtype)


def dtype_named(name: str) -> tuple[str, int]:
    """The row of DTYPES; ValueError lists them."""
    if name not in DTYPES:
        raise ValueError(f"--dtype is {name!r}{closest(name, list(DTYPES))}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def load_model(model: str, dtype: str | None) -> "Lfm2":
    """The model's weights in memory. ImportError names the extra to install where torch is absent."""
    torch_name = None if dtype is None else dtype_named(dtype)[0]
    torch = optional.load("torch", extra="train")
    from headwater import Lfm2

    return Lfm2.from_pretrained(model, dtype=None if torch_name is None else getattr(torch, torch_name))


def read_stdin() -> str:
    """All of stdin as text; ValueError where it is not UTF-8."""
    if sys.stdin.isatty():
        print("headwater: reading the text from the terminal; Ctrl-D ends it", file=sys.stderr)
    return utf8(sys.stdin.buffer.read(), "stdin")


def utf8(data: bytes, what: str) -> str:
    """`data` as text; ValueError says at which byte of `what` it stops being UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{what} is not UTF-8 text (byte {e.start} is 0x{data[e.start]:02x}); convert it, e.g. with iconv"
        ) from e


@record(frozen=True)
class Speed:
    """Tokens and seconds of one answer, as one line."""

    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float

    def __str__(self) -> str:
        new = self.prompt_tokens - self.reused_tokens
        reused = f" ({self.reused_tokens} from the cache)" if self.reused_tokens else ""
        steps = self.answer_tokens - 1
        decode = f", {steps / self.decode_seconds:.1f} tokens/s" if steps > 0 and self.decode_seconds > 0 else ""
        return (
            f"prompt {self.prompt_tokens} tokens{reused}, {new / max(self.prefill_seconds, 1e-9):.1f} tokens/s; "
            f"answer {self.answer_tokens} tokens{decode}"
        )
