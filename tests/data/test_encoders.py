"""The sentence models as encoders: the real package with a model of random weights, whole runs, errors."""

import json
import random

import numpy as np
import pytest

from headwater.data import embed
from headwater.data.decontaminate import DecontaminateMeaning, SemanticMatch
from headwater.data.plan import Plan
from headwater.data.run import kept_texts, run
from headwater.data.steps import Removed, Text

WORDS = [f"w{number}" for number in range(400)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT of two layers with random weights, saved as sentence-transformers saves one."""
    pytest.importorskip("sentence_transformers", reason="the extra [data-st]")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    layers = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"))
    rows = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in layers
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return f"sentence-transformers:{folder}"


def sentences(count, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(30)) for _ in range(count)]


def test_vectors_are_those_of_the_model(encoder):
    import sentence_transformers

    texts = [*sentences(5, 1), "w1 w2", ""]
    model = sentence_transformers.SentenceTransformer(encoder.partition(":")[2], device="cpu")
    wanted = model.encode(texts, batch_size=1, normalize_embeddings=True)
    found = embed.sentence_vectors(encoder, texts)
    assert found.dtype == np.float32 and found.shape == (7, 32)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_run_removes_what_the_model_calls_equal(encoder, tmp_path):
    texts = sentences(60, 2)
    copies = [text.upper() for text in texts[:20]]  # other characters, the same tokens
    lines = [json.dumps({"text": text}) for text in [*texts, *copies]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    step = {"step": "semantic", "encoder": encoder, "threshold": 0.99}
    for workers in (0, 1):
        plan = Plan.from_dict({"sources": [str(tmp_path / "in.jsonl")], "steps": [step], "unit_bytes": 3000})
        report = run(plan, tmp_path / f"out{workers}", workers=workers)
        assert [row["text"] for row in kept_texts(tmp_path / f"out{workers}", 99)] == texts
        assert report["steps"][0]["facts"]["judged"] == 80


def test_evaluation_items_are_found_by_the_model(encoder, tmp_path):
    items, others = sentences(6, 3), sentences(6, 4)
    match = SemanticMatch.build({"own": items}, lambda texts: embed.sentence_vectors(encoder, texts), threshold=0.999)
    match.save(tmp_path / "own.npz", encoder=encoder)
    step = DecontaminateMeaning(files=(str(tmp_path / "own.npz"),), shipped=False)
    verdicts = step([Text(str(n), text) for n, text in enumerate([*(item.upper() for item in items), *others])])
    assert [isinstance(verdict, Removed) for verdict in verdicts] == [True] * 6 + [False] * 6


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra [data-st]")
    with pytest.raises(ValueError, match="holds no model"):
        embed.sentence_vectors(f"sentence-transformers:{tmp_path}/none", ["x"])
