"""Long-running operations: one owner at a time, taken over, watched, cancelled, never half done."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.rpc import error_details_pb2
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running
from tests.fakes.patience import patient_postgres

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from janus_kit.ids import new_id
from janus_kit.postgres import Database, database
from janus_kit.rpc_errors import from_status
from janus_memory import operation_runner
from janus_memory.adapters.postgres_operations import PostgresOperations
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.model import Claim, Operation, OperationState
from janus_memory.operation_runner import GIVE_UP_AFTER, LEASE_S, OperationRunner
from janus_memory.operations import Changes
from janus_memory.ports import Progress

Work = Callable[[Operation, Progress], Awaitable[Mapping[str, Any]]]


@dataclass
class Scripted:
    """A kind of operation that does what a test says."""

    work: Work
    undoes: bool = True
    undone: list[str] = field(default_factory=list)
    runs: int = 0

    async def run(self, tenant: str, operation: Operation, progress: Progress) -> Mapping[str, Any]:
        self.runs += 1
        return await self.work(operation, progress)

    async def undo(self, tenant: str, operation: Operation) -> bool:
        self.undone.append(operation.id)
        return self.undoes


@dataclass
class Bench:
    """The service without a runner of its own, and runners with scripted kinds."""

    memory: Memory
    pool: Database
    owner: asyncpg.Connection
    records: PostgresRecords
    queue: PostgresOperations
    ann: Caller

    async def start(self, kind: str = "test", subjects: Sequence[str] = (), **arguments: Any) -> str:
        name = new_id("op")
        async with self.records.transaction(self.ann.tenant) as tx:
            await tx.add_operation(name, kind, arguments, "ann", subjects)
        return name

    async def claimed(self, name: str) -> Claim:
        claim = await self.queue.claim(str(uuid4()), ["test"], LEASE_S)
        assert claim is not None
        assert claim.id == name
        return claim

    @asynccontextmanager
    async def runner(self, handler: Scripted, at_once: int = 4, poll_s: float = 60) -> AsyncIterator[OperationRunner]:
        changes = Changes(self.queue)
        made = OperationRunner(self.records, self.queue, changes, {"test": handler}, at_once=at_once, poll_s=poll_s)
        tasks = [asyncio.create_task(changes.run()), asyncio.create_task(made.run())]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def get(self, name: str) -> operation_pb2.Operation:
        answer = await self.ann.call("GetOperation", pb.GetOperationRequest(operation_id=name))
        return answer.operation

    async def ended(self, name: str) -> operation_pb2.Operation:
        async def done() -> bool:
            return (await self.get(name)).HasField("ended_at")

        await eventually(done)
        return await self.get(name)

    async def cancel(self, name: str, **fields: Any) -> operation_pb2.Operation:
        request = pb.CancelOperationRequest(operation_id=name, **fields)
        return (await self.ann.call("CancelOperation", request)).operation

    def watch(self, name: str) -> Any:
        return self.ann.stub.WatchOperation(
            pb.WatchOperationRequest(operation_id=name), metadata=self.ann.metadata, timeout=30
        )

    async def hurry(self, name: str) -> None:
        """Let what waits for its time be due."""
        await self.owner.execute("UPDATE memory.operation SET available_at = now() WHERE id = $1", name)
        await self.owner.execute("SELECT pg_notify('janus_memory_operation_due', $1)", name)


@pytest.fixture
async def bench(postgres_url: str, redis_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(running(postgres_url, redis_url, indexer=False, operations=False))
        pool = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        await owner.execute("DELETE FROM memory.operation")
        yield Bench(memory, pool, owner, PostgresRecords(pool), PostgresOperations(pool), memory.caller())


async def three_steps(operation: Operation, progress: Progress) -> Mapping[str, Any]:
    for step in range(operation.cursor.get("step", 0) + 1, 4):
        await progress.save({"step": step}, done=step, total=3, phase=f"step {step}")
    return {"steps": 3}


def forever(began: asyncio.Event) -> Work:
    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        await progress.save({}, done=1, total=0, phase="at work")
        began.set()
        await asyncio.Event().wait()
        return {}

    return work


async def test_an_operation_is_done_at_once_and_says_what_came_of_it(bench: Bench) -> None:
    async with bench.runner(Scripted(three_steps)):
        done = await bench.ended(await bench.start())
    assert done.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    assert (done.kind, done.done, done.total, done.phase) == ("test", 3, 3, "step 3")
    assert done.result_json == '{"steps": 3}'
    assert done.created_at.ToDatetime() <= done.updated_at.ToDatetime()
    assert not done.HasField("error")


async def test_a_watcher_sees_the_operation_now_and_every_later_state_until_its_end(bench: Bench) -> None:
    name = await bench.start()
    stream = bench.watch(name)
    first = await anext(aiter(stream))
    assert first.progress.state == operation_pb2.OPERATION_STATE_PENDING
    async with bench.runner(Scripted(three_steps)):
        rest = [event async for event in stream]
    assert [event.sequence for event in (first, *rest)] == list(range(1, len(rest) + 2))
    assert [event.WhichOneof("event") for event in rest[:-1]] == ["progress"] * (len(rest) - 1)
    assert rest[-1].ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    done = [event.progress.done for event in rest[:-1]]
    assert done == sorted(done)


async def test_a_watcher_of_an_ended_operation_gets_its_end_at_once(bench: Bench) -> None:
    async with bench.runner(Scripted(three_steps)):
        name = await bench.start()
        await bench.ended(name)
    events = [event async for event in bench.watch(name)]
    assert [(event.sequence, event.WhichOneof("event")) for event in events] == [(1, "ended")]


async def test_a_watcher_that_was_told_nothing_looks_anyway(bench: Bench) -> None:
    name = await bench.start()
    stream = bench.watch(name)
    await anext(aiter(stream))
    # Without a notification, as when the one that told it was lost.
    await bench.owner.execute(
        "UPDATE memory.operation SET state = 3, ended_at = now(), change = change + 1 WHERE id = $1", name
    )
    assert [event.WhichOneof("event") async for event in stream] == ["ended"]


async def test_a_pending_operation_is_cancelled_without_being_begun(bench: Bench) -> None:
    name = await bench.start()
    assert (await bench.cancel(name)).state == operation_pb2.OPERATION_STATE_PENDING
    handler = Scripted(three_steps)
    async with bench.runner(handler):
        assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_CANCELLED
    assert (handler.runs, handler.undone) == (0, [name])


async def test_a_running_operation_is_stopped_and_undone(bench: Bench) -> None:
    began = asyncio.Event()
    handler = Scripted(forever(began))
    async with bench.runner(handler):
        name = await bench.start()
        await began.wait()
        assert (await bench.cancel(name, request_id="r1")).state == operation_pb2.OPERATION_STATE_RUNNING
        done = await bench.ended(name)
    assert done.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert handler.undone == [name]
    assert not done.HasField("error")
    # The same call again, and another one after the end, change nothing.
    assert await bench.cancel(name, request_id="r1") == done
    assert await bench.cancel(name) == done
    reused = pb.CancelOperationRequest(operation_id=await bench.start(), request_id="r1")
    error = await refused(bench.ann.call("CancelOperation", reused))
    assert isinstance(error, AlreadyExists)


async def test_what_cannot_be_undone_any_more_is_done_to_its_end(bench: Bench) -> None:
    began = asyncio.Event()
    ways = iter([forever(began), three_steps])

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        return await next(ways)(operation, progress)

    async with bench.runner(Scripted(work, undoes=False)):
        name = await bench.start()
        await began.wait()
        await bench.cancel(name)
        assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_impossible_work_fails_with_its_typed_reason(bench: Bench) -> None:
    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        raise FailedPrecondition("STATE_CONFLICT", "the space is gone", {"state": "gone"}, subject="space/s")

    handler = Scripted(work)
    async with bench.runner(handler):
        name = await bench.start()
        done = await bench.ended(name)
    assert done.state == operation_pb2.OPERATION_STATE_FAILED
    error = from_status(done.error)
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.message, error.metadata) == ("STATE_CONFLICT", "the space is gone", {"state": "gone"})
    assert any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in done.error.details)
    assert (handler.runs, handler.undone, done.result_json) == (1, [name], "")


async def test_a_part_that_is_away_costs_nothing_but_time(bench: Bench) -> None:
    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        if operation.waits <= GIVE_UP_AFTER:
            raise Unavailable("chroma")
        return {}

    async with bench.runner(Scripted(work)):
        name = await bench.start()
        for tries in range(1, GIVE_UP_AFTER + 2):

            async def waits(tries: int = tries) -> bool:
                sql = "SELECT waits FROM memory.operation WHERE id = $1"
                return bool(await bench.owner.fetchval(sql, name) == tries)

            await eventually(waits)
            assert "chroma" in (await bench.get(name)).phase
            await bench.hurry(name)
        assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_a_part_that_is_slow_is_not_said_to_be_away(bench: Bench) -> None:
    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        if not operation.waits:
            raise Unavailable("chroma") from TimeoutError()
        return {}

    async with bench.runner(Scripted(work)):
        name = await bench.start()

        async def says_so() -> bool:
            return (await bench.get(name)).phase == "waits for chroma, which is slow to answer"

        await eventually(says_so)
        await bench.hurry(name)
        assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_an_error_that_nobody_expected_is_given_up_on_and_told_without_its_text(bench: Bench) -> None:
    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        raise RuntimeError("the secret text")

    handler = Scripted(work)
    async with bench.runner(handler):
        name = await bench.start()
        for failures in range(1, GIVE_UP_AFTER + 1):

            async def failed(failures: int = failures) -> bool:
                sql = "SELECT failures FROM memory.operation WHERE id = $1"
                return bool(await bench.owner.fetchval(sql, name) == failures)

            await eventually(failed)
            await bench.hurry(name)
        done = await bench.ended(name)
    assert done.state == operation_pb2.OPERATION_STATE_FAILED
    assert from_status(done.error).reason == "INTERNAL"
    assert "secret" not in str(done)
    assert (handler.runs, handler.undone) == (GIVE_UP_AFTER, [name])


async def test_an_operation_whose_owner_died_goes_on_where_it_was(bench: Bench) -> None:
    name = await bench.start()
    dead = await bench.claimed(name)
    async with bench.records.transaction(bench.ann.tenant) as tx:
        assert await tx.save_progress(dead, {"step": 2}, 2, 3, "step 2")
    seen: list[int] = []

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        seen.append(operation.cursor["step"])
        return await three_steps(operation, progress)

    async with bench.runner(Scripted(work), poll_s=0.1):
        assert not (await bench.get(name)).HasField("ended_at")
        await bench.owner.execute("UPDATE memory.operation SET leased_until = now() WHERE id = $1", name)
        assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED
    assert seen == [2]


async def test_an_owner_that_was_followed_by_another_changes_nothing(bench: Bench) -> None:
    name = await bench.start()
    stale = await bench.claimed(name)
    await bench.owner.execute("UPDATE memory.operation SET leased_until = now() - interval '1 s' WHERE id = $1", name)
    fresh = await bench.claimed(name)
    assert fresh.epoch > stale.epoch
    async with bench.records.transaction(bench.ann.tenant) as tx:
        assert await tx.renew(stale, LEASE_S) is None
        assert not await tx.save_progress(stale, {"step": 9}, 9, 9, "stale")
        assert not await tx.end_operation(stale, OperationState.SUCCEEDED, {}, None)
        assert not await tx.release_operation(stale, 0, None)
        assert await tx.renew(fresh, LEASE_S) is not None


async def test_a_handler_that_lost_its_operation_is_stopped_and_its_transaction_undone(bench: Bench) -> None:
    began, other_ended = asyncio.Event(), asyncio.Event()
    stopped: list[type[BaseException]] = []

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        began.set()
        await other_ended.wait()
        try:
            async with bench.records.transaction(bench.ann.tenant) as tx:
                await tx.add_operation("op_by_stale", "other", {}, "ann")
                await progress.save({}, done=1, total=1, phase="stale", tx=tx)
        except BaseException as error:
            stopped.append(type(error))
            raise
        return {}

    async with bench.runner(Scripted(work)):
        name = await bench.start()
        await began.wait()
        await bench.owner.execute(
            "UPDATE memory.operation SET leased_until = now() - interval '9 s' WHERE id = $1", name
        )
        await bench.claimed(name)
        other_ended.set()

        async def noticed() -> bool:
            return bool(stopped)

        await eventually(noticed)
    assert isinstance(await refused(bench.ann.call("GetOperation", _get("op_by_stale"))), NotFound)
    assert (await bench.get(name)).phase == ""


async def test_an_erasure_removes_what_is_about_its_subject_and_stops_what_runs(bench: Bench) -> None:
    began, erased = asyncio.Event(), asyncio.Event()
    stopped: list[type[BaseException]] = []

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        began.set()
        await erased.wait()
        try:
            async with bench.records.transaction(bench.ann.tenant) as tx:
                await tx.add_operation("op_after_erasure", "other", {}, "ann")
                await progress.save({}, done=1, total=1, phase="late", tx=tx)
        except BaseException as error:
            stopped.append(type(error))
            raise
        return {}

    async def noticed() -> bool:
        return bool(stopped)

    await bench.ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s")))
    async with bench.records.transaction(bench.ann.tenant) as tx:
        space = await tx.space("s")
    assert space is not None
    others = [await bench.start(subjects=["eve"]), await bench.start(subjects=["bob"], space_no=space.number + 1)]
    await bench.owner.execute("UPDATE memory.operation SET state = 3, ended_at = now()")
    bobs = await bench.start(subjects=["eve", "bob"], space_no=space.number, text="what bob said")
    async with bench.runner(Scripted(work)):
        await began.wait()
        answer = await bench.ann.call("Erase", pb.EraseRequest(scope={"subject": "bob", "space": "s"}))
        erased.set()
        await eventually(noticed)
        counts = {count.store: (count.removed, count.remaining) for count in answer.receipt.counts}
        assert counts["postgres.operation"] == (1, 0)
    for name in (bobs, "op_after_erasure"):
        assert isinstance(await refused(bench.ann.call("GetOperation", _get(name))), NotFound)
    for name in others:
        assert (await bench.get(name)).id == name


async def test_what_makes_no_progress_keeps_no_place_from_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_runner, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(operation_runner, "_MOST_WAITING", 3)
    hanging: set[str] = set()
    go_on = asyncio.Event()

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        if operation.arguments.get("hangs"):
            hanging.add(operation.id)
            await go_on.wait()
        return await three_steps(operation, progress)

    async with bench.runner(Scripted(work), at_once=1, poll_s=0.1):
        for many in (1, 2, 3):
            await bench.start(hangs=True)
            await eventually(lambda many=many: asyncio.sleep(0, len(hanging) == many))
        done = await bench.ended(await bench.start())
        assert done.state == operation_pb2.OPERATION_STATE_SUCCEEDED
        # So many, and no more: what is owned is bounded.
        names = [await bench.start(hangs=True), await bench.start(hangs=True)]
        await eventually(lambda: asyncio.sleep(0, len(hanging) == 4))
        last = await bench.get(await bench.start())
        assert last.state == operation_pb2.OPERATION_STATE_PENDING
        go_on.set()
        for name in (*names, last.id):
            assert (await bench.ended(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_what_makes_progress_again_counts_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_runner, "_PATIENCE_S", 0.3)
    go_on, begun = asyncio.Event(), []

    async def work(operation: Operation, progress: Progress) -> Mapping[str, Any]:
        begun.append(operation.id)
        await go_on.wait()
        for done in itertools.count(1):
            await progress.save({}, done=done, total=0, phase="at work")
            await asyncio.sleep(0.02)
        return {}

    async with bench.runner(Scripted(work), at_once=1, poll_s=0.05):
        names = [await bench.start(), await bench.start()]
        await eventually(lambda: asyncio.sleep(0, len(begun) == 2))
        go_on.set()

        async def both_work() -> bool:
            return all([(await bench.get(name)).phase == "at work" for name in names])

        await eventually(both_work)
        last = await bench.start()
        # Longer than patience lasts.
        await asyncio.sleep(1)
        assert (await bench.get(last)).state == operation_pb2.OPERATION_STATE_PENDING
        assert len(begun) == 2


async def test_a_process_that_ends_hands_its_operations_over_at_once(bench: Bench) -> None:
    began = asyncio.Event()
    async with bench.runner(Scripted(forever(began))):
        name = await bench.start()
        await began.wait()
    # No lease has to run out, and it was nobody's failure.
    assert (await bench.claimed(name)).id == name
    assert await bench.owner.fetchval("SELECT failures FROM memory.operation WHERE id = $1", name) == 0


async def test_owners_that_die_count_and_are_followed_more_and_more_slowly(bench: Bench) -> None:
    name = await bench.start()
    await bench.claimed(name)
    for failures in (1, 2):
        sql = "UPDATE memory.operation SET leased_until = now() - make_interval(secs => $2) WHERE id = $1"
        await bench.owner.execute(sql, name, float((failures - 1) ** 2) + 0.5)
        await bench.claimed(name)
        assert await bench.owner.fetchval("SELECT failures FROM memory.operation WHERE id = $1", name) == failures
    await bench.owner.execute("UPDATE memory.operation SET leased_until = now() - interval '1 s' WHERE id = $1", name)
    assert await bench.queue.claim(str(uuid4()), ["test"], LEASE_S) is None


async def test_one_operation_has_one_owner_however_many_ask(bench: Bench) -> None:
    names = {await bench.start() for _ in range(5)}
    claims = await asyncio.gather(*(bench.queue.claim(str(uuid4()), ["test"], LEASE_S) for _ in range(12)))
    assert sorted(claim.id for claim in claims if claim) == sorted(names)
    assert await bench.queue.claim(str(uuid4()), ["another kind"], LEASE_S) is None


async def test_a_tenant_with_much_to_do_does_not_keep_others_waiting(bench: Bench) -> None:
    for _ in range(6):
        await bench.start()
    await bench.queue.claim(str(uuid4()), ["test"], LEASE_S)
    bob = bench.memory.caller()
    async with bench.records.transaction(bob.tenant) as tx:
        await tx.add_operation("op_of_bob", "test", {}, "bob")
    claim = await bench.queue.claim(str(uuid4()), ["test"], LEASE_S)
    assert claim is not None
    assert (claim.tenant, claim.id) == (bob.tenant, "op_of_bob")


async def test_another_tenants_operation_is_as_if_it_had_never_been(bench: Bench) -> None:
    name = await bench.start()
    bob = bench.memory.caller()
    for absent in (name, "op_that_never_was"):
        watch = bob.stub.WatchOperation(
            pb.WatchOperationRequest(operation_id=absent), metadata=bob.metadata, timeout=10
        )
        for call in (
            bob.call("GetOperation", _get(absent)),
            bob.call("CancelOperation", pb.CancelOperationRequest(operation_id=absent)),
            anext(aiter(watch)),
        ):
            error = await refused(call)
            assert isinstance(error, NotFound)
            assert error.message == f"operation '{absent}' was not found"
    sql = "SELECT cancel_requested FROM memory.operation WHERE id = $1"
    assert await bench.owner.fetchval(sql, name) is False


async def test_an_id_that_is_none_names_the_field(bench: Bench) -> None:
    for method, request in (
        ("GetOperation", pb.GetOperationRequest()),
        ("CancelOperation", pb.CancelOperationRequest(operation_id="no id!")),
    ):
        error = await refused(bench.ann.call(method, request))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["operation_id"]


async def test_operations_are_forgotten_a_month_after_their_end(bench: Bench) -> None:
    old, recent, going_on = [await bench.start() for _ in range(3)]
    sql = "UPDATE memory.operation SET ended_at = now() - make_interval(days => $2), state = 3 WHERE id = $1"
    await bench.owner.execute(sql, old, 31)
    await bench.owner.execute(sql, recent, 29)
    assert await bench.queue.forget_ended() == 1
    rows = await bench.owner.fetch("SELECT id FROM memory.operation")
    assert {row["id"] for row in rows} == {recent, going_on}


async def test_the_worker_sees_neither_what_was_asked_nor_what_came_of_it(bench: Bench) -> None:
    await bench.start(guidance="secret")
    for column in ("arguments", "cursor", "result_json", "error", "phase", "requested_by"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with bench.pool.worker() as connection:
                await connection.fetch(f"SELECT {column} FROM memory.operation")


def _get(name: str) -> pb.GetOperationRequest:
    return pb.GetOperationRequest(operation_id=name)
