"""Downloads with the real client against a real HTTP server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from families import pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys, torch
from headwater import Lfm2, hub
model = Lfm2.from_pretrained("LiquidAI/tiny")
print(model.config.hidden_size, [c.repo_id for c in hub.cached()])
"""


def _server(files: dict[str, bytes], log: list[str]) -> http.server.ThreadingHTTPServer:
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
            prefix = f"/LiquidAI/tiny/resolve/{COMMIT}/"
            if path.startswith("/api/models/LiquidAI/tiny/tree"):
                entries = [{"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()]
                self._answer(json.dumps(entries).encode(), "application/json", {})
            elif path.startswith("/api/models/LiquidAI/tiny"):
                facts = {"id": "LiquidAI/tiny", "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
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
    environment = {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    yield environment, log
    server.shutdown()


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
