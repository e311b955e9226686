"""The native program against the model: logits of every family and number format, whole, in chunks and step by step."""

import numpy as np
import pytest
import torch
from rounding import int8, rounded_inputs

from headwater.config import Attention, Config, Ffn, Layer, Moe, Rope, RopeScaling, ShortConv
from headwater.engine import native, program
from headwater.model import Lfm2

VOCAB = 131
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_positions=32)


def _attention(**options) -> Attention:
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope": Rope(theta=1e4)}
    return Attention(**{**shape, **options})


def _stack(*mixers, ffn=Ffn(intermediate_size=96), first=None, **options):  # noqa: B008 (frozen)
    ffns = [first or ffn, *[ffn] * (len(mixers) - 1)]
    return tuple(Layer(mixer=m, ffn=f, **options) for m, f in zip(mixers, ffns, strict=True))


CONV3, CONV7 = ShortConv(width=3), ShortConv(width=7)
BIASED = ShortConv(width=3, bias=True)
GATED = {"output_gate": True, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16}
STACKS = {
    "lfm2": _stack(CONV3, _attention(), CONV3, _attention(), CONV3),
    "conv_only": _stack(CONV7, CONV3),
    "biased": _stack(BIASED, _attention(), BIASED),
    "biased_post_norms": _stack(BIASED, _attention(), BIASED, post_norms=True),
    "lfm2_moe": _stack(
        CONV3, _attention(), CONV3, first=Ffn(intermediate_size=64),
        ffn=Moe(num_experts=7, num_experts_per_token=3, intermediate_size=32, routed_scaling_factor=1.5),
    ),
    "lfm3": _stack(
        CONV7, _attention(rope=Rope(theta=1e6, fraction=0.5), **GATED), CONV7, _attention(window=9, **GATED),
        post_norms=True,
    ),
    "llama": _stack(*[_attention(qk_norm=False, head_dim=32, rope=Rope(theta=1e4, scaling=LLAMA3))] * 2),
    "gemma3": _stack(
        _attention(window=9, scale=0.2, num_kv_heads=1, head_dim=32), _attention(num_kv_heads=1, head_dim=32),
        ffn=Ffn(intermediate_size=64, activation="gelu_tanh"), post_norms=True,
    ),
}  # fmt: skip


def config(name: str) -> Config:
    gemma = {"norm_offset": 1.0, "embedding_scale": 8.0} if name == "gemma3" else {}
    return Config(
        vocab_size=VOCAB, hidden_size=64, layers=STACKS[name], max_positions=4096,
        tie_embeddings=name != "llama", **gemma,
    )  # fmt: skip


def model(c: Config) -> Lfm2:
    torch.manual_seed(3)
    with torch.no_grad():
        m = Lfm2(c).eval()
        for name, p in m.named_parameters():
            p.normal_(0, 0.15)
            if "norm" in name:
                p.add_(1 - c.norm_offset)
        for name, b in m.named_buffers():
            if name.endswith("expert_bias"):
                b.normal_(0, 0.3)
    return m


def build(m: Lfm2, formats: str | dict[str, str] = "F32", **options):
    tensors = {**dict(m.named_parameters()), **dict(m.named_buffers())}

    def format_of(name: str) -> str:
        if "feed_forward.gate" in name or "g_proj" in name:
            return "F32"
        return formats

    w = native.FloatWeights(m.config, lambda n: tensors[n].detach().float().numpy(), format_of)
    spec = program.lower(m.config, w)
    return native.build(
        spec, **{"capacity": 256, "max_slots": 4, "max_tokens": 64, "max_selected": 64, "threads": 2, **options}
    )


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def reference(m: Lfm2, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return m(torch.tensor([ids]))[0].float().numpy()


def rel(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


F16_CACHE = 2e-3
"""Keys and values are rounded to 11 bits; everything else is fp32."""


@pytest.mark.parametrize("name", STACKS)
def test_whole_prompt_and_every_split(name):
    m = model(config(name))
    p = build(m)
    ids = tokens(45)
    want = reference(m, ids)
    slot = p.open()
    assert p.run([(slot, ids, "all")]) == len(ids)
    whole = p.logits(len(ids))
    assert rel(whole, want) < F16_CACHE
    for sizes in ([1] * 45, [2, 1, 3, 39], [20, 17, 8]):
        p.rewind(slot, 0)
        at, rows = 0, []
        for n in sizes:
            p.run([(slot, ids[at : at + n], "all")])
            rows.append(p.logits(n))
            at += n
        assert rel(np.concatenate(rows), want) < F16_CACHE


@pytest.mark.parametrize("name", STACKS)
def test_several_sequences_in_one_run_do_not_meet(name):
    m = model(config(name))
    p = build(m)
    rows = [tokens(n, seed=n) for n in (3, 19, 11)]
    want = [reference(m, r) for r in rows]
    slots = [p.open() for _ in rows]
    p.run([(s, r[:-2], "none") for s, r in zip(slots, rows, strict=True)])
    for step in (-2, -1):
        n = p.run([(s, [r[step]], "last") for s, r in zip(slots, rows, strict=True)])
        for i, ours in enumerate(p.logits(n)):
            assert rel(ours, want[i][step]) < F16_CACHE


@pytest.mark.parametrize("name", STACKS)
def test_rewind_copy_and_reuse(name):
    m = model(config(name))
    p = build(m, ring=24)
    a, b = p.open(), p.open()
    ids = tokens(30)
    want = reference(m, ids)
    p.run([(a, ids[:20], "none")])
    p.run([(a, tokens(9, seed=5), "none")])
    p.rewind(a, 20)
    p.copy(a, b)
    for slot in (a, b):
        p.run([(slot, ids[20:], "all")])
        assert rel(p.logits(10), want[20:]) < F16_CACHE
    p.close(a)
    fresh = p.open()
    p.run([(fresh, ids, "all")])
    assert rel(p.logits(30), want) < F16_CACHE


def rounded(m: Lfm2, fmt: str, *, hooks: bool = True, tiles: bool = False) -> Lfm2:
    """The model with every matrix rounded to a format, as fp32; hooks: activations as the kernels round them.

    tiles: as for many tokens where the processor has tiles: bfloat16 for activations and (once more) weights.
    """
    r = model(m.config)
    with torch.no_grad():
        for name, p in r.named_parameters():
            if p.dim() in (2, 3) and "feed_forward.gate" not in name and "conv.conv" not in name:
                packed = native.Matrix.from_floats(p.detach().flatten(0, -2).numpy(), fmt)
                values = torch.from_numpy(np.stack([packed.row(i) for i in range(packed.rows)])).view_as(p)
                p.copy_(values.bfloat16().float() if tiles else values)
    if hooks and fmt in ("Q8_0", "Q4_0"):
        for part in r.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_pre_hook(lambda _, args: (_bf16(args[0]) if tiles else int8(args[0]),))
    return r


def _bf16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


LEFT = {"F16": F16_CACHE, "BF16": F16_CACHE, "Q8_0": 4e-2, "Q4_0": 4e-2}
"""What is left when weights and activations are rounded alike: the cache, the head's input, values on an edge."""


@pytest.mark.parametrize("fmt", LEFT)
def test_formats_whole_and_step_by_step(fmt):
    m = model(config("lfm2"))
    p = build(m, fmt)
    ids = tokens(40)
    want = reference(rounded(m, fmt), ids)
    slot = p.open()
    p.run([(slot, ids, "all")])
    whole = p.logits(40)
    tiles = native.isa() == "amx" and fmt in ("Q8_0", "Q4_0")
    assert rel(whole, reference(rounded(m, fmt, tiles=True), ids) if tiles else want) < LEFT[fmt]
    p.rewind(slot, 0)
    steps = []
    for t in ids:
        p.run([(slot, [t], "all")], decode=True)
        steps.append(p.logits(1))
    assert rel(np.concatenate(steps), want) < LEFT[fmt]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads):
    m = model(config("lfm2"))
    ids = tokens(50)
    rows = []
    for n in (1, threads):
        p = build(m, "Q4_0", threads=n)
        slot = p.open()
        p.run([(slot, ids, "all")])
        first = p.logits(50)
        p.run([(slot, ids[:1], "last")])
        rows.append(np.concatenate([first, p.logits(1)]))
    assert np.array_equal(rows[0], rows[1])


def test_errors_name_the_fault():
    p = build(model(config("lfm2")), capacity=32)
    slot = p.open()
    with pytest.raises(ValueError, match="capacity is 32"):
        p.run([(slot, tokens(33), "last")])
    with pytest.raises(ValueError, match="id 131 is outside 0 to 130"):
        p.run([(slot, [VOCAB], "last")])
    with pytest.raises(ValueError, match="slot 2 is not open"):
        p.run([(2, [1], "last")])
    with pytest.raises(ValueError, match="appears twice"):
        p.run([(slot, [1], "last"), (slot, [2], "last")])
    with pytest.raises(ValueError, match="rewind"):
        p.rewind(slot, 5)
    p.run([(slot, tokens(30), "none")])
    with pytest.raises(ValueError, match="ring reaches back"):
        p.rewind(slot, 3)
    with pytest.raises(ValueError, match="threads"):
        build(model(config("lfm2")), threads=1000)


@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe", "llama"])
def test_rounded_activations_explain_the_distance_from_fp32(name, fmt):
    """Ours is as far from fp32 as an exact emulation of the rounding is, and far closer to the emulation.

    Not equal to it: every rounding turns a last-bit difference of its input into a step of 1/127 now and then, and a
    dozen roundings in a row lift 1e-7 (the order of a sum) to a third of the whole distance (docs/native.md).
    """
    m = model(config(name))
    weights = rounded(m, fmt, hooks=False)
    ids = tokens(60)
    p = build(m, fmt)
    slot = p.open()
    rows = []
    for at in range(60):  # as an answer is written: int8 on every processor
        p.run([(slot, ids[at : at + 1], "last")], decode=True)
        rows.append(p.logits(1))
    ours, exact = np.concatenate(rows), reference(weights, ids)
    experts = getattr(config(name).layers[-1].ffn, "num_experts", None)
    with rounded_inputs(lambda w: None if len(w) == experts else int8, f16_cache=True):
        emulated = reference(weights, ids)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.square(a - b).mean() / np.square(exact).mean()))

    assert distance(ours, exact) > 1e-3
    assert distance(ours, exact) == pytest.approx(distance(emulated, exact), rel=0.15)
    assert distance(ours, emulated) < 0.6 * distance(ours, exact)


def test_no_expert_is_chosen_twice():
    """Whatever the scores are: one expert's rows, as many as tokens and choices, would fill more than there is room."""
    m = model(config("lfm2_moe"))
    ids = tokens(40)

    def logits(bias: list[float]) -> np.ndarray:
        for name, b in m.named_buffers():
            if name.endswith("expert_bias"):
                b.copy_(torch.tensor(bias))
        p = build(m)
        p.run([(p.open(), ids, "all")])
        return p.logits(len(ids))

    assert np.array_equal(logits([-np.inf] * 7), logits([-1000.0 * e for e in range(7)]))
    with torch.no_grad():
        for name, w in m.named_parameters():
            if "feed_forward.gate." in name:
                w.fill_(float("nan"))
    p = build(m, max_tokens=200)
    assert p.run([(p.open(), tokens(200), "last")]) == 1
