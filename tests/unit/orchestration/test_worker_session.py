"""A worker's connection: credits, what it is told, and who gets which call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from janus_kit.errors import InvalidArgument
from janus_orchestration.dispatching import Answer, CallId, CallKey, ClaimedCall, OpenCall, Registration, Report
from janus_orchestration.model import SideEffect, Tool
from janus_orchestration.state import AfterUnknown, after_unknown
from janus_orchestration.worker_session import (
    Beat,
    Closed,
    DrainAsked,
    Dropped,
    Given,
    Registered,
    Session,
    Told,
    connect_again,
)
from janus_orchestration.worker_sessions import share


def session(
    name: str = "one",
    *tools: str,
    credits: int = 2,  # noqa: A002
    side_effect: SideEffect = SideEffect.READ_ONLY,
) -> Session:
    found = tuple(Tool(each, "", "", side_effect, timedelta(1)) for each in tools or ("count",))
    return Session(name, "tenant", Registration(name, found, credits))


def call(step: int, left_s: float = 60) -> ClaimedCall:
    call_id = CallId(CallKey("run", step), 1)
    return ClaimedCall(call_id, "one", "count", "{}", "", "", "", datetime(2026, 1, 1, tzinfo=UTC), left_s, 0)


async def told(made: Session) -> list[Told]:
    """All that it is told, once it has ended."""
    return [each async for each in made.told()]


async def now(made: Session) -> list[Told]:
    """What it is told now."""
    found: list[Told] = []

    async def read() -> None:
        async for each in made.told():
            found.append(each)  # noqa: PERF401 - what came before the end counts

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reading.cancel()
    return found


@pytest.mark.parametrize("text", ["", "run", "run:1", "run:1:", "run:x:1", "run:1:9999999999", "run:-1:1", "run:²:1"])
def test_what_is_no_id_of_a_call_is_none(text: str) -> None:
    assert CallId.parse(text) is None


def test_an_id_of_a_call_comes_back() -> None:
    call_id = CallId(CallKey("run:with:colons", 3), 4)
    assert CallId.parse(str(call_id)) == call_id
    assert CallKey.parse(str(call_id.key)) == call_id.key


@pytest.mark.parametrize("side_effect", list(SideEffect))
def test_only_what_must_not_happen_twice_is_asked_about(side_effect: SideEffect) -> None:
    asked = after_unknown(side_effect) is AfterUnknown.ASK
    assert asked == (side_effect is SideEffect.AT_MOST_ONCE)


async def test_a_call_uses_a_credit_until_its_answer_is_written() -> None:
    made = session(credits=1)
    assert made.give(call(1))
    assert made.room == 0
    answer = Answer(call(1).call_id, b"x")
    await made.complete(answer)
    assert (made.room, made.calls) == (0, [call(1).call_id])
    assert await made.to_write(1) == ([answer], [])
    made.written([answer])
    assert (made.room, made.calls) == (1, [])


async def test_a_dropped_calls_credit_comes_back_with_the_workers_answer() -> None:
    made = session(credits=1)
    made.give(call(1))
    made.drop(call(1).call_id, "late")
    assert (made.room, made.awaited) == (0, [])
    await made.complete(Answer(call(1).call_id, b"x"))
    assert made.room == 1
    assert [type(each) for each in await now(made)] == [Registered, Given, Dropped]


async def test_of_a_workers_reports_the_newest_is_written_and_none_after_its_answer() -> None:
    made = session()
    made.give(call(1))
    made.give(call(2))
    for step, fraction in ((1, 0.1), (1, 0.2), (2, 0.3)):
        made.report(Report(call(step).call_id, fraction, ""))
    await made.complete(Answer(call(2).call_id, b"x"))
    answers, reports = await made.to_write(1)
    assert [answer.call_id for answer in answers] == [call(2).call_id]
    assert reports == [Report(call(1).call_id, 0.2, "")]


async def test_a_worker_that_does_not_read_costs_no_more_than_its_credits() -> None:
    made = session(credits=3)
    for _ in range(10_000):
        made.answer_heartbeat()
        made.cancel("the:same:1", "nobody waits")
    for step in range(3):
        made.give(call(step))
    made.end(None)
    assert [type(each) for each in await told(made)] == [Registered, Dropped, Beat, Closed]
    assert len(made.unsent()) == 3, "what it never heard of is for others"


async def test_a_worker_that_drains_ends_with_its_last_answer() -> None:
    made = session()
    made.give(call(1))
    made.stop_calls(None)
    assert (made.room, made.is_over) == (0, False)
    answer = Answer(call(1).call_id, b"x")
    await made.complete(answer)
    assert not made.is_over
    made.written([answer])
    assert (await told(made))[-1] == Closed(None)
    assert not made.was_sent_elsewhere


async def test_a_worker_that_is_sent_away_is_told_so_first() -> None:
    made = session()
    made.stop_calls("the server is stopping")
    kinds = [type(each) for each in await told(made)]
    assert kinds == [Registered, DrainAsked, Closed]
    assert made.was_sent_elsewhere
    cut = session()
    cut.end(connect_again())
    assert cut.was_sent_elsewhere


async def test_the_first_word_of_an_end_counts() -> None:
    made = session()
    made.end(InvalidArgument("a", "b"))
    made.end(None)
    assert not made.give(call(1))
    (closed,) = [each for each in await told(made) if isinstance(each, Closed)]
    assert isinstance(closed.error, InvalidArgument)


async def test_credits_are_added_up_to_a_limit() -> None:
    made = session(credits=999)
    made.add_credits(1)
    assert made.room == 1_000
    with pytest.raises(InvalidArgument):
        made.add_credits(1)


async def test_a_worker_is_not_listened_to_while_its_answers_cannot_be_written() -> None:
    made = session(credits=20)
    for step in range(17):
        made.give(call(step))
    for step in range(16):
        await made.complete(Answer(call(step).call_id, b"x"))
    last = asyncio.create_task(made.complete(Answer(call(16).call_id, b"x")))
    await asyncio.sleep(0.01)
    assert not last.done()
    assert made.silent_s == 0, "it is this side that is busy"
    answers, _ = await made.to_write(1)
    made.written(answers)
    await last


async def test_calls_go_to_who_has_the_least_to_do_by_its_credits() -> None:
    small, large, other = session("small", credits=1), session("large", credits=4), session("other", "else", credits=9)
    large.give(call(9))
    calls = [OpenCall(CallKey("run", step), "count") for step in range(6)]
    given = share(calls, [small, large, other])
    assert [given.get(each.key) for each in calls] == ["small", "large", "large", "large", None, None]
    assert share([OpenCall(CallKey("run", 1), "else")], [small, large, other]) == {CallKey("run", 1): "other"}


async def test_a_deadline_that_passed_is_known_without_the_owner() -> None:
    made = session()
    made.give(call(1, left_s=-5))
    made.give(call(2))
    assert made.overdue(1.0) == [call(1).call_id]
    made.drop(call(1).call_id, "late")
    assert made.overdue(1.0) == []


@pytest.mark.parametrize(
    "made_by",
    [lambda: session(side_effect=SideEffect.AT_MOST_ONCE), lambda: session("one", "else")],
    ids=["at most once", "a tool that is not offered any more"],
)
async def test_a_late_call_that_may_stand_before_a_person_is_kept(made_by: Callable[[], Session]) -> None:
    made = made_by()
    made.give(call(1, left_s=-5))
    assert made.overdue(1.0) == []
    answer = Answer(call(1).call_id, b"late")
    await made.complete(answer)
    assert await made.to_write(1) == ([answer], [])
