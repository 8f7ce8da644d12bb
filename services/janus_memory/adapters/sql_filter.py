"""Filters as SQL conditions over the columns of memory.unit.

The text is made of constants and placeholders alone; keys and values are
parameters. Nothing in it can raise, whatever a row holds: a cast is reached
only by what it is sure to read, so no row, of no tenant, ends a search.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from janus_memory.filters import (
    FIELDS,
    FINER,
    LEAP_YEAR,
    MOMENT,
    NO_DAYS,
    AllOf,
    AnyOf,
    Contains,
    Exists,
    Field,
    Filter,
    Not,
    OneOf,
    Range,
    Value,
)
from janus_memory.model import Kind, Role

_JSON_TYPES = {str: "string", Decimal: "number", bool: "boolean"}


def _names(members: type[Kind] | type[Role], column: str) -> str:
    """A text by the number of an enum, which counts from 1."""
    names = ", ".join(f"'{member.name.lower()}'" for member in members)
    return f"(ARRAY[{names}])[{column}]"


def filtered(condition: Filter, bound: Callable[[Any], str], prefix: str = "") -> str:
    """A condition that is true or false and never null. ``prefix`` qualifies the columns: `u.`."""
    match condition:
        case AllOf(filters):
            return "(" + " AND ".join(filtered(each, bound, prefix) for each in filters) + ")"
        case AnyOf(filters):
            return "(" + " OR ".join(filtered(each, bound, prefix) for each in filters) + ")"
        case Not(negated):
            return f"NOT {filtered(negated, bound, prefix)}"
        case Exists(field):
            there = _value(field, bound, prefix)
            return f"((jsonb_typeof({there}) <> 'null') IS TRUE)" if field.path else f"({there} IS NOT NULL)"
        case OneOf(field, values):
            return _typed(field, type(values[0]), lambda there: _one_of(field, there, values, bound), bound, prefix)
        case Range(field, bounds):
            return _typed(field, type(bounds[0][1]), lambda there: _range(field, there, bounds, bound), bound, prefix)
        case Contains(field, value):
            return _typed(field, type(value), lambda there: _contains(field, there, value, bound), bound, prefix)


def _typed(field: Field, kind: type, comparison: Callable[[str], str], bound: Callable[[Any], str], prefix: str) -> str:
    """A comparison with values of a type; false where the field is never of it."""
    if field.path or FIELDS[field.name] is kind:
        return f"(({comparison(_value(field, bound, prefix))}) IS TRUE)"
    return "false"


def _one_of(field: Field, there: str, values: Sequence[Value], bound: Callable[[Any], str]) -> str:
    kind = type(values[0])
    if len(values) == 1:
        return f"{_read(field, there, kind)} = {_literal(field, kind, bound(_plain(field, values[0])))}"
    many = bound([_plain(field, value) for value in values])
    return f"{_read(field, there, kind)} = ANY({_literal(field, kind, many, '[]')})"


def _range(field: Field, there: str, bounds: Sequence[tuple[str, Value]], bound: Callable[[Any], str]) -> str:
    kind = type(bounds[0][1])
    return " AND ".join(
        f"{_read(field, there, kind)} {sign} {_literal(field, kind, bound(_plain(field, value)))}"
        for sign, value in bounds
    )


def _contains(field: Field, there: str, value: Value, bound: Callable[[Any], str]) -> str:
    kind = type(value)
    if not field.path and kind is not str:
        return "false"
    given = bound(_plain(field, value))
    substring = f"strpos({_read(field, there, str)}, {given}::text) > 0"
    if not field.path:
        return substring
    if kind is datetime:
        items = f"CASE WHEN jsonb_typeof({there}) = 'array' THEN {there} ELSE '[]' END"
        return (
            f"EXISTS (SELECT FROM jsonb_array_elements({items}) AS listed (item)"
            f" WHERE {_read(field, 'item', kind)} = {_literal(field, kind, given)})"
        )
    item = f"to_jsonb({given}::text)" if kind is str else _literal(field, kind, given)
    held = f"jsonb_typeof({there}) = 'array' AND {there} @> {item}"
    return f"{substring} OR ({held})" if kind is str else held


def _value(field: Field, bound: Callable[[Any], str], prefix: str) -> str:
    """What the record has there: jsonb of metadata, else the field's own type."""
    match field.name:
        case "kind":
            return _names(Kind, f"{prefix}kind")
        case "role":
            return _names(Role, f"{prefix}role")
        case "speaker" | "predicate":
            return f"nullif({prefix}{field.name}, '')"
        case "importance":
            # A turn has none.
            return f"CASE WHEN {prefix}kind > 1 THEN {prefix}importance END"
        case "occurred_at" | "recorded_at":
            return f"{prefix}{field.name}"
    # By key, one at a time: a path would take a number for a place in a list.
    return f"({prefix}metadata{''.join(f' -> {bound(key)}::text' for key in field.path)})"


def _read(field: Field, there: str, kind: type) -> str:
    """It as something that compares with a value of a type; null where it is of another."""
    if not field.path:
        return f'({there}) COLLATE "C"' if kind is str else f"({there})"
    if kind is datetime:
        text = f"({there} #>> '{{}}')"
        day, no_days = f"substr({text}, 6, 5)", ", ".join(f"'{each}'" for each in NO_DAYS)
        # Every match has its offset, so the session's time zone does not matter. With
        # microseconds and a Z it is 27 long: only what is longer can have to be cut.
        return (
            f"(CASE WHEN jsonb_typeof({there}) <> 'string' THEN NULL"
            f" WHEN {text} !~ '^(?:{MOMENT})$' THEN NULL"
            f" WHEN {day} IN ({no_days}) OR left({text}, 4) = '0000' THEN NULL"
            f" WHEN {day} = '02-29' AND left({text}, 4) !~ '^(?:{LEAP_YEAR})$' THEN NULL"
            f" WHEN length({text}) <= 27 THEN {text}::timestamptz"
            f" ELSE regexp_replace({text}, '{FINER}', '\\1')::timestamptz END)"
        )
    guard = f"jsonb_typeof({there}) = '{_JSON_TYPES[kind]}'"
    if kind is str:
        return f"(CASE WHEN {guard} THEN {there} #>> '{{}}' END) COLLATE \"C\""
    # Numbers stay jsonb, which compares them as exact decimals and casts nothing.
    return f"(CASE WHEN {guard} THEN {there} END)"


def _literal(field: Field, kind: type, placeholder: str, many: str = "") -> str:
    if kind is str:
        return f"{placeholder}::text{many}"
    if kind is datetime:
        return f"{placeholder}::timestamptz{many}"
    if not field.path:
        return f"{placeholder}::double precision{many}"
    return f"{placeholder}::text{many}::jsonb{many}"


def _plain(field: Field, value: Value) -> Any:
    """A value as the driver takes it for `_literal`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return str(value) if field.path else float(value)
    return value
