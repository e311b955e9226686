"""GGUF files of exact shapes with random weights: speed does not depend on values, and no download is needed.

Blocks are random bytes under scales that keep every layer's output near one. The vocabulary is as long to read as a
real one: the special tokens, all bytes, and pieces of made-up words, each with the merge that makes it. What the file
says, which tensors it holds and in which type is what `headwater export gguf` would write of such a model; llama.cpp
and our engine run the result.
"""

import math
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headwater.bench.build_peer import cache_dir
from headwater.chat import LFM2_TEMPLATE
from headwater.checkpoint.gguf_layout import Place, describe
from headwater.checkpoint.gguf_model import ARCHITECTURE, OWN
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, named, stack
from headwater.export.gguf import Item, choose, head_format, typed, write_file
from headwater.files import closest
from headwater.quant.formats import FORMATS, Format
from headwater.tokenizer import LFM2_SPECIAL

TYPES = ("q4_0", "q8_0", "f16")
_PRE = {"lfm2": "lfm2", "lfm2moe": "lfm2", "llama": "llama-bpe", "qwen3": "qwen2", "gemma3": "gpt-2", OWN: "lfm2"}
_CONTROL = 3
_CONTENTS = 2
"""Part of a cached file's name: counted up when other bytes are written under the same name."""
_LETTERS = "eeeeeeettttttaaaaaooooniiiinnnssssrrrrhhhlllddducmfpgwybvkxjqz"
_SPACE = chr(0x120)  # GPT-2's letter for a space
_LONGEST = 10


def file_for(name: str, type_: str, *, pure: bool = False) -> Path:
    """The file of that released size and type in the cache, written when it is not there yet."""
    config = named(name)
    if type_ not in TYPES:
        raise ValueError(f"--type is {type_!r}{closest(type_, list(TYPES))}; allowed: {', '.join(TYPES)}")
    path = cache_dir() / f"{name.lower()}-{type_}{'-pure' if pure else ''}-v{_CONTENTS}.gguf"
    if not path.is_file():
        write(path, config, type_, pure=pure)
    return path


def write(path: Path, c: Config, type_: str, *, pure: bool = False) -> None:
    """Write a random model of shape `c`. ValueError: its vocabulary has no room for all bytes."""
    description = describe(c)
    arch = description.metadata[ARCHITECTURE]
    metadata = {**description.metadata, "general.name": f"random {arch}", **_vocabulary(c, arch)}
    write_file(path, typed(metadata), items(c, type_, pure=pure), FORMATS[type_])


def items(c: Config, type_: str, *, pure: bool = False) -> list[Item]:
    """Every tensor of the file, in its order."""
    head = "token_embd.weight" if c.tie_embeddings else "output.weight"
    listed = []
    for place in describe(c).tensors.values():
        form = choose(
            place.name, place.shape, FORMATS[type_], head=head, head_form=head_format(FORMATS[type_], pure=pure)
        )
        listed.append(Item(place.name, place.shape, form, partial(_bytes, place, form)))
    return listed


def write_tiny(path: Path) -> None:
    """Write a model of a million weights, for finding out whether an engine runs at all."""
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=64, rope=Rope(theta=1e6))
    layers = stack("CA", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=512))
    write(
        path, Config(vocab_size=512, hidden_size=256, layers=layers, max_positions=512, bos_id=1, eos_ids=(7,)), "q4_0"
    )


def _vocabulary(c: Config, arch: str) -> dict[str, Any]:
    """Special tokens at the model's ids (all of LFM2's, with its template, in files of that family), the 256 bytes, and
    merged pieces up to the last id."""
    eos = c.eos_ids or (c.vocab_size - 1,)
    special = {i: f"<|special_{i}|>" for i in (c.bos_id, c.pad_id, *eos) if i is not None}
    if arch.startswith("lfm2"):
        special |= dict(enumerate(LFM2_SPECIAL))
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    if c.vocab_size < len(letters) + len(special):
        raise ValueError(f"vocab_size is {c.vocab_size}; allowed: at least {len(letters) + len(special)}, all bytes")
    pairs = _pieces(c.vocab_size - len(letters) - len(special))
    rest = iter([*letters, *map("".join, pairs)])
    ids = {"eos_token_id": eos[0], "bos_token_id": c.bos_id, "padding_token_id": c.pad_id}
    parts = {
        "model": "gpt2", "pre": _PRE[arch], "tokens": [special.get(i) or next(rest) for i in range(c.vocab_size)],
        "merges": [" ".join(p) for p in pairs],
        "token_type": [_CONTROL if i in special else 1 for i in range(c.vocab_size)],
        "add_bos_token": c.bos_id is not None,
        **{key: value for key, value in ids.items() if value is not None},
    }  # fmt: skip
    template = {"tokenizer.chat_template": LFM2_TEMPLATE} if arch.startswith("lfm2") else {}
    return {f"tokenizer.ggml.{key}": value for key, value in parts.items()} | template


def _pieces(count: int) -> list[tuple[str, str]]:
    """Merges of `count` different pieces of words, each of two earlier ones or letters; the same in every run.

    Early pieces are taken most, as in a learned vocabulary: seven to eight letters on average.
    """
    rng = random.Random(0)
    pool = [*_LETTERS, *(_SPACE + letter for letter in dict.fromkeys(_LETTERS))]
    known, pairs = set(_LETTERS), [(_SPACE, letter) for letter in dict.fromkeys(_LETTERS)][:count]
    known.update(map("".join, pairs))
    while len(pairs) < count:
        left, right = pool[int(len(pool) * rng.random() ** 3)], pool[int(min(len(pool), 600) * rng.random())]
        piece = left + right
        if right[0] != _SPACE and len(piece) <= _LONGEST and piece not in known:
            known.add(piece)
            pool.append(piece)
            pairs.append((left, right))
    return pairs


def _bytes(place: Place, form: Format) -> np.ndarray:
    """The tensor's bytes; the same for the same name."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(place.name.encode())))
    if place.constant is not None:
        return place.constant.view(np.uint8)
    if form.name == "f32":
        return _floats(rng, place).view(np.uint8)
    return _FILL[form.name](rng, place.shape, form)


def _floats(rng: np.random.Generator, place: Place) -> np.ndarray:
    if len(place.shape) > 1:
        return rng.standard_normal(place.shape, np.float32) / np.float32(math.sqrt(place.shape[-1]))
    return np.zeros(place.shape, np.float32) if "bias" in place.name else np.ones(place.shape, np.float32)


def _random_bytes(rng: np.random.Generator, shape: tuple[int, ...], form: Format) -> np.ndarray:
    rows = (*shape[:-1], form.row_bytes(shape[-1]))
    return np.frombuffer(rng.bytes(math.prod(rows)), np.uint8).reshape(rows).copy()


def _scaled(rng: np.random.Generator, shape: tuple[int, ...], form: Format, at: int, deviation: float) -> np.ndarray:
    """Random blocks; the half at byte `at` of each is what makes the values' deviation 1 / sqrt(inputs)."""
    values = _random_bytes(rng, shape, form)
    scale = np.float16(1 / (deviation * math.sqrt(shape[-1])))
    values.reshape(-1, form.block_bytes)[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return values


def _q6_k(rng: np.random.Generator, shape: tuple[int, ...], form: Format) -> np.ndarray:
    values = _scaled(rng, shape, form, 208, 18.5 * 96)
    scales = values.reshape(-1, form.block_bytes)[:, 192:208]
    scales[:] = scales % 64 + 64  # signed bytes, 64 to 127
    return values


def _f16(rng: np.random.Generator, shape: tuple[int, ...], form: Format) -> np.ndarray:
    """A random sign and mantissa under one exponent: values of 1 to 2 times a power of two."""
    exponent = 15 + math.floor(math.log2(1 / (1.5 * math.sqrt(shape[-1]))))
    values = _random_bytes(rng, shape, form)
    halves = values.view(np.uint16)
    halves &= np.uint16(0x83FF)
    halves |= np.uint16(exponent << 10)
    return values


_FILL: dict[str, Callable[[np.random.Generator, tuple[int, ...], Format], np.ndarray]] = {
    "q4_0": partial(_scaled, at=0, deviation=4.6),
    "q8_0": partial(_scaled, at=0, deviation=74.0),
    "q6_k": _q6_k,
    "f16": _f16,
}
