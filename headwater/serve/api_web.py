"""GET / and its few files: the chat page. They are read once at the start; no path of a request is a path of a file."""

from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

from headwater.serve.server import Server

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes(server: Server) -> APIRouter:
    """The router of the page; empty where the server has none."""
    router = APIRouter()
    if not server.settings.web:
        return router
    for entry in resources.files("headwater.serve").joinpath("web").iterdir():
        kind = entry.name.rpartition(".")[2]
        if kind in _TYPES:
            path = "/" if entry.name == "index.html" else f"/web/{entry.name}"
            _add(router, path, entry.read_bytes(), _TYPES[kind])
    return router


def _add(router: APIRouter, path: str, body: bytes, kind: str) -> None:
    async def file() -> Response:
        return Response(body, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)

    router.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)
