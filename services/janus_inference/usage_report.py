"""What a tenant used: sums over its usage records by time and group, a page at a time.

A call counts in the bucket in which it began. Buckets lie one after the other
from the start of the report, whatever the calendar says; the last one ends
with the report. A page token carries the report's own start and end, so that
"now" stays where it was on the first page.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Protocol

from janus_inference.events import Cost, Usage
from janus_kit.clock import Clock, SystemClock
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations

DEFAULT_SPAN = timedelta(hours=24)
LEAST_BUCKET, MOST_BUCKET = timedelta(minutes=1), timedelta(days=31)
DEFAULT_PAGE, MOST_PAGE = 100, 1000
_LABEL_KEY = re.compile(r"[a-z0-9_.-]{1,64}")
_SEAL_BYTES = 8
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Dimension(Enum):
    """What usage can be split by."""

    UNSPECIFIED = "unspecified"
    MODEL = "model"
    PROVIDER = "provider"
    LABEL = "label"
    SUBJECT = "subject"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A report as it is asked for; None and 0 where nothing was said."""

    start: datetime | None = None
    end: datetime | None = None
    bucket: timedelta | None = None
    group_by: tuple[Dimension, ...] = ()
    label_key: str = ""
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """What the calls of a sum have in common; empty where they are not split."""

    model: str = ""
    provider: str = ""
    label_value: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """A sum. ``cost`` is None when the price of any call is unknown; ``usage`` is estimated when any call's is."""

    start: datetime
    end: datetime
    group: Group
    calls: int
    usage: Usage
    cost: Cost | None
    unpriced_calls: int


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Buckets in order; ``next_token`` is empty on the last page."""

    buckets: Sequence[UsageBucket]
    next_token: str


@dataclass(frozen=True, slots=True)
class UsageSlice:
    """What is read at once: at most ``limit`` sums, ordered by start and group, after the one that began there."""

    start: datetime
    end: datetime
    bucket: timedelta | None
    group_by: frozenset[Dimension]
    label_key: str
    after: tuple[datetime, Group] | None
    limit: int


class UsageReader(Protocol):
    """Where usage is read; of one tenant, whatever is asked."""

    async def sums(self, tenant: str, wanted: UsageSlice) -> list[UsageBucket]:
        """Raises JanusError when it cannot be read now."""
        ...


class UsageReport:
    """GetUsage."""

    def __init__(self, reader: UsageReader, clock: Clock | None = None) -> None:
        self._reader = reader
        self._clock = clock or SystemClock()

    async def page(self, tenant: str, query: UsageQuery) -> UsagePage:
        """Raises InvalidArgument for a query that makes no sense, Unavailable when Postgres is away."""
        _check(query)
        seal = _seal(tenant, query)
        if query.page_token:
            start, end, after = _place(query.page_token, seal)
        else:
            start, end, after = *self._span(query), None
        size = query.page_size or DEFAULT_PAGE
        wanted = UsageSlice(start, end, query.bucket, frozenset(query.group_by), query.label_key, after, size + 1)
        found = await self._reader.sums(tenant, wanted)
        shown = found[:size]
        return UsagePage(shown, _token(seal, start, end, shown[-1]) if len(found) > size else "")

    def _span(self, query: UsageQuery) -> tuple[datetime, datetime]:
        end = query.end or self._clock.now()
        try:
            start = query.start or end - DEFAULT_SPAN
        except OverflowError:
            start = datetime.min.replace(tzinfo=UTC)
        if start >= end:
            raise InvalidArgument("start_time", "must be before end_time")
        return start, end


def _check(query: UsageQuery) -> None:
    check = Violations()
    if query.bucket is not None:
        check.require(LEAST_BUCKET <= query.bucket <= MOST_BUCKET, "bucket", "must be 1 minute to 31 days")
    for place, dimension in enumerate(query.group_by[: len(Dimension) + 1]):
        field = f"group_by[{place}]"
        check.require(dimension is not Dimension.UNSPECIFIED, field, "must be set to a value of the enum")
        check.require(dimension not in query.group_by[:place], field, "must be there once")
    if Dimension.LABEL in query.group_by:
        rule = "must be 1 to 64 characters of a-z, 0-9, '_', '.' and '-' to group by a label"
        check.require(_LABEL_KEY.fullmatch(query.label_key) is not None, "label_key", rule)
    else:
        check.require(not query.label_key, "label_key", "must be empty unless grouped by a label")
    check.require(0 <= query.page_size <= MOST_PAGE, "page_size", f"must be 0 to {MOST_PAGE}")
    check.done()


def _seal(tenant: str, query: UsageQuery) -> bytes:
    """Ties a token to its query. Finds mistakes; what a forged one could reach, its forger may read anyway."""
    asked = [tenant, query.label_key, [each.value for each in query.group_by]]
    times = [str(query.start), str(query.end), str(query.bucket)]
    return hashlib.sha256(json.dumps([asked, times]).encode()).digest()[:_SEAL_BYTES]


def _token(seal: bytes, start: datetime, end: datetime, last: UsageBucket) -> str:
    group = last.group
    place = [*map(_micros, (start, end, last.start)), group.model, group.provider, group.label_value, group.subject]
    return base64.urlsafe_b64encode(seal + json.dumps(place).encode()).decode().rstrip("=")


def _place(token: str, seal: bytes) -> tuple[datetime, datetime, tuple[datetime, Group]]:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        start, end, last, *group = json.loads(raw[_SEAL_BYTES:])
        if raw[:_SEAL_BYTES] == seal and len(group) == 4 and all(isinstance(text, str) for text in group):
            times = [_EPOCH + int(micros) * _MICROSECOND for micros in (start, end, last)]
            return times[0], times[1], (times[2], Group(*group))
    except (ValueError, TypeError, OverflowError, binascii.Error):
        pass
    raise InvalidArgument("page_token", "must be one that this query returned", reason="PAGE_TOKEN_INVALID")


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND
