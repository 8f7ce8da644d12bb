"""Random filters and records that often match each other, and filters as a client sends them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from janus_api.memory.v1 import filter_pb2 as pb
from janus_memory.filters import AllOf, AnyOf, Contains, Exists, Field, Filter, Not, OneOf, Range, Value

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
# What SQL, JSON paths, LIKE, Chroma or a sloppy conversion would take for something else.
TEXTS = [
    "", "a", "A", "ab", "é", "e\u0301", "\uffff", "\U0001f600", "1", "true", "null", "[]", "{}", "turn", "user",
    "'", "''", '"', "\\", "\\'", "%", "_", "a%", "$eq", "$or", "$.a", "$1", "{a,b}", "' OR true --",
    "'); DROP TABLE x; --",
    '{"$ne": 1}', "x" * 1_024, "2024-02-29T12:00:00Z", "2024-02-29t13:00:00.000000999+01:00", "2024-02-29T12:00:00.5Z",
    "2000-02-29T12:00:00Z", "1900-02-29T12:00:00Z", "2024-02-30T12:00:00Z", "2024-04-31T12:00:00Z",
    "2023-02-29T12:00:00Z", "2024-02-29", "2024-02-29T12:00:00", "2024-02-29T24:00:00Z", "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.9999999-15:59", "2024-02-29T12:00:60Z", "2024-02-29T12:00:00Z\n",
]  # fmt: skip
NUMBERS = [
    "0", "-0.0", "1", "1.0", "10e-1", "2", "-3", "0.1", "0.10000000000000000001", "0.30000000000000004", "0.5",
    "9007199254740992", "9007199254740993", "9.007199254740993e15", "9223372036854775807", "9223372036854775808",
    "1e308", "5e-324", "1e-400", "1" + "0" * 400, "1e-16383",
]  # fmt: skip
TIMES = [NOON, NOON.replace(microsecond=500_000), datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)]
KEYS = ["a", "b", "0", "-1", "A"]
PLAIN = ["kind", "role", "speaker", "predicate", "importance", "occurred_at", "recorded_at"]

# Whatever else a text can be; NUL and lone surrogates are refused before anything is stored or asked.
_texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_scalars = st.one_of(_texts.map(json.dumps), st.sampled_from(NUMBERS), st.sampled_from(["true", "false", "null"]))


def _object(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=4)
    return members.map(lambda pairs: "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}")


_lists = st.lists(_scalars | st.just("[1]"), max_size=3).map(lambda items: "[" + ",".join(items) + "]")
metadata = st.just("") | _object(_scalars | _lists | _object(_scalars | _lists))
"""The metadata of a record as JSON text, some of it with a key that is there twice."""

_decimals = st.sampled_from(
    [Decimal(n) for n in NUMBERS if Decimal(n) == int(Decimal(n)) and abs(Decimal(n)) < 2**63]
    + [Decimal(repr(float(n))) for n in NUMBERS if abs(Decimal(n)) < Decimal("1e309")]
)
_times, _truths = st.sampled_from(TIMES), st.booleans()
_values: list[st.SearchStrategy[Any]] = [_texts, _decimals, _times, _truths]
_fields = st.sampled_from([Field(name) for name in PLAIN]) | st.lists(
    st.sampled_from(KEYS), min_size=1, max_size=2
).map(lambda keys: Field("metadata", tuple(keys)))


def _bounds(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[tuple[str, Value], ...]]:
    return st.dictionaries(st.sampled_from([">", ">=", "<", "<="]), values, min_size=1, max_size=3).map(
        lambda bounds: tuple((sign, bounds[sign]) for sign in (">", ">=", "<", "<=") if sign in bounds)
    )


_leaves: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Exists, _fields),
    st.builds(Contains, _fields, st.one_of(_values)),
    *(st.builds(OneOf, _fields, st.lists(each, min_size=1, max_size=3).map(tuple)) for each in _values),
    *(st.builds(Range, _fields, _bounds(each)) for each in (_texts, _decimals, _times)),
)


def _branches(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.builds(AllOf, some) | st.builds(AnyOf, some) | st.builds(Not, inner)


trees = st.recursive(_leaves, _branches, max_leaves=8)


def to_wire(condition: Filter) -> pb.Filter:
    """A filter as a client writes it."""
    match condition:
        case AllOf(filters):
            return pb.Filter(all_of=pb.FilterList(filters=map(to_wire, filters)))
        case AnyOf(filters):
            return pb.Filter(any_of=pb.FilterList(filters=map(to_wire, filters)))
        case Not(negated):
            return pb.Filter(**{"not": to_wire(negated)})
        case Exists(field):
            return pb.Filter(exists=_field(field))
        case Contains(field, value):
            return pb.Filter(contains=pb.Comparison(field=_field(field), value=_value(value)))
        case OneOf(field, (value,)):
            return pb.Filter(compare=pb.Comparison(field=_field(field), value=_value(value)))
        case OneOf(field, values):
            return pb.Filter(**{"in": pb.InList(field=_field(field), values=map(_value, values))})
        case Range(field, bounds):
            names = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
            return pb.Filter(
                range=pb.Range(field=_field(field), **{names[sign]: _value(value) for sign, value in bounds})
            )


def _field(field: Field) -> pb.Field:
    return pb.Field(path=".".join([field.name, *field.path]))


def _value(value: Value) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(boolean=value)
    if isinstance(value, str):
        return pb.Value(text=value)
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value() and abs(value) < 2**63
        return pb.Value(integer=int(value)) if whole else pb.Value(number=float(value))
    wire = pb.Value()
    wire.time.FromDatetime(value)
    return wire
