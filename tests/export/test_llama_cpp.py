"""Our GGUF files in llama.cpp itself: the same token ids and the same log probabilities as our own model.

Runs where HEADWATER_LLAMA_BIN names a folder with llama.cpp's programs (llama-perplexity, llama-quantize).
"""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import int8_half_scale, q8_k, rounded_inputs

from headwater import Lfm2, Tokenizer, cli
from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, stack
from headwater.gguf_file import GgufFile
from recipes.smoke import read_data

BIN = os.environ.get("HEADWATER_LLAMA_BIN", "")
CONTEXT = 128

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BIN, reason="HEADWATER_LLAMA_BIN names no llama.cpp build")]

ATTENTION = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 32, "rope": Rope(theta=1e6)}
MIXERS = {"C": ShortConv(width=3), "A": Attention(**ATTENTION)}
DENSE = Ffn(intermediate_size=512)
LAYERS = {
    "lfm2": stack("CCACAC", MIXERS, DENSE),
    "lfm2moe": stack("CCACA", MIXERS, DENSE, Moe(num_experts=8, num_experts_per_token=3, intermediate_size=256)),
    "llama": stack("AAA", {"A": Attention(qk_norm=False, **ATTENTION)}, DENSE),
    "qwen3": stack("AAA", MIXERS, DENSE),
}


@pytest.fixture(scope="module")
def text():
    return "\n".join(read_data().texts[:40])


@pytest.fixture(scope="module")
def tokenizer(text):
    return Tokenizer.train([text], 2048)


@pytest.fixture
def directory(request, tokenizer, tmp_path):
    config = Config(
        vocab_size=2048, hidden_size=256, layers=LAYERS[request.param], max_positions=1024, bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id, tie_embeddings=request.param != "llama",
    )  # fmt: skip
    model = Lfm2(config, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero that every tensor matters
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.05
            )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def logprobs_of_llama_cpp(model: Path, text: str, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """(token ids (chunks, CONTEXT), log probabilities (chunks, second half of each, vocabulary))."""
    out.with_suffix(".txt").write_text(text)
    command = [
        f"{BIN}/llama-perplexity", "-m", model, "-f", out.with_suffix(".txt"), "-c", CONTEXT, "-t", 1, "--chunks", 4,
        "-b", CONTEXT, "--save-all-logits", out,
    ]  # fmt: skip
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    data = out.read_bytes()
    assert data[:8] == b"_logits_"
    context, vocabulary, chunks = struct.unpack_from("<iii", data, 8)
    ids = np.frombuffer(data, np.int32, chunks * context, 20).reshape(chunks, context)
    width = 2 * ((vocabulary + 1) // 2) + 4
    rows = np.frombuffer(data, np.uint16, offset=20 + ids.nbytes).reshape(chunks, -1, width)
    head = np.ascontiguousarray(rows[..., :4]).view(np.float32)
    return ids, head[..., :1] * rows[..., 4 : 4 + vocabulary] + head[..., 1:]


def our_logprobs(model, ids):
    """The same rows of the same chunks; llama.cpp puts BOS in the place of each chunk's first token."""
    ids = torch.tensor(ids).long()
    ids[:, 0] = model.config.bos_id
    with torch.no_grad():
        return model.eval()(ids).log_softmax(-1)[:, CONTEXT // 2 : -1].numpy()


@pytest.mark.parametrize("directory", LAYERS, indirect=True)
def test_llama_cpp_gives_our_logits_and_our_ids(directory, tokenizer, text, tmp_path):
    assert cli.run(["export", "gguf", str(directory), str(tmp_path / "m.gguf"), "--type", "f32"]) == 0
    ids, theirs = logprobs_of_llama_cpp(tmp_path / "m.gguf", text, tmp_path / "logits")
    assert ids.reshape(-1).tolist() == tokenizer.encode(text, bos=tokenizer.add_bos)[: ids.size]
    ours = our_logprobs(Lfm2.from_pretrained(directory), ids)
    assert ours.std() > 0.5
    assert (
        np.abs(ours - theirs).max() < 0.02
    )  # their keys and values are f16, and the file keeps 16 bits of a row's range
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.99


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "q5_k", "q6_k", "bf16", "f16"])
@pytest.mark.parametrize("directory", ["lfm2", "lfm2moe"], indirect=True)
def test_rounded_files_are_what_llama_cpp_reads(directory, text, tmp_path, kind):
    """Their logits of a rounded file against our model of the same file with the activations rounded as they do.

    K-quants meet activations with one scale per 256 values, others one per 32. Against fp32 activations the same logits
    are 0.0008 to 0.014 away, most where a router, hardly decided in a random model, picks another expert.
    """
    assert cli.run(["export", "gguf", str(directory), str(tmp_path / "m.gguf"), "--type", kind]) == 0
    ids, theirs = logprobs_of_llama_cpp(tmp_path / "m.gguf", text, tmp_path / "logits")
    model = Lfm2.from_pretrained(tmp_path / "m.gguf")
    router, head = LAYERS["lfm2moe"][-1].ffn.num_experts, model.embed_tokens.weight

    def rounding(w):
        if len(w) == router or kind in ("bf16", "f16"):
            return None
        return q8_k if kind.endswith("_k") or (kind == "q4_0" and w is head) else int8_half_scale  # the head is q6_k

    with rounded_inputs(rounding, f16_cache=True):
        ours = our_logprobs(model, ids)
    kl = (np.exp(ours) * (ours - theirs)).sum(-1).mean()
    assert kl < 0.003, kl
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("directory", ["lfm2", "llama"], indirect=True)
def test_q4_0_is_llama_quantizes_own_choice(directory, tmp_path):
    """Types of every tensor as llama-quantize chooses them, and no larger error."""
    whole, ours, theirs = (tmp_path / name for name in ("f32.gguf", "ours.gguf", "theirs.gguf"))
    assert cli.run(["export", "gguf", str(directory), str(whole), "--type", "f32"]) == 0
    for kind, name in (("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("q6_k", "Q6_K")):
        assert cli.run(["quantize", str(whole), str(ours), "--type", kind, "--force"]) == 0
        subprocess.run([f"{BIN}/llama-quantize", whole, theirs, name, "1"], check=True, capture_output=True)
        truth, a, b = (GgufFile(p).tensors for p in (whole, ours, theirs))
        assert {n: t.type for n, t in a.items()} == {n: t.type for n, t in b.items()}
        for n, t in truth.items():
            errors = [np.square(x[n].dequantize() - t.dequantize()).sum() for x in (a, b)]
            assert errors[0] <= errors[1] * 1.01 + 1e-9, (n, kind, errors)
