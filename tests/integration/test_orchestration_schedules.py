"""Runs by the clock: what is stored, what is started, and by how many replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    eventually,
    processes,
    running,
)
from tests.fakes.peers.inference_peer import InferencePeer, inference_peer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, run_pb2, schedule_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import Aborted, AlreadyExists, InvalidArgument, JanusError, NotFound
from janus_kit.rpc_errors import from_rpc, from_status

HOURLY = "0 * * * *"
YEARLY = "0 0 1 1 *"


@pytest.fixture
async def peer() -> AsyncIterator[InferencePeer]:
    async with inference_peer() as running_peer:
        running_peer.always = ("done",)
        yield running_peer


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    async with running(own_url, redis_url, inference_target=peer.target, schedule_poll_s=0.05) as serving:
        yield serving


@pytest.fixture
async def ann(service: Orchestration) -> Caller:
    caller = service.caller()
    await caller.agent()
    return caller


def planned(name: str = "report", text: str = "the report, please", **fields: Any) -> schedule_pb2.Schedule:
    message = content.Message(role=content.ROLE_USER, parts=[content.Part(text=text)])
    values: dict[str, Any] = {"cron": YEARLY, "agent": "helper", "message": message, **fields}
    return schedule_pb2.Schedule(name=name, **values)


async def put(caller: Caller, schedule: schedule_pb2.Schedule, **fields: Any) -> schedule_pb2.Schedule:
    return (await caller.call("PutSchedule", pb.PutScheduleRequest(schedule=schedule, **fields))).schedule


async def listed(caller: Caller) -> list[schedule_pb2.Schedule]:
    return list((await caller.call("ListSchedules", pb.ListSchedulesRequest())).schedules)


async def runs(caller: Caller, **fields: Any) -> list[run_pb2.Run]:
    return list((await caller.call("ListRuns", pb.ListRunsRequest(**fields))).runs)


async def refused(call: Awaitable[Any]) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value)


async def since(url: str, caller: Caller, due: datetime, name: str = "report") -> None:
    """Let a schedule have been due since then, as after a downtime."""
    connection = await asyncpg.connect(url)
    try:
        status = await connection.execute(
            "UPDATE orchestration.schedule SET next_run_at = $3, look_at = $3 WHERE tenant = $1 AND name = $2",
            caller.tenant,
            name,
            due,
        )
        assert status == "UPDATE 1"
    finally:
        await connection.close()


def now() -> datetime:
    return datetime.now(UTC)


async def decided(caller: Caller) -> schedule_pb2.Schedule:
    """The schedule, once all that was due was decided on."""
    found: list[schedule_pb2.Schedule] = []

    async def is_over() -> bool:
        found[:] = await listed(caller)
        return found[0].next_run_at.ToDatetime(UTC) > now()

    await eventually(is_over)
    return found[0]


async def ended(caller: Caller, count: int) -> list[run_pb2.Run]:
    """So many completed runs, newest first."""
    found: list[run_pb2.Run] = []

    async def are_over() -> bool:
        found[:] = await runs(caller, states=[run_pb2.RUN_STATE_COMPLETED])
        return len(found) >= count

    await eventually(are_over)
    assert len(found) == count
    return found


# -- what is stored ------------------------------------------------------------------


async def test_a_schedule_comes_back_as_it_was_put_with_its_next_time(ann: Caller) -> None:
    sent = planned(
        time_zone="Europe/Berlin",
        thread_id=await ann.thread(),
        catch_up=schedule_pb2.CATCH_UP_ALL,
        catch_up_window=Duration(seconds=3_600),
        subject="ann",
    )
    stored = await put(ann, sent)
    berlin = stored.next_run_at.ToDatetime(UTC)
    assert (berlin.month, berlin.day, berlin.hour, berlin > now()) == (12, 31, 23, True)
    assert stored.version == 1
    assert await listed(ann) == [stored]
    stored.ClearField("next_run_at")
    stored.ClearField("version")
    assert stored == sent


async def test_every_put_is_a_version_and_the_newest_is_what_counts(ann: Caller) -> None:
    await put(ann, planned(), expected_version=0)
    stored = await put(ann, planned(cron=HOURLY), expected_version=1)
    assert (stored.version, stored.cron) == (2, HOURLY)
    error = await refused(put(ann, planned(), expected_version=1))
    assert isinstance(error, Aborted)
    assert error.metadata["current_version"] == "2"
    assert (await listed(ann)) == [stored]


async def test_the_same_request_id_puts_once(ann: Caller) -> None:
    first = await put(ann, planned(), request_id="r1")
    assert await put(ann, planned(), request_id="r1") == first
    assert isinstance(await refused(put(ann, planned(cron=HOURLY), request_id="r1")), AlreadyExists)


async def test_a_paused_schedule_has_no_next_time_and_starts_anew_later(ann: Caller, own_url: str) -> None:
    stored = await put(ann, planned(cron=HOURLY, paused=True, catch_up=schedule_pb2.CATCH_UP_ALL))
    assert not stored.HasField("next_run_at")
    await asyncio.sleep(0.3)
    assert await runs(ann) == []
    resumed = await put(ann, planned(cron=HOURLY, catch_up=schedule_pb2.CATCH_UP_ALL))
    assert resumed.next_run_at.ToDatetime(UTC) > now()


async def test_what_is_to_be_caught_up_survives_a_change_of_the_message(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    async with running(own_url, redis_url, schedule_poll_s=60) as asleep:
        ann = asleep.caller()
        await ann.agent()
        await put(ann, planned())
        await since(own_url, ann, now() - timedelta(hours=2))
        kept = await put(ann, planned(text="another", catch_up=schedule_pb2.CATCH_UP_ONCE))
        assert kept.next_run_at.ToDatetime(UTC) < now()
        moved = await put(ann, planned(cron=HOURLY, catch_up=schedule_pb2.CATCH_UP_ONCE))
        assert moved.next_run_at.ToDatetime(UTC) > now()


async def test_schedules_are_listed_by_name_in_pages(ann: Caller) -> None:
    for name in ("c", "a", "B"):
        await put(ann, planned(name))
    first = await ann.call("ListSchedules", pb.ListSchedulesRequest(page_size=2))
    rest = await ann.call("ListSchedules", pb.ListSchedulesRequest(page_size=2, page_token=first.next_page_token))
    assert [each.name for each in (*first.schedules, *rest.schedules)] == ["B", "a", "c"]
    assert rest.next_page_token == ""


async def test_a_page_holds_no_more_than_a_response_may(ann: Caller) -> None:
    for number in range(60):
        await put(ann, planned(f"s{number:02}", "x" * 65_000))
    names, token = [], ""
    while True:
        page = await ann.call("ListSchedules", pb.ListSchedulesRequest(page_size=1_000, page_token=token))
        names += [each.name for each in page.schedules]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"s{number:02}" for number in range(60)]


async def test_a_schedule_is_deleted_once(ann: Caller) -> None:
    await put(ann, planned())
    request = pb.DeleteScheduleRequest(name="report", request_id="r1")
    await ann.call("DeleteSchedule", request)
    await ann.call("DeleteSchedule", request)
    assert await listed(ann) == []
    error = await refused(ann.call("DeleteSchedule", pb.DeleteScheduleRequest(name="report")))
    assert isinstance(error, NotFound)


async def test_schedules_are_their_tenants(service: Orchestration, ann: Caller) -> None:
    await put(ann, planned())
    ben = service.caller()
    assert await listed(ben) == []
    assert isinstance(await refused(ben.call("DeleteSchedule", pb.DeleteScheduleRequest(name="report"))), NotFound)
    error = await refused(put(ben, planned()))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "schedule.agent"


NO_PARTS = content.Message(role=content.ROLE_USER)
ASSISTANT = content.Message(role=content.ROLE_ASSISTANT, parts=[content.Part(text="hello")])
WITH_ID = content.Message(id="m1", role=content.ROLE_USER, parts=[content.Part(text="hello")])


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": ""}, "schedule.name"),
        ({"name": "a b"}, "schedule.name"),
        ({"cron": ""}, "schedule.cron"),
        ({"cron": "* * * *"}, "schedule.cron"),
        ({"cron": "61 * * * *"}, "schedule.cron"),
        ({"cron": "0 0 */31 1 1#5"}, "schedule.cron"),
        ({"cron": "* " * 100}, "schedule.cron"),
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
        ({"time_zone": "../etc/passwd"}, "schedule.time_zone"),
        ({"time_zone": "europe/berlin"}, "schedule.time_zone"),
        ({"time_zone": "localtime"}, "schedule.time_zone"),
        ({"time_zone": "Factory"}, "schedule.time_zone"),
        ({"time_zone": "posixrules"}, "schedule.time_zone"),
        ({"time_zone": "posix/Europe/Berlin"}, "schedule.time_zone"),
        ({"time_zone": "right/Europe/Berlin"}, "schedule.time_zone"),
        ({"agent": ""}, "schedule.agent"),
        ({"agent": "nobody"}, "schedule.agent"),
        ({"thread_id": "nowhere"}, "schedule.thread_id"),
        ({"thread_id": "a b"}, "schedule.thread_id"),
        ({"subject": "a b"}, "schedule.subject"),
        ({"message": None}, "schedule.message"),
        ({"message": NO_PARTS}, "schedule.message.parts"),
        ({"message": ASSISTANT}, "schedule.message.role"),
        ({"message": WITH_ID}, "schedule.message.id"),
        ({"text": "x" * 66_000}, "schedule.message"),
        ({"catch_up": 9}, "schedule.catch_up"),
        ({"catch_up_window": Duration(seconds=59)}, "schedule.catch_up_window"),
        ({"catch_up_window": Duration(seconds=30 * 86_400 + 1)}, "schedule.catch_up_window"),
    ],
)
async def test_what_a_schedule_may_not_be(ann: Caller, fields: dict[str, Any], path: str) -> None:
    error = await refused(put(ann, planned(**fields)))
    assert isinstance(error, InvalidArgument)
    assert path in [violation.field for violation in error.violations]
    assert await listed(ann) == []


async def test_a_request_without_a_schedule_is_refused(ann: Caller) -> None:
    error = await refused(ann.call("PutSchedule", pb.PutScheduleRequest(expected_version=-1)))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "schedule"


# -- what is started -----------------------------------------------------------------


async def test_a_run_is_started_in_a_new_thread_each_time(ann: Caller, own_url: str, peer: InferencePeer) -> None:
    await put(ann, planned(subject="ann"))
    for _ in range(2):
        await since(own_url, ann, now() - timedelta(seconds=1))
        await decided(ann)
    newest, oldest = await ended(ann, 2)
    assert newest.thread_id != oldest.thread_id
    thread = (await ann.call("GetThread", pb.GetThreadRequest(thread_id=newest.thread_id))).thread
    assert (thread.subject, thread.agent) == ("ann", "helper")
    assert await ann.history(newest.thread_id) == [("user", "the report, please"), ("assistant", "done")]
    assert (newest.agent, dict(newest.labels)) == ("helper", {"schedule": "report"})
    (stored,) = await listed(ann)
    assert (stored.last_run_id, stored.version) == (newest.id, 1)
    assert stored.last_run_at.ToDatetime(UTC) >= newest.created_at.ToDatetime(UTC) - timedelta(seconds=1)
    assert dict(peer.calls[0].prompt.labels)["schedule"] == "report"


async def test_runs_of_one_thread_follow_each_other(ann: Caller, own_url: str) -> None:
    thread = await ann.thread()
    await put(ann, planned(thread_id=thread))
    for _ in range(2):
        await since(own_url, ann, now() - timedelta(seconds=1))
        await decided(ann)
    await ended(ann, 2)
    assert await ann.history(thread) == [("user", "the report, please"), ("assistant", "done")] * 2


async def test_the_default_agent_needs_no_put(service: Orchestration, own_url: str) -> None:
    ben = service.caller()
    await put(ben, planned(agent="default"))
    await since(own_url, ben, now() - timedelta(seconds=1))
    (run,) = await ended(ben, 1)
    assert run.agent == "default"


@pytest.mark.parametrize(
    ("policy", "started"),
    [
        (schedule_pb2.CATCH_UP_UNSPECIFIED, 0),
        (schedule_pb2.CATCH_UP_SKIP, 0),
        (schedule_pb2.CATCH_UP_ONCE, 1),
        (schedule_pb2.CATCH_UP_ALL, 3),
    ],
)
async def test_what_a_downtime_missed(ann: Caller, own_url: str, policy: Any, started: int) -> None:
    # Due half past each of three hours, the last one more than the grace ago.
    moment = now()
    minute = (moment.minute + 50) % 60
    await put(ann, planned(cron=f"{minute} * * * *", catch_up=policy, catch_up_window=Duration(seconds=3 * 3_600)))
    last = moment.replace(second=0, microsecond=0) - timedelta(minutes=10)
    await since(own_url, ann, last - timedelta(hours=20))
    stored = await decided(ann)
    assert stored.next_run_at.ToDatetime(UTC) == last + timedelta(hours=1)
    found = await ended(ann, started) if started else await runs(ann)
    assert len(found) == started
    assert stored.HasField("last_run_at") == bool(started)


async def test_a_run_that_can_never_start_is_told_and_not_tried_again(ann: Caller, own_url: str) -> None:
    thread = await ann.thread()
    await put(ann, planned(thread_id=thread))
    connection = await asyncpg.connect(own_url)
    await connection.execute("DELETE FROM orchestration.thread WHERE id = $1", thread)
    await connection.close()
    await since(own_url, ann, now() - timedelta(seconds=1))
    stored = await decided(ann)
    assert from_status(stored.last_error, part="").reason == "RESOURCE_NOT_FOUND"
    assert (stored.HasField("last_run_at"), await runs(ann)) == (False, [])
    # The next one that starts takes the error away.
    await put(ann, planned())
    await since(own_url, ann, now() - timedelta(seconds=1))
    await ended(ann, 1)
    assert not (await decided(ann)).HasField("last_error")


async def test_a_refusal_leaves_nothing_behind(ann: Caller, own_url: str) -> None:
    await ann.agent("gone")
    await put(ann, planned(agent="gone"))
    connection = await asyncpg.connect(own_url)
    await connection.execute("DELETE FROM orchestration.agent WHERE name = 'gone'")
    await since(own_url, ann, now() - timedelta(seconds=1))
    assert (await decided(ann)).HasField("last_error")
    threads = await connection.fetchval("SELECT count(*) FROM orchestration.thread")
    await connection.close()
    assert (threads, await runs(ann)) == (0, [])


async def test_an_agent_that_refuses_a_second_message_refuses_a_schedule(
    ann: Caller, own_url: str, peer: InferencePeer
) -> None:
    peer.always = None
    await ann.agent("busy", double_texting=agent_pb2.DOUBLE_TEXTING_REJECT)
    thread = await ann.thread("busy")
    first = await ann.start(thread)
    call = await peer.call()
    await put(ann, planned(agent="busy", thread_id=thread))
    await since(own_url, ann, now() - timedelta(seconds=1))
    stored = await decided(ann)
    assert from_status(stored.last_error, part="").reason == "STATE_CONFLICT"
    call.answer("done")
    assert [run.id for run in await ended(ann, 1)] == [first.id]


async def test_a_full_thread_is_waited_for(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    peer.always = None
    async with running(
        own_url, redis_url, inference_target=peer.target, schedule_poll_s=0.05, max_queued_per_thread=1
    ) as serving:
        ann = serving.caller()
        thread = await ann.ready()
        await ann.start(thread)
        call = await peer.call()
        await ann.start(thread)
        await put(ann, planned(thread_id=thread))
        await since(own_url, ann, now() - timedelta(seconds=1))
        await asyncio.sleep(0.3)
        assert len(await runs(ann)) == 2
        peer.always = ("done",)
        call.answer("done")
        await eventually(lambda: _counts(ann, 3))


async def _counts(caller: Caller, count: int) -> bool:
    return len(await runs(caller)) == count


async def test_a_schedule_that_was_put_anew_does_not_start_the_same_time_twice(ann: Caller, own_url: str) -> None:
    await put(ann, planned())
    due = now() - timedelta(seconds=1)
    for _ in range(2):
        await since(own_url, ann, due)
        await decided(ann)
        await ann.call("DeleteSchedule", pb.DeleteScheduleRequest(name="report"))
        await put(ann, planned())
    assert len(await runs(ann)) == 1


async def test_a_fault_of_one_schedule_does_not_stop_the_others(ann: Caller, own_url: str) -> None:
    await put(ann, planned("broken"))
    await put(ann, planned())
    connection = await asyncpg.connect(own_url)
    await connection.execute("UPDATE orchestration.schedule SET message = '\\xff' WHERE name = 'broken'")
    await connection.close()
    await since(own_url, ann, now() - timedelta(seconds=2), "broken")
    await since(own_url, ann, now() - timedelta(seconds=1))
    await ended(ann, 1)


# -- lists of runs -------------------------------------------------------------------


async def test_runs_are_listed_newest_first_by_thread_and_state(
    service: Orchestration, ann: Caller, peer: InferencePeer
) -> None:
    peer.always = None
    one, two = await ann.thread(), await ann.thread()
    first = await ann.start(one)
    call = await peer.call()
    second = await ann.start(one)
    third = await ann.start(two)
    await peer.call()
    call.answer("done")
    await peer.call()
    assert [run.id for run in await runs(ann)] == [third.id, second.id, first.id]
    assert [run.id for run in await runs(ann, thread_id=one)] == [second.id, first.id]
    completed = await runs(ann, states=[run_pb2.RUN_STATE_COMPLETED])
    assert [run.id for run in completed] == [first.id]
    whole = await ann.run(first.id)
    assert (len(whole.steps), len(completed[0].steps), len(completed[0].output)) == (3, 0, 0)
    assert completed[0].last_event == whole.last_event
    assert await runs(ann, states=[run_pb2.RUN_STATE_COMPLETED], thread_id=two) == []
    page = await ann.call("ListRuns", pb.ListRunsRequest(page_size=2))
    rest = await ann.call("ListRuns", pb.ListRunsRequest(page_size=2, page_token=page.next_page_token))
    assert [run.id for run in (*page.runs, *rest.runs)] == [third.id, second.id, first.id]
    assert await runs(service.caller()) == []
    for request, field in (
        (pb.ListRunsRequest(thread_id="a b"), "thread_id"),
        (pb.ListRunsRequest(states=[0]), "states[0]"),
        (pb.ListRunsRequest(states=[99]), "states[0]"),
        (pb.ListRunsRequest(states=[1] * 99), "states"),
        (pb.ListRunsRequest(page_size=1_001), "page_size"),
        (pb.ListRunsRequest(thread_id=one, page_token=page.next_page_token), "page_token"),
    ):
        error = await refused(ann.call("ListRuns", request))
        assert isinstance(error, InvalidArgument)
        assert error.violations[0].field == field


# -- replicas ------------------------------------------------------------------------


async def test_of_several_replicas_one_starts_each_due_time(own_url: str, redis_url: str, peer: InferencePeer) -> None:
    async with processes(3, own_url, redis_url, inference_target=peer.target, schedule_poll_s=0.05) as replicas:
        ann = replicas[0].caller("ann")
        await ann.agent()
        for number in range(20):
            await put(ann, planned(f"s{number}"))
        for _ in range(2):
            moment = now() - timedelta(seconds=1)
            for number in range(20):
                await since(own_url, ann, moment, f"s{number}")
            await eventually(lambda: _all_decided(ann))
        found = await ended(ann, 40)
        labels = [run.labels["schedule"] for run in found]
        assert sorted(labels) == sorted([f"s{number}" for number in range(20)] * 2)


async def _all_decided(caller: Caller) -> bool:
    return all(each.next_run_at.ToDatetime(UTC) > now() for each in await listed(caller))


async def test_a_replica_that_is_killed_while_it_starts_a_run_is_followed_by_another(
    own_url: str, redis_url: str, peer: InferencePeer
) -> None:
    settings = {"inference_target": peer.target, "schedule_poll_s": 0.05}
    async with processes(1, own_url, redis_url, **settings) as (victim,):
        ann = victim.caller("ann")
        await ann.agent()
        thread = await ann.thread()
        await put(ann, planned(thread_id=thread))
        connection = await asyncpg.connect(own_url)
        # The run's start gets as far as this thread, and no further.
        holding = connection.transaction()
        await holding.start()
        await connection.execute("SELECT 1 FROM orchestration.thread WHERE id = $1 FOR UPDATE", thread)
        await since(own_url, ann, now() - timedelta(seconds=1))
        watching = await asyncpg.connect(own_url)

        async def is_held() -> bool:
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(await watching.fetchval(waits))

        await eventually(is_held)
        async with processes(1, own_url, redis_url, **settings) as (survivor,):
            victim.kill()
            await holding.rollback()
            ann = survivor.caller("ann")
            (run,) = await ended(ann, 1)
            assert (await listed(ann))[0].last_run_id == run.id
            assert await ann.history(thread) == [("user", "the report, please"), ("assistant", "done")]
            assert await watching.fetchval("SELECT count(*) FROM orchestration.run") == 1
        await connection.close()
        await watching.close()
