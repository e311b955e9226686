"""`headwater generate`: continue one text, streaming to stdout; the speed goes to stderr."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.commands import options as o
from headwater.sampling import PRESETS

if TYPE_CHECKING:
    from headwater.completion import Completion
    from headwater.tokenizer import Tokenizer


def generate(
    model: o.Model,
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; default: stdin.")] = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.Penalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log probabilities of each token and of the N likeliest.")
    ] = None,
    as_json: o.Json = False,
    dtype: o.Dtype = None,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Begin with the BOS token. Default: as the tokenizer says.")
    ] = None,
    engine: o.EngineName = "auto",
    threads: o.Threads = None,
) -> None:
    """Continue a text, greedily unless sampling options say otherwise. The text is not wrapped as a chat."""
    if logprobs is not None and not as_json:
        raise ValueError("--logprobs has no place in plain text; add --json")
    params = o.sampling(
        PRESETS["greedy"], max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop) if stop else None, logprobs=logprobs,
    )  # fmt: skip
    text = o.read_stdin() if prompt is None else prompt
    from headwater.commands import engines
    from headwater.tokenizer import Tokenizer

    engines.check(engine, threads, dtype)
    tokenizer = Tokenizer.from_pretrained(model)
    ids = tokenizer.encode(text, bos=tokenizer.add_bos if bos is None else bos)
    if not ids:
        raise ValueError("the prompt is empty; give some text, or --bos to begin from the BOS token alone")
    lfm = engines.open_talk(model, engine, tokenizer, threads=threads, dtype=dtype)
    on_text = None if as_json else lambda piece: print(piece, end="", flush=True)
    completion, _ = lfm.answer(ids, params, on_text=on_text)
    if as_json:
        print(json.dumps(_answer(completion, tokenizer, len(ids))))
        return
    print(flush=True)
    speed = o.Speed(len(ids), 0, len(completion.ids), completion.prefill_seconds, completion.decode_seconds)
    print(f"[{speed}]", file=sys.stderr)


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
