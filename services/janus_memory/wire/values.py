"""Times, JSON and scopes on the wire."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from janus_api.memory.v1 import scope_pb2, space_pb2
from janus_kit.json_schema.rules import BrokenRule, read
from janus_kit.validate import Violations
from janus_memory.model import DEFAULT_SPACE, FIRST_TIME, LAST_TIME, LEAST_NORM, MOST_NORM, Scope, has_direction

MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 8
_MAX_DECIMAL_PLACES = 16_383
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND, _LAST_SECOND = int(FIRST_TIME.timestamp()), int(LAST_TIME.timestamp())
# What google.protobuf.Duration may say.
_MOST_SECONDS = 315_576_000_000


def time_of(check: Violations, path: str, holder: Any, field: str) -> datetime | None:
    """A timestamp field as UTC, to the microsecond; None when unset or wrong."""
    if not holder.HasField(field):
        return None
    stamp: Timestamp = getattr(holder, field)
    inside = _FIRST_SECOND <= stamp.seconds <= _LAST_SECOND and 0 <= stamp.nanos < 1_000_000_000
    if not check.require(inside, path, "must be a valid time from 0001-01-02 to 9999-12-31, 00:00 UTC"):
        return None
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def check_vector(check: Violations, path: str, vector: Sequence[float]) -> None:
    """A caller's own vector, if there is one."""
    rule = f"must hold finite numbers whose Euclidean norm is between {LEAST_NORM:g} and {MOST_NORM:g}"
    check.require(not vector or has_direction(vector), path, rule)


def stamp(when: datetime | None) -> Timestamp | None:
    """A time for the wire."""
    if when is None:
        return None
    delta = when - _EPOCH
    return Timestamp(seconds=delta.days * 86_400 + delta.seconds, nanos=delta.microseconds * 1000)


def retention_of(check: Violations, path: str, space: space_pb2.Space) -> timedelta | None:
    """How long a space keeps records, to the microsecond, rounded up; None: for ever, or wrong."""
    if not space.HasField("retention"):
        return None
    seconds, nanos = space.retention.seconds, space.retention.nanos
    valid = abs(seconds) <= _MOST_SECONDS and abs(nanos) < 1_000_000_000 and seconds * nanos >= 0
    if not check.require(valid, path, "must be a valid duration of at most 10,000 years"):
        return None
    if not check.require(seconds > 0 or nanos > 0, path, "must be above 0"):
        return None
    return timedelta(seconds=seconds, microseconds=-(-nanos // 1000))


def duration(span: timedelta | None) -> Duration | None:
    """A span of time for the wire."""
    if span is None:
        return None
    return Duration(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)


def check_metadata(check: Violations, path: str, text: str) -> None:
    """A JSON object that every store can hold; empty is none."""
    if not text:
        return
    if len(text.encode()) > MAX_METADATA_BYTES:
        check.add(path, f"must be at most {MAX_METADATA_BYTES} bytes of UTF-8")
        return
    try:
        value = read(text, MAX_METADATA_DEPTH, _number)
    except BrokenRule as broken:
        check.add(path, str(broken))
        return
    if not isinstance(value, dict):
        check.add(path, "must be a JSON object")
    elif not all(map(_storable, _leaves(value))):
        check.add(path, "must hold no NUL and only finite numbers of at most 16,383 decimal places")


def scope_of(check: Violations, path: str, scope: scope_pb2.Scope, *, thread_required: bool = False) -> Scope:
    """A scope with its space filled in."""
    check.id(f"{path}.space", scope.space, optional=True)
    check.id(f"{path}.subject", scope.subject, optional=True)
    check.id(f"{path}.agent", scope.agent, optional=True)
    check.id(f"{path}.thread", scope.thread, optional=not thread_required)
    return Scope(scope.space or DEFAULT_SPACE, scope.subject, scope.agent, scope.thread)


def scope_to(scope: Scope) -> scope_pb2.Scope:
    """A scope for the wire."""
    return scope_pb2.Scope(space=scope.space, subject=scope.subject, agent=scope.agent, thread=scope.thread)


def _number(text: str) -> float:
    """A number, or NaN where Postgres could not keep it."""
    try:
        exponent = Decimal(text).as_tuple().exponent
    except InvalidOperation:
        return math.nan
    return float(text) if isinstance(exponent, int) and exponent >= -_MAX_DECIMAL_PLACES else math.nan


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
        else:
            yield each


def _storable(leaf: Any) -> bool:
    if isinstance(leaf, str):
        return "\x00" not in leaf
    return not isinstance(leaf, float) or math.isfinite(leaf)
