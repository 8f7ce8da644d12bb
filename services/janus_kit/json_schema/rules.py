"""Rules for the JSON that users and models write: an object, a schema or any text, within bounds.

What is valid JSON and breaks another rule, such as a bound, is told which.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from janus_kit.json_schema.form import form_problem

MOST_DEPTH = 200
"""Of a text that has no bound of its own: what the fastest reader of JSON here follows."""
MOST_DIGITS = 4300
"""Of a whole number: as many as Python reads."""

# Also one that does not end.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


class BrokenRule(ValueError):
    """The JSON text cannot be taken; the text of the error is the rule."""


def read(text: str, max_depth: int = MOST_DEPTH, number: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text that can be written again. Raises BrokenRule.

    ``number`` reads what has a fraction or an exponent.
    """
    if _is_deeper(text, max_depth):
        raise BrokenRule(f"must not nest deeper than {max_depth}")
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_whole, parse_float=number or _finite)
    except json.JSONDecodeError:
        raise BrokenRule("must be valid JSON") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BrokenRule("must hold no half of a surrogate pair") from None
    return value


def object_problem(text: str, max_bytes: int, max_depth: int) -> str | None:
    """Which rule a user's JSON object breaks; None when it is fine."""
    return _checked(text, max_bytes, max_depth)[1]


def schema_problem(text: str, max_bytes: int, max_depth: int, max_nodes: int) -> str | None:
    """Which rule a user's JSON Schema breaks: also its number of objects and arrays, where it refers to, its form."""
    schema, problem = _checked(text, max_bytes, max_depth)
    if problem is not None:
        return problem
    nodes, follow = 0, [schema]
    while follow:
        node = follow.pop()
        nodes += 1
        if nodes > max_nodes:
            return f"must have at most {max_nodes} objects and arrays"
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                return "must refer only within itself ($ref)"
        values = node.values() if isinstance(node, dict) else node
        follow += [value for value in values if isinstance(value, dict | list)]
    return form_problem(schema)


def _checked(text: str, max_bytes: int, max_depth: int) -> tuple[Any, str | None]:
    if len(text.encode()) > max_bytes:
        return None, f"must be at most {max_bytes // 1024} KiB"
    try:
        value = read(text, max_depth)
    except BrokenRule as broken:
        return None, str(broken)
    return value, None if isinstance(value, dict) else "must be a JSON object"


def _refuse(_: str) -> None:
    raise BrokenRule("must be valid JSON")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise BrokenRule(f"must hold no whole number of more than {MOST_DIGITS:,} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BrokenRule("must hold no number beyond the range of 64-bit floats")
    return value


def _is_deeper(text: str, most: int) -> bool:
    """Whether the brackets of a JSON text nest deeper; those within strings do not count."""
    if text.count("{") + text.count("[") <= most:
        return False
    level = 0
    for char in _STRING.sub("", text):
        if char in "{[":
            level += 1
            if level > most:
                return True
        elif char in "}]":
            level -= 1
    return False
