"""When schedules are due: cron, daylight saving, and what becomes of what was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_orchestration.timetable import CatchUp, Schedule, ScheduleSpec, decide, is_cron, next_time

BERLIN = "Europe/Berlin"
GRACE = timedelta(seconds=60)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next times, in the zone, each asked for anew as the runner does."""
    found = []
    moment = at(after)
    for _ in range(count):
        following = next_time(cron, zone, moment)
        assert following is not None
        assert following > moment
        moment = following
        found.append(moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M%z"))
    return found


def schedule(cron: str = "0 * * * *", due: str = "2026-06-01T10:00", **fields: object) -> Schedule:
    values: dict[str, object] = {
        "name": "s",
        "cron": cron,
        "time_zone": "",
        "agent": "a",
        "thread_id": "",
        "message": b"",
        "catch_up": None,
        "catch_up_window": None,
        "paused": False,
        "subject": "",
        **fields,
    }
    return Schedule(ScheduleSpec(**values), 1, "", at(due))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cron",
    ["* * * * *", "*/5 8-18 * * MON-FRI", "0 9 1,15 jan *", "30 2 L * *", "0 0 LW * *", "0 9 * * 5L", "0 9 * * 1#2"],
)
def test_cron_expressions(cron: str) -> None:
    assert is_cron(cron)


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "0 * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "@daily",
        "a b c d e",
        "0 0 30 2 *",
        "٣ * * * *",
        "* * * * 1#6",
    ],
)
def test_what_is_no_cron_expression(cron: str) -> None:
    assert not is_cron(cron)


@given(st.text(alphabet="0123456789*/,-#LWMONJAN \t٣²", max_size=24) | st.text(max_size=128))
def test_any_text_is_one_or_is_not(text: str) -> None:
    assert is_cron(text) in (True, False)


def test_an_expression_is_read_in_its_zone() -> None:
    assert next_time("0 9 * * *", BERLIN, at("2026-06-01T12:00")) == at("2026-06-02T07:00")
    assert next_time("0 9 * * *", BERLIN, at("2026-12-01T12:00")) == at("2026-12-02T08:00")
    assert next_time("0 9 * * *", "", at("2026-06-01T12:00")) == at("2026-06-02T09:00")


def test_what_never_comes_due_has_no_time() -> None:
    # No January has a first day that is its fifth Monday; `*/31` keeps both conditions.
    assert next_time("0 0 */31 1 1#5", "", at("2026-01-01T00:00")) is None


# Clocks in Berlin: 2026-03-29 02:00 -> 03:00, 2026-10-25 03:00 -> 02:00.


def test_a_fixed_time_in_the_hour_that_is_left_out_starts_right_after_it() -> None:
    assert times("30 2 * * *", BERLIN, "2026-03-27T12:00", 3) == ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]


def test_several_fixed_times_in_the_hour_that_is_left_out_start_once() -> None:
    assert times("0,30 2 * * *", BERLIN, "2026-03-28T12:00", 3) == ["29 03:00+0200", "30 02:00+0200", "30 02:30+0200"]


def test_a_fixed_time_in_the_hour_that_comes_twice_starts_once() -> None:
    assert times("30 2 * * *", BERLIN, "2026-10-23T12:00", 4) == [
        "24 02:30+0200",
        "25 02:30+0200",
        "26 02:30+0100",
        "27 02:30+0100",
    ]


@pytest.mark.parametrize("after", ["2026-10-25T00:30", "2026-10-25T00:45", "2026-10-25T01:15", "2026-10-25T01:45"])
def test_within_the_hour_that_comes_twice_the_next_time_is_never_one_that_was(after: str) -> None:
    assert times("30 2 * * *", BERLIN, after, 1) == ["26 02:30+0100"]


def test_a_star_goes_by_the_time_that_passes() -> None:
    assert times("*/30 * * * *", BERLIN, "2026-03-29T00:15", 3) == ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"]
    assert times("*/30 * * * *", BERLIN, "2026-10-25T00:15", 5) == [
        "25 02:30+0200",
        "25 02:00+0100",
        "25 02:30+0100",
        "25 03:00+0100",
        "25 03:30+0100",
    ]
    assert times("15 * * * *", BERLIN, "2026-10-24T23:30", 4) == [
        "25 02:15+0200",
        "25 02:15+0100",
        "25 03:15+0100",
        "25 04:15+0100",
    ]


def test_midnight_that_is_left_out_starts_right_after_it() -> None:
    assert times("0 0 * * *", "America/Santiago", "2026-09-05T12:00", 2) == ["06 01:00-0300", "07 00:00-0300"]


@given(
    cron=st.sampled_from(["30 2 * * *", "*/7 * * * *", "0,30 2,3 * * *", "15 * * * *", "*/20 2 * * *"]),
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"]),
    after=st.integers(1_577_836_800, 2_051_222_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
def test_times_only_go_forward(cron: str, zone: str, after: datetime) -> None:
    first = next_time(cron, zone, after)
    assert first is not None
    second = next_time(cron, zone, first)
    assert second is not None
    assert after < first < second


# -- what is decided -----------------------------------------------------------------


def test_nothing_is_due_before_its_time() -> None:
    assert decide(schedule(), at("2026-06-01T09:59:59"), GRACE) == (None, at("2026-06-01T10:00"), False)


def test_what_is_due_fires_and_the_next_follows() -> None:
    for late in ("10:00", "10:00:59"):
        found = decide(schedule(), at(f"2026-06-01T{late}"), GRACE)
        assert found == (at("2026-06-01T10:00"), at("2026-06-01T11:00"), False)


def test_a_paused_schedule_has_no_times() -> None:
    assert decide(schedule(paused=True), at("2026-06-01T12:00"), GRACE) == (None, None, False)


@pytest.mark.parametrize("policy", [None, CatchUp.SKIP])
def test_what_was_missed_is_skipped(policy: CatchUp | None) -> None:
    found = decide(schedule(catch_up=policy), at("2026-06-01T14:10"), GRACE)
    assert found == (None, at("2026-06-01T15:00"), True)
    # What is due now is not missed.
    found = decide(schedule(catch_up=policy), at("2026-06-01T14:00:30"), GRACE)
    assert found == (at("2026-06-01T14:00"), at("2026-06-01T15:00"), True)


def test_once_is_one_run_for_all() -> None:
    found = decide(schedule(catch_up=CatchUp.ONCE), at("2026-06-01T14:10"), GRACE)
    assert found == (at("2026-06-01T10:00"), at("2026-06-01T15:00"), False)


def test_all_is_every_one_in_order() -> None:
    pending = schedule(catch_up=CatchUp.ALL)
    now = at("2026-06-01T13:10")
    fired = []
    while (found := decide(pending, now, GRACE)).fires is not None:
        fired.append(found.fires.hour)
        assert found.then is not None
        pending = Schedule(pending.spec, 1, "", found.then)
    assert (fired, found.then) == ([10, 11, 12, 13], at("2026-06-01T14:00"))


@pytest.mark.parametrize("policy", [CatchUp.ONCE, CatchUp.ALL])
def test_what_is_older_than_the_window_is_never_caught_up(policy: CatchUp) -> None:
    narrow = schedule(catch_up=policy, catch_up_window=timedelta(hours=2))
    assert decide(narrow, at("2026-06-01T20:30"), GRACE)[::2] == (at("2026-06-01T19:00"), True)
    assert decide(schedule(catch_up=policy), at("2026-06-03T10:30"), GRACE)[::2] == (at("2026-06-02T11:00"), True)


def test_a_year_of_minutes_is_decided_on_in_one_step() -> None:
    found = decide(schedule("* * * * *", "2025-06-01T10:00"), at("2026-06-01T10:00:30"), GRACE)
    assert found == (at("2026-06-01T10:00"), at("2026-06-01T10:01"), True)
