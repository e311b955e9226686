"""Downloads with the real client against a real HTTP server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from families import pair

from headwater import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys, torch
from headwater import Lfm2, hub
model = Lfm2.from_pretrained("LiquidAI/tiny")
print(model.config.hidden_size, [c.repo_id for c in hub.cached()])
"""


def _server(files: dict[str, bytes], log: list[str], repo: str = "LiquidAI/tiny") -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, body: bytes, kind: str, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            log.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            prefix = f"/{repo}/resolve/{COMMIT}/"
            if path.startswith(f"/api/models/{repo}/tree"):
                entries = [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()]
                self._answer(json.dumps(entries).encode(), "application/json", {})
            elif path.startswith(f"/api/models/{repo}"):
                facts = {"id": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
                facts["siblings"] = [{"rfilename": name} for name in files]
                self._answer(json.dumps(facts).encode(), "application/json", {})
            elif path.startswith(prefix) and (name := path.removeprefix(prefix)) in files:
                etag = hashlib.sha256(files[name]).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                self._answer(files[name], "application/octet-stream", headers)
            else:
                self._answer(b"{}", "application/json", {"X-Error-Code": "RepoNotFound"}, 404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub_at(tmp_path):
    pair("lfm2-k3")[1].save_pretrained(tmp_path / "source")
    log: list[str] = []
    server = _server({p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()}, log)
    yield _environment(server, tmp_path), log
    server.shutdown()


def _environment(server: http.server.ThreadingHTTPServer, tmp_path: Path) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }


def _left_behind(repo: Path, commit: str, name: str, content: bytes) -> Path:
    """A repository in the cache of which another program has fetched one file."""
    file = repo / "snapshots" / commit / name
    file.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    file.write_bytes(content)
    return file


def _run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_download_names_the_licence_and_happens_once(hub_at):
    environment, log = hub_at
    first = _run(LOAD, environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "48 ['LiquidAI/tiny']\n"
    assert "Licence: LFM Open License v1.0" in first.stderr
    fetched = len([line for line in log if line.startswith("GET") and "resolve" in line])
    assert fetched >= 2
    second = _run(LOAD, environment | {"HF_HUB_OFFLINE": "1"})
    assert second.stdout == first.stdout
    assert len([line for line in log if line.startswith("GET") and "resolve" in line]) == fetched


def test_offline_says_so_and_what_to_do(hub_at):
    environment, log = hub_at
    done = _run(LOAD, environment | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode != 0
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "headwater pull LiquidAI/tiny" in done.stderr
    assert log == []


def test_no_network_says_so(hub_at):
    environment, _ = hub_at
    done = _run(LOAD, environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "ValueError: LiquidAI/tiny is not in the cache and the hub cannot be reached" in done.stderr


def test_unknown_model(hub_at):
    environment, _ = hub_at
    done = _run("from headwater import hub; hub.resolve('LiquidAI/other')", environment)
    assert "ValueError: LiquidAI/other: not on the hub" in done.stderr


def test_remove(hub_at):
    environment, _ = hub_at
    code = "from headwater import hub; print(hub.remove('LiquidAI/tiny') > 100_000, hub.cached())"
    assert "nothing" in _run(code, environment).stderr
    _run(LOAD, environment)
    assert _run(code, environment).stdout == "True []\n"


def test_remove_leaves_a_dataset_of_the_same_name(hub_at, tmp_path):
    environment, _ = hub_at
    _run(LOAD, environment)
    rows = _left_behind(tmp_path / "home" / "hub" / "datasets--LiquidAI--tiny", "f" * 40, "rows.txt", b"rows")
    done = _run("from headwater import hub; hub.remove('LiquidAI/tiny'); print(hub.cached())", environment)
    assert done.stdout == "[]\n", done.stderr
    assert rows.read_bytes() == b"rows"


def test_what_another_program_fetched_in_part_is_completed(hub_at, tmp_path):
    environment, log = hub_at
    config = (tmp_path / "source" / "config.json").read_bytes()
    _left_behind(tmp_path / "home" / "hub" / "models--LiquidAI--tiny", COMMIT, "config.json", config)
    done = _run(LOAD, environment)
    assert done.stdout.startswith("48 "), done.stderr
    assert any(line.startswith("GET") and line.endswith("model.safetensors") for line in log)


def test_a_part_of_the_shards_is_no_snapshot(tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (tmp_path / names[0]).write_bytes(b"")
    assert not hub._whole(tmp_path, "*.safetensors")
    (tmp_path / names[1]).write_bytes(b"")
    assert hub._whole(tmp_path, "*.safetensors")
    assert not hub._whole(tmp_path, "tokenizer.json")


@pytest.fixture
def gguf_hub(tmp_path):
    log: list[str] = []
    names = "README.md", "mmproj-tiny-Q4_0.gguf", "tiny-F16.gguf", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf"
    server = _server({name: name.encode() for name in names}, log, "LiquidAI/tiny-GGUF")
    yield _environment(server, tmp_path), log
    server.shutdown()


def test_one_file_of_a_repository_of_gguf_files(gguf_hub):
    environment, log = gguf_hub
    code = "from headwater import hub; file = hub.resolve({!r}); print(file.name, file.read_text())"
    chosen = _run(code.format("LiquidAI/tiny-GGUF/tiny-Q8_0.gguf"), environment)
    assert chosen.stdout == "tiny-Q8_0.gguf tiny-Q8_0.gguf\n", chosen.stderr
    offline = _run(code.format("LiquidAI/tiny-GGUF"), environment | {"HF_HUB_OFFLINE": "1"})
    assert offline.stdout == chosen.stdout, offline.stderr
    assert not any("Q4_0" in line or "F16" in line for line in log)
    assert "has no file 'other.gguf'" in _run(code.format("LiquidAI/tiny-GGUF/other.gguf"), environment).stderr


def test_of_several_gguf_files_the_fastest_here_is_taken(gguf_hub):
    environment, log = gguf_hub
    code = "from headwater import hub; print(hub.gguf('LiquidAI/tiny-GGUF'), hub.resolve('LiquidAI/tiny-GGUF').name)"
    done = _run(code, environment)
    assert done.stdout == "('LiquidAI/tiny-GGUF', 'tiny-Q4_0.gguf') tiny-Q4_0.gguf\n", done.stderr
    assert "Licence: LFM Open License v1.0" in done.stderr
    assert not any("F16" in line or "Q8_0" in line for line in log)


def test_a_path_with_a_slip_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for model in ("runs/demo/model.gguf", "a/b/../c.gguf", "a/b/*.gguf"):
        assert hub.gguf(model) is None
        with pytest.raises(ValueError, match="no such file or directory"):
            hub.resolve(model)
