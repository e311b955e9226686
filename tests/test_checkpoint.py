"""Directories and GGUF files: round trips through transformers, bad files, memory, nothing half-written."""

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from families import NAMES, pair, rel, tokens

from headwater import weights
from headwater.checkpoint import huggingface
from headwater.config import Attention, Config, Ffn, Layer, Rope, ShortConv
from headwater.model import Lfm2


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def saved(tmp_path):
    directory = tmp_path / "model"
    pair("lfm2-k3")[1].save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_through_transformers(name, dtype, tmp_path):
    """Ours -> disk -> transformers -> disk -> ours: the same logits there, bit-equal tensors back."""
    ours = Lfm2(pair(name)[1].config, dtype=dtype)
    ours.load_state_dict(pair(name)[1].state_dict())
    ours.save_pretrained(tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype).eval()
    assert type(theirs) is type(pair(name)[0])
    if dtype == torch.float32:
        ids = tokens(2, 21)
        assert rel(ours(ids), theirs(ids).logits) < 1e-5
    theirs.save_pretrained(tmp_path / "b")
    back = Lfm2.from_pretrained(tmp_path / "b")
    assert back.config == ours.config
    assert back.dtype == dtype
    before, after = ours.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["lfm2-k3", "lfm2_moe-k3", "llama"])
def test_shards_hold_the_same_tensors(name, tmp_path):
    ours = pair(name)[1]
    ours.save_pretrained(tmp_path, max_shard_bytes=20_000)
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens(1, 9)
    assert rel(Lfm2.from_pretrained(tmp_path)(ids), theirs(ids).logits) < 1e-5


def test_plain_form_round_trip(tmp_path):
    layers = tuple(Layer(mixer=ShortConv(width=w, bias=True), ffn=Ffn(intermediate_size=20 + w)) for w in (2, 5))
    model = Lfm2(Config(vocab_size=61, hidden_size=16, layers=layers, max_positions=64, tie_embeddings=False))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "headwater"
    assert torch.equal(Lfm2.from_pretrained(tmp_path)(tokens(1, 9) % 61), model(tokens(1, 9) % 61))


def test_router_stays_in_fp32_in_every_dtype(tmp_path):
    ours = Lfm2(pair("lfm2_moe-k3")[1].config, dtype=torch.bfloat16)
    ours.layers[2].feed_forward.expert_bias.fill_(1.0001)
    ours.save_pretrained(tmp_path)
    for model in (ours, Lfm2.from_pretrained(tmp_path), ours.to(torch.float16)):
        assert model.layers[2].feed_forward.expert_bias.dtype == torch.float32
        assert model.layers[2].feed_forward.expert_bias[0] == torch.tensor(1.0001)


@pytest.mark.parametrize(("before", "after"), [(20_000, 1 << 30), (1 << 30, 20_000), (20_000, 40_000)])
def test_saving_over_other_files_leaves_no_older_weights(before, after, tmp_path):
    """A single file, and an index with its shards: whichever was there, both we and transformers read the newer."""
    older, newer = pair("lfm2-k3")[1], pair("lfm2-k7")[1]
    older.save_pretrained(tmp_path / "m", max_shard_bytes=before)
    newer.save_pretrained(tmp_path / "m", max_shard_bytes=after)
    newer.save_pretrained(tmp_path / "fresh", max_shard_bytes=after)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {p.name for p in (tmp_path / "fresh").iterdir()}
    back, wanted = Lfm2.from_pretrained(tmp_path / "m").state_dict(), newer.state_dict()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_what_one_family_refuses_to_read_back_is_said_in_other_words():
    """Convolutions and windows without full attention: LFM2's words begin to say it, and LFM2's reader refuses it."""
    near = Attention(num_heads=2, num_kv_heads=1, head_dim=8, rope=Rope(theta=1e4), window=4)
    layers = tuple(Layer(mixer=m, ffn=Ffn(intermediate_size=32)) for m in (ShortConv(width=3), near))
    c = Config(vocab_size=32, hidden_size=16, layers=layers, max_positions=64)
    assert huggingface.parse_config(huggingface.config_dict(c)[0])[0] == c


def test_saving_keeps_what_else_is_in_the_directory(saved):
    (saved / "tokenizer.json").write_text("{}")
    pair("lfm2-k3")[1].save_pretrained(saved)
    assert (saved / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]


def test_untied_head_is_honoured_and_a_tied_copy_accepted(tmp_path):
    theirs, ours = pair("llama")
    assert not ours.config.tie_embeddings
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    tied = pair("lfm2-k3")[1]
    names = huggingface.config_dict(tied.config)[1]
    tensors = [(names.theirs(key), tensor) for key, tensor in tied.state_dict().items()]
    tied.save_pretrained(tmp_path)
    head = tied.embed_tokens.weight.clone()
    weights.write_safetensors(tmp_path, [*tensors, ("lm_head.weight", head)], 10**9)
    assert torch.equal(Lfm2.from_pretrained(tmp_path).embed_tokens.weight, head)
    weights.write_safetensors(tmp_path, [*tensors, ("lm_head.weight", head + 1)], 10**9)
    with pytest.raises(ValueError, match="ties the head"):
        Lfm2.from_pretrained(tmp_path)


def _rewrite(directory: Path, change) -> None:
    tensors = dict(weights.open_safetensors(directory))
    changed = change({name: source.read() for name, source in tensors.items()})
    weights.write_safetensors(directory, changed.items(), 10**9)


NORM = "model.layers.0.operator_norm.weight"
FAULTS = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != NORM}, "1 tensors are missing, first layers.0.operator_"),
    "extra": (lambda t: t | {"model.layers.0.rotary": torch.ones(3)}, "no place in the model, first layers.0.rotary"),
    "misshaped": (lambda t: t | {NORM: torch.ones(3)}, r"operator_norm.weight .* has shape \(3,\)"),
    "misspelt": (
        lambda t: {k.replace("0.operator_norm", "0.operator_nrm"): v for k, v in t.items()},
        "did you mean 'layers.0.operator_nrm.weight'",
    ),
    "no embedding": (lambda t: {k: v for k, v in t.items() if "embed" not in k}, "no embedding named"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_named(fault, saved):
    change, said = FAULTS[fault]
    _rewrite(saved, change)
    with pytest.raises(ValueError, match=said):
        Lfm2.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_safetensors(keep, saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        Lfm2.from_pretrained(saved)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", b"{", "not valid JSON: .* line 1"),
        ("config.json", b"[1]", "allowed: an object"),
        ("config.json", b"\xff\xfe", "not UTF-8"),
        ("config.json", b"[" * 100_000, "JSON|nested"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", None, r"holds no \.safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../x.safetensors"}}', "outside its directory"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', r"gone.safetensors is missing"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors"}}', "lists 'a'"),
        ("model.safetensors.index.json", b'{"weight_map": [1]}', "weight_map must map"),
        ("model.safetensors.index.json", b"[1]", "weight_map must map"),
    ],
)
def test_damaged_directories(file, content, said, saved):
    (saved / file).unlink() if content is None else (saved / file).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        Lfm2.from_pretrained(saved)


@pytest.mark.parametrize("path", ["/nowhere/model", "no such model", "LFM2-350M"])
def test_paths_that_are_not_there(path):
    with pytest.raises(ValueError, match="no such file or directory"):
        Lfm2.from_pretrained(path)


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    written = weights._write_file

    def full(path, tensors):
        written(path, dict(list(tensors.items())[:3]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "_write_file", full)
    with pytest.raises(OSError, match="No space left"):
        pair("lfm2-k7")[1].save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        with pytest.raises(OSError, match="No space left"):
            pair("lfm2-k3")[1].save_pretrained(disk / "model")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


_PEAK = """
import resource, sys, threading, time, torch
from headwater.model import Lfm2
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous()); time.sleep(0.001)
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
model = Lfm2.from_pretrained(sys.argv[1], dtype=torch.float32)
size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
largest = max(t.numel() * t.element_size() for t in model.state_dict().values())
print(peak[0] - before, size, largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory accounts")
def test_loading_needs_one_tensor_beyond_the_model(tmp_path):
    layers = (Layer(mixer=ShortConv(), ffn=Ffn(intermediate_size=4096)),) * 6
    Lfm2(Config(vocab_size=20_000, hidden_size=1024, layers=layers, max_positions=64)).save_pretrained(tmp_path)
    out = subprocess.run([sys.executable, "-c", _PEAK, tmp_path], capture_output=True, text=True, check=True).stdout
    peak, size, largest = map(int, out.split())
    assert size > 400_000_000
    assert peak < size + largest + 30_000_000, (peak, size, largest)


def _write_gguf(path: Path, name: str, kind: str = "F32") -> None:
    """The model of `families.pair(name)` the way llama.cpp's converter lays it out."""
    write_gguf(path, name, pair(name)[1], kind)


def write_gguf(path: Path, name: str, ours: Lfm2, kind: str = "F32") -> None:
    c = ours.config
    arch = {"lfm2": "lfm2", "lfm2_moe": "lfm2moe"}.get(name.split("-", maxsplit=1)[0], name)
    attention = next(layer.mixer for layer in c.layers if layer.mixer.kind == "attention")
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(len(c.layers))
    w.add_embedding_length(c.hidden_size)
    w.add_context_length(c.max_positions)
    w.add_head_count(attention.num_heads)
    w.add_key_length(attention.head_dim)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_freq_base(attention.rope.theta)
    kv = [layer.mixer.num_kv_heads if layer.mixer.kind == "attention" else 0 for layer in c.layers]
    w.add_head_count_kv(kv if 0 in kv else kv[0])
    dense = next(layer.ffn for layer in c.layers if layer.ffn.kind == "dense")
    w.add_feed_forward_length(dense.intermediate_size)
    w.add_eos_token_id(7)
    if arch.startswith("lfm2"):
        w.add_shortconv_l_cache(next(layer.mixer.width for layer in c.layers if layer.mixer.kind == "conv"))
    if arch == "lfm2moe":
        moe = next(layer.ffn for layer in c.layers if layer.ffn.kind == "moe")
        w.add_expert_count(moe.num_experts)
        w.add_expert_used_count(moe.num_experts_per_token)
        w.add_expert_feed_forward_length(moe.intermediate_size)
        w.add_expert_weights_scale(moe.routed_scaling_factor)
        w.add_leading_dense_block_count(1)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch == "gemma3":
        w.add_sliding_window(attention.window)
    for key, tensor in ours.state_dict().items():
        _add_gguf_tensor(w, arch, key, tensor, attention, kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _add_gguf_tensor(w, arch, key, tensor, attention, kind) -> None:
    from headwater.checkpoint.gguf_model import LAYER, TOP

    final_norm = "token_embd_norm.weight" if arch.startswith("lfm2") else "output_norm.weight"
    top = {ours: theirs for theirs, ours in TOP.items()} | {"embedding_norm.weight": final_norm}
    inner = {ours: theirs for theirs, ours in LAYER.items()}
    parts = key.split(".", 2)
    name = top[key] if key in top else f"blk.{parts[1]}.{inner[parts[2]]}"
    suffix = "" if name.endswith((".weight", ".bias")) else ".weight"
    values = tensor.float()
    if arch == "llama" and ("q_proj" in key or "k_proj" in key):
        heads = attention.num_heads if "q_proj" in key else attention.num_kv_heads
        values = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if arch == "gemma3" and "norm" in key:
        values = values + 1
    if key.endswith("conv.conv.weight"):
        values = values[:, 0]
    array = values.contiguous().numpy()
    if kind != "F32" and array.ndim >= 2 and array.shape[-1] % 32 == 0:
        quantized = gguf.GGMLQuantizationType[kind]
        w.add_tensor(name + suffix, gguf.quants.quantize(array, quantized), raw_dtype=quantized)
    else:
        w.add_tensor(name + suffix, array)


@pytest.mark.parametrize("name", ["lfm2-k3", "lfm2-k7", "lfm2_moe-k3", "qwen3"])
def test_gguf_gives_the_same_logits(name, tmp_path):
    theirs, _ = pair(name)
    _write_gguf(tmp_path / "m.gguf", name)
    ids = tokens(2, 21)
    assert rel(Lfm2.from_pretrained(tmp_path / "m.gguf")(ids), theirs(ids).logits) < 1e-5


def test_gguf_llama_rows_are_put_back_in_halves(tmp_path):
    """Interleaved pairs of the container against our half-split ones: weights come back bit-equal."""
    ours = pair("llama")[1]
    _write_gguf(tmp_path / "m.gguf", "llama")
    back = Lfm2.from_pretrained(tmp_path / "m.gguf").state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in ours.state_dict().items())


def test_gguf_gemma_norms_lose_their_one(tmp_path):
    _write_gguf(tmp_path / "m.gguf", "gemma3")
    back, ours = Lfm2.from_pretrained(tmp_path / "m.gguf").state_dict(), pair("gemma3")[1].state_dict()
    assert all(torch.allclose(back[key], ours[key], atol=1e-6) for key in ours)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_types_dequantize_as_the_package_does(kind, tmp_path):
    """C4.12, tensor by tensor and bit by bit."""
    _write_gguf(tmp_path / "m.gguf", "lfm2-k3", kind)
    back = Lfm2.from_pretrained(tmp_path / "m.gguf").state_dict()
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for key, name in (("layers.0.conv.in_proj.weight", "blk.0.shortconv.in_proj.weight"),
                      ("layers.0.feed_forward.w2.weight", "blk.0.ffn_down.weight")):  # fmt: skip
        expected = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert np.array_equal(back[key].numpy(), expected)


def test_gguf_faults_are_named(tmp_path):
    path = tmp_path / "m.gguf"
    _write_gguf(path, "lfm2-k3")
    whole = path.read_bytes()
    for change, said in (
        (whole[: len(whole) // 2], "not a whole GGUF file"),
        (b"GGML" + whole[4:], "begins with b'GGML'"),
        (whole.replace(b"blk.2.attn_norm.weight", b"blk.2.attn_nurm.weight"), "attn_nurm.weight' is not understood"),
        (whole.replace(b"blk.2.attn_norm.weight", b"blk.9.attn_norm.weight"), "missing, first layers.2.operator_norm"),
        (whole.replace(bytes(7) + b"lfm2", bytes(7) + b"lfm9"), "did you mean 'lfm2'"),
        (whole.replace(b"lfm2.shortconv.l_cache", b"lfm2.shortconv.l_cachy"), "l_cache' is missing"),
    ):  # fmt: skip
        path.write_bytes(change)
        with pytest.raises(ValueError, match=said):
            Lfm2.from_pretrained(path)


@pytest.mark.parametrize(
    ("key", "value"), [("block_count", 0), ("block_count", 4_000_000_000), ("attention.head_count", 0)]
)
def test_gguf_numbers_that_no_model_has_are_named(tmp_path, key, value):
    """Before there is a list of so many layers, or a width of none."""
    path = tmp_path / "m.gguf"
    _write_gguf(path, "qwen3")
    whole, (_, c) = path.read_bytes(), pair("qwen3")
    told = {"block_count": len(c.config.layers), "attention.head_count": c.config.layers[0].mixer.num_heads}[key]
    name = b"qwen3." + key.encode()
    changed = whole.replace(name + struct.pack("<II", 4, told), name + struct.pack("<II", 4, value))
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"{key} is {value}; "):
        Lfm2.from_pretrained(path)
