"""Starting a real server on a tiny random model, in a thread of this process, on a free port."""

import contextlib
import threading
import time

from headwater.chat import Chat
from headwater.engine.engine import Engine
from headwater.sampling import SamplingParams
from headwater.serve.app import create_app
from headwater.serve.listen import free_socket, uvicorn_server
from headwater.serve.settings import Settings
from headwater.tokenizer import Tokenizer

STYLE = "lfm2.5"  # has tools, calls and reasoning
MODEL = "tiny"


class Running:
    """A server in this process."""

    def __init__(self, app, server, url):
        self.app, self.server, self.url = app, server, url
        self.front = app.state.server.front

    @contextlib.contextmanager
    def paused(self):
        """The engine stands still before its next step."""
        engine, gate = self.front.engine, threading.Event()
        step = engine.step

        def gated(*arguments):
            gate.wait()
            return step(*arguments)

        engine.step = gated
        try:
            yield
        finally:
            gate.set()
            engine.step = step


@contextlib.contextmanager
def running(tiny_model, *, slots=4, style=STYLE, chunk_size=64, **options):
    """Start one; stopped at the end, all its streams finished."""
    options.setdefault("sampling", SamplingParams(temperature=1.0))
    settings = Settings(model_name=MODEL, **options)
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    engine = Engine.from_pretrained(
        tiny_model, threads=1, max_sequences=slots, weights="F32", chunk_size=chunk_size, tokenizer=tokenizer
    )
    app = create_app(engine, None if style is None else Chat(tokenizer, style), settings)
    server = uvicorn_server(app, settings)
    with free_socket("127.0.0.1") as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        wait(lambda: server.started or not thread.is_alive())
        assert server.started
        yield Running(app, server, f"http://127.0.0.1:{socket.getsockname()[1]}")
        server.should_exit = True
        thread.join(timeout=300)
        assert not thread.is_alive()


def wait(condition, rounds=12_000):
    """Until it is true. Rounds and not seconds: a test machine may stand still for minutes."""
    for _ in range(rounds):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")
