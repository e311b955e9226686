"""A real HTTP server on this machine that votes, stalls, drips, breaks and recovers, by the name of the model."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from headwater.data.judge import CRITERIA


def vote(*numbers):
    return json.dumps(dict(zip(CRITERIA, numbers, strict=True)))


class Server(ThreadingHTTPServer):
    """Models by name: good, bad, chatty, garbage, flaky (two 503 before each answer), stall, drip, limited, nokey."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.seen, self.bodies, self.stop = Counter(), Counter(), [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, server = body["model"], self.server
        server.asked[model] += 1
        server.bodies.append((self.path, self.headers.get("Authorization"), body))
        content = {"good": vote(5, 4, 3), "bad": vote(1, 1, 2), "chatty": "Sure! " + vote(5, 5, 5)}.get(
            model, vote(4, 4, 4)
        )
        if model == "stall":
            server.stop.wait(60)
        if model == "nokey":
            return self.answer(401, b'{"error": "bad key"}')
        if model == "toolong":
            return self.answer(400, b'{"error": "context"}')
        if model == "garbage":
            return self.answer(200, b"<html>")
        question_key = (model, body["messages"][1]["content"])
        server.seen[question_key] += 1
        if model in ("flaky", "limited") and server.seen[question_key] <= 2:
            return self.answer(503 if model == "flaky" else 429, b"busy", {"Retry-After": "0"})
        raw = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        return self.answer(200, raw, drip=model == "drip")

    def answer(self, status, raw, headers=(), drip=False):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        for i in range(len(raw)) if drip else ():
            if self.server.stop.wait(0.2):
                return
            self.wfile.write(raw[i : i + 1])
            self.wfile.flush()
        if not drip:
            self.wfile.write(raw)
