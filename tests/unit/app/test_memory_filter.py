"""What `--filter` takes: nothing that would search without a filter, and nothing that is answered with Python."""

from __future__ import annotations

import pytest
import typer

from janus_api.memory.v1 import recall_pb2
from janus_app.memory.records import recall_request


def request(where: str | None) -> recall_pb2.RecallRequest:
    return recall_request("q", "", "", "", "", [], 10, where, False)


@pytest.mark.parametrize("where", ["{}", "[]", '""', "", " ", "null", "0", "NaN", "true", "[1]", '{"compare": null}'])
def test_what_names_no_condition_is_refused(where: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        request(where)
    assert "ilter" in refused.value.message
    assert "TypeError" not in refused.value.message
    assert "iterable" not in refused.value.message


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("{}", "names no condition. There are allOf, anyOf, not, compare, in, range, exists, contains."),
        ("[]", "it must be a JSON object"),
        ('{"colour": 1}', 'no field named "colour"'),
        ('{"exists": {}, "exists": {}}', "duplicate key exists"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_it_is_said_what_is_wrong(where: str, told: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        request(where)
    assert told in refused.value.message


def test_a_filter_is_sent_as_it_is_and_none_where_none_was_given() -> None:
    assert request('{"exists": {"path": "metadata.project"}}').filter.exists.path == "metadata.project"
    # The server says what is wrong with it.
    assert request('{"allOf": {}}').filter.HasField("all_of")
    assert not request(None).HasField("filter")
