"""What a token becomes does not depend on who shares the run, bit for bit: answers in crowds, prompts in pieces.

Answers in crowds of any size; prompts in any pieces that end at block boundaries, beside any neighbours; and a cache
read token by token where the program says that both ways agree. A kernel that takes another path for more rows, or
splits work by the number of rows, must keep these true (kernels.h, runner/exec.h: one_arithmetic).
"""

import dataclasses

import numpy as np
import pytest
from test_checkpoint import write_gguf
from test_native_program import STACKS, build, config, model, tokens

from headwater.checkpoint.gguf import GgufFile
from headwater.engine import native, program
from headwater.engine.scheduler import BLOCK
from headwater.export.gguf import requantize

DEPTH = 150
"""Deeper than one step of the attention kernel, and than a sliding window."""
SIZES = {"capacity": 256, "max_slots": 20, "max_tokens": 200, "max_selected": 200, "threads": 2}
CASES = [
    *((name, fmt) for name in ("lfm2", "lfm2_moe", "lfm3") for fmt in ("F16", "Q4_0")),
    ("gemma3", "F32"), ("llama", "Q8_0"), ("conv_only", "Q4_0"), ("lfm2", "Q6_K"), ("lfm2_moe", "Q4_K"),
    ("biased", "Q4_0"), ("biased_post_norms", "F16"), ("lfm2", "Q4_1"), ("lfm2", "Q5_0"), ("lfm2", "Q5_1"),
]  # fmt: skip


def wide(name: str):
    """A stack whose every width is a multiple of 256, as the k-quants need."""
    c = config(name)

    def widened(layer):
        mixer = layer.mixer
        if mixer.kind == "attention":
            mixer = dataclasses.replace(mixer, num_heads=8, num_kv_heads=4, head_dim=32)
        return dataclasses.replace(layer, mixer=mixer, ffn=dataclasses.replace(layer.ffn, intermediate_size=256))

    return dataclasses.replace(c, hidden_size=256, layers=tuple(map(widened, c.layers)))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    name, fmt = request.param
    path = tmp_path_factory.mktemp("case") / "m.gguf"
    if fmt.endswith("_K"):
        write_gguf(path.with_name("f32.gguf"), name, model(wide(name)))
        requantize(path, GgufFile(path.with_name("f32.gguf")), type=fmt.lower(), pure=True)
    elif fmt in ("Q4_1", "Q5_0", "Q5_1"):
        write_gguf(path, name, model(config(name)), fmt)
    else:
        return fmt, build(model(config(name)), fmt, **SIZES)
    c, weights = native.open_weights(path, "F32", threads=1)
    return fmt, native.build(program.lower(c, weights), **SIZES)


@pytest.fixture
def core(case):
    """The program of a case, all slots closed again when the test is over."""
    _, p = case
    slots = []

    def filled(ids=()):
        slots.append(p.open())
        if ids:
            p.run([(slots[-1], ids, "none")])
        return slots[-1]

    yield p, filled
    for slot in slots:
        p.close(slot)


def test_a_step_of_an_answer_is_the_same_in_every_crowd(core):
    p, filled = core
    slot = filled(tokens(DEPTH))
    others = [filled(tokens(3 + 7 * i, seed=i)) for i in range(19)]
    p.run([(slot, [5], "last")], decode=True)
    alone = p.logits(1)
    for crowd in (1, 3, 4, 5, 6, 7, 8, 11, 15, 16, 19):
        p.rewind(slot, DEPTH)
        before, after = others[: crowd // 2], others[crowd // 2 : crowd]
        p.run(
            [*((s, [1], "last") for s in before), (slot, [5], "last"), *((s, [2], "last") for s in after)], decode=True
        )
        assert np.array_equal(p.logits(crowd + 1)[crowd // 2], alone[0])


def test_a_prompt_is_the_same_in_any_pieces_beside_any_neighbours(core):
    p, filled = core
    ids = tokens(DEPTH)
    slot, other = filled(), filled()
    p.run([(slot, ids, "all")])
    whole = p.logits(DEPTH)
    for sizes in ([BLOCK] * 3 + [6], [2 * BLOCK, 54], [BLOCK, 102]):
        p.rewind(slot, 0)
        at, rows = 0, []
        for n in sizes:
            p.rewind(other, 0)
            p.run([(other, tokens(at % 40 + 1, seed=at), "none"), (slot, ids[at : at + n], "all")])
            rows.append(p.logits(n))
            at += n
        assert np.array_equal(np.concatenate(rows), whole)


def test_one_arithmetic_is_told_truly(case, core):
    """Where it is, a prompt read token by token gives the bits of one read at once: answers may enter the cache."""
    p, filled = core
    apart = case[0].endswith("_K") or (case[0].startswith("Q") and native.isa() == "amx")
    assert p.one_arithmetic != apart
    if not p.one_arithmetic:
        return
    ids = tokens(DEPTH)
    slot, steps = filled(), filled()
    p.run([(slot, ids, "all")])
    whole = p.logits(DEPTH)
    for i, t in enumerate(ids):
        p.run([(steps, [t], "last")], decode=True)
        assert np.array_equal(p.logits(1)[0], whole[i])


def test_every_kind_of_stack_is_held_to_it():
    assert {name for name, _ in CASES} == set(STACKS)
