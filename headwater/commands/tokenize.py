"""`headwater tokenize`: text to token ids, coloured token by token, and ids back to text. Loads no torch."""

import json
from typing import Annotated

import typer

from headwater.commands import options as o
from headwater.tokenizer import Tokenizer

_STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


def tokenize(
    model: o.Model,
    text: Annotated[str | None, typer.Argument(help="The text; default: stdin.")] = None,
    decode: Annotated[str | None, typer.Option(help="Token ids to turn into text, separated by commas.")] = None,
    special: Annotated[bool, typer.Option(help="Read control-token names in the text as control tokens.")] = False,
    bos: Annotated[bool, typer.Option("--bos", help="Begin with the BOS token.")] = False,
    as_json: o.Json = False,
) -> None:
    """Show the tokens of a text, or the text of tokens."""
    if decode is not None and (text is not None or special or bos):
        raise ValueError("--decode takes ids, not text; leave TEXT, --special and --bos out")
    if decode is None and text is None:
        text = o.read_stdin()
    tokenizer = Tokenizer.from_pretrained(model)
    ids = _ids(decode) if decode is not None else tokenizer.encode(text or "", bos=bos, special=special)
    whole = tokenizer.decode(ids, skip_special=False)
    pieces = [tokenizer.token_bytes(i).decode(errors="backslashreplace") for i in ids]
    if as_json:
        print(json.dumps({"text": whole, "ids": ids, "tokens": pieces, "num_tokens": len(ids)}))
    elif decode is not None:
        print(whole)
    else:
        _show(ids, pieces)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    for word in words:
        if not word.isascii() or not word.isdecimal():
            raise ValueError(f"--decode has {word!r}; allowed: token ids such as 1,708,14")
    return [int(word) for word in words]


def _show(ids: list[int], pieces: list[str]) -> None:
    """Tokens on coloured grounds (bars between them where there is no colour), then the ids."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal and not console.no_color:
        line = Text()
        for i, piece in enumerate(pieces):
            line.append(piece, _STYLES[i % len(_STYLES)])
        console.print(line)
    else:
        print("|".join(pieces))
    print(*ids)
    print(f"{len(ids)} tokens")
