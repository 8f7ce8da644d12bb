"""JSON as providers write it, and as users do."""

import json
import math
from typing import Any

import jiter


class NotJson(Exception):
    """The text is not the JSON that it should be."""


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object, its texts such as every store can hold. Raises NotJson."""
    try:
        value = jiter.from_json(data, cache_mode="keys")
    except ValueError:
        value = _mended(data)
    else:
        # JSON can say NUL only in this way.
        if b"\\u0000" in data:
            value = _storable(value)
    if not isinstance(value, dict):
        raise NotJson("not an object")
    return value


def strict_object(data: bytes) -> dict[str, Any]:
    """One JSON object, kept as it is, without NaN and the like, which no JSON text may hold. Raises NotJson."""
    try:
        value = json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        raise NotJson("not JSON") from None
    if not isinstance(value, dict):
        raise NotJson("not an object")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # Written again it would be no JSON.
        raise ValueError(text)
    return number


def _no_number(word: str) -> None:
    raise ValueError(word)


def _mended(data: bytes) -> Any:
    """Half of a surrogate pair, which some servers send where they cut a text, becomes U+FFFD."""
    try:
        return _storable(json.loads(data))
    except (ValueError, RecursionError):
        raise NotJson("not JSON") from None


def _storable(value: Any) -> Any:
    """NUL, which Postgres refuses, and halves of surrogate pairs become U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return value


def compact(value: Any) -> str:
    """The shortest JSON text of a value, characters kept."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
