"""One question to one OpenAI-style endpoint: POST /chat/completions with a deadline for the whole answer, retries with
back-off, and failures by name. Standard library only. Not for streaming, not for serving.
"""

import hashlib
import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_MOST_BYTES = 1 << 20
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_USERS_FAULT = {401: "the key is wrong or missing", 403: "the key may not use this", 404: "no such path or model"}
Messages = Sequence[Mapping[str, str]]


class EndpointError(Exception):
    """One question got no answer. reason: "timeout", "unreachable", "refused" (its status) or "garbage"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """url: base such as "http://127.0.0.1:8000/v1"; model: the name to ask for; name: how the run calls it (default:
    model); key_variable: environment variable that holds the API key (never the key itself).

    timeout: seconds for one whole answer; attempts: tries in all; pause: seconds before the second try, doubled for
    each further one, and at most `longest_pause` (also for a Retry-After that the server sends). json_mode,
    json_schema: ask the server to write JSON alone, or just the answer that is asked for, where it can. temperature: of
    sampling, 0 for the likeliest answer.
    """

    url: str
    model: str
    name: str = ""
    key_variable: str = ""
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 0.5
    longest_pause: float = 30.0
    max_tokens: int = 64
    json_mode: bool = False
    json_schema: bool = False
    temperature: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {self.url!r}; an address like 'http://127.0.0.1:8000/v1' is needed")
        for field in ("timeout", "attempts", "max_tokens"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be above 0")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it may not be below 0")
        if self.pause < 0 or self.longest_pause < 0:
            raise ValueError(f"pause is {self.pause}, longest_pause {self.longest_pause}; neither may be below 0")
        if self.key_variable and self.key_variable not in os.environ:
            raise ValueError(f"the environment has no variable {self.key_variable!r}, which should hold the API key")
        if not self.name:
            object.__setattr__(self, "name", self.model)

    def ask(
        self, messages: Messages, schema: Mapping[str, object] | None = None, *, seed: int | None = None
    ) -> str:  # fmt: skip
        """The assistant's text; schema: of the answer, sent if `json_schema` is set; seed: of the sampling, sent if
        there is one. EndpointError: no answer after all tries. ValueError: the endpoint says that the user has to
        change something (key, path, model).
        """
        body: dict[str, object] = {
            "model": self.model, "messages": list(messages), "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        } | ({} if seed is None else {"seed": seed})  # fmt: skip
        if self.json_schema and schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.json_mode:
            body["response_format"] = {"type": "json_object"}
        raw = json.dumps(body).encode()
        for attempt in range(self.attempts):
            try:
                status, headers, answer = self._post(raw)
                if status == 200:
                    return _content(answer)
                if status in _USERS_FAULT:
                    raise ValueError(f"{self.url} answers {status}: {_USERS_FAULT[status]}; {_short(answer)}")
                problem = EndpointError("refused", f"{status} {_short(answer)}")
                if status not in _RETRIED:
                    raise problem
                wait = _seconds(headers.get("retry-after", ""))
            except TimeoutError as e:
                problem, wait = EndpointError("timeout", f"{self.timeout} s: {e}"), 0.0
            except (OSError, http.client.HTTPException) as e:
                problem, wait = EndpointError("unreachable", f"{type(e).__name__}: {e}"), 0.0
            if attempt + 1 < self.attempts:
                time.sleep(min(self.longest_pause, max(wait, self._back_off(raw, attempt))))
        raise problem

    def _back_off(self, raw: bytes, attempt: int) -> float:
        """Doubling pauses, each between half and the whole, so that many waiting workers do not come back at once."""
        spread = hashlib.blake2b(raw + bytes([attempt % 256]), digest_size=1).digest()[0] / 255
        return float(self.pause * 2**attempt * (0.5 + 0.5 * spread))

    def _post(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) within self.timeout seconds in all, however slowly the server drips."""
        end = time.monotonic() + self.timeout
        parts = urlsplit(self.url)
        assert parts.hostname
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=self.timeout, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout)
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self.key_variable:
                headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
            connection.request("POST", parts.path.rstrip("/") + "/chat/completions", raw, headers)
            sock = connection.sock
            sock.settimeout(_left(end))
            response = connection.getresponse()
            body = b""
            while len(body) <= _MOST_BYTES:
                if not response.isclosed():
                    sock.settimeout(_left(end))
                block = response.read1(1 << 16)
                if not block:
                    break
                body += block
            if len(body) > _MOST_BYTES:
                raise EndpointError("garbage", f"more than {_MOST_BYTES} bytes for one answer")
            return response.status, {k.lower(): v for k, v in response.getheaders()}, body
        finally:
            connection.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer had begun")
    return left


def _content(answer: bytes) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as e:
        raise EndpointError("garbage", f"no chat completion: {_short(answer)}") from e
    if not isinstance(content, str):
        raise EndpointError("garbage", f"the content is a {type(content).__name__}, not text")
    return content


def _short(raw: bytes) -> str:
    return raw[:200].decode("utf-8", "replace").replace("\n", " ")


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0
