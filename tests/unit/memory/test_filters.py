"""What a filter means, one rule of the contract at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from janus_memory.filters import Contains, Exists, Field, Filter, Not, OneOf, Range, Value, holds, metadata_of

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def record(metadata: str = "{}", **fields: Any) -> dict[str, Any]:
    absent = dict.fromkeys(("role", "speaker", "predicate", "importance"))
    return {
        **absent,
        "kind": "turn",
        "occurred_at": NOON,
        "recorded_at": NOON,
        **fields,
        "metadata": metadata_of(metadata),
    }


def meta(*path: str) -> Field:
    return Field("metadata", path)


A = meta("a")


def equal(value: Value, field: Field = A) -> Filter:
    return OneOf(field, (value,))


@pytest.mark.parametrize(
    ("condition", "metadata"),
    [
        (equal("x"), '{"a": "x"}'),
        (equal(Decimal(1)), '{"a": 1.0}'),
        (equal(Decimal("0.1")), '{"a": 0.1}'),
        (equal(Decimal(2**53 + 1)), '{"a": 9007199254740993}'),
        (equal(True), '{"a": true}'),
        (equal(NOON), '{"a": "2024-02-29T13:00:00+01:00"}'),
        (equal(NOON), '{"a": "2024-02-29t12:00:00.0000009z"}'),
        (equal("x", meta("a", "0")), '{"a": {"0": "x"}}'),
        (equal("last"), '{"a": "first", "a": "last"}'),
        (Exists(A), '{"a": []}'),
        (Range(A, ((">", "Z"), ("<", "b"))), '{"a": "a"}'),
        (Range(A, ((">", "\uffff"),)), '{"a": "\U0001f600"}'),
        (Range(A, ((">=", NOON), ("<=", NOON))), '{"a": "2024-02-29T12:00:00Z"}'),
        (Contains(A, ""), '{"a": "x"}'),
        (Contains(A, "%"), '{"a": "100 %"}'),
        (Contains(A, Decimal(1)), '{"a": ["x", 1.0]}'),
        (Contains(A, NOON), '{"a": ["2024-02-29T12:00:00Z"]}'),
    ],
)
def test_what_a_filter_holds_of(condition: Filter, metadata: str) -> None:
    assert holds(condition, record(metadata))
    assert not holds(Not(condition), record(metadata))


@pytest.mark.parametrize(
    ("condition", "metadata"),
    [
        (equal("1"), '{"a": 1}'),
        (equal(Decimal(1)), '{"a": "1"}'),
        (equal(Decimal(1)), '{"a": true}'),
        (equal(True), '{"a": 1}'),
        (equal(True), '{"a": "true"}'),
        (equal("x"), '{"a": ["x"]}'),
        (equal("x"), "{}"),
        (equal("null"), '{"a": null}'),
        (equal(Decimal("0.1")), '{"a": 0.10000000000000000001}'),
        (equal(Decimal(2**53)), '{"a": 9007199254740993}'),
        (equal(NOON), '{"a": "2024-02-29 12:00:00"}'),
        (equal("x", meta("a", "0")), '{"a": ["x"]}'),
        (Exists(A), '{"a": null}'),
        (Exists(meta("a", "b")), '{"a": "b"}'),
        (Range(A, (("<", Decimal(5)),)), '{"a": "1"}'),
        (Range(A, (("<", NOON),)), '{"a": "2023-02-29T12:00:00Z"}'),
        (Contains(A, "_"), '{"a": "x"}'),
        (Contains(A, Decimal(1)), '{"a": [[1], "1", true]}'),
        (Contains(A, Decimal(1)), '{"a": 1}'),
        (Contains(A, NOON), '{"a": "2024-02-29T12:00:00Z"}'),
        (equal(NOON, Field("speaker")), "{}"),
        (equal(Decimal(1), Field("kind")), "{}"),
        (Range(Field("importance"), ((">=", Decimal(0)),)), "{}"),
    ],
)
def test_of_an_absent_field_or_another_type_only_not_is_true(condition: Filter, metadata: str) -> None:
    given = record(metadata, speaker="2024-02-29T12:00:00Z")
    assert not holds(condition, given)
    assert holds(Not(condition), given)
