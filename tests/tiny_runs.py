"""A tiny hybrid model and batches that it can learn from: what the tests of following a run share."""

import torch

from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.model import Lfm2

MOE = Moe(num_experts=8, num_experts_per_token=2, intermediate_size=16)


def make_model(ffn=None):
    attention = Attention(num_heads=2, num_kv_heads=1, head_dim=8, rope=Rope(theta=1e4))
    layers = stack("CA", {"C": ShortConv(width=3), "A": attention}, ffn or Ffn(intermediate_size=32))
    c = Config(vocab_size=64, hidden_size=16, layers=layers, max_positions=64)
    return Lfm2(c, generator=torch.Generator().manual_seed(0))


def make_batches(learnt=1.0):
    g = torch.Generator().manual_seed(1)
    documents = []
    for _ in range(20):
        ids = (torch.arange(120) % 7 + torch.randint(50, (1,), generator=g)).tolist()
        documents.append(Document(ids, [i < learnt * 120 for i in range(120)]))
    return PackedBatches(documents, rows=4, length=64, seed=0, pad_id=0)
