"""Engines from files: GGUF, safetensors directories and packed files give the logits that the plain model gives."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from rounding import int8, rounded_inputs
from test_checkpoint import write_gguf
from test_cli import ROOT
from test_cli_engines import small
from test_native_program import F16_CACHE, config, model, rel, rounded, tokens

from headwater.checkpoint import gguf_model
from headwater.engine import core, native
from headwater.engine.engine import Engine
from headwater.engine.packed import Recorder
from headwater.engine.program import lower
from headwater.model import Lfm2

IDS = tokens(40)
INT8 = 8e-2
"""Five layers of sigma-0.15 weights with int8 activations; exact agreement is test_native_program's business."""


def plain(path) -> np.ndarray:
    with torch.inference_mode():
        return Lfm2.from_pretrained(path, dtype=torch.float32)(torch.tensor([IDS]))[0].numpy()


def engine(path, **options) -> Engine:
    return Engine.from_pretrained(path, threads=2, context=128, **options)


@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe", "llama", "gemma3"])
def test_gguf(name, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, name, model(config(name)))
    assert rel(engine(path).logits(IDS), plain(path)) < F16_CACHE


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_quantized(kind, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")), kind)
    assert rel(engine(path).logits(IDS), plain(path)) < (INT8 if kind.startswith("Q") else F16_CACHE)


@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe", "lfm3", "llama", "biased"])
def test_directory(name, tmp_path):
    model(config(name)).save_pretrained(tmp_path)
    want = plain(tmp_path)
    assert rel(engine(tmp_path, weights="F32").logits(IDS), want) < F16_CACHE
    if name == "lfm2":
        assert rel(engine(tmp_path, weights="Q8_0").logits(IDS), want) < 1.5 * INT8  # the weights are rounded as well
        with rounded_inputs(lambda _: int8, f16_cache=True), torch.inference_mode():
            emulated = rounded(model(config(name)), "Q8_0", hooks=False)(torch.tensor([IDS]))[0].numpy()
        few = engine(tmp_path, weights="Q8_0").logits(IDS, decode=True)  # int8 on every processor
        assert rel(few, emulated) < 1e-4 < rel(few, want)  # the rounding, and nothing else
        with pytest.raises(ValueError, match="number format 'Q9'"):
            engine(tmp_path, weights="Q9")


_WITHOUT_TORCH = """
import sys
sys.modules.update(torch=None, transformers=None, numpy=None, safetensors=None)
from headwater.engine.engine import Engine
engine = Engine.from_pretrained(sys.argv[1], threads=1, context=64, weights=sys.argv[2] or None)
print([c.ids for c in engine.generate([[5, 6, 7]])])
"""


@pytest.mark.parametrize(
    ("dtype", "weights"), [("bfloat16", ""), ("float16", ""), ("float32", ""), ("bfloat16", "Q8_0")]
)
def test_directory_without_torch(dtype, weights, tmp_path):
    """Every number format of the files, with experts, in a process that has neither torch nor numpy."""
    m = model(config("lfm2" if weights else "lfm2_moe")).to(getattr(torch, dtype))  # rounding moves experts' choice
    m.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, tmp_path, weights], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert all(0 <= token < 131 for token in json.loads(done.stdout)[0])
    want = plain(tmp_path)
    bound = 1.5 * INT8 if weights else F16_CACHE  # bfloat16 weights are rounded twice
    assert rel(engine(tmp_path, weights=weights or None).logits(IDS), want) < bound


def test_quantizing_from_files_equals_quantizing_arrays(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 37, 64)).astype(np.float16)
    raw = tmp_path / "raw"
    raw.write_bytes(b"xyz" + values.tobytes())
    mapped, offsets = native.Mapped(str(raw)), [3 + e * 37 * 64 * 2 for e in range(3)]
    for kind in ("Q4_0", "Q8_0", "F16", "BF16", "F32"):
        got = native.Matrix.from_files([mapped] * 3, offsets, "F16", rows=37, k=64, format=kind, threads=2)
        want = native.Matrix.from_floats(values.astype(np.float32), kind, threads=1)
        assert (got.rows, got.k, got.experts, got.format) == (37, 64, 3, kind)
        assert np.array_equal(got.bytes(), want.bytes())
    with pytest.raises(ValueError, match="outside the file"):
        native.Matrix.from_files([mapped], [offsets[2] + 2], "F16", rows=37, k=64, format="F16", threads=1)
    with pytest.raises(ValueError, match="impossible size"):
        native.Matrix.from_files([mapped], [0], "F16", rows=1 << 60, k=64, format="F16", threads=1)
    with pytest.raises(ValueError, match="allowed: F32, F16, BF16"):
        native.Matrix.from_files([mapped], [0], "Q8_0", rows=1, k=32, format="F16", threads=1)


def test_a_packed_file_is_whole_without_its_source(tmp_path):
    source, target = small(tmp_path / "model"), tmp_path / "m.hwp"
    native.pack(source, target, threads=1)
    before = native.tokenizer(source)
    shutil.rmtree(source)
    after = native.tokenizer(target)
    for text in ("The river runs", "é", "it's 12 345"):
        assert after.encode(text) == before.encode(text)
    for field in ("vocab_size", "padded_vocab_size", "bos_id", "eos_ids", "pad_id", "add_bos", "special_tokens"):
        assert getattr(after, field) == getattr(before, field), field


@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe", "gemma3"])
def test_packed(name, tmp_path):
    source, target = tmp_path / "m.gguf", tmp_path / "m.hwp"
    write_gguf(source, name, model(config(name)), "Q8_0")
    native.pack(source, target, threads=1)
    again = engine(target)
    assert np.array_equal(again.logits(IDS), engine(source).logits(IDS))
    assert again.config == engine(source).config


def test_damaged_packed_files_are_refused(tmp_path):
    source, target = tmp_path / "m.gguf", tmp_path / "m.hwp"
    write_gguf(source, "lfm2", model(config("lfm2")), "Q4_0")
    native.pack(source, target, threads=1)
    whole = target.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    header = json.loads(whole[16 : 16 + length])

    def refused(data: bytes, match: str) -> None:
        target.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            engine(target)

    refused(b"", "empty")
    refused(whole[:7], "not a packed file")
    refused(b"X" + whole[1:], "not a packed file")
    refused(whole[: 16 + length // 2], "damaged")
    refused(whole[: len(whole) // 2], "outside the file")
    wrong = [("rows", 1 << 40), ("k", 33), ("offset", 1 << 45), ("format", "Q9"), ("format", 9), ("experts", 0)]
    for field, value in wrong:
        bad = json.loads(json.dumps(header))
        bad["tensors"]["embed_tokens.weight"][field] = value
        text = json.dumps(bad).encode().ljust(length + 64)
        refused(whole[:8] + len(text).to_bytes(8, "little") + text + whole[16 + length :], "outside|stands at|'Q9'")
    for text, says in ((b"[" * 100_000, "damaged"), (b'{"config": [], "tensors": {}}', "damaged")):
        refused(whole[:8] + len(text).to_bytes(8, "little") + text + whole[16 + length :], says)


def test_faults_of_gguf_files_are_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"truncated, download or copy it again"):
        engine(path)
    path.write_bytes(whole.replace(b"blk.0.ffn_norm.weight", b"blk.0.ffn_nirm.weight"))
    with pytest.raises(ValueError, match=r"ffn_norm.weight is missing"):
        engine(path)
    write_gguf(path, "lfm2_moe", model(config("lfm2_moe")))
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.1.ffn_down_exps.weight") + len("blk.1.ffn_down_exps.weight") + 4 + 2 * 8  # the experts
    assert data[at : at + 8] == (7).to_bytes(8, "little")
    data[at] = 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match="2 experts behind a router of 7"):
        engine(path)
    with pytest.raises(ValueError, match="cannot open"):
        native.GgufFile(tmp_path / "nothing.gguf")


_LIMITED = """
import resource, sys
from headwater.engine import native
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    native.Matrix.from_floats(np.broadcast_to(np.float32(0), (1, 1, 1)), "F32")
    spec = {"buffers": [{"name": "x", "width": 1 << 22, "floats": True}], "attention": [], "convolution": []}
    table = native.Matrix.from_floats(np.zeros((1, 1 << 22), np.float32), "Q8_0")
    ops = [{"kind": "embed", "out": 0, "matrices": [0]}]
    native.Program(**spec, ops=ops, matrices=[table], vectors=[], ring=16, capacity=16, max_slots=1, max_tokens=4096,
                   max_selected=1, logits=-1, threads=1, cpus=[])
except MemoryError as e:
    sys.exit(0 if "MiB" in str(e) else 2)
sys.exit(1)
"""


def test_too_little_memory_is_an_error_with_a_cure():
    assert subprocess.run([sys.executable, "-c", _LIMITED], check=False).returncode == 0


@pytest.mark.parametrize(("type_id", "says"), [(99, "unknown"), (16, "IQ2_XXS"), (10, "Q2_K")])
def test_a_foreign_tensor_type_is_named_with_those_allowed(type_id, says, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")))
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight") + 4 + 2 * 8  # dimensions, then the type
    assert data[at : at + 4] == bytes(4)
    data[at : at + 4] = type_id.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"blk.0.ffn_gate.weight' has type {type_id} \({says}\).*allowed: F32, .*Q4_1"
    ):
        engine(path)


_WITH_ISA = """
import sys, numpy as np
from headwater.engine import native
from headwater.engine.engine import Engine
e = Engine.from_pretrained(sys.argv[1], threads=1, context=64)
np.save(sys.argv[2], e.logits(list(range(1, 40))))
print(native.isa())
"""


def with_isa(isa, *arguments):
    return subprocess.run(
        [sys.executable, "-c", _WITH_ISA, *map(str, arguments)], env={**os.environ, "HEADWATER_ISA": isa},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_without_avx2_the_answers_are_the_same(kind, tmp_path):
    """The path of a processor that has none of the instruction sets."""
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")), kind)
    done = with_isa("portable", path, tmp_path / "l.npy")
    assert (done.returncode, done.stdout) == (0, "portable\n"), done.stderr
    assert rel(np.load(tmp_path / "l.npy"), engine(path).logits(list(range(1, 40)))) < INT8


def test_an_instruction_set_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")))
    done = with_isa("avx1024", path, tmp_path / "l.npy")
    assert done.returncode == 1
    assert "ValueError: HEADWATER_ISA=avx1024: unknown; allowed: " in done.stderr


@pytest.mark.parametrize("name", ["lfm2", "lfm2_moe", "llama"])
def test_weights_begun_early_are_those_read_when_asked(name, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, name, model(config(name)), "Q8_0")
    recorded = []
    for file in (native.GgufFile(path, core.begun(str(path), 3)), native.GgufFile(path)):
        weights = native.GgufWeights(
            file, gguf_model.read_config(file), threads=1
        )  # open_weights would begin the second
        recorded.append(Recorder(weights))
        lower(gguf_model.read_config(file), recorded[-1])
    early, late = (r.matrices for r in recorded)
    assert early.keys() == late.keys() != set()
    for matrix in early:
        assert early[matrix].bytes().tobytes() == late[matrix].bytes().tobytes(), matrix
    opened = native.GgufFile(path, core.begun(str(path), 2))
    assert np.array_equal(engine(opened).logits(IDS), engine(path).logits(IDS))


def _program(path, *, begun: bool):
    """A program on one thread. begun: experts are read when they are first chosen, for no other thread reads them."""
    file = native.GgufFile(path, core.begun(str(path), 1) if begun else None)
    c = gguf_model.read_config(file)
    return native.build(lower(c, native.GgufWeights(file, c, threads=1)), capacity=64, max_tokens=32, threads=1)


def test_experts_that_are_read_when_chosen_give_the_same_logits(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2_moe", model(config("lfm2_moe")), "Q8_0")
    late, early = (_program(path, begun=begun) for begun in (True, False))
    slots = late.open(), early.open()
    for token in IDS:
        late.run([(slots[0], [token], "last")])
        early.run([(slots[1], [token], "last")])
        assert np.array_equal(late.logits(1), early.logits(1))


def test_a_file_that_got_shorter_before_an_expert_was_chosen_is_an_error_and_the_state_stays(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2_moe", model(config("lfm2_moe")), "Q8_0")
    built = _program(path, begun=True)
    slot = built.open()
    built.run([(slot, IDS[:1], "last")])
    with path.open("r+b") as f:
        f.truncate(4096)
    with pytest.raises(ValueError, match="the file got shorter"):
        for token in IDS:
            before = built.length(slot)
            built.run([(slot, [token], "last")])
    assert built.length(slot) == before


def test_a_file_that_got_shorter_while_it_is_read_is_an_error_at_the_first_run(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")), "Q8_0")
    file = native.GgufFile(path)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match="the file got shorter"):
        engine(file).logits(IDS)
    assert core.begun(str(path), 2) is None
    assert core.begun(str(tmp_path / "nothing.gguf"), 2) is None
