"""When schedules are due, and what becomes of what was missed. Pure.

Cron is read as Debian's cron reads it, by ``cronsim``: what a fixed minute and
hour would start in an hour that daylight saving leaves out starts right after
it, and once where an hour comes twice; a `*` goes by the time that passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

# Read once at start, since it walks folders. What a machine has set as its own, and the name of none, are no zones.
ZONES = frozenset(available_timezones()) - {"localtime", "Factory"}
DEFAULT_WINDOW = timedelta(hours=24)
_FIELDS = 5


class CatchUp(StrEnum):
    """What to do about runs that were missed."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule as its author wrote it. ``message`` is in its wire form; None and "" are what was left out."""

    name: str
    cron: str
    time_zone: str
    agent: str
    thread_id: str
    message: bytes
    catch_up: CatchUp | None
    catch_up_window: timedelta | None
    paused: bool
    subject: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as stored.

    ``next_run_at`` is the first time that was not decided on yet; None while
    paused, or when there is none any more. ``put_by`` is whom its runs act
    for; ``last_error`` the wire form of a status.
    """

    spec: ScheduleSpec
    version: int
    put_by: str
    next_run_at: datetime | None
    last_run_at: datetime | None = None
    last_run_id: str = ""
    last_error: bytes = b""


class Decision(NamedTuple):
    """What to do about a schedule now.

    ``fires`` is the time that a run is to be started for, ``then`` the next one
    to decide on. ``missed`` says that times went by which nothing is started for.
    """

    fires: datetime | None
    then: datetime | None
    missed: bool


def is_cron(expression: str) -> bool:
    """Whether it is a five-field cron expression."""
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return len(expression.split()) == _FIELDS


def next_time(cron: str, time_zone: str, after: datetime) -> datetime | None:
    """The first time after a moment, in UTC; None when there is none within 50 years."""
    return next((moment for moment in _times(cron, time_zone, after) if moment > after), None)


def _times(cron: str, time_zone: str, start: datetime) -> Iterator[datetime]:
    # Begun in the second of two equal hours, it names times of the first as well.
    for local in CronSim(cron, start.astimezone(ZoneInfo(time_zone or "UTC"))):
        yield local.astimezone(UTC)


def decide(schedule: Schedule, now: datetime, grace: timedelta) -> Decision:
    """What is due at ``now``. A time is missed when it is further back than ``grace``."""
    spec = schedule.spec
    due = schedule.next_run_at
    if due is None or spec.paused:
        return Decision(None, None, missed=False)
    reach = grace
    if spec.catch_up in (CatchUp.ONCE, CatchUp.ALL):
        reach = max(grace, DEFAULT_WINDOW if spec.catch_up_window is None else spec.catch_up_window)
    missed = due < now - reach
    if missed:
        due = next_time(spec.cron, spec.time_zone, now - reach)
    if due is None or due > now:
        return Decision(None, due, missed)
    # One run stands for all that are due by now.
    after = now if spec.catch_up is CatchUp.ONCE else due
    return Decision(due, next_time(spec.cron, spec.time_zone, after), missed)
