"""Whether a schema is one: what each keyword must be, in any draft that is in use."""

from collections.abc import Iterator
from typing import Any

from janus_kit.json_schema.pattern_syntax import is_broken
from janus_kit.json_schema.references import NOWHERE, resolved

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

_SCHEMAS = (
    "additionalProperties",
    "additionalItems",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_COUNTS = (
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
)
_PATH_CHARS = 200


def form_problem(schema: Any) -> str | None:
    """The first keyword that is not what it must be, as ``$.path: rule``; None when all are."""
    follow = [("$", schema)]
    while follow:
        path, node = follow.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            return f"{path}: must be a schema, an object or a boolean"
        for name, rule in _broken(node, schema):
            return f"{path}.{name}: {rule}"
        follow += [(f"{path}.{name}"[:_PATH_CHARS], below) for name, below in _below(node)]
    return None


def _below(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within one, all of them where they may be."""
    for name in _SCHEMAS:
        if name in node and not (name == "items" and isinstance(node[name], list)):
            yield name, node[name]
    for name in (*_LISTS, "items"):
        if isinstance(found := node.get(name), list):
            yield from ((f"{name}[{index}]", each) for index, each in enumerate(found))
    for name in _MAPS:
        yield from ((f"{name}.{key}", each) for key, each in node.get(name, {}).items())


def _broken(node: dict[str, Any], root: Any) -> Iterator[tuple[str, str]]:
    """The keywords of one schema that are not what they must be, with the rule."""
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or resolved(reference, root) is NOWHERE:
        yield "$ref", "must be a pointer, '#/…', to a place within the schema"
    kinds = node.get("type", "null")
    kinds = kinds if isinstance(kinds, list) and kinds else [kinds]
    if not all(kind in TYPES for kind in kinds):
        yield "type", f"must be one or a list of {', '.join(TYPES)}"
    for name in _LISTS:
        if not (isinstance(found := node.get(name, [True]), list) and found):
            yield name, "must be a list of schemas"
    for name in _MAPS:
        if not isinstance(node.get(name, {}), dict):
            yield name, "must be an object of schemas"
    if not isinstance(node.get("enum", []), list):
        yield "enum", "must be a list"
    if not _names(node.get("required", [])):
        yield "required", "must be a list of names"
    if not (isinstance(needed := node.get("dependentRequired", {}), dict) and all(map(_names, needed.values()))):
        yield "dependentRequired", "must be an object of lists of names"
    for name in ("maximum", "minimum", "multipleOf"):
        if not _is_number(node.get(name, 1)):
            yield name, "must be a number"
    for name in ("exclusiveMaximum", "exclusiveMinimum"):
        # A boolean in the fourth draft.
        if not (_is_number(value := node.get(name, 1)) or isinstance(value, bool)):
            yield name, "must be a number"
    if _is_number(step := node.get("multipleOf", 1)) and step <= 0:
        yield "multipleOf", "must be above 0"
    for name in _COUNTS:
        if not (_is_number(count := node.get(name, 1)) and count >= 0 and count == int(count)):
            yield name, "must be a whole number, 0 or more"
    patterns = node.get("patternProperties", {})
    if is_broken(node.get("pattern", "")):
        yield "pattern", "must be a regular expression"
    if isinstance(patterns, dict) and any(map(is_broken, patterns)):
        yield "patternProperties", "must have regular expressions for names"


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
