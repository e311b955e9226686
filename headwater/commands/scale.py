"""`headwater scale`: memory, traffic and speed of training on many GPUs, worked out on paper."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from headwater.commands.options import Json


def scale(
    model: Annotated[str, typer.Argument(help="A released model: LFM2-1.2B, ...", show_default=False)],
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, separated by commas.")] = "8,64,256,1000",
    gpu: Annotated[str, typer.Option(help="A100, H100 or H200.")] = "H100",
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 4096,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of an update, over all GPUs.")] = 4_194_304,
    context: Annotated[int, typer.Option(help="GPUs that share a row.")] = 1,
    attained: Annotated[float, typer.Option(help="Share of the peak that the layers reach by themselves.")] = 0.5,
    sums: Annotated[bool, typer.Option("--sums", help="Also how each number comes about.")] = False,
    as_json: Json = False,
) -> None:
    """What training MODEL takes on so many GPUs: layout, memory, traffic, tokens/s and MFU. Nothing is measured."""
    from headwater.config import named
    from headwater.train.scale import GB, Setting, estimate

    config = named(model)
    try:
        numbers = [int(n) for n in gpus.split(",")]
    except ValueError as fault:
        raise ValueError(f"--gpus is {gpus!r}; allowed: numbers separated by commas, such as 8,64,1000") from fault
    found = [
        estimate(
            config,
            Setting(gpus=n, gpu=gpu, length=length, batch_tokens=batch_tokens, context=context, attained=attained),
        )
        for n in numbers
    ]
    if as_json:
        print(json.dumps([asdict(e) for e in found]))
        return
    print("  GPUs  replicas x shards  experts  rows x micro   memory  traffic/update     step    tokens/s   MFU")
    for e in found:
        n = e.numbers
        print(
            f"{e.setting.gpus:>6,}  {f'{e.replicas} x {e.shards}':>17}  {e.experts:>7}  "
            f"{f'{e.rows} x {e.accumulate}':>12}  {n['memory'] / GB:>4.1f} GB  {n['sharding bytes'] / GB:>11.1f} GB  "
            f"{n['step']:>6.2f} s  {n['tokens/s']:>10,.0f}  {n['MFU']:>4.0%}"
        )
    for e in found if sums else ():
        print(f"\n{e.setting.gpus:,} GPUs")
        for name, how in e.sums.items():
            print(f"  {name:<14} {_shown(name, e.numbers[name]):>12} = {how}")


def _shown(name: str, value: float) -> str:
    if name in ("state", "gathered", "activations", "memory", "sharding bytes"):
        return f"{value / 1e9:,.2f} GB"
    if name in ("tokens/s", "flop a token"):
        return f"{value:,.0f}" if name == "tokens/s" else f"{value:.3g}"
    return f"{value:.1%}" if name == "MFU" else f"{value:,.4f} s"
