"""What several test files share: one tiny model directory with random weights, made once a session."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny and the tests run in as many processes as there are cores

WORDS = (
    "The river runs to the sea, and the sea is wide. A boat is on the water; who are you? Hello, I am a small model. "
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of a few thousand random parameters: layers CACS, a context of 512 tokens, no chat template."""
    from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
    from headwater.model import Lfm2
    from headwater.tokenizer import Tokenizer

    directory = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = Tokenizer.train([WORDS, "é ☃ 水 " + WORDS[::-1]], 330, pad_to=336)
    shared = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    mixers = {
        "C": ShortConv(width=3),
        "A": Attention(rope=Rope(theta=1e4), **shared),
        "S": Attention(rope=Rope(theta=1e4), window=8, **shared),
    }
    config = Config(
        vocab_size=336, hidden_size=24, layers=stack("CACS", mixers, Ffn(intermediate_size=40)), max_positions=512,
        bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(config, generator=torch.Generator().manual_seed(5)).save_pretrained(directory)
    tokenizer.save(directory)
    return directory
