"""The estimate against what engines really take: packed weights, slots, scratch; refusals that say what would fit."""

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

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
            return tensors[name].detach().float().numpy().reshape(-1)

        norm = vector

    fit.lower(m.config, Both())


@pytest.mark.parametrize("name", STACKS)
def test_states_and_scratch_are_the_cores(name):
    m = model(config(name))
    core = build(m, "Q8_0", ring=RING, capacity=512, max_slots=3, max_tokens=480, max_selected=16, threads=2)
    said = fit.estimate(m.config, fit.shapes_of(m.config, "Q8_0"), context=512, slots=3, threads=2)
    assert said.states == 3 * (512 * core.bytes_per_token + core.bytes_fixed)
    assert said.scratch == pytest.approx(core.memory, rel=0.2)


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
    """Serves one file by ranges, as the hub does, and notes what was sent."""

    def __init__(self, data: bytes, sent: list, *args) -> None:
        self.data, self.sent = data, sent
        super().__init__(*args)

    def do_GET(self):
        last = int(self.headers["Range"].split("-")[1])
        piece = self.data[: last + 1]
        self.sent.append(len(piece))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(piece) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)

    def log_message(self, *_):
        pass


def test_a_file_on_the_hub_is_asked_for_its_beginning(tmp_path, monkeypatch):
    path, sent = tmp_path / "m.gguf", []
    write_gguf(path, "lfm2", model(config("lfm2")))
    monkeypatch.setattr(fit, "_FIRST_RANGE", 1024)
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
