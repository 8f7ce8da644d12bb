"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

The HTTP status is janus_kit's one mapping from Janus's errors. What HTTP alone
can get wrong (a path, a method, a body's type or size) is an HttpError.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from janus_kit.errors import Internal, InvalidArgument, JanusError, NotFound
from janus_kit.rpc_errors import http_status

# The field of a gRPC request, in the words of Chat Completions; longest first wins.
_PARAMS = {
    "labels": "metadata",
    "max_output_tokens": "max_completion_tokens",
    "reasoning": "reasoning_effort",
    "sampling.frequency_penalty": "frequency_penalty",
    "sampling.presence_penalty": "presence_penalty",
    "sampling.seed": "seed",
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class HttpError(Exception):
    """A request that is wrong as HTTP, before it means anything to the mesh."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class ErrorResponse(Response):
    """An error as its HTTP answer; ``error_code`` is for the log."""

    media_type = "application/json"

    def __init__(self, error: JanusError | HttpError, param_of: Callable[[str], str] | None = None) -> None:
        body = error_body(error, param_of)
        self.error_code: str | None = body["error"]["code"]
        headers = error.headers if isinstance(error, HttpError) else retry_headers(error)
        super().__init__(json.dumps(body), status_of(error), headers)


def status_of(error: JanusError | HttpError) -> int:
    """The HTTP status of the error."""
    return error.status if isinstance(error, HttpError) else http_status(error)


def error_body(
    error: JanusError | HttpError, param_of: Callable[[str], str] | None = None
) -> dict[str, dict[str, Any]]:
    """The error as OpenAI's JSON. ``param_of`` turns a gRPC field path into a parameter."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message, code, param = error.message, None, None
    if isinstance(error, HttpError):
        code, param = error.code, error.param
    else:
        code = error.reason.lower()
        if isinstance(error, InvalidArgument):
            translate = param_of or param_of_field
            param = translate(error.violations[0].field)
            message = "; ".join(f"{translate(field)}: {rule}" for field, rule in error.violations)
        elif isinstance(error, NotFound) and error.resource_type == "model":
            param, code = "model", "model_not_found"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def retry_headers(error: JanusError) -> dict[str, str]:
    """When to come again: whole seconds as HTTP has it, milliseconds as OpenAI's clients read it."""
    if error.retry_after is None or isinstance(error, Internal):
        return {}
    return {
        "retry-after": str(max(1, math.ceil(error.retry_after))),
        "retry-after-ms": str(max(0, round(error.retry_after * 1000))),
    }


def param_of_field(field: str) -> str:
    """`prompt.sampling.top_p` -> `top_p`."""
    field = field.removeprefix("prompt.")
    for prefix, param in _PARAMS.items():
        if field == prefix or field.startswith((f"{prefix}.", f"{prefix}[")):
            return param
    return field
