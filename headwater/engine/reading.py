"""A text read at once in a slot of its own, with logits behind every token. Not for answers (engine)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def logits(core: Any, ids: Sequence[int], size: int | None, decode: bool) -> "np.ndarray":
    """(tokens, vocabulary) fp32."""
    import numpy as np

    return np.concatenate([core.logits(rows) for rows in _runs(core, ids, size, decode)])


def likeliest(core: Any, ids: Sequence[int], k: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """The k likeliest ids behind each token in order, their log-probabilities, both (tokens, k), and their mass."""
    import numpy as np

    parts = [core.likeliest(rows, k) for rows in _runs(core, ids, None, False)]
    top, logprobs, mass = (np.concatenate(p) for p in zip(*parts, strict=True))
    return top, logprobs, mass


def _runs(core: Any, ids: Sequence[int], size: int | None, decode: bool) -> Iterator[int]:
    """Run the ids in pieces of at most `size` (default: what the core takes); yields how many rows of logits it has."""
    size = size or min(core.max_selected, core.max_tokens)
    slot = core.open()
    try:
        for start in range(0, len(ids), size):
            yield core.run([(slot, ids[start : start + size], "all")], decode=decode)
    finally:
        core.close(slot)
