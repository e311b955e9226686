"""The engines behind `headwater chat` and `generate`, `export` and `quantize`: what they do and refuse."""

# ruff: noqa: F811 (fixtures are imported)
import json
import resource
import subprocess
import sys

import pytest
import torch
from test_cli import ROOT, headwater, one_line  # noqa: F401 (a fixture)

from headwater import Config, Lfm2, Tokenizer
from headwater.config import Attention, Ffn, Rope, ShortConv, stack
from headwater.gguf_file import GgufFile


def small(directory, hidden_size=64, head_dim=16):
    """A random LFM2 that GGUF can say."""
    tokenizer = Tokenizer.train(["The river runs to the sea. Hello! And you?"], 330, pad_to=336)
    attention = Attention(num_heads=4, num_kv_heads=2, head_dim=head_dim, rope=Rope(theta=1e4))
    config = Config(
        vocab_size=336, hidden_size=hidden_size, max_positions=512, bos_id=tokenizer.bos_id,
        layers=stack("CACA", {"C": ShortConv(width=3), "A": attention}, Ffn(intermediate_size=96)),
        eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(config, generator=torch.Generator().manual_seed(5)).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return small(tmp_path_factory.mktemp("hybrid") / "model")


def test_the_default_engine_is_native_and_gives_torchs_answer(headwater, tiny_model):
    answers = {}
    for engine in ("auto", "native", "torch"):
        code, out, err = headwater(
            "generate", tiny_model, "The river", "--engine", engine, "--threads", 1, "--max-tokens", 12,
            "--logprobs", 1, "--json",
        )  # fmt: skip
        assert (code, err) == (0, "")
        answers[engine] = json.loads(out)
    assert answers["auto"]["ids"] == answers["native"]["ids"] == answers["torch"]["ids"]
    assert answers["native"]["text"] == answers["torch"]["text"]
    for a, b in zip(answers["native"]["logprobs"], answers["torch"]["logprobs"], strict=True):
        assert a["logprob"] == pytest.approx(b["logprob"], abs=2e-2)


def test_a_gguf_model_answers_and_talks_without_torch(headwater, hybrid, tmp_path):
    gguf = tmp_path / "tiny.gguf"
    assert headwater("export", "gguf", hybrid, gguf)[0] == 0
    for rest, stdin in ((["generate", str(gguf), "The river", "--max-tokens", "4"], ""),
                        (["chat", str(gguf), "--style=lfm2", "--max-tokens", "4"], "Hello!\nAnd you?\n")):  # fmt: skip
        code = (
            "import sys\nsys.modules.update(torch=None, transformers=None)\nfrom headwater import cli\n"
            f"sys.exit(cli.run({rest!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=stdin, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "answer " in done.stderr
        assert "running on torch" not in done.stderr
    assert "from the cache" in done.stderr


def test_auto_falls_back_to_torch_with_one_line(headwater, tmp_path):
    odd = small(tmp_path / "odd", hidden_size=32, head_dim=8)
    code, out, err = headwater("generate", odd, "The river", "--max-tokens", 3, "--json")
    assert code == 0
    assert json.loads(out)["ids"]
    assert err.startswith("headwater: running on torch, because of the native engine: head_dim: 8")
    assert err.count("\n") == 1
    one_line(headwater("generate", odd, "The river", "--engine", "native"), "head_dim: 8")


# -- export and quantize -----------------------------------------------------------------------------------------


def test_export_and_quantize_say_what_they_wrote(headwater, hybrid, tmp_path):
    code, out, err = headwater("export", "gguf", hybrid, tmp_path / "m.gguf")
    assert (code, err) == (0, "")
    assert "32.00 bits per weight" in out
    code, out, _ = headwater("quantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "--type", "Q8_0")
    assert code == 0
    tensors = GgufFile(tmp_path / "q.gguf").tensors
    assert {t.type.name for t in tensors.values()} == {"Q8_0", "F32"}
    stored, weights = sum(t.data.nbytes for t in tensors.values()), sum(t.data.size for t in tensors.values())
    assert 0 < stored == weights
    bits = 8 * stored / Lfm2.from_pretrained(hybrid).config.num_parameters()
    assert f"{bits:.2f} bits per weight" in out
    code, out, _ = headwater("quantize", hybrid, tmp_path / "k.gguf", "--type", "q6_k")
    assert "rows that are not whole blocks" in out
    for name in ("m", "q", "k"):
        assert headwater("generate", tmp_path / f"{name}.gguf", "The", "--max-tokens", 2, "--engine", "native")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "ggf", "SRC", "DST"], ["did you mean 'gguf'"]),
        (["export", "gguf", "SRC", "DST", "--type", "q4_2"], ["q4_2", "did you mean 'q4_"]),
        (["quantize", "SRC", "DST", "--pure", "--head", "q8_0"], ["a pure file and a head", "one of them"]),
        (["quantize", "SRC", "DST", "--type", "bf16"], ["rounds nothing", "q4_0"]),
        (["quantize", "SRC", "DST", "--threads", "0"], ["--threads is 0"]),
        (["quantize", "SRC", "DST", "--pre", "lfm3"], ["did you mean 'lfm2'"]),
        (["quantize", "nowhere", "DST"], ["nowhere"]),
        (["quantize", "SRC", "FOLDER"], ["is a directory", "model.gguf"]),
        (["quantize", "SRC", "TAKEN"], ["exists", "--force"]),
        (["quantize", "SRC", "TAKEN/inside.gguf"], ["cannot be written"]),
        (["quantize", "COARSE", "DST", "--type", "q8_0"], ["q4_0 (4.5 bits", "second rounding", "original"]),
        (["quantize", "COARSE", "COARSE", "--force"], ["is the source itself"]),
        (["quantize", "COARSE", "DST", "--no-tokenizer"], ["--no-tokenizer has no effect"]),
        (["export", "gguf", "COARSE", "DST"], ["--type"]),
    ],
)
def test_export_refuses(headwater, hybrid, tmp_path, arguments, words):
    (tmp_path / "taken").write_text("precious")
    if "COARSE" in arguments:
        assert headwater("quantize", hybrid, tmp_path / "coarse.gguf")[0] == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    places = {"SRC": hybrid, "DST": tmp_path / "new.gguf", "FOLDER": tmp_path, "TAKEN": tmp_path / "taken",
              "TAKEN/inside.gguf": tmp_path / "taken" / "x.gguf", "COARSE": tmp_path / "coarse.gguf"}  # fmt: skip
    one_line(headwater(*[places.get(a, a) for a in arguments]), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "taken").read_text() == "precious"


def test_a_full_disk_leaves_nothing(headwater, hybrid, tmp_path):
    (tmp_path / "m.gguf").write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        result = headwater("quantize", hybrid, tmp_path / "m.gguf", "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(result, "m.gguf", "cannot be written")
    assert (tmp_path / "m.gguf").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
