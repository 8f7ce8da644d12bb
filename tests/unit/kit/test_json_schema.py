"""Arguments of tools against their schemas."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from janus_kit.json_schema import problem

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
    ("x", {"pattern": "(?=a)b"}),
    ("a1b", {"pattern": "[0-9]"}),
    ("2026-11-24", {"format": "date"}),
    ("2026-11-24T05:00:00Z", {"format": "date-time"}),
    ("05:00:00+01:00", {"format": "time"}),
    ("a@example.org", {"format": "email"}),
    ("mailto:a@example.org", {"format": "uri"}),
    ("a-b.example", {"format": "hostname"}),
    ("123e4567-e89b-12d3-a456-426614174000", {"format": "uuid"}),
    ("::1", {"format": "ipv6"}),
    ("anything", {"format": "of-a-newer-draft"}),
    (0.3, {"multipleOf": 0.1}),
    ([1, 2, "1"], {"uniqueItems": True}),
    ({"x_1": 1, "y": 2}, {"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": True}),
    ({"x_1": 1}, {"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False}),
    ({"a": 1}, {"dependentRequired": {"b": ["c"]}, "dependentSchemas": {"b": False}}),
    ({"kind": "b"}, {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["of_a"]}}),
    ([1, "a"], {"contains": {"type": "string"}, "maxContains": 1}),
    ([], {"contains": {"type": "string"}, "minContains": 0}),
    ([1, "a"], {"items": [{"type": "integer"}], "additionalItems": {"type": "string"}}),
    ("a", {"$ref": "#/anyOf/1", "anyOf": [{"type": "integer"}, {"type": "string"}]}),
    ({"a": 1}, {"properties": {"a": True}, "unevaluatedProperties": False}),
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
    ("aaab", {"pattern": "^(a+)+$"}, "$: must match the pattern ^(a+)+$"),
    ("24.11.2026", {"format": "date"}, "$: must be of the format date"),
    ("2026-11-24T05:00:00", {"format": "date-time"}, "$: must be of the format date-time"),
    ("noon", {"format": "time"}, "$: must be of the format time"),
    ("a@b@c", {"format": "email"}, "$: must be of the format email"),
    ("example", {"format": "uri"}, "$: must be of the format uri"),
    ("-a.example", {"format": "hostname"}, "$: must be of the format hostname"),
    ("123e4567", {"format": "uuid"}, "$: must be of the format uuid"),
    ("1.2.3", {"format": "ipv4"}, "$: must be of the format ipv4"),
    (7, {"multipleOf": 2}, "$: must be a multiple of 2"),
    ([{"a": 1}, {"a": 1}], {"uniqueItems": True}, "$: must have no item twice"),
    ({"x_1": "a"}, {"patternProperties": {"^x_": {"type": "integer"}}}, "$.x_1: must be integer"),
    (
        {"y": 1},
        {"patternProperties": {"^x_": {}}, "additionalProperties": False},
        "$: 'y' is not a known property",
    ),
    ("abc", {"maxLength": 2}, "$: must have at most 2 characters"),
    (5, {"exclusiveMaximum": 5}, "$: must be below 5"),
    (5, {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "$: must hold to exactly one of the alternatives"),
    (5, {"allOf": [{"minimum": 1}, {"minimum": 9}]}, "$: must be at least 9"),
    (5, {"not": {"type": "integer"}}, "$: must not hold to the excluded schema"),
    (5, False, "$: is not allowed"),
    ({"card": 1}, {"dependentRequired": {"card": ["address"]}}, "$: 'address' is missing beside 'card'"),
    (
        {"card": 1},
        {"dependentSchemas": {"card": {"properties": {"card": {"type": "string"}}}}},
        "$.card: must be string",
    ),
    (
        {"kind": "a"},
        {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["of_a"]}},
        "$: 'of_a' is missing",
    ),
    ({"kind": "b"}, {"if": {"required": ["x"]}, "else": False}, "$: is not allowed"),
    ({"a b": 1}, {"propertyNames": {"pattern": "^[a-z]+$"}}, "$: the name 'a b': must match the pattern ^[a-z]+$"),
    ([1, 2], {"contains": {"type": "string"}}, "$: must have at least 1 items as `contains` says"),
    (["a", "b"], {"contains": {"type": "string"}, "maxContains": 1}, "$: must have at most 1 items as `contains` says"),
    ([1, 2], {"items": [{"type": "integer"}], "additionalItems": {"type": "string"}}, "$[1]: must be string"),
    ("a", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}}, "$: must be integer"),
    ("a", {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "integer"}}}, "$: must be integer"),
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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "x_1"]), inner, max_size=2),
    max_leaves=5,
)
COMPARED: list[dict[str, Any]] = [
    {"type": ["string", "array"], "minLength": 1, "pattern": "^a+b?$"},
    {"anyOf": [{"type": "integer", "multipleOf": 3}, {"type": "object", "required": ["a"]}]},
    {"oneOf": [{"type": "object"}, {"maxProperties": 1}, {"type": "null"}]},
    {"not": {"type": "array", "uniqueItems": True}},
    {
        "properties": {"a": {"type": "string"}},
        "patternProperties": {"^x_": False},
        "additionalProperties": {"enum": [1, "a"]},
    },
    {"prefixItems": [{"type": "boolean"}], "items": {"const": 0}, "maxItems": 2},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": ["object", "null"], "additionalProperties": {"$ref": "#"}}}},
    {"exclusiveMinimum": 0, "maximum": 5, "type": ["number", "string", "null"]},
    {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"b": {"maxProperties": 1}}},
    {
        "if": {"type": "object", "required": ["a"]},
        "then": {"properties": {"a": {"type": "integer"}}},
        "else": {"type": ["array", "object", "string"]},
    },
    {"propertyNames": {"maxLength": 1, "pattern": "^[ax]"}, "contains": {"type": "integer"}},
    {"contains": {"type": ["string", "array"]}, "minContains": 0, "maxContains": 1},
]


@given(VALUES, st.sampled_from(COMPARED))
def test_it_agrees_with_the_reference_library(value: Any, schema: dict[str, Any]) -> None:
    assert (problem(value, schema) is None) is Draft202012Validator(schema).is_valid(value)
