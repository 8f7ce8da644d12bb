"""Errors inside Responses answers, which carry no HTTP status and no headers of their own."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from janus_inference.dialects import error_body
from janus_inference.provider_errors import STATUS_OF_TYPE, Refused

# What a code would have been outside of a stream, where its name does not say it.
_STATUS_OF_CODE = {
    "context_length_exceeded": 400,
    "data_residency_mismatch": 400,
    "empty_image_file": 400,
    "failed_to_download_image": 400,
    "unsupported_image_media_type": 400,
    "vector_store_timeout": 504,
    "invalid_api_key": 401,
    "model_not_found": 404,
}
_BAD_INPUT = ("invalid_", "image_")
# The wait is said to people only: "Please try again in 1.2s."
_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_TRY_AGAIN = re.compile(
    rf"try again in ((?:{_NUMBER} ?(?:ms|s|seconds?|m|minutes?|h|hours?)\s*)+)(?!\w)", re.IGNORECASE
)
_PIECE = re.compile(rf"({_NUMBER}) ?(ms|s|m|h)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_WAIT_S = 3600.0


def refused(error: Any) -> Refused:
    """What an `error` event, or the `error` of a failed answer, says."""
    inner = error.get("error") if isinstance(error, Mapping) else None
    if isinstance(inner, Mapping):
        error = inner
    said = error_body.refused(500, error)
    if not isinstance(error, Mapping):
        return said
    code = error.get("code")
    return replace(
        said,
        status=code if isinstance(code, int) and 400 <= code < 600 else _status(said.code, said.type),
        type="" if said.type == "error" else said.type,
        retry_after=_wait(said.message),
    )


def _status(code: str, kind: str) -> int:
    if code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[code]
    if code.isdecimal() and 400 <= int(code) < 600:
        return int(code)
    if code.startswith(_BAD_INPUT):
        return 400
    return STATUS_OF_TYPE.get(code, STATUS_OF_TYPE.get(kind, 500))


def _wait(message: str) -> float | None:
    """Seconds to wait, when the message says so."""
    found = _TRY_AGAIN.search(message)
    if found is None:
        return None
    seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in _PIECE.findall(found[1]))
    return min(seconds, _LONGEST_WAIT_S)
