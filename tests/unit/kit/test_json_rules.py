"""JSON that users write: an object or a schema, bounded, and such as every store can hold."""

from __future__ import annotations

import json

import pytest

from janus_kit.json_schema.rules import object_problem, schema_problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": [1, {"b": "x"}]}', None),
        ('{"a": "}}}}[[[[\\"{{"}', None),
        ("[]", "must be a JSON object"),
        ("{", "must be valid JSON"),
        ("", "must be valid JSON"),
        ('{"a": NaN}', "must be valid JSON"),
        ('{"a": 1e400}', "must be valid JSON"),
        ('{"a": "\\ud800"}', "must be valid JSON"),
        ('{"a":' * 5 + "1" + "}" * 5, "must not nest deeper than 4"),
        ("[" * 100_000, "must be at most 1 KiB"),
        (json.dumps({"a": "é" * 600}, ensure_ascii=False), "must be at most 1 KiB"),
    ],
)
def test_an_object_holds_to_its_rules(text: str, problem: str | None) -> None:
    assert object_problem(text, 1024, 4) == problem


def test_a_schema_refers_only_within_itself_and_is_not_too_large() -> None:
    assert schema_problem('{"$ref": "#/$defs/a", "$defs": {"a": {}}}', 1024, 4, 3) is None
    assert schema_problem('{"a": {"$ref": "https://x/y"}}', 1024, 4, 3) == "must refer only within itself ($ref)"
    assert schema_problem('{"a": [{}, {}]}', 1024, 4, 3) == "must have at most 3 objects and arrays"
    assert schema_problem("[]", 1024, 4, 3) == "must be a JSON object"
