"""The model is asked while a run is being stored; of a run that is not stored, nobody ever hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
import pytest
from tests.fakes.orchestration_service import Caller, all_events, asking, eventually, kinds, running, until_kind
from tests.fakes.peers.inference_peer import InferencePeer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.rpc_errors import from_rpc

RECALLS = pytest.mark.parametrize("recalls", [0, 5], ids=["without recall", "with recall"])


@pytest.fixture
async def disk(own_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to the test's database."""
    connection = await asyncpg.connect(own_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def nothing_is_stored(disk: asyncpg.Connection) -> AsyncIterator[None]:
    """Within, whoever writes events waits."""
    async with disk.transaction():
        await disk.execute("LOCK TABLE orchestration.event IN SHARE MODE")
        yield


async def waiting(disk: asyncpg.Connection) -> int:
    """The process of the server that waits for a lock, once one does."""
    found: list[asyncpg.Record] = []

    async def waits() -> bool:
        found[:] = await disk.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(found)

    await eventually(waits)
    return int(found[0]["pid"])


async def ready(caller: Caller, recalls: int = 0) -> str:
    return await caller.ready(memory=agent_pb2.MemoryPolicy(recall_limit=recalls, do_not_store=True))


async def stored_runs(disk: asyncpg.Connection) -> int:
    return int(await disk.fetchval("SELECT count(*) FROM orchestration.run"))


@RECALLS
async def test_the_model_is_asked_while_the_run_is_stored_and_heard_afterwards(
    ann: Caller, peer: InferencePeer, disk: asyncpg.Connection, recalls: int
) -> None:
    thread = await ready(ann, recalls)
    async with nothing_is_stored(disk):
        stream = ann.converse(thread, "hi")
        first = asyncio.create_task(stream.read())
        call = await peer.call()
        call.answer("Hello")
        assert [part.text for message in call.prompt.messages for part in message.parts] == ["hi"]
        assert await stored_runs(disk) == 0
        assert not first.done()
    events = [(await first).event, *await all_events(stream)]
    assert [event.cursor.sequence for event in events] == list(range(1, len(events) + 1))
    told = ["memory_recalled"] if recalls else []
    assert kinds(events) == [
        *["run_queued", "run_started", "message_committed", *told],
        *["model.started", "model.text_delta", "model.finished", "message_committed", "run_completed"],
    ]
    assert await ann.history(thread) == [("user", "hi"), ("assistant", "Hello")]
    assert len(peer.calls) == 1
    assert await disk.fetchval("SELECT after_sequence FROM orchestration.step WHERE index = 1") == 3


@RECALLS
async def test_a_run_that_cannot_be_stored_leaves_nothing(
    ann: Caller, peer: InferencePeer, disk: asyncpg.Connection, recalls: int
) -> None:
    thread = await ready(ann, recalls)
    async with nothing_is_stored(disk):
        starting = asyncio.create_task(ann.start(thread))
        call = await peer.call()
        call.start()
        call.text("too ", "early")
        await disk.execute("SELECT pg_terminate_backend($1)", await waiting(disk))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await starting
        assert from_rpc(refused.value).code == "UNAVAILABLE"
        await asyncio.wait_for(call.closed.wait(), 10)
    assert await stored_runs(disk) == 0
    peer.always = ("at last",)
    assert kinds(await all_events(ann.converse(thread)))[-1] == "run_completed"
    assert await ann.history(thread) == [("user", "hello"), ("assistant", "at last")]


async def test_a_client_that_leaves_meanwhile_leaves_no_run(
    ann: Caller, peer: InferencePeer, disk: asyncpg.Connection
) -> None:
    thread = await ready(ann)
    async with nothing_is_stored(disk):
        stream = ann.converse(thread)
        first = asyncio.create_task(stream.read())
        call = await peer.call()
        # Postgres passes over the cancel of a statement that it has not begun.
        await waiting(disk)
        stream.cancel()
        await asyncio.wait([first])
        await asyncio.wait_for(call.closed.wait(), 10)
    assert await stored_runs(disk) == 0
    peer.always = ("here",)
    assert kinds(await all_events(ann.converse(thread)))[-1] == "run_completed"


async def test_heartbeats_do_not_mind_a_run_that_is_stored_slowly(
    own_url: str, redis_url: str, peer: InferencePeer, disk: asyncpg.Connection
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target, lease_s=0.5, poll_s=0.05) as service:
        ann = service.caller()
        thread = await ready(ann)
        async with nothing_is_stored(disk):
            stream = ann.converse(thread)
            call = await peer.call()
            call.start()
            # Several heartbeats.
            await asyncio.sleep(0.8)
        await until_kind(stream, "model.started")
        call.text("done")
        call.finish()
        rest = await all_events(stream)
        assert (kinds(rest)[-1], rest[-1].cursor.epoch, len(peer.calls)) == ("run_completed", 1, 1)


# Of Postgres's protocol: a message of 16 bytes, and what it is.
_CANCEL_REQUEST = (16).to_bytes(4, "big") + (80_877_102).to_bytes(4, "big")


class LateAnswer:
    """Between a service and Postgres: the answer to the commit that stores a run is held back, while ``holds``.

    ``gave_up`` is set when the driver asks for a statement to be cancelled.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.url = ""
        self.holds = False
        self.gave_up = asyncio.Event()
        self._let_go = asyncio.Event()

    async def __aenter__(self) -> LateAnswer:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        credentials, at, _ = self._url.netloc.rpartition("@")
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._url._replace(netloc=f"{credentials}{at}127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._let_go.set()
        self._server.close()

    def let_go(self) -> None:
        self.holds = False
        self._let_go.set()

    async def _forward(self, asking: asyncio.StreamReader, answering: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection(self._url.hostname, self._url.port)
        stores = waits = False

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, is_asking: bool) -> None:
            nonlocal stores, waits
            with suppress(OSError):
                while data := await source.read(65_536):
                    if is_asking:
                        if _CANCEL_REQUEST in data:
                            self.gave_up.set()
                        stores = stores or b"INSERT INTO orchestration.run (" in data
                        waits = waits or (stores and self.holds and b"COMMIT\0" in data)
                    elif waits:
                        await self._let_go.wait()
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pass_on(asking, to, True), pass_on(there, answering, False))


@asynccontextmanager
async def answered_late(
    own_url: str, redis_url: str, peer: InferencePeer
) -> AsyncIterator[tuple[Caller, str, LateAnswer]]:
    """A client and a thread of a service with short leases, whose next run's commit is answered late."""
    async with (
        LateAnswer(own_url) as between,
        running(between.url, redis_url, inference_target=peer.target, lease_s=0.5, poll_s=0.05) as service,
    ):
        ann = service.caller()
        thread = await ready(ann)
        between.holds = True
        yield ann, thread, between


async def is_there(disk: asyncpg.Connection) -> None:
    """Wait until a run is stored."""

    async def stored() -> bool:
        return await stored_runs(disk) > 0

    await eventually(stored)


async def test_a_run_whose_commit_is_answered_late_keeps_its_lease(
    own_url: str, redis_url: str, peer: InferencePeer, disk: asyncpg.Connection
) -> None:
    async with answered_late(own_url, redis_url, peer) as (ann, thread, between):
        starting = asyncio.create_task(ann.start(thread))
        call = await peer.call()
        call.answer("Hello")
        await is_there(disk)
        # Longer than a lease.
        await asyncio.sleep(1)
        assert not starting.done()
        between.let_go()
        run = await starting
        events = await ann.watched(run.id)
        assert [(event.cursor.epoch, event.cursor.sequence) for event in events] == [(1, n + 1) for n in range(8)]
        assert (kinds(events)[-1], len(peer.calls)) == ("run_completed", 1)


async def test_a_run_whose_client_left_before_its_commit_was_answered_is_taken_over_and_left_alone(
    own_url: str, redis_url: str, peer: InferencePeer, disk: asyncpg.Connection
) -> None:
    async with answered_late(own_url, redis_url, peer) as (ann, thread, between):
        stream = ann.converse(thread)
        first = asyncio.create_task(stream.read())
        call = await peer.call()
        await is_there(disk)
        stream.cancel()
        await asyncio.wait([first])
        await asyncio.wait_for(between.gave_up.wait(), 10)
        between.let_go()
        await asyncio.wait_for(call.closed.wait(), 10)
        again = await peer.call()
        again.answer("Hello")
        events = await ann.watched(await disk.fetchval("SELECT id FROM orchestration.run"))
        assert kinds(events)[-1] == "run_completed"
        run = await ann.run(events[0].run_id)
        assert (run.state, run.takeovers, len(peer.calls)) == (run_pb2.RUN_STATE_COMPLETED, 1, 2)


async def test_what_was_said_while_a_run_waited_for_its_thread_is_in_its_prompt(
    ann: Caller, peer: InferencePeer, disk: asyncpg.Connection
) -> None:
    peer.always = ("first answer",)
    thread = await ready(ann)
    await all_events(ann.converse(thread, "first"))
    async with disk.transaction():
        await disk.execute("SELECT 1 FROM orchestration.thread FOR UPDATE")
        starting = asyncio.create_task(ann.start(thread, "second"))
        await waiting(disk)
        await disk.execute(
            "INSERT INTO orchestration.message (tenant, thread_id, id, position, ordinal, role, name, text, content) "
            "SELECT tenant, thread_id, 'msg_between', 3, 0, role, name, 'between', content "
            "FROM orchestration.message WHERE position = 1"
        )
        await disk.execute("UPDATE orchestration.thread SET last_position = 3")
    await starting
    await peer.call()
    prompt = (await peer.call()).prompt
    assert len(prompt.messages) == 4
    assert prompt.messages[2] == prompt.messages[0], "what was put in between has the words of the first"


async def test_a_message_that_is_there_is_refused_before_the_model_is_asked(ann: Caller, peer: InferencePeer) -> None:
    peer.always = ("yes",)
    thread = await ready(ann)
    request = pb.StartRunRequest(input=asking(thread, "once"))
    request.input.messages[0].id = "msg_of_mine"
    run = (await ann.call("StartRun", request)).run
    await ann.watched(run.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ann.call("StartRun", request)
    error = from_rpc(refused.value)
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "RESOURCE_EXISTS")
    assert len(peer.calls) == 1
    assert [message.id for message in await ann.messages(thread)].count("msg_of_mine") == 1
    assert (await ann.messages(thread))[0].role == content.ROLE_USER
