"""Schemas of many kinds: whatever the weights want, a whole answer is valid; and the masks cost little."""

import json
import random
import time

import jsonschema
import numpy as np
import pytest

from headwater.serve.errors import ApiError
from headwater.serve.grammar import Format, Grammars
from headwater.tokenizer import Tokenizer

SCHEMAS = 200
MOST_TOKENS = 1500
PATTERNS = (r"^[a-z]{2,5}$", r"^\d{3}-\d{2}$", r"^(on|off)$", r"^[A-F0-9]{1,8}$")


def schema(rng, depth=0):
    """A random schema whose answers are short."""
    kinds = ["enum", "string", "pattern", "integer", "boolean", "null", "const", "any"]
    kind = rng.choice(kinds if depth > 2 else [*kinds, "object", "array", "object"])
    if kind == "object":
        keys = rng.sample(["a", "b", "name", "the river", "é", 'q"'], rng.randint(1, 4))
        properties = {k: {"$ref": "#/$defs/leaf"} if rng.random() < 0.2 else schema(rng, depth + 1) for k in keys}
        required = rng.sample(keys, rng.randint(0, len(keys)))
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {
        "array": lambda: {
            "type": "array",
            "items": schema(rng, depth + 1),
            "minItems": rng.randint(0, 2),
            "maxItems": 3,
        },
        "enum": lambda: {"enum": rng.sample([1, "two", None, "it's", [3], {"k": 4}, 1.5, True], 3)},
        "string": lambda: {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 9)},
        "pattern": lambda: {"type": "string", "pattern": rng.choice(PATTERNS)},
        "integer": lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 5000)},
        "boolean": lambda: {"type": "boolean"},
        "null": lambda: {"type": "null"},
        "const": lambda: {"const": rng.choice(["x", 7, None])},
        "any": lambda: {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}]},
    }[kind]()


def whole(rng):
    found = schema(rng)
    while found.get("type") != "object":
        found = schema(rng)
    return found | {"$defs": {"leaf": {"enum": ["leaf", 0]}}}


def answer(grammars, form, rng, vocabulary, ends):
    """Ids by random logits, and the seconds of each mask."""
    mask = grammars.answer(form, [], must_call=False, may_call=False, parallel=True, all_tools=True)
    ids, seconds = [], []
    while len(ids) < MOST_TOKENS:
        start = time.perf_counter()
        words = mask.allowed()
        seconds.append(time.perf_counter() - start)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:vocabulary])
        token = int(rng.choice(allowed))
        if token in ends:
            return ids, seconds
        mask.take(token)
        ids.append(token)
    raise AssertionError(f"no end after {MOST_TOKENS} tokens")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return Tokenizer.from_pretrained(tiny_model)


def test_every_schema_is_kept(tokenizer):
    grammars = Grammars(tokenizer, tokenizer.padded_vocab_size, tokenizer.eos_ids)
    schemas, picks = random.Random(1), np.random.default_rng(2)
    for _ in range(SCHEMAS):
        form = Format("json", whole(schemas))
        ids, _seconds = answer(grammars, form, picks, tokenizer.vocab_size, tokenizer.eos_ids)
        jsonschema.validate(json.loads(tokenizer.decode(ids)), form.value)


@pytest.mark.parametrize(
    "value",
    [{"not": {"type": "string"}}, {"type": "objekt"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}],
)
def test_a_schema_that_cannot_be_applied_is_refused(tokenizer, value):
    grammars = Grammars(tokenizer, tokenizer.padded_vocab_size, tokenizer.eos_ids)
    with pytest.raises(ApiError, match="cannot be applied"):
        grammars.answer(Format("json", value), [], must_call=False, may_call=False, parallel=True, all_tools=True)


@pytest.mark.slow
def test_masks_are_cheap_at_a_large_vocabulary():
    """The median over all tokens of 20 schemas; this runs on a machine that others use."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(60_000)]
    tokenizer = Tokenizer.train([" ".join(words)] * 2, 65_536)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    schemas, picks = random.Random(1), np.random.default_rng(2)
    seconds = []
    for _ in range(20):
        form = Format("json", whole(schemas))
        seconds += answer(grammars, form, picks, tokenizer.vocab_size, tokenizer.eos_ids)[1]
    median, slow = 1e3 * np.quantile(seconds, [0.5, 0.99])
    print(f"{tokenizer.vocab_size} tokens: median {median:.3f} ms, p99 {slow:.3f} ms")
    assert median < 2
