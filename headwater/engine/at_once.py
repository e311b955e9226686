"""Calls that return when all of their requests are done. Whatever ends one, none of its requests stays in the engine.

Engine.generate and Engine.embed say what they take. Not for several callers at a time (Engine.step, aio).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headwater.completion import Completion, OnText
from headwater.sampling import SamplingParams

if TYPE_CHECKING:
    import numpy as np


def generate(
    engine: Any, prompts: Sequence[Any], params: Sequence[SamplingParams], on_text: OnText | None, burst: int
) -> list[Completion]:
    """Row i answers prompt i with params i."""
    rows: dict[int, int] = {}
    answers: dict[int, Completion] = {}
    try:
        for i, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
            rows[engine.add(prompt, asked)] = i
        while len(answers) < len(rows):
            for request, text in engine.step(burst):
                if text and on_text is not None and request in rows:
                    on_text(rows[request], text)
            answers |= {r: c for r in rows if (c := engine.finished(r)) is not None}
        return [answers[r] for r in rows]
    finally:
        for request in rows:
            engine.cancel(request)


def embed(engine: Any, texts: Sequence[Any]) -> "np.ndarray":
    """fp32 (texts, hidden_size), each row of length 1."""
    import numpy as np

    out = np.zeros((len(texts), engine.config.hidden_size), dtype=np.float32)
    rows: dict[int, int] = {}
    try:
        for i, text in enumerate(texts):
            rows[engine.add_embedding(text)] = i
        left = dict(rows)
        while left:
            engine.step()
            for request, i in list(left.items()):
                if (vector := engine.embedded(request)) is not None:
                    out[i] = vector / max(float(np.linalg.norm(vector)), 1e-12)
                    del left[request]
    finally:
        for request in rows:
            engine.cancel(request)
    return out
