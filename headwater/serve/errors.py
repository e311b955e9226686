"""What the server says when it cannot do what was asked: one exception, in the words of the API that was called.

OpenAI: {"error": {message, type, param, code}}. Anthropic: {"type": "error", "error": {type, message}}.
"""

import re
from collections.abc import Iterable
from typing import Any

from headwater.files import closest

_FIELD = re.compile(r"^([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?=[:\s.,])")
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = _OPENAI_TYPES | {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


class ApiError(Exception):
    """A request that is refused. param: the field at fault; retry_after: seconds, for those who may try again."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.retry_after = message, status, param, code, retry_after

    def openai(self) -> dict[str, Any]:
        """The body that OpenAI's clients read."""
        kind = _OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str) -> dict[str, Any]:
        """The body that Anthropic's clients read; it has no place for the field but the text."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        named = f"{self.param}: {self.message}" if self.param and self.param not in self.message else self.message
        return {"type": "error", "error": {"type": kind, "message": named}, "request_id": request_id}

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 504:
            found["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients would ask for all of it again
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def from_value_error(error: ValueError, fields: Iterable[str]) -> ApiError:
    """A library's fault text as a refusal; the field is the one that the text begins with, if the request has it."""
    text = str(error)
    match = _FIELD.match(text)
    param = match[1] if match and re.split(r"[\[.]", match[1])[0] in set(fields) else None
    return ApiError(text, param=param)


def from_validation(errors: list[dict[str, Any]], fields: Iterable[str]) -> ApiError:
    """The first of pydantic's complaints, with the field as a path and the closest field for an unknown one."""
    first = errors[0]
    path = [p for p in first["loc"] if p != "body" and not _is_branch(p)]
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".") or None
    if first["type"] == "extra_forbidden":
        known = list(fields) if len(path) == 1 else []
        hint = closest(str(path[-1]), known)
        return ApiError(f"Unrecognized request argument supplied: {param}{hint}", param=param, code="unknown_parameter")
    if first["type"] == "missing" and param is None:
        return ApiError("The request has no body; a JSON object is needed.", code="missing_body")
    if first["type"] == "missing":
        return ApiError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if first["type"] == "json_invalid":
        return ApiError(
            f"The body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json"
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    where = f"{param}: " if param and not message.startswith(param) else ""
    return ApiError(f"{where}{message}{_came(first)}", param=param, code="invalid_value")


def _came(error: dict[str, Any]) -> str:
    value = error.get("input")
    if error["type"] == "value_error" or isinstance(value, dict | list):
        return ""
    return f"; it is {value!r:.80}"


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's path names a branch of a union and not a field."""
    return isinstance(part, str) and (not part.isidentifier() or part in _BRANCHES or part[:1].isupper())


_BRANCHES = frozenset({"str", "int", "float", "bool", "list", "dict", "none", "tuple", "function-after", "is-instance"})
