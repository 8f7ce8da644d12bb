"""Metadata that is refused: which of its rules it breaks."""

import pytest

from janus_kit.validate import Violations
from janus_memory.wire.values import check_metadata


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "must be valid JSON"),
        ('{"a": NaN}', "must be valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"a":' * 2_500 + "1" + "}" * 2_500, "must not nest deeper than 8"),
        ('{"a": %s}' % ("9" * 5_000), "must hold no whole number of more than 4,300 digits"),
        ('{"a": "\\ud800"}', "must hold no half of a surrogate pair"),
        ('{"a": "\\u0000"}', "must hold no NUL and only finite numbers of at most 16,383 decimal places"),
        ('{"a": 1e999}', "must hold no NUL and only finite numbers of at most 16,383 decimal places"),
    ],
)
def test_the_rule_that_is_broken_is_named(text: str, rule: str) -> None:
    check = Violations()
    check_metadata(check, "metadata_json", text)
    assert [(each.field, each.rule) for each in check.found] == [("metadata_json", rule)]


@pytest.mark.parametrize("text", ["", '{"a":' * 8 + "1" + "}" * 8, '{"a": %s}' % ("9" * 4_300)])
def test_what_is_within_the_bounds_is_taken(text: str) -> None:
    check = Violations()
    check_metadata(check, "metadata_json", text)
    assert not check
