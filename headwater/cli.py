"""The `headwater` command: a table of verbs, each imported when called; faults become one line here.

`headwater --help` reads the table alone, so it loads neither torch nor typer. What a verb does is in commands/.
Exit codes: 0 done, 1 the reader of a pipe went away, 2 bad input, 130 stopped by Ctrl-C.
HEADWATER_DEBUG=1 shows the traceback of a fault instead of its line.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from headwater.files import closest

VERBS = {
    "chat": ("headwater.commands.chat:chat", "talk with a model, turn by turn"),
    "serve": ("headwater.commands.serve:serve", "answer OpenAI's and Anthropic's clients, and people in a page"),
    "generate": ("headwater.commands.generate:generate", "continue a text"),
    "info": ("headwater.commands.info:info", "layers, parameters and memory of a model, without loading it"),
    "fit": ("headwater.commands.fit:fit", "the memory that a model needs to be served, from its header"),
    "tokenize": ("headwater.commands.tokenize:tokenize", "text to token ids and back"),
    "quantize": ("headwater.commands.export:quantize", "round a model to fewer bits, as a GGUF file"),
    "pack": ("headwater.commands.pack:pack", "keep a model in the core's own layout: the next start is instant"),
    "export": ("headwater.commands.export:export", "write a model for other programs: export gguf SRC DST"),
    "pull": ("headwater.commands.models:pull", "download a model from the hub"),
    "list": ("headwater.commands.models:list_models", "models that were downloaded"),
    "rm": ("headwater.commands.models:rm", "delete a downloaded model"),
    "bench": ("headwater.commands.bench:bench", "speed and memory beside a peer and beside the limits of this machine"),
    "load-test": ("headwater.commands.load_test:load_test", "several users at a server, beside other servers"),
    "eval": ("headwater.commands.evals:evaluate", "what rounding costs: eval kl MODEL --reference MODEL --text FILE"),
    "data": ("headwater.commands.data:data", "raw text to clean, deduplicated, packed shards"),
    "teacher": ("headwater.commands.teacher:teacher", "what a teacher expects, stored for distillation"),
    "hybridize": ("headwater.commands.recipe:hybridize", "turn a transformer into an LFM2-style hybrid"),
    "recipe": ("headwater.commands.recipe:recipe", "run a training recipe; without a name, list them"),
    "scale": ("headwater.commands.scale:scale", "what training on many GPUs takes, on paper"),
    "train": ("headwater.commands.recipe:recipe", "another name of recipe"),
}


def usage() -> str:
    """What `headwater --help` prints."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {says}" for verb, (_, says) in VERBS.items())
    return (
        f"Usage: headwater VERB [OPTIONS]\n\n{rows}\n\n"
        "A MODEL is a directory in Hugging Face format, a .gguf file or a hub id such as owner/name.\n"
        "`headwater VERB --help` lists a verb's options; `headwater --version` prints the version."
    )


def main() -> None:
    """Entry point of the installed command."""
    # torch's threads spin while they wait for each other: one busy neighbour would cost ten times (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Imports make a hundred thousand objects that stay; to look through them every 700 is a seventh of a start.
    gc.set_threshold(50_000)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. A fault of the user is one line on stderr."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered would be flushed at exit, with a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, ImportError, OSError) as e:
        if os.environ.get("HEADWATER_DEBUG"):
            raise
        return _fail(str(e) or type(e).__name__)
    return code


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        from headwater import __version__

        print(f"headwater {__version__}")
        return 0
    if verb not in VERBS:
        return _fail(f"no verb {verb!r}{closest(verb, list(VERBS))}; there are {', '.join(VERBS)}")
    module, _, function = VERBS[verb][0].partition(":")
    return _call(getattr(importlib.import_module(module), function), verb, rest)


def _call(function: Callable[..., None], verb: str, arguments: Sequence[str]) -> int:
    """Parse the verb's own options and call it: plainly right ones at once, all others with typer, which is slow."""
    from headwater import arguments as own

    values = own.quick(function, arguments)
    if values is not None:
        function(**values)
        return 0
    import typer

    context = getattr(function, "context_settings", None)
    function = own.for_typer(function)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=context)(function)
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name=f"headwater {verb}", standalone_mode=False)
    except typer.TyperException as e:
        return _fail(f"{e.format_message()} (`headwater {verb} --help` lists the options)")
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _fail(line: str) -> int:
    print(f"headwater: {' '.join(line.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
