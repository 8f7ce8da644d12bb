"""Arguments of tools against their schemas."""

from typing import Any

import pytest

from janus_inference.dialects.json_schema import problem

OBJECT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TREE = {
    "type": "object",
    "properties": {"below": {"type": "array", "items": {"$ref": "#"}}},
    "additionalProperties": False,
}

HOLD: list[tuple[Any, Any]] = [
    ({"city": "Rome"}, OBJECT),
    ({"city": "Rome", "more": 1}, OBJECT),
    (3.0, {"type": "integer"}),
    (None, {"type": ["string", "null"]}),
    ([1, "a"], {"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}),
    ({"below": [{"below": []}]}, TREE),
    (5, {"anyOf": [{"type": "string"}, {"minimum": 5}]}),
    ("x", {"$ref": "https://example.org/never-fetched"}),
    ("x", {"pattern": "(a+)+$"}),
    ({}, True),
    ("anything", {"type": "object-of-a-newer-draft"}),
    ({"a": 1}, {"$ref": "#/$defs/loop", "$defs": {"loop": {"$ref": "#/$defs/loop"}}}),
]

FAIL: list[tuple[Any, Any, str]] = [
    ({}, OBJECT, "$: 'city' is missing"),
    ({"city": 1}, OBJECT, "$.city: must be string"),
    (True, {"type": "integer"}, "$: must be integer"),
    (3.5, {"type": "integer"}, "$: must be integer"),
    ("c", {"enum": ["a", "b"]}, "$: must be one of the allowed values"),
    (1, {"const": True}, "$: must be the one allowed value"),
    ({"x": 1}, TREE, "$: 'x' is not a known property"),
    ({"below": [{"x": 1}]}, TREE, "$.below[0]: 'x' is not a known property"),
    ([], {"minItems": 1}, "$: must have at least 1 items"),
    ("abc", {"maxLength": 2}, "$: must have at most 2 characters"),
    (5, {"exclusiveMaximum": 5}, "$: must be below 5"),
    (5, {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "$: must hold to exactly one of the alternatives"),
    (5, {"allOf": [{"minimum": 1}, {"minimum": 9}]}, "$: must be at least 9"),
    (5, {"not": {"type": "integer"}}, "$: must not hold to the excluded schema"),
    (5, False, "$: is not allowed"),
]


@pytest.mark.parametrize(("value", "schema"), HOLD)
def test_what_holds_has_no_problem(value: Any, schema: Any) -> None:
    assert problem(value, schema) is None


@pytest.mark.parametrize(("value", "schema", "said"), FAIL)
def test_what_does_not_hold_is_named(value: Any, schema: Any, said: str) -> None:
    assert problem(value, schema) == said


def test_a_schema_that_explodes_stops_being_checked() -> None:
    bomb: dict[str, Any] = {"$defs": {"0": {"type": "integer"}}}
    for level in range(1, 40):
        twice = {"$ref": f"#/$defs/{level - 1}"}
        bomb["$defs"][str(level)] = {"allOf": [twice, twice]}
    assert problem(1, {**bomb, "$ref": "#/$defs/39"}) is None
