"""The estimate against what engines really take: packed weights, slots, scratch; refusals that say what would fit."""

import json
import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from test_checkpoint import write_gguf
from test_engine_batches import wide
from test_native_program import STACKS, build, config, model

from headwater import cli
from headwater.checkpoint.gguf import GgufFile
from headwater.engine import fit, native
from headwater.engine.engine import RING
from headwater.export.gguf import requantize


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("formats", ["F32", "Q8_0"])
def test_shapes_of_a_configuration_are_those_of_the_model(name, formats):
    m = model(config(name))
    tensors = {**dict(m.named_parameters()), **dict(m.named_buffers())}
    shape = fit.shapes_of(m.config, formats)

    class Both:
        def matrix(self, name):
            kind = "F32" if "feed_forward.gate" in name or "g_proj" in name else formats
            real = native.FloatWeights(m.config, lambda n: tensors[n].detach().float().numpy(), lambda n: kind).matrix(
                name
            )
            said = shape(name)
            assert (said.rows, said.k, said.experts, said.int8) == (real.rows, real.k, real.experts, real.int8)
            assert said.nbytes == real.nbytes
            return real

        def vector(self, name):
            read = lambda n: tensors[n].detach().float().numpy()  # noqa: E731
            return native.FloatWeights(m.config, read, lambda n: "F32").vector(name)

        norm = vector

    fit.lower(m.config, Both())


@pytest.mark.parametrize("name", STACKS)
def test_states_and_scratch_are_the_cores(name):
    m = model(config(name))
    core = build(m, "Q8_0", ring=RING, capacity=512, max_slots=3, max_tokens=480, max_selected=16, threads=2)
    said = fit.estimate(m.config, fit.shapes_of(m.config, "Q8_0"), context=512, slots=3, threads=2)
    assert said.states == 3 * (512 * core.bytes_per_token + core.bytes_fixed)
    assert said.scratch == core.memory


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q4_0"])
def test_headers_of_gguf_files(kind, tmp_path):
    source, path = tmp_path / "f32.gguf", tmp_path / "m.gguf"
    write_gguf(source, "lfm2", model(wide("lfm2")))
    requantize(path, GgufFile(source), type=kind.lower(), pure=True)
    c, shape = fit.header(path, "F32")
    _, real = native.open_weights(path, "F32", threads=1)
    for name in ("embed_tokens.weight", "layers.0.conv.in_proj.weight", "layers.1.self_attn.k_proj.weight"):
        assert shape(name).nbytes == real.matrix(name).nbytes
    assert c == real._config


class _Ranges(BaseHTTPRequestHandler):
    """Serves one file by ranges, as the hub does, and notes what was sent, and to whom."""

    keys: ClassVar[set] = set()

    def __init__(self, data: bytes, sent: list, *args) -> None:
        self.data, self.sent = data, sent
        super().__init__(*args)

    def do_GET(self):
        last = int(self.headers["Range"].split("-")[1])
        piece = self.data[: last + 1]
        self.sent.append(len(piece))
        self.keys.add(self.headers["Authorization"])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(piece) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "cache_mib"), [(2, 0), (4, 16)])
def test_a_real_server_takes_what_was_said(slots, cache_mib, tmp_path):
    from headwater.bench import synthetic
    from headwater.config import named
    from recipes.fit_measured import measured

    path = os.environ.get("HEADWATER_SMOLLM2")
    if path is None:
        path = tmp_path / "m.gguf"
        synthetic.write(path, named("LFM2-350M"), "q4_0")
    found = measured(Path(path), context=512, slots=slots, cache_mib=cache_mib, threads=2)
    assert abs(found.error) < 0.05, found


def test_a_file_on_the_hub_is_asked_for_its_beginning(tmp_path, monkeypatch):
    path, sent = tmp_path / "m.gguf", []
    write_gguf(path, "lfm2", model(config("lfm2")))
    monkeypatch.setattr(fit, "_FIRST_RANGE", 1024)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_reader")
    server = HTTPServer(("127.0.0.1", 0), partial(_Ranges, path.read_bytes(), sent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_: f"http://127.0.0.1:{server.server_port}/m.gguf")
        c, found = fit.of("owner/name/m.gguf")
    finally:
        server.shutdown()
        server.server_close()
    assert c == fit.header(path, "F32")[0]
    assert found(128, 2) == fit.of(str(path))[1](128, 2)
    assert max(sent) < path.stat().st_size
    assert "Bearer hf_of_a_reader" in _Ranges.keys  # repositories behind a licence answer nobody else


def test_a_file_of_the_hub_that_is_here_is_not_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    write_gguf(path, "lfm2", model(config("lfm2")))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(path))
    monkeypatch.setattr("huggingface_hub.hf_hub_url", None)
    assert fit.of("owner/name/m.gguf")[1](128, 2) == fit.of(str(path))[1](128, 2)


def test_what_cannot_fit_is_refused_with_what_would(tiny_model, capsys):
    assert cli.run(["fit", str(tiny_model), "--ctx", "512", "--slots", "4", "--json", "--cache-mib", "0"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["total"] == sum(facts[k] for k in ("weights", "states", "scratch", "cache", "process"))
    limit = str((facts["total"] >> 20) + 1)
    assert (
        cli.run(["fit", str(tiny_model), "--ctx", "512", "--slots", "4000", "--limit-mib", limit, "--cache-mib", "0"])
        == 2
    )
    said = capsys.readouterr().err
    assert "MiB are available" in said and "--slots 1 --ctx 512" in said
    assert cli.run(["fit", str(tiny_model), "--limit-mib", "1"]) == 2
    assert "take fewer bits" in capsys.readouterr().err
    assert cli.run(["fit", str(tiny_model), "--ctx", "9999"]) == 2


def test_packed_files_and_formats_of_directories(tiny_model, tmp_path):
    path = tmp_path / "m.hwp"
    native.pack(tiny_model, path, formats="F16", threads=1)
    packed, rounded, kept = (fit.of(str(p), weights=w)[1](128, 2) for p, w in
                             ((path, None), (tiny_model, "F16"), (tiny_model, "F32")))  # fmt: skip
    assert packed == rounded
    assert kept.weights > rounded.weights and kept.states == rounded.states


def test_without_a_context_the_longest_that_fits_is_taken():
    from headwater.config import named

    c = named("LFM2-350M")
    of = partial(fit.estimate, c, fit.shapes_of(c, "Q8_0"))

    def room(context, slots):
        return of(context=context, slots=slots)

    plenty = room(fit.DEFAULT_CONTEXT, 4).total
    assert fit.choose(plenty, room, None, 4, c.max_positions).context == fit.DEFAULT_CONTEXT
    less = fit.choose(plenty - 1, room, None, 4, c.max_positions)
    assert less.context == fit.DEFAULT_CONTEXT - 256
    with pytest.raises(ValueError, match="--slots 4 --ctx 32512; --slots 2 --ctx 32768"):
        fit.choose(plenty - 1, room, fit.DEFAULT_CONTEXT, 4, c.max_positions)
    with pytest.raises(ValueError, match="--slots 4 --ctx 1024"):
        fit.choose(room(1024, 4).total, room, None, 4, c.max_positions)


def test_the_limit_of_a_container_counts(tmp_path):
    def write(folder, limit, used, stat):
        (tmp_path / folder).mkdir(exist_ok=True)
        names = (
            ("memory.max", "memory.current") if folder == "." else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        for name, value in (*zip(names, (limit, used), strict=True), ("memory.stat", stat)):
            (tmp_path / folder / name).write_text(f"{value}\n")

    assert len(fit._left_in_groups(tmp_path)) == 1
    write(".", "max", 5, "inactive_file 2")
    assert len(fit._left_in_groups(tmp_path)) == 1
    write(".", 1000, 600, "anon 7\ninactive_file 50")
    write("memory", 900, 850, "total_inactive_file 10")
    assert fit._left_in_groups(tmp_path)[1:] == [450, 60]


def test_serve_refuses_before_it_loads(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("headwater.engine.engine.Engine.from_pretrained", None)
    assert cli.run(["serve", str(tiny_model), "--slots", "9000000"]) == 2
    assert "MiB are available. What fits: --slots" in capsys.readouterr().err
    assert cli.run(["serve", str(tiny_model), "--ctx", "99999"]) == 2
    assert "the context is 99999; allowed: 1 to" in capsys.readouterr().err


def test_windows_alone_do_not_make_a_preset():
    from headwater.commands.chat import recommended
    from headwater.config import Attention, Config, Ffn, Rope, ShortConv, named, stack

    found = {n: recommended(named(n)) for n in ("LFM2-350M", "LFM3-1.7B", "SmolLM2-135M", "Gemma-3-1B")}
    assert found == {"LFM2-350M": "lfm2", "LFM3-1.7B": "lfm3", "SmolLM2-135M": "greedy", "Gemma-3-1B": "greedy"}
    windowed = Attention(num_heads=2, num_kv_heads=1, head_dim=16, rope=Rope(theta=1e4), window=8)
    layers = stack("CSC", {"C": ShortConv(width=3), "S": windowed}, Ffn(intermediate_size=64))
    assert recommended(Config(vocab_size=300, hidden_size=32, layers=layers, max_positions=256)) == "lfm2"


def test_a_directory_is_counted_in_the_format_that_serve_keeps(tiny_model, tmp_path, capsys):
    asked = ["--ctx", "128", "--slots", "2", "--cache-mib", "0", "--json"]

    def said(path, *options):
        assert cli.run(["fit", str(path), *asked, *options]) == 0
        return json.loads(capsys.readouterr().out)["weights"]

    assert said(tiny_model) == fit.of(str(tiny_model), weights=None)[1](128, 2).weights
    assert said(tiny_model) > said(tiny_model, "--weights", "Q8_0")
    values = json.loads((tiny_model / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):  # of a repository on the hub nothing else was fetched
        alone = {k: v for k, v in values.items() if k != "dtype"} | {name: "bfloat16"}
        (tmp_path / "config.json").write_text(json.dumps(alone))
        assert said(tmp_path) == said(tiny_model, "--weights", "BF16")
    (tmp_path / "config.json").write_text(json.dumps(alone | {"torch_dtype": None}))
    assert cli.run(["fit", str(tmp_path)]) == 2
    assert "say it with --weights" in capsys.readouterr().err
