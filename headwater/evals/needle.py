"""Needle in a haystack: does a model still know, at the end of a long text, a number stated somewhere in it?

The answer is read by teacher forcing: recalled when every token of it is the model's first choice. Small models seldom
recall; `lift` tells by how many nats a token the needle in the text helps, against the same text without it.
Not a benchmark of reasoning over long texts.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater.evals.bits_per_byte import Encoder
from headwater.ops.head_loss import Head

STATEMENT = " The secret number of {name} is {number}. Remember it."
QUESTION = " The secret number of {name} is"
NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leo")

Forward = Callable[[Tensor], Head]
"""Ids (1, t) -> a Head of them."""


@dataclass(frozen=True)
class Found:
    """At one length (tokens) and depth (0 the start, 1 the end): share of trials recalled, nats a token of the answer
    with the needle, and how many fewer that is than without it.
    """

    length: int
    depth: float
    recalled: float
    nats: float
    lift: float


def grid(
    forward: Forward,
    tokenizer: Encoder,
    filler: str,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    trials: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_cell: Callable[[Found], Any] = lambda _: None,
) -> list[Found]:
    """One Found for each length and depth, in order. `filler`: text of at least the longest length in tokens.

    ValueError: too short a filler, a length that has no room for needle and question, a depth outside [0, 1].
    """
    if any(not 0.0 <= depth <= 1.0 for depth in depths):
        raise ValueError(f"depths are {list(depths)}; each lies between 0 (the start) and 1 (the end)")
    hay, found = tokenizer.encode(filler, bos=True), []
    for length in lengths:
        for depth in depths:
            draw = random.Random(f"{seed} {length} {depth}")
            cells = [_trial(forward, tokenizer, hay, length, depth, draw, device) for _ in range(trials)]
            with_needle, without = sum(c[1] for c in cells) / trials, sum(c[2] for c in cells) / trials
            recalled = sum(c[0] for c in cells) / trials
            found.append(Found(length, depth, recalled, with_needle, without - with_needle))
            on_cell(found[-1])
    return found


def _trial(
    forward: Forward,
    tokenizer: Encoder,
    hay: Sequence[int],
    length: int,
    depth: float,
    draw: random.Random,
    device: torch.device | str,
) -> tuple[bool, float, float]:
    """(recalled, nats a token of the answer with the needle, the same without)."""
    name, number = draw.choice(NAMES), str(draw.randrange(1_000_000, 10_000_000))
    needle, question = (
        tokenizer.encode(text.format(name=name, number=number), bos=False) for text in (STATEMENT, QUESTION)
    )
    answer = tokenizer.encode(" " + number, bos=False)
    room = length - len(needle) - len(question) - len(answer)
    if room < 1:
        raise ValueError(f"length is {length}; needle, question and answer take {length - room} tokens of it")
    if len(hay) < room + len(needle):
        raise ValueError(
            f"the filler has {len(hay)} tokens, a text of {length} needs {room + len(needle)}; give a longer one"
        )
    cut = max(1, round(depth * room))  # BOS stays first
    full = [*hay[:cut], *needle, *hay[cut:room], *question, *answer]
    bare = [*hay[: room + len(needle)], *question, *answer]
    assert len(full) == len(bare) == length
    (recalled, nats), (_, without) = (_answered(forward, ids, len(answer), device) for ids in (full, bare))
    return recalled, nats, without


def _answered(forward: Forward, ids: list[int], count: int, device: torch.device | str) -> tuple[bool, float]:
    with torch.no_grad():
        head = forward(torch.tensor([ids], device=device))
        logits = Head(head.hidden[0, -count - 1 : -1], head.weight).logits().float()
    answer = torch.tensor(ids[-count:], device=logits.device)
    nats = torch.nn.functional.cross_entropy(logits, answer).item()
    return bool((logits.argmax(-1) == answer).all()), nats
