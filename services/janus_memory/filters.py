"""Filters: typed conditions on a record, and what they mean.

`holds` is the definition; every store that filters must agree with it. A value
is a text, a truth value, a number or a moment, and none converts into another.
Numbers are compared by their exact decimal value: 1 equals 1.0, and 0.1 of a
JSON text equals the double that prints as 0.1.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

Value = str | bool | Decimal | datetime

FIELDS: Mapping[str, type] = {
    "kind": str,
    "role": str,
    "speaker": str,
    "predicate": str,
    "importance": Decimal,
    "occurred_at": datetime,
    "recorded_at": datetime,
}
"""Fields of every record with the type of their values; beside them `metadata` and a path."""


@dataclass(frozen=True, slots=True)
class Field:
    """One of FIELDS, or `metadata` with the keys that lead to a value, through objects only."""

    name: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AllOf:
    """True where every condition is."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True where at least one condition is."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True where the condition is not."""

    filter: "Filter"


@dataclass(frozen=True, slots=True)
class OneOf:
    """True where a field equals one of some values, which are of one type."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """True where a field lies within all bounds: pairs of `>`, `>=`, `<` or `<=` and a value, of one type."""

    field: Field
    bounds: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """True where a field is there and not null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Contains:
    """True where a field is a list that holds the value, or a text that holds it as a substring."""

    field: Field
    value: Value


Filter = AllOf | AnyOf | Not | OneOf | Range | Exists | Contains

# RFC 3339 in three steps that stores take as well, since one expression that knows
# the calendar is five times as slow there. No \d, which is not the same everywhere.
MOMENT = (
    "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    "[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]+)?"
    "(?:[Zz]|[+-](?:0[0-9]|1[0-5]):[0-5][0-9])"
)
"""What a text has to match, as a whole, to be a moment."""
NO_DAYS = ("02-30", "02-31", "04-31", "06-31", "09-31", "11-31")
"""Days that match and are in no year; nor is any day of the year 0000."""
LEAP_YEAR = "[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00"
"""Years that have a 02-29."""
FINER = "([.][0-9]{6})[0-9]+"
"""Digits after the microsecond, which are left out."""

_moment = re.compile(MOMENT)
_finer = re.compile(FINER)


def holds(condition: Filter, record: Mapping[str, Any]) -> bool:
    """Whether a filter is true of a record.

    The record has a value for each of FIELDS, or None, and `metadata` as
    `metadata_of` reads it.
    """
    match condition:
        case AllOf(filters):
            return all(holds(each, record) for each in filters)
        case AnyOf(filters):
            return any(holds(each, record) for each in filters)
        case Not(negated):
            return not holds(negated, record)
        case OneOf(field, values):
            found = _found(field, record)
            return any(_same(found, value, field) for value in values)
        case Range(field, bounds):
            found = _found(field, record)
            return all(_within(_read(found, type(value), field), sign, value) for sign, value in bounds)
        case Exists(field):
            return _found(field, record) is not None
        case Contains(field, value):
            found = _found(field, record)
            if isinstance(found, str):
                return isinstance(value, str) and value in found
            return isinstance(found, list) and any(_same(item, value, field) for item in found)


def metadata_of(text: str) -> Mapping[str, Any]:
    """A record's metadata with its numbers as exact decimals; empty for none."""
    found: Mapping[str, Any] = json.loads(text, parse_int=Decimal, parse_float=Decimal) if text else {}
    return found


def moment(text: str) -> datetime | None:
    """An RFC 3339 text to the microsecond, or None. No leap seconds; offsets below 16 h."""
    if not _moment.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(_finer.sub(r"\1", text).upper())
    except ValueError:
        return None  # no day of the calendar


def _found(field: Field, record: Mapping[str, Any]) -> Any:
    value = record[field.name]
    for key in field.path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _read(found: Any, kind: type, field: Field) -> Any:
    """What was found as a value of a type, or None if it is of another."""
    if kind is datetime and field.path and isinstance(found, str):
        return moment(found)
    return found if isinstance(found, kind) else None


def _same(found: Any, value: Value, field: Field) -> bool:
    read = _read(found, type(value), field)
    return read is not None and bool(read == value)


def _within(read: Any, sign: str, value: Any) -> bool:
    if read is None:
        return False
    return bool({">": read > value, ">=": read >= value, "<": read < value, "<=": read <= value}[sign])
