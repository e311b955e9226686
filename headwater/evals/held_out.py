"""Held-out bits per byte of each kind of text, such as languages: the `evaluate` of THE training loop.

Not the measure itself (bits_per_byte.py) and not how texts are held out (data.split).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from headwater.evals.bits_per_byte import Encoder, Forward, bits_per_byte

PREFIX = "bits_per_byte"


def by_language(
    rows: Iterable[Mapping[str, Any]], *, key: str = "lang", default: str = "en", most_bytes: int = 50_000
) -> dict[str, list[str]]:
    """Texts of rows by their language, names in order; of each the first `most_bytes` bytes or a little more.

    `default` names the language of rows without `key`. ValueError: a row without a text.
    """
    kinds: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for number, row in enumerate(rows):
        if not isinstance(text := row.get("text"), str) or not text:
            raise ValueError(f"row {number} has no 'text'; it has {', '.join(row) or 'nothing'}")
        kind = str(row.get(key, default))
        if sizes.get(kind, 0) < most_bytes:
            kinds.setdefault(kind, []).append(text)
            sizes[kind] = sizes.get(kind, 0) + len(text.encode())
    return dict(sorted(kinds.items()))


class HeldOut:
    """evaluate(model) -> {"bits_per_byte/KIND": ..., and with several kinds "bits_per_byte/mean": ...}.

    `autocast`: the dtype of matrix products, None: that of the weights; the others are of bits_per_byte.
    ValueError: no kind, or one without a text.
    """

    def __init__(
        self,
        tokenizer: Encoder,
        kinds: Mapping[str, Sequence[str]],
        *,
        autocast: torch.dtype | None = None,
        window: int = 1024,
        overlap: int = 256,
        batch_size: int = 16,
        forward: Forward | None = None,
    ) -> None:
        if not kinds or not all(kinds.values()):
            raise ValueError(f"a kind of held-out text is empty: {[k for k, v in kinds.items() if not v] or 'all'}")
        self._tokenizer, self._kinds, self._autocast = tokenizer, kinds, autocast
        self._options: dict[str, Any] = {
            "window": window, "overlap": overlap, "batch_size": batch_size, "forward": forward,
        }  # fmt: skip

    def __call__(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device.type
        with torch.autocast(device, self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            found = {
                f"{PREFIX}/{kind}": bits_per_byte(model, self._tokenizer, texts, **self._options)
                for kind, texts in self._kinds.items()
            }
        if len(found) > 1:
            found[f"{PREFIX}/mean"] = sum(found.values()) / len(found)
        return found
