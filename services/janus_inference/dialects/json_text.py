"""JSON as providers write it, and as users do."""

import json
import math
from typing import Any

import jiter

from janus_inference.model import MOST_PARTS

# The texts of a delta that go on in the next one, and what tells apart which of several they belong to.
_GROWING = frozenset(
    {
        "arguments",
        "content",
        "delta",
        "input",
        "partial_json",
        "reasoning",
        "reasoning_content",
        "refusal",
        "summary",
        "text",
        "thinking",
        "transcript",
    }
)
_NUMBERS = ("index", "output_index", "content_index", "summary_index")

Halves = dict[tuple[object, ...], str]
"""The first halves of surrogate pairs that texts of a delta ended in, by their places in it."""


class NotJson(Exception):
    """The text is not the JSON that it should be."""


def parse_object(data: bytes, halves: Halves | None = None) -> dict[str, Any]:
    """One JSON object, its texts such as every store can hold. Raises NotJson.

    Servers that cut a text by UTF-16 send one character in two events. With
    the ``halves`` of the stream that the object is an event of, the first half
    waits for the next event that goes on with a text, and is said there.
    """
    try:
        value = jiter.from_json(data, cache_mode="keys")
    except ValueError:
        value = _mended(data, halves)
    else:
        # JSON can say NUL only in this way.
        if halves or b"\\u0000" in data:
            value = _whole(value, halves)
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


def object_text(text: str) -> str:
    """The text if it is one JSON object, else an object that shows it: some servers read a call's arguments."""
    try:
        strict_object((text or "{}").encode())
    except (NotJson, UnicodeEncodeError):
        return json.dumps({"invalid_json": text})
    return text or "{}"


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        # Written again it would be no JSON.
        raise ValueError(text)
    return number


def _no_number(word: str) -> None:
    raise ValueError(word)


def _mended(data: bytes, halves: Halves | None) -> Any:
    """What has halves of surrogate pairs in it, which some servers send where they cut a text."""
    try:
        return _whole(json.loads(data), halves)
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


def _whole(event: Any, halves: Halves | None) -> Any:
    """An event whose texts are storable, with the halves that waited, and without those that have to wait.

    Each waits for its own text, whatever comes of others meanwhile. A half
    that its text does not go on from is no character.
    """
    if halves is None:
        return _storable(event)

    def whole(value: Any, place: tuple[object, ...]) -> Any:
        if isinstance(value, str):
            if place[-1] in _GROWING and "delta" in place:
                value = halves.pop(place, "") + value
                if "\ud800" <= value[-1:] <= "\udbff" and len(halves) < MOST_PARTS:
                    halves[place] = value[-1]
                    value = value[:-1]
            return _storable(value)
        if isinstance(value, list):
            return [whole(item, (*place, _number(item, at))) for at, item in enumerate(value)]
        if isinstance(value, dict):
            numbers = [_number(value, None, name) for name in _NUMBERS]
            # A server that says no places tells items apart by their ids.
            numbers.append(value.get("item_id") if value.get("output_index") is None else None)
            return {_storable(key): whole(item, (*place, *numbers, key)) for key, item in value.items()}
        return value

    return whole(event, ())


def _number(item: Any, otherwise: object, name: str = "index") -> object:
    number = item.get(name) if isinstance(item, dict) else None
    return number if isinstance(number, int | float | str) else otherwise


def compact(value: Any) -> str:
    """The shortest JSON text of a value, characters kept."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
