"""JSON that users write: an object or a schema, bounded, and such as every store can hold."""

from __future__ import annotations

import json
from typing import Any

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_kit.json_schema import problem
from janus_kit.json_schema.rules import MOST_DEPTH, BrokenRule, object_problem, read, schema_problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": [1, {"b": "x"}]}', None),
        ('{"a": "}}}}[[[[\\"{{"}', None),
        ("[]", "must be a JSON object"),
        ("{", "must be valid JSON"),
        ("", "must be valid JSON"),
        ('{"a": NaN}', "must be valid JSON"),
        ('{"a": 1e400}', "must hold no number beyond the range of 64-bit floats"),
        ('{"a": "\\ud800"}', "must hold no half of a surrogate pair"),
        ('{"a":' * 5 + "1" + "}" * 5, "must not nest deeper than 4"),
        ("[" * 100_000, "must be at most 1 KiB"),
        (json.dumps({"a": "é" * 600}, ensure_ascii=False), "must be at most 1 KiB"),
    ],
)
def test_an_object_holds_to_its_rules(text: str, problem: str | None) -> None:
    assert object_problem(text, 1024, 4) == problem


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_whole_number_has_a_bound_of_digits(sign: str) -> None:
    longest, longer = (f'{{"a": {sign}{"9" * digits}}}' for digits in (4_300, 4_301))
    assert object_problem(longest, 8192, 4) is None
    assert object_problem(longer, 8192, 4) == "must hold no whole number of more than 4,300 digits"


def test_a_text_without_a_bound_of_its_own_nests_no_deeper_than_the_fast_reader_follows() -> None:
    deepest, deeper = ("[" * depth + "]" * depth for depth in (MOST_DEPTH, MOST_DEPTH + 1))
    assert read(deepest) == jiter.from_json(deepest.encode())
    with pytest.raises(BrokenRule, match="must not nest deeper than 200"):
        read(deeper)


def test_a_schema_refers_only_within_itself_and_is_not_too_large() -> None:
    assert schema_problem('{"$ref": "#/$defs/a", "$defs": {"a": {}}}', 1024, 4, 3) is None
    assert schema_problem('{"a": {"$ref": "https://x/y"}}', 1024, 4, 3) == "must refer only within itself ($ref)"
    assert schema_problem('{"a": [{}, {}]}', 1024, 4, 3) == "must have at most 3 objects and arrays"
    assert schema_problem("[]", 1024, 4, 3) == "must be a JSON object"


MALFORMED = [
    ('{"$ref": "#/$defs/nowhere"}', "$.$ref"),
    ('{"$ref": "#anchor", "$anchor": "anchor"}', "$.$ref"),
    ('{"$ref": 1}', "$.$ref"),
    ('{"properties": {"a": {"items": {"$ref": "#/definitions/b"}}}, "definitions": {}}', "$.properties.a.items.$ref"),
    ('{"type": "text"}', "$.type"),
    ('{"type": []}', "$.type"),
    ('{"type": {"a": 1}}', "$.type"),
    ('{"required": {"a": true}}', "$.required"),
    ('{"properties": {"a": {"required": true}}}', "$.properties.a.required"),
    ('{"required": [1]}', "$.required"),
    ('{"properties": [1]}', "$.properties"),
    ('{"properties": {"a": 1}}', "$.properties.a"),
    ('{"patternProperties": {"(": {}}}', "$.patternProperties"),
    ('{"pattern": "("}', "$.pattern"),
    ('{"pattern": ")"}', "$.pattern"),
    ('{"pattern": "[a"}', "$.pattern"),
    ('{"pattern": "a\\\\"}', "$.pattern"),
    ('{"pattern": 1}', "$.pattern"),
    ('{"anyOf": []}', "$.anyOf"),
    ('{"anyOf": {"type": "string"}}', "$.anyOf"),
    ('{"allOf": [1]}', "$.allOf[0]"),
    ('{"items": "string"}', "$.items"),
    ('{"items": [{"type": "x"}]}', "$.items[0].type"),
    ('{"if": 1}', "$.if"),
    ('{"enum": "a"}', "$.enum"),
    ('{"dependentRequired": {"a": "b"}}', "$.dependentRequired"),
    ('{"minimum": "1"}', "$.minimum"),
    ('{"exclusiveMinimum": "1"}', "$.exclusiveMinimum"),
    ('{"multipleOf": 0}', "$.multipleOf"),
    ('{"minLength": -1}', "$.minLength"),
    ('{"maxItems": 1.5}', "$.maxItems"),
    ('{"maxItems": true}', "$.maxItems"),
]


@pytest.mark.parametrize(("text", "path"), MALFORMED)
def test_a_schema_that_is_none_is_refused_with_the_keyword(text: str, path: str) -> None:
    said = schema_problem(text, 64 * 1024, 32, 1000)
    assert said is not None
    assert said.startswith(f"{path}: must ")


@pytest.mark.parametrize(
    "text",
    [
        '{"type": ["object", "null"], "properties": {"$ref": {"type": "string"}, "type": {"enum": []}}}',
        '{"$ref": "#", "const": {"type": "text"}, "default": {"required": 1}, "examples": [{"pattern": "("}]}',
        '{"properties": {"a": {"$ref": "#/properties/b/anyOf/0"}, "b": {"anyOf": [true, {"type": "null"}]}}}',
        '{"minimum": 0, "exclusiveMinimum": true, "multipleOf": 0.1, "maxLength": 3.0, "minContains": 0}',
        '{"pattern": "^(?=a)[()\\\\]]\\\\p{L}\\\\($", "patternProperties": {"^x": {}}, "format": "new"}',
        '{"items": [{"type": "string"}, true], "additionalItems": false, "x-own": {"type": "text"}}',
        '{"if": {"required": ["a"]}, "then": true, "else": false, "propertyNames": {"maxLength": 3}}',
    ],
)
def test_schemas_of_any_draft_in_use_are_accepted(text: str) -> None:
    assert schema_problem(text, 64 * 1024, 32, 1000) is None


KEYWORDS = ["$ref", "type", "items", "properties", "required", "enum", "if", "contains", "propertyNames", "pattern"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["#", "#/items", "object", "string", "a", "("]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYWORDS, "a", "dependentSchemas"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*KEYWORDS, "dependentRequired", "anyOf", "minLength"]), JSON, max_size=4))
def test_every_schema_is_accepted_or_refused_and_what_is_accepted_can_be_checked(schema: Any) -> None:
    if schema_problem(json.dumps(schema), 64 * 1024, 32, 1000) is None:
        for value in ({}, {"a": 1}, [1, "a"], "a", 1, None):
            said = problem(value, schema)
            assert said is None or said.startswith("$")
