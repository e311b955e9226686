"""The door: size and speed of bodies, the API key, foreign hosts. One ASGI middleware, before anything is parsed.

Not for what a request means (schemas) or for how many run (front).
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from headwater.serve.errors import ApiError
from headwater.serve.settings import LOCAL_NAMES, Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico", "/openapi.json"})
OPEN_FOLDER = "/web/"
MESSAGES_PATHS = ("/v1/messages",)


class Guard:
    """Refuses before the application sees anything; what passes has its whole body in memory and a request id."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [hashlib.sha256(k.encode()).digest() for k in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = f"req_{secrets.token_hex(12)}"
        send_named = named(scope, send)
        headers = {k.lower(): v for k, v in scope["headers"]}
        try:
            self._check_host(headers)
            self._check_key(scope, headers)
            body = await self._body(scope, headers, receive)
        except ApiError as e:
            await refuse(e, scope, send_named)
            return
        except ConnectionResetError:
            return
        await self._app(scope, _replay(body, receive), send_named)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A page of another site must not reach a loopback server by a name that resolves to it (DNS rebinding)."""
        if not self._settings.loopback or self._settings.api_keys:
            return
        name = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if name and name not in (*LOCAL_NAMES, *self._settings.allowed_hosts) and not _is_address(name):
            raise ApiError(
                f"the Host header names {name!r:.80}, but this server is for this machine alone;"
                " cure: use localhost, or start it with --allow-host",
                status=403,
            )

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or scope["method"] == "OPTIONS":
            return
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        digest = hashlib.sha256(given).digest()
        # Every key is compared, each in constant time.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            reason = "Incorrect API key provided." if given else "You didn't provide an API key."
            raise ApiError(f"{reason} Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.", status=401,
                           code="invalid_api_key")  # fmt: skip
        scope["state"]["key"] = digest.hex()[:16]  # whose request it is

    async def _discard(self, receive: Receive) -> None:
        """Read on without keeping: a client that still sends when the socket closes never sees why. Bounded."""
        left = 4 * self._settings.max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.body_seconds):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b"")) + 1
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        limit = self._settings.max_body_bytes
        too_large = ApiError(f"the body is larger than {limit} bytes, which is the limit here", status=413)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            await self._discard(receive)
            raise too_large
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                body = await _read(receive, limit)
        except TimeoutError:
            raise ApiError(f"the body did not come within {self._settings.body_seconds:g} s", status=408) from None
        if body is None:
            await self._discard(receive)
            raise too_large
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and kind != b"application/json":
            # A form or text/plain is all that a page of another site can send without asking first (CORS).
            raise ApiError("Content-Type must be application/json", status=415, param="content-type")
        return body


async def _read(receive: Receive, limit: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body once and then what really comes: a disconnect."""
    sent = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def named(scope: Scope, send: Send) -> Send:
    """`send` that adds the request's id to the headers of the answer, where there is one."""
    request_id = scope.get("state", {}).get("request_id")
    names = [b"x-request-id"] if request_id else []
    if request_id and scope["path"].startswith(MESSAGES_PATHS):
        names.append(b"request-id")  # where Anthropic's clients look

    async def send_named(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", []).extend((name, str(request_id).encode()) for name in names)
        await send(message)

    return send_named


async def refuse(error: ApiError, scope: Scope, send: Send) -> None:
    """Write an error as the API of this path writes it."""
    request_id = scope.get("state", {}).get("request_id", "")
    shape = error.anthropic(request_id) if scope["path"].startswith(MESSAGES_PATHS) else error.openai()
    body = json.dumps(shape, ensure_ascii=True).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _host_name(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.rpartition(":")[0].lower() if ":" in value else value.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
