"""A checkpoint of ours in vLLM: set HEADWATER_VLLM_WHEEL to a wheel that need not be installed, or install it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.model import Lfm2

pytestmark = pytest.mark.slow
WHEEL = os.environ.get("HEADWATER_VLLM_WHEEL", "")


@pytest.fixture
def checkpoint(tmp_path):
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(theta=1e6))
    layers = stack("CCAC", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=96))
    config = Config(vocab_size=480, hidden_size=64, max_positions=512, bos_id=1, eos_ids=(7,), pad_id=0, layers=layers)
    Lfm2(config, generator=torch.Generator().manual_seed(1)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def check(*arguments):
    """In a process of its own: it puts stand-ins where vLLM would be."""
    return subprocess.run(
        [sys.executable, "-m", "recipes.vllm_check", *map(str, arguments)], cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip


@pytest.mark.skipif(not WHEEL, reason="HEADWATER_VLLM_WHEEL names no wheel; `pip download --no-deps vllm` fetches one")
def test_every_tensor_has_its_place_in_vllms_model(checkpoint):
    done = check(checkpoint, "--wheel", WHEEL)
    assert done.returncode == 0, done.stderr
    assert "43 places" in done.stdout and "none is empty" in done.stdout
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    whole = dict(tensors)
    moved = tensors.pop("model.layers.0.conv.conv.weight")
    save_file(tensors, file)
    assert "nothing fills" in check(checkpoint, "--wheel", WHEEL).stderr
    save_file(whole | {"model.layers.0.conv.conv.weight": moved.squeeze(1)}, file)
    assert "has the shape" in check(checkpoint, "--wheel", WHEEL).stderr


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_writes_our_tokens(checkpoint):
    done = check(checkpoint)
    assert done.returncode == 0, done.stderr
