"""`headwater generate`: continue one text, streaming to stdout; the speed goes to stderr."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from headwater.arguments import Argument, Option
from headwater.commands import options as o
from headwater.sampling import PRESETS

if TYPE_CHECKING:
    from headwater.completion import Completion
    from headwater.tokenizer import Tokenizer


def generate(
    model: o.Model,
    prompt: Annotated[str | None, Argument("The text to continue; default: stdin.")] = None,
    *,
    sampling: o.Sampling,
    logprobs: Annotated[
        int | None, Option("With --json: log probabilities of each token and of the N likeliest.")
    ] = None,
    as_json: o.Json = False,
    bos: Annotated[
        bool | None, Option("Begin with the BOS token. Default: as the tokenizer says.", ("--bos/--no-bos",))
    ] = None,
    running: o.Running,
) -> None:
    """Continue a text, greedily unless sampling options say otherwise. The text is not wrapped as a chat."""
    if logprobs is not None and not as_json:
        raise ValueError("--logprobs has no place in plain text; add --json")
    params = sampling.on(PRESETS["greedy"], logprobs=logprobs)
    running.check()
    text = o.read_stdin() if prompt is None else prompt
    begun = _begun(model, running)
    from headwater.commands import engines

    file = engines.opened(model, begun)
    tokenizer = engines.tokenizer(model, running, file)
    ids = tokenizer.encode(text, bos=tokenizer.add_bos if bos is None else bos)
    if not ids:
        raise ValueError("the prompt is empty; give some text, or --bos to begin from the BOS token alone")
    lfm = engines.open_talk(model, tokenizer, running, kept=True, file=file)
    del begun, file  # the weights are its own now
    on_text = None if as_json else lambda piece: print(piece, end="", flush=True)
    completion, _ = lfm.answer(ids, params, on_text=on_text)
    if as_json:
        import json

        print(json.dumps(_answer(completion, tokenizer, len(ids))), flush=True)
    else:
        print(flush=True)
        speed = o.Speed(len(ids), 0, len(completion.ids), completion.prefill_seconds, completion.decode_seconds)
        print(f"[{speed}]", file=sys.stderr)
    native = lfm.name == "native"
    del lfm  # two copies of the weights need not fit
    if native:
        engines.keep(model, running)


def _begun(model: str, running: o.Running) -> Any:
    """The model's file, open and its weights on their way, while the engine is imported; None where that is not to be:
    another engine, no such file, or a packed copy in its place."""
    path = Path(model)
    if running.engine == "torch" or path.suffix != ".gguf" or not path.is_file():
        return None
    try:
        from headwater.engine import core, kept
    except ImportError:
        return None
    return core.begun(model, running.threads) if kept.find(path) is None else None


def _answer(c: "Completion", tokenizer: "Tokenizer", prompt_tokens: int) -> dict[str, object]:
    """A completion, JSON-ready."""

    def token(token_id: int, logprob: float) -> dict[str, object]:
        return {"id": token_id, "token": _name(tokenizer, token_id), "logprob": logprob}

    answer: dict[str, object] = {
        "text": c.text,
        "ids": c.ids,
        "finish_reason": c.finish_reason,
        "prompt_tokens": prompt_tokens,
        "prefill_seconds": c.prefill_seconds,
        "decode_seconds": c.decode_seconds,
    }
    if c.logprobs is not None:
        answer["logprobs"] = [token(p.token_id, p.logprob) | {"top": [token(*t) for t in p.top]} for p in c.logprobs]
    return answer


def _name(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token as text; rows of the embedding beyond the vocabulary have none."""
    if token_id >= tokenizer.vocab_size:
        return f"<unused {token_id}>"
    return tokenizer.token_bytes(token_id).decode(errors="replace")
