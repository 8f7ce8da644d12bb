"""Whether a value holds to a JSON Schema, for the model to be told what it got wrong.

All keywords that assert something but unevaluatedProperties, unevaluatedItems
and dynamic references; the common formats; ``$ref`` by a pointer within the
schema; no pattern that only a backtracking engine could match. The work is
bounded. What is not checked counts as held to; the contract says all this of
``ToolCallCompleted.valid_schema``.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from janus_kit.json_schema import formats, patterns, references

_MAX_STEPS = 20_000
_MAX_PATTERN_STEPS = 50_000
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class _Budget:
    def __init__(self) -> None:
        self.left = _MAX_STEPS
        self._patterns = _MAX_PATTERN_STEPS

    def spend(self) -> bool:
        self.left -= 1
        return self.left > 0

    def found(self, pattern: Any, text: str) -> bool | None:
        """Whether the pattern is in the text; None where that is not decided."""
        if not isinstance(pattern, str):
            return None
        try:
            found, steps = patterns.search(pattern, text, self._patterns)
        except patterns.Undecided:
            return None
        self._patterns -= steps
        return found


def problem(value: Any, schema: Any) -> str | None:
    """The first thing that does not hold, as ``$.path: rule``; None when all does."""
    return next(_problems(value, schema, "$", schema, _Budget(), 0), None)


def _problems(value: Any, schema: Any, path: str, root: Any, budget: _Budget, level: int) -> Iterator[str]:
    if schema is False:
        yield f"{path}: is not allowed"
    # A schema that refers to itself without end stops being checked, not the process.
    if not isinstance(schema, dict) or level > 64 or not budget.spend():
        return
    if isinstance(reference := schema.get("$ref"), str):
        found = references.resolved(reference, root)
        yield from _problems(value, True if found is references.NOWHERE else found, path, root, budget, level + 1)
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    if names and not any(_is(value, name) for name in names):
        yield f"{path}: must be {' or '.join(map(str, names))}"
        return
    if "const" in schema and not _equal(value, schema["const"]):
        yield f"{path}: must be the one allowed value"
    if isinstance(allowed := schema.get("enum"), list) and not any(_equal(value, each) for each in allowed):
        yield f"{path}: must be one of the allowed values"
    yield from _combined(value, schema, path, root, budget, level)
    if isinstance(value, dict):
        yield from _object(value, schema, path, root, budget, level)
    elif isinstance(value, list):
        yield from _array(value, schema, path, root, budget, level)
    elif isinstance(value, str):
        yield from _string(value, schema, path, budget)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema, path)


def _combined(value: Any, schema: dict[str, Any], path: str, root: Any, budget: _Budget, level: int) -> Iterator[str]:
    def holds(branch: Any) -> bool:
        return next(_problems(value, branch, path, root, budget, level + 1), None) is None

    for branch in _list(schema.get("allOf")):
        yield from _problems(value, branch, path, root, budget, level + 1)
    any_of, one_of = _list(schema.get("anyOf")), _list(schema.get("oneOf"))
    if any_of and not any(map(holds, any_of)):
        yield f"{path}: must hold to one of the alternatives"
    if one_of and sum(map(holds, one_of)) != 1:
        yield f"{path}: must hold to exactly one of the alternatives"
    if "not" in schema and holds(schema["not"]):
        yield f"{path}: must not hold to the excluded schema"
    if "if" in schema:
        branch = schema.get("then" if holds(schema["if"]) else "else", True)
        yield from _problems(value, branch, path, root, budget, level + 1)


def _object(
    value: dict[str, Any], schema: dict[str, Any], path: str, root: Any, budget: _Budget, level: int
) -> Iterator[str]:
    properties = _dict(schema.get("properties"))
    for name in _list(schema.get("required")):
        if name not in value:
            yield f"{path}: '{name}' is missing"
    for name, needed in _dict(schema.get("dependentRequired")).items():
        for other in _list(needed) if name in value else ():
            if other not in value:
                yield f"{path}: '{str(other)[:100]}' is missing beside '{name[:100]}'"
    for name, branch in _dict(schema.get("dependentSchemas")).items():
        if name in value:
            yield from _problems(value, branch, path, root, budget, level + 1)
    for name in value if "propertyNames" in schema else ():
        for problem in _problems(name, schema["propertyNames"], "$", root, budget, level + 1):
            yield f"{path}: the name '{name[:100]}'{problem[1:]}"
    others = schema.get("additionalProperties", True)
    by_pattern = _dict(schema.get("patternProperties"))
    for name, item in value.items():
        below = f"{path}.{name}"[:200]
        fits = {pattern: budget.found(pattern, name) for pattern in by_pattern}
        for pattern in (pattern for pattern, found in fits.items() if found):
            yield from _problems(item, by_pattern[pattern], below, root, budget, level + 1)
        if name in properties:
            yield from _problems(item, properties[name], below, root, budget, level + 1)
        elif any(found is not False for found in fits.values()):
            continue
        elif others is False:
            yield f"{path}: '{name[:100]}' is not a known property"
        elif isinstance(others, dict):
            yield from _problems(item, others, below, root, budget, level + 1)
    yield from _length(len(value), schema, "Properties", "properties", path)


def _array(
    value: list[Any], schema: dict[str, Any], path: str, root: Any, budget: _Budget, level: int
) -> Iterator[str]:
    first, rest = _list(schema.get("prefixItems")), schema.get("items", True)
    if isinstance(rest, list):
        # As the drafts before 2020 said it.
        first, rest = rest, schema.get("additionalItems", True)
    for index, item in enumerate(value):
        each = first[index] if index < len(first) else rest
        yield from _problems(item, each, f"{path}[{index}]"[:200], root, budget, level + 1)
    yield from _length(len(value), schema, "Items", "items", path)
    if "contains" in schema:
        fits = (next(_problems(item, schema["contains"], path, root, budget, level + 1), None) for item in value)
        bounds = {"minContains": 1, **schema}
        yield from _length(sum(each is None for each in fits), bounds, "Contains", "items as `contains` says", path)
    if schema.get("uniqueItems") is True and len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
        yield f"{path}: must have no item twice"


def _string(value: str, schema: dict[str, Any], path: str, budget: _Budget) -> Iterator[str]:
    yield from _length(len(value), schema, "Length", "characters", path)
    if "pattern" in schema and budget.found(schema["pattern"], value) is False:
        yield f"{path}: must match the pattern {schema['pattern'][:100]}"
    if isinstance(name := schema.get("format"), str) and not formats.holds(value, name):
        yield f"{path}: must be of the format {name[:100]}"


def _length(size: int, schema: dict[str, Any], what: str, unit: str, path: str) -> Iterator[str]:
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if isinstance(least, int | float) and size < least:
        yield f"{path}: must have at least {least} {unit}"
    if isinstance(most, int | float) and size > most:
        yield f"{path}: must have at most {most} {unit}"


def _number(value: float, schema: dict[str, Any], path: str) -> Iterator[str]:
    def bound(name: str) -> float | None:
        found = schema.get(name)
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None

    if (least := bound("minimum")) is not None and value < least:
        yield f"{path}: must be at least {least}"
    if (most := bound("maximum")) is not None and value > most:
        yield f"{path}: must be at most {most}"
    if (step := bound("multipleOf")) is not None and step > 0 and not _divides(step, value):
        yield f"{path}: must be a multiple of {step}"
    if (above := bound("exclusiveMinimum")) is not None and value <= above:
        yield f"{path}: must be above {above}"
    if (below := bound("exclusiveMaximum")) is not None and value >= below:
        yield f"{path}: must be below {below}"


def _divides(step: float, value: float) -> bool:
    """0.3 is a multiple of 0.1, though not in binary."""
    if isinstance(step, int) and isinstance(value, int):
        return value % step == 0
    try:
        times = value / step
    except OverflowError:
        return True
    return not math.isfinite(times) or math.isclose(times, round(times), rel_tol=1e-9, abs_tol=1e-9)


def _is(value: Any, name: Any) -> bool:
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(name, str) and isinstance(value, _TYPES.get(name, (object,)))


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
