"""Options and inputs that several verbs share: sampling, number formats, text from stdin. No torch at import."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater import optional
from headwater.files import closest
from headwater.sampling import SamplingParams

if TYPE_CHECKING:
    from headwater.model import Lfm2

DTYPES = {"bf16": ("bfloat16", 2), "fp16": ("float16", 2), "fp32": ("float32", 4)}
"""Name on the command line: (torch's name, bytes of a value)."""

MODEL_HELP = "A model directory, a .gguf file or a hub id (owner/name)."
Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Dtype = Annotated[
    str | None, typer.Option(help=f"Number format of the weights: {', '.join(DTYPES)}. Default: the file's.")
]
EngineName = Annotated[str, typer.Option("--engine", help="native, torch, or auto: native where it runs the model.")]
Threads = Annotated[int | None, typer.Option(help="Threads to compute with. Default: all processors.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; higher is more varied.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that hold this probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
Penalty = Annotated[float | None, typer.Option(help="Above 1, tokens already seen become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given several times.")]


def dtype_named(name: str) -> tuple[str, int]:
    """The row of DTYPES; ValueError lists them."""
    if name not in DTYPES:
        raise ValueError(f"--dtype is {name!r}{closest(name, list(DTYPES))}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def sampling(base: SamplingParams, **given: Any) -> SamplingParams:
    """`base` with the options that were given (None: not given). ValueError names a value out of range."""
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


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


@dataclass(frozen=True)
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
