"""Byte-level BPE of plain ASCII text with dictionaries alone: the short way to the ids of a prompt.

Its twin is the `tokenizers` library, which tokenizer.py builds for everything else (other alphabets, long text,
batches, offsets): that takes longer than loading a small model. `direct` says None for a vocabulary it does not fully
understand, `Direct.encode` for a text, so that nothing is ever guessed. Not for bytes outside ASCII: Unicode's classes
and Python's differ.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from headwater.vocabulary import Merges

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The split pattern of the Llama 3 line, without its rule for digits."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the library's ByteLevel splits with by itself (GPT-2)."""
_KNOWN = (GPT2, WORDS % r"\p{N}{1,3}", WORDS % r"\p{N}")
_DIGITS = re.compile("[0-9]|[^0-9]+")
_LONGEST_TEXT, _LONGEST_WORD = 16_384, 64
# GPT-2's letters for the ASCII bytes that are no visible characters: 0 to 32 and 127 in order.
_LETTERS = {b: 256 + b for b in range(33)} | {127: 289}


def _ascii(pattern: str) -> re.Pattern[str]:
    """The pattern for ASCII text: Unicode's letters and numbers that ASCII has."""
    bare = pattern.replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]").replace(r"[^\s\p{L}\p{N}]", r"[^\sA-Za-z0-9]")
    return re.compile(bare.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)


class Direct:
    """Words of one vocabulary -> ids."""

    def __init__(
        self, ids: Mapping[str, int], merges: Sequence[Any], pattern: str, *, digits: bool, whole_words: bool,
        open_tokens: list[str],
    ) -> None:  # fmt: skip
        """open_tokens: texts that the library would find before it splits; `encode` leaves texts with them to it."""
        self._ids, self._whole_words, self._digits, self._open = ids, whole_words, digits, open_tokens
        self._rank: Callable[[str], int | None]
        if isinstance(merges, Merges):
            self._rank = merges.rank
        else:
            rules = merges if not merges or isinstance(merges[0], str) else map(" ".join, merges)
            self._rank = dict(zip(rules, range(len(merges)), strict=True)).get
        self._last = len(merges)
        self._split = _ascii(pattern).findall

    def encode(self, text: str) -> list[int] | None:
        """The ids the library would give, or None where only it knows."""
        if not text.isascii() or len(text) > _LONGEST_TEXT or any(t in text for t in self._open):
            return None
        out: list[int] = []
        for part in _DIGITS.findall(text) if self._digits else (text,):
            for piece in self._split(part):
                if len(piece) > _LONGEST_WORD:
                    return None
                word = piece.translate(_LETTERS)
                known = self._ids.get(word) if self._whole_words else None
                if known is not None:
                    out.append(known)
                    continue
                try:
                    out += [self._ids[part] for part in self._merged(word)]
                except KeyError:
                    return None
        return out

    def _merged(self, word: str) -> list[str]:
        """The word's letters, the best pair joined (the leftmost of equals) as long as a rule has one."""
        parts, rank, none = list(word), self._rank, self._last
        while len(parts) > 1:
            found = ((rank(f"{a} {b}"), i) for i, (a, b) in enumerate(pairwise(parts)))
            best, at = min((none if r is None else r, i) for r, i in found)
            if best == none:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def direct(spec: Mapping[str, Any], open_tokens: list[dict[str, Any]]) -> Direct | None:
    """The short way for a tokenizer.json, or None. open_tokens: added tokens that text may become."""
    model, normalizer = spec["model"], spec.get("normalizer")
    plan = _split_of(spec.get("pre_tokenizer"))
    odd = any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    if plan is None or odd or normalizer not in (None, {"type": "NFC"}):
        return None  # NFC leaves ASCII as it is
    if any(t.get("normalized") and not t["content"].isascii() for t in open_tokens):
        return None  # normalized, its content might become ASCII
    pattern, digits = plan
    return Direct(
        model["vocab"], model.get("merges") or [], pattern, digits=digits,
        whole_words=bool(model.get("ignore_merges")), open_tokens=[t["content"] for t in open_tokens],
    )  # fmt: skip


def _split_of(pre: Any) -> tuple[str, bool] | None:
    """(pattern, digits one by one first) of a tokenizer.json's pre_tokenizer, where it is one of those known here."""
    steps = pre.get("pretokenizers", []) if isinstance(pre, dict) and pre.get("type") == "Sequence" else [pre]
    steps = [{k: v for k, v in s.items() if k != "trim_offsets"} for s in steps if isinstance(s, dict)]
    digits = steps[:1] == [{"type": "Digits", "individual_digits": True}]
    rest = steps[1:] if digits else steps
    last = {"type": "ByteLevel", "add_prefix_space": False}
    if rest == [last | {"use_regex": True}] or rest == [last]:
        return GPT2, digits
    for pattern in _KNOWN:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        if rest == [split, last | {"use_regex": False}]:
            return pattern, digits
    return None
