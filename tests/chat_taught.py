"""A tiny model that was taught a few conversations by heart, so that a real chat has something to show."""

import json

import torch

from headwater.chat import Chat
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.functions import of_file
from headwater.model import Lfm2
from headwater.tokenizer import Tokenizer

TOOLS = """
import time

def add(a: int, b: int) -> int:
    "Add two numbers."
    with open("calls", "a") as f:
        f.write(f"{a}+{b}\\n")
    if b == 7:
        time.sleep(1000)
    return a + b
"""


def call(a, b):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}]}  # fmt: skip


WITH_TOOLS = [
    [("user", "Add 20 and 1."), call(20, 1), ("tool", "21"), ("assistant", "It is 21.")],
    [("user", "Add 20 and 1."), call(20, 1), ("tool", "the user did not allow this call"),
     ("assistant", "As you wish.")],
    [("user", "Add 5 and 7."), call(5, 7), ("tool", "error: it took longer than 5 seconds and was stopped"),
     ("assistant", "It takes too long.")],
    [("user", "Add x and 1."), call("x", 1), ("tool", 'error: add(a) is "x"; allowed: integer'),
     ("assistant", "x is no number.")],
]  # fmt: skip
WITHOUT = [
    [("user", "Hello!"), ("assistant", "水 and 👩‍🚀, hello.")],
    [("user", "one\ntwo"), ("assistant", "Two lines.")],
    [("user", "水x水"), ("assistant", "Wide.")],
    [("user", "Escape"), ("assistant", "a\x1b[31mb\x07c")],
]


def messages(turns):
    return [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in turns]


def teach(directory):
    """Write the model, and beside it the tools; every answer above is its likeliest."""
    directory.mkdir(parents=True)
    (directory / "tools.py").write_text(TOOLS)
    schemas = [f.schema for f in of_file(directory / "tools.py")]
    talks = [(messages(t), schemas) for t in WITH_TOOLS] + [(messages(t), None) for t in WITHOUT]
    texts = [m["content"] for t, _ in talks for m in t] + [f"List of tools: {json.dumps(schemas)}add(a=b=)"]
    tokenizer = Tokenizer.train(texts * 2, 480, pad_to=480)  # short ids make short work
    chat = Chat(tokenizer, "lfm2")
    encoded = [chat.render(m, tools=tools).encode() for m, tools in talks]
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(theta=1e4))
    config = Config(
        vocab_size=480, hidden_size=64, max_positions=1024, bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        layers=stack("CACA", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=128)),
    )  # fmt: skip
    model = Lfm2(config, generator=torch.Generator().manual_seed(1))
    length = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([i + [config.pad_id] * (length - len(i)) for i, _ in encoded])
    valid = torch.tensor([[True] * len(i) + [False] * (length - len(i)) for i, _ in encoded])
    wanted = torch.tensor([[t if m else -100 for t, m in zip(i, mask, strict=True)] + [-100] * (length - len(i))
                           for i, mask in encoded])  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95))
    for _ in range(400):
        logits = model(ids, attention_mask=valid)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 1e-2:
            break
    assert loss < 2e-2, loss.item()
    model.save_pretrained(directory)
    tokenizer.save(directory)
