"""A file of Python functions as tools of a chat: they run in a process of their own, with a time limit.

Who may call them is chat's to ask: nothing here asks, and loading a file runs it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LOAD_SECONDS = 120.0
_ROOT = Path(__file__).parent.parent.parent
_WORKER = (
    "import sys; sys.path.append(sys.argv[1]); from headwater.commands import tool_worker as w; w.main(sys.argv[2])"
)


class Toolbox:
    """The functions of one file. seconds: of one call."""

    def __init__(self, path: str | Path, *, seconds: float) -> None:
        """Run the file and learn its tools. ValueError says what is wrong with it."""
        self.path, self.seconds = Path(path), seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        if not self.path.is_file():
            raise ValueError(
                f"{self.path} is no file; --tools takes a .py file of functions, or a .json list of schemas"
            )
        self.schemas: list[dict[str, Any]] = self._start()

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        """(whether it went well, the result or what went wrong as text). KeyboardInterrupt ends the call and passes."""
        if self._process is None:
            self._start()
        reply = self._ask({"name": name, "arguments": arguments}, self.seconds)
        return "result" in reply, reply.get("result", reply.get("error", ""))

    def close(self) -> None:
        """End the process, and what it has started."""
        if self._process is None:
            return
        process, self._process, self._rest = self._process, None, b""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> list[dict[str, Any]]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(_ROOT), str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        reply = self._ask(None, _LOAD_SECONDS)
        if "schemas" not in reply:
            self.close()
            raise ValueError(f"{self.path} cannot be loaded: {reply['error']}")
        return reply["schemas"]

    def _ask(self, request: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """The next reply; an error of ours where the process ends or takes too long, which ends it."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if request is not None:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            line = self._line(process.stdout.fileno(), time.monotonic() + seconds)
        except TimeoutError:
            self.close()
            return {"error": f"it took longer than {seconds:g} seconds and was stopped"}
        except (EOFError, BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe may be closed while it lives on
                process.wait(1.0)
            self.close()
            code = process.returncode
            return {"error": f"the process of the tools has ended (exit code {code})"}
        except BaseException:
            self.close()
            raise
        return json.loads(line)

    def _line(self, descriptor: int, deadline: float) -> bytes:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line
