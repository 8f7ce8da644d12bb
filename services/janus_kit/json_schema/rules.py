"""Rules for the JSON that users write: an object, or a schema, within bounds."""

import json
from typing import Any

from janus_kit.json_schema.form import form_problem


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
    if _depth(text) > max_depth:
        return None, f"must not nest deeper than {max_depth}"
    try:
        value = json.loads(text, parse_constant=_refuse)
        # Half of a surrogate pair is no text that could be passed on.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return None, "must be valid JSON"
    return value, None if isinstance(value, dict) else "must be a JSON object"


def _refuse(word: str) -> None:
    raise ValueError(word)


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text nest; strings are skipped."""
    deepest = level = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "{[":
            level += 1
            deepest = max(deepest, level)
        elif char in "}]":
            level -= 1
    return deepest
