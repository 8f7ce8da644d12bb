"""Filters on the wire, decoded and validated."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from janus_api.memory.v1 import filter_pb2 as pb
from janus_kit.validate import Violations
from janus_memory.filters import FIELDS, AllOf, AnyOf, Contains, Exists, Field, Filter, Not, OneOf, Range, Value
from janus_memory.wire.values import time_of

MAX_CONDITIONS = 64
MAX_DEPTH = 8
MAX_VALUES = 256
MAX_TEXT = 1_024
_PATH = re.compile(r"metadata((?:\.[A-Za-z0-9_-]{1,64}){1,8})")
_PATH_RULE = (
    f"must be {', '.join(FIELDS)}, or `metadata.` and 1 to 8 keys parted by dots, "
    "each 1 to 64 characters of [A-Za-z0-9_-]"
)
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# What stands where a rule was broken; the request is refused, so nobody evaluates it.
_BROKEN: Filter = AllOf(())


def filter_of(check: Violations, path: str, message: pb.Filter) -> Filter:
    """A filter; what is wrong with it is added to ``check``, by field path."""
    return _Decoder(check).node(path, message, 1)


class _Decoder:
    """Counts conditions, so that a request is looked at no further than it may go."""

    def __init__(self, check: Violations) -> None:
        self._check = check
        self._conditions = 0

    def node(self, path: str, message: pb.Filter, depth: int) -> Filter:
        name = message.WhichOneof("node")
        if not self._check.require(depth <= MAX_DEPTH, path, f"must be nested at most {MAX_DEPTH} deep"):
            self._conditions = MAX_CONDITIONS + 1
            return _BROKEN
        if name is None:
            self._counted(path)
            self._check.add(path, "must be set")
            return _BROKEN
        inner = getattr(message, name)
        inside = f"{path}.{name}"
        if name in ("all_of", "any_of"):
            return self._list(inside, inner, depth, AllOf if name == "all_of" else AnyOf)
        if name == "not":
            return Not(self.node(inside, inner, depth + 1))
        if not self._counted(path):
            return _BROKEN
        return self._leaf(name, inside, inner)

    def _list(
        self, path: str, message: pb.FilterList, depth: int, made: Callable[[tuple[Filter, ...]], Filter]
    ) -> Filter:
        if not self._check.count(f"{path}.filters", message.filters, at_least=1, at_most=MAX_CONDITIONS):
            # It stands for a condition, so that a tree of nothing but empty lists ends too.
            self._conditions += 1
            return _BROKEN
        found = []
        for place, each in enumerate(message.filters):
            if self._conditions > MAX_CONDITIONS:
                break
            found.append(self.node(f"{path}.filters[{place}]", each, depth + 1))
        return made(tuple(found))

    def _counted(self, path: str) -> bool:
        self._conditions += 1
        return self._check.require(
            self._conditions <= MAX_CONDITIONS, path, f"must be one of at most {MAX_CONDITIONS} conditions in all"
        )

    def _leaf(self, name: str, path: str, message: Any) -> Filter:
        if name == "exists":
            return Exists(self._field(path, message))
        self._check.present(f"{path}.field", message.HasField("field"))
        field = self._field(f"{path}.field", message.field) if message.HasField("field") else Field("")
        if name == "in":
            return OneOf(field, self._values(f"{path}.values", message.values))
        if name == "range":
            return Range(field, self._bounds(path, message))
        self._check.present(f"{path}.value", message.HasField("value"))
        value = self._value(f"{path}.value", message.value) if message.HasField("value") else None
        if value is None:
            return _BROKEN
        return OneOf(field, (value,)) if name == "compare" else Contains(field, value)

    def _field(self, path: str, message: pb.Field) -> Field:
        if message.path in FIELDS:
            return Field(message.path)
        found = _PATH.fullmatch(message.path)
        self._check.require(found is not None, f"{path}.path", _PATH_RULE)
        return Field("metadata", tuple(found[1].split(".")[1:])) if found else Field("")

    def _values(self, path: str, messages: Sequence[pb.Value]) -> tuple[Value, ...]:
        if not self._check.count(path, messages, at_least=1, at_most=MAX_VALUES):
            return ()
        return _uniform(messages) or tuple(
            self._typed((f"{path}[{place}]", each) for place, each in enumerate(messages)).values()
        )

    def _bounds(self, path: str, message: pb.Range) -> tuple[tuple[str, Value], ...]:
        given = {f"{path}.{name}": name for name in _SIGNS if message.HasField(name)}  # type: ignore[arg-type]  # fields of Range
        self._check.require(bool(given), path, "must have at least one of gt, gte, lt and lte")
        values = self._typed((inside, getattr(message, name)) for inside, name in given.items())
        for inside, value in values.items():
            self._check.require(not isinstance(value, bool), inside, "must be a number, a time or a text")
        return tuple((_SIGNS[given[inside]], value) for inside, value in values.items())

    def _typed(self, messages: Iterable[tuple[str, pb.Value]]) -> dict[str, Value]:
        """Values by their path, all of the first one's type."""
        found: dict[str, Value] = {}
        first: type | None = None
        for path, message in messages:
            value = self._value(path, message)
            if value is not None:
                found[path] = value
                first = first or type(value)
                self._check.require(type(value) is first, path, f"must be of the same type as {next(iter(found))}")
        return found

    def _value(self, path: str, message: pb.Value) -> Value | None:
        match message.WhichOneof("kind"):
            case "text":
                fits = self._check.length(f"{path}.text", message.text, at_most=MAX_TEXT)
                return message.text if fits else None
            case "integer":
                return Decimal(message.integer)
            case "number":
                if not self._check.require(math.isfinite(message.number), f"{path}.number", "must be finite"):
                    return None
                # The decimal that a JSON text of the same number has.
                return Decimal(repr(message.number))
            case "boolean":
                return message.boolean
            case "time":
                return time_of(self._check, f"{path}.time", message, "time")
        self._check.add(path, "must be set")
        return None


def _uniform(messages: Sequence[pb.Value]) -> tuple[Value, ...] | None:
    """Values that are all whole numbers or all texts in order; None: to be looked at one by one, which takes longer."""
    kinds = {each.WhichOneof("kind") for each in messages}
    if kinds == {"integer"}:
        return tuple(Decimal(each.integer) for each in messages)
    if kinds == {"text"}:
        texts = tuple(each.text for each in messages)
        return texts if all(len(text) <= MAX_TEXT and "\x00" not in text for text in texts) else None
    return None
