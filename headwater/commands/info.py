"""`headwater info`: what a model is and what it will need, from its configuration alone (no weights, no torch)."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater import checkpoint, config, hub
from headwater.commands.options import DTYPES, Json, dtype_named
from headwater.config import Config

_COLOURS = {"C": "cyan", "A": "bold magenta", "S": "yellow"}
_KINDS = {"C": "short convolution", "A": "attention", "S": "sliding-window attention"}
_DEFAULT_CTX = 32_768


def info(
    model: Annotated[
        str, typer.Argument(help="A released size, a model directory, a .gguf file or a hub id.", show_default=False)
    ],
    as_json: Json = False,
    ctx: Annotated[
        int | None,
        typer.Option(help=f"Context to count memory at. Default: {_DEFAULT_CTX:,} tokens, or all there are."),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Number format: {', '.join(DTYPES)}.")] = "bf16",
) -> None:
    """Layers, parameters and memory of a model. C: short convolution, A: attention, S: sliding window."""
    facts = describe(*find(model), ctx, dtype)
    if as_json:
        print(json.dumps(facts))
    else:
        _show(facts)


def find(model: str) -> tuple[str, Config]:
    """Name and Config of a path, a hub id or a row of MODELS; ValueError with the closest known name."""
    if Path(model).expanduser().exists() or "/" in model:
        return model, checkpoint.read_config(model)
    c = config.named(model)
    return next(name for name, row in config.MODELS.items() if name.lower() == model.lower()), c


def describe(model: str, c: Config, ctx: int | None, dtype: str) -> dict[str, Any]:
    """The facts, JSON-ready; bytes are of one sequence in `dtype`."""
    _, size = dtype_named(dtype)
    ctx = min(_DEFAULT_CTX, c.max_positions) if ctx is None else ctx
    if not 1 <= ctx <= c.max_positions:
        raise ValueError(f"--ctx is {ctx}; allowed: 1 to {c.max_positions}, the model's context")
    weights, kv = c.num_parameters() * size, c.kv_bytes(ctx, bytes_per_value=size)
    conv = c.conv_state_bytes(bytes_per_value=size)
    longest = c.max_positions
    past_windows = c.kv_bytes(longest, bytes_per_value=size) - c.kv_bytes(longest - 1, bytes_per_value=size)
    return {
        "model": model,
        "parameters": c.num_parameters(),
        "active_parameters": c.num_parameters(active=True),
        "layers": len(c.layers),
        "pattern": c.pattern(),
        "hidden_size": c.hidden_size,
        "vocab_size": c.vocab_size,
        "context": c.max_positions,
        "dtype": dtype,
        "kv_bytes_per_token": c.kv_bytes_per_token(bytes_per_value=size),
        "kv_bytes_per_token_past_windows": past_windows,
        "conv_state_bytes": conv,
        "memory_context": ctx,
        "memory_bytes": {"weights": weights, "kv": kv, "conv_state": conv, "total": weights + kv + conv},
        "licence": hub.licence(model),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    pattern = facts["pattern"]
    letters = Text()
    for letter in pattern:
        letters.append(letter, _COLOURS[letter])
    kinds = ", ".join(f"{pattern.count(k)} {says}" for k, says in _KINDS.items() if k in pattern)
    memory, dtype = facts["memory_bytes"], facts["dtype"]
    active = facts["active_parameters"]
    per_token = "" if active == facts["parameters"] else f", {active:,} active per token"
    long = facts["kv_bytes_per_token_past_windows"]
    windows = "" if long == facts["kv_bytes_per_token"] else f", {long:,} once the windows are full"
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, str | Text]] = [
        ("layers", letters),
        ("", f"{facts['layers']}: {kinds}"),
        ("parameters", f"{facts['parameters']:,}{per_token}"),
        ("KV cache", f"{facts['kv_bytes_per_token']:,} bytes per token in {dtype}{windows}"),
        ("conv state", f"{facts['conv_state_bytes']:,} bytes per sequence in {dtype}"),
        (
            f"memory at {facts['memory_context']:,}",
            f"{_bytes(memory['total'])}: weights {_bytes(memory['weights'])}, KV {_bytes(memory['kv'])}, "
            f"conv state {_bytes(memory['conv_state'])}",
        ),
        ("context", f"{facts['context']:,} tokens"),
        ("vocabulary", f"{facts['vocab_size']:,}"),
        ("licence", facts["licence"]),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(Text(facts["model"], "bold"))
    console.print(table)


def _bytes(count: float) -> str:
    """Bytes in the largest decimal unit that keeps the number above one."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} B" if units[0] == "B" else f"{count:,.2f} {units[0]}"
