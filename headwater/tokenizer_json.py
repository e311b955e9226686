"""What a tokenizer.json says, read and written as plain data: ids, merges, the token that comes first. No library.

Not for encoding (bpe.py, and the `tokenizers` library behind tokenizer.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headwater.vocabulary import Vocabulary


def ids_of(file: dict[str, Any]) -> Mapping[str, int] | None:
    """Every token's id as the library will count them, or None where it may count otherwise than the file."""
    vocab = file["model"]["vocab"]
    if isinstance(vocab, Vocabulary) and all(vocab.find(t["content"]) == t["id"] for t in file.get("added_tokens", [])):
        return vocab
    ids = vocab.whole() if isinstance(vocab, Vocabulary) else dict(vocab)
    if not set(map(type, ids.values())) <= {int}:
        return None
    size, following = len(ids), len(ids)
    for token in file.get("added_tokens", []):
        expected = ids.get(token["content"], following)
        if token["id"] != expected or expected < 0:
            return None
        ids[token["content"]] = expected
        following = max(following, expected + 1, size)
    return ids


def plain(file: dict[str, Any]) -> dict[str, Any]:
    """The same with a dict and a list in place of a vocabulary that lies in a file."""
    model = file["model"]
    if not isinstance(model["vocab"], Vocabulary):
        return file
    return file | {"model": model | {"vocab": model["vocab"].whole(), "merges": list(model["merges"])}}


def merges_fit(model: dict[str, Any]) -> bool:
    """Whether every merge joins two tokens of the vocabulary to a third."""
    merges, vocab = model.get("merges") or [], model["vocab"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    if not all(len(p) == 2 for p in pairs):
        return False
    left, right = {p[0] for p in pairs}, {p[1] for p in pairs}
    return (left | right | {a + b for a, b in pairs}) <= vocab.keys()


def puts_first(processor: Any, token_id: int) -> bool | None:
    """Whether a tokenizer.json's post_processor begins every text with this token; None: the library must say."""
    try:
        if processor is None or processor["type"] == "ByteLevel":
            return False
        if processor["type"] != "TemplateProcessing":
            return None
        first = processor["single"][0]
        return "SpecialToken" in first and processor["special_tokens"][first["SpecialToken"]["id"]]["ids"] == [token_id]
    except (KeyError, TypeError, IndexError):
        return None


def bos_first(token: str, token_id: int) -> dict[str, Any]:
    """What makes other libraries prepend BOS; encode() here asks its caller instead."""
    bos, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def spec(
    vocab: Mapping[str, int], merges: Sequence[str], added: list[dict[str, Any]], pattern: str | None,
    *, digits: bool = False, whole_words: bool = False, nfc: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A tokenizer.json object. pattern: what splits text, None for GPT-2's own."""
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if pattern is not None:
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append(level | {"use_regex": pattern is None})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole_words,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip
