"""`headwater data ...`: run the data pipeline, pack tokens, look at what a run kept and removed.

The pipeline itself is headwater.data; here are options, the progress display and short tables.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from headwater.commands.data_prompts import difficulty, fingerprint
from headwater.data import plan as plans
from headwater.data import run as runs
from headwater.data.inputs import Source
from headwater.data.mix import PRESETS
from headwater.data.pool import run_tasks
from headwater.files import read_json

Sources = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders, or hf:owner/name[:config[:split]]. NAME=PATH gives a source its name."),
]
Out = Annotated[Path, typer.Option("--out", help="The folder of the run.", show_default=False)]
Workers = Annotated[int | None, typer.Option(help="Processes. Default: one a core; 0: none besides this one.")]
Shards = Annotated[int, typer.Option(help="Files to cut the result into; 0: by size, one for 134 million characters.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first text that cannot be read.")]
Field = Annotated[str, typer.Option("--text", help="The field or column that holds the text.")]
Facts = Annotated[str, typer.Option(help="Further fields to keep, parted by commas.")]
Ray = Annotated[bool, typer.Option("--ray", help="Run the units on Ray Data; --out must be seen by all machines.")]
Folder = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Raw text to clean, deduplicated, packed shards.")


@app.command("run")
def run(
    sources: Sources = None,
    out: Out = Path("corpus"),
    plan: Annotated[Path | None, typer.Option(help="A plan file; instead of sources and steps.")] = None,
    steps: Annotated[str, typer.Option(help="Steps in order, parted by commas. Default: all usual ones.")] = "",
    form: Annotated[str, typer.Option(help=f"Output: {', '.join(plans.FORMS)}.")] = "jsonl.zst",
    tokenizer: Annotated[str, typer.Option(help="For the form 'tokens': a model or tokenizer.json.")] = "",
    options: Annotated[list[str] | None, typer.Option("--set", help="STEP.OPTION=VALUE; as often as needed.")] = None,
    mix: Annotated[str, typer.Option(help=f"Mix at the end: {', '.join(PRESETS)} (English/others/code).")] = "",
    temperature: Annotated[float | None, typer.Option(help="Of languages in the mixture; 1: as they are.")] = None,
    code: Annotated[list[str] | None, typer.Option(help="A further source, of program text.")] = None,
    text: Field = "text",
    facts: Facts = "",
    workers: Workers = None,
    shards: Shards = 0,
    resume: Resume = False,
    strict: Strict = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep the intermediate files.")] = False,
    ray: Ray = False,
) -> None:
    """Clean, deduplicate and write shards, with a report of everything that was removed."""
    if (plan is None) == (not sources and not code):
        raise ValueError("give either sources or --plan FILE")
    if plan is not None:
        if options or mix or temperature is not None or steps:
            raise ValueError("a plan file says its steps; --steps, --set, --mix and --temperature go with sources")
        made = plans.Plan.read(plan)
    else:
        uses = plans.steps_of(steps, options or (), mix, temperature)
        made = _plan(sources or [], code or [], text, facts, uses, form, tokenizer, strict)
    _run(made, out, workers, shards, resume, keep_work, ray)


@app.command("pack")
def pack(
    sources: Sources = None,
    tokenizer: Annotated[str, typer.Option(help="A model or tokenizer.json.", show_default=False)] = "",
    out: Out = Path("tokens"),
    text: Field = "text",
    workers: Workers = None,
    shards: Shards = 0,
    resume: Resume = False,
    strict: Strict = False,
    ray: Ray = False,
) -> None:
    """Tokenise texts as they are into shards for training."""
    if not sources or not tokenizer:
        raise ValueError("pack needs sources and --tokenizer")
    _run(_plan(sources, [], text, "", (), "tokens", tokenizer, strict), out, workers, shards, resume, False, ray)


@app.command("steps")
def steps() -> None:
    """The steps there are, with their options and sources."""
    for name in plans.STEPS:
        step = plans.Use(name).build()
        options = ", ".join(f"{key}={value!r}" for key, value in plans.options_of(step).items())
        kind = "whole corpus" if plans.is_corpus_step(step) else "text by text"
        print(f"{name}  ({kind})\n    {step.source}\n    {options or 'no options'}")


@app.command("report")
def report(folder: Folder) -> None:
    """What each step of a run kept and removed, as a table; the page is FOLDER/report.html."""
    values = _report_of(folder)
    _table(values)
    print(folder / runs.PAGE)


@app.command("show")
def show(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", help="How many.")] = 5,
    removed: Annotated[str, typer.Option(help="Samples of what this step removed, instead of kept texts.")] = "",
) -> None:
    """Some kept texts of a run, or samples of what a step removed and why."""
    values = _report_of(folder)
    if not removed:
        for row in runs.kept_texts(folder, n):
            print(json.dumps(row, ensure_ascii=False))
        return
    entries = [entry for entry in values["steps"] if entry["name"] == removed]
    if not entries:
        names = [entry["name"] for entry in values["steps"]]
        raise ValueError(f"the run had no step {removed!r}{plans.closest(removed, names)}; it had {', '.join(names)}")
    for reason, row in entries[0]["removed"].items():
        print(f"{reason}: {row['count']}")
        for sample in row["samples"][:n]:
            print(json.dumps({k: v for k, v in sample.items() if k != "order"}, ensure_ascii=False))


app.command("fingerprint")(fingerprint)
app.command("difficulty")(difficulty)


def data(ctx: typer.Context) -> None:
    """Raw text to clean, deduplicated, packed shards: run, pack, steps, report, show, fingerprint, difficulty."""
    command = typer.main.get_command(app)
    code = command.main(list(ctx.args), prog_name="headwater data", standalone_mode=False)
    if isinstance(code, int) and code:
        raise typer.Exit(code)


data.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}  # type: ignore[attr-defined]


def _plan(
    sources: list[str], code: list[str], text: str, facts: str, steps: tuple[plans.Use, ...], form: str,
    tokenizer: str, strict: bool,
) -> plans.Plan:  # fmt: skip
    kept = tuple(name.strip() for name in facts.split(",") if name.strip())
    found = []
    for given, add in [*((s, {}) for s in sources), *((s, {"kind": "code"}) for s in code)]:
        name, sign, path = given.partition("=")
        path, name = (path, name) if sign and "/" not in name else (given, "")
        found.append(Source(path=path, name=name, text=text, facts=kept, add=add))
    output = plans.Output(form=form, tokenizer=tokenizer)
    return plans.Plan(sources=tuple(found), steps=steps, output=output, strict=strict)


def _run(
    plan: plans.Plan, out: Path, workers: int | None, shards: int, resume: bool, keep_work: bool, ray: bool
) -> None:
    executor = run_tasks
    if ray:
        from headwater.data.on_ray import run_tasks as executor  # type: ignore[assignment]
    count = (os.cpu_count() or 1) if workers is None else workers
    with _progress() as tell:
        values = runs.run(
            plan,
            out,
            workers=count,
            shards=shards,
            resume=resume,
            keep_work=keep_work,
            executor=executor,
            progress=tell,
        )
    _table(values)
    print(out / runs.PAGE)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar with speed and time left on a terminal; a line a stage elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}
        begun: dict[str, int] = {}

        def tell(at: runs.Progress) -> None:
            if at.label not in tasks:
                tasks[at.label] = bar.add_task(at.label, total=at.total or None, text="")
                begun[at.label] = at.done
                if not console.is_terminal:
                    print(at.label, file=sys.stderr)
            elapsed = bar.tasks[tasks[at.label]].elapsed or 0
            speed = f"{(at.done - begun[at.label]) / 1e6 / elapsed:.1f} MB/s " if elapsed > 1 and at.read else ""
            counts = f"{at.read:,} read, {at.kept:,} kept" if at.read else ""
            bar.update(tasks[at.label], completed=at.done, text=speed + counts)

        yield tell


def _report_of(folder: Path) -> dict[str, Any]:
    if not (folder / runs.RUN_REPORT).is_file():
        raise ValueError(f"{folder} holds no finished run; cure: headwater data run ... --out {folder} --resume")
    return read_json(folder / runs.RUN_REPORT)


def _table(values: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("step", "seconds", "texts in", "texts out", "removed because"):
        table.add_column(name, justify="left" if name in ("step", "removed because") else "right")
    for reason, row in values["faults"].items():
        where = row["samples"][0]["where"]
        table.add_row("read", "", "", "", f"{reason} {row['count']:,} (first: {escape(where)})")
    if values["left_out"]:
        table.add_row(
            "read", "", "", "", f"left out {len(values['left_out']):,} files ({escape(values['left_out'][0])})"
        )
    for entry in values["steps"]:
        reasons = sorted(entry["removed"].items(), key=lambda item: -item[1]["count"])
        because = ", ".join(f"{reason} {row['count']:,}" for reason, row in reasons[:6])
        seconds = f"{entry['seconds']:.1f}"
        table.add_row(entry["name"], seconds, f"{entry['texts_in']:,}", f"{entry['texts_out']:,}", because)
        for name, counts in entry["facts"].items():
            if isinstance(counts, dict) and counts and all(isinstance(count, int) for count in counts.values()):
                told = ", ".join(f"{what} {count:,}" for what, count in counts.items())
                table.add_row("", "", "", "", f"[dim]{name.replace('_', ' ')}: {escape(told)}[/]")
    Console(width=max(100, Console().width)).print(table)
    tokens = f", {values['tokens']:,} tokens" if values["tokens"] else ""
    print(f"{values['documents']:,} texts{tokens} in {len(values['shards'])} shards; {values['seconds']:.1f} s")
    for label, seconds in values["stages"].items():
        size = f"; largest process {values['memory'][label] / 1e6:,.0f} MB" if label in values["memory"] else ""
        print(f"  {label}: {seconds:.1f} s{size}")
