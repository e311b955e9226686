"""`headwater teacher`: captured by each engine, resumed, refused where the student reads other words."""

import json

import numpy as np
import pytest

from headwater import Tokenizer, cli
from headwater.data.capture import fingerprint
from headwater.data.teacher_store import TeacherStore

TEXT = "The river runs to the sea, and the sea gives it back as rain. " * 20


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}. {TEXT}"}) + "\n" for n in range(3)))
    return path


@pytest.mark.parametrize("engine", ["native", "torch", "transformers"])
def test_capture(tiny_model, texts, tmp_path, capsys, engine):
    out = tmp_path / "store"
    call = ["teacher", "capture", out, texts, "--model", tiny_model, "--engine", engine, "--length", "200", "--json"]
    call = [str(c) for c in call]
    assert cli.run([*call, "--student", str(tiny_model)]) == 0
    facts = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    assert facts["tokenizer"] == fingerprint(tokenizer)
    assert facts["top_k"] == 32
    store = TeacherStore(out)
    assert store.tokens == facts["tokens"] > 600
    store.check(fingerprint(tokenizer), facts["vocab_size"])
    assert all(2 <= len(s) <= 200 for s in store.sequences())
    first = next(store.sequences())
    assert tokenizer.decode(first.tolist()).startswith("0. The river runs")
    likely = store[0]
    assert (np.diff(likely.logprobs, axis=1) <= 0).all()
    before = (out / "store.json").read_bytes()
    assert cli.run(call) == 0  # all is there: nothing is captured twice
    assert (out / "store.json").read_bytes() == before


def test_faults(tiny_model, texts, tmp_path, capsys):
    other = tmp_path / "other"
    Tokenizer.train(["quite other words"] * 5, vocab_size=300).save(other)
    for call, says in (
        (["capture", tmp_path / "s", texts, "--model", tiny_model, "--student", other], "different tokenizers"),
        (["capture", tmp_path / "s"], "capture needs texts and a teacher"),
        (["capture", tmp_path / "s", texts, "--model", tiny_model, "--engine", "tourch"], "did you mean 'torch'"),
        (["keep", tmp_path / "s"], "no action 'keep'"),
        (["show", tmp_path / "s"], "no store.json"),
        (["show", tmp_path / "s", texts], "alone"),
        (["capture", tmp_path / "s", texts, "--model", tiny_model, "--top-k", 0], "--top-k is 0"),
        (["capture", tmp_path / "s", texts, "--model", tiny_model, "--length", 1], "--length is 1"),
    ):
        assert cli.run(["teacher", *map(str, call)]) == 2
        assert says in capsys.readouterr().err
