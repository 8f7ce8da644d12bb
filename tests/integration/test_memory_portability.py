"""Export and Import over gRPC, on real Postgres and Chroma."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import grpc
import pytest
import pytest_asyncio
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, said, texts
from tests.fakes.patience import patient_postgres

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_kit.channel import connect
from janus_kit.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from janus_kit.postgres import database
from janus_memory import export as exporting
from janus_memory import importing
from janus_memory.adapters.postgres_records import PostgresRecords

MAY = datetime(2023, 5, 8, 13, 56, 7, 123_456, tzinfo=UTC)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[Memory]:
    async with running(postgres_url, redis_url, chroma_url=chroma_url) as service:
        yield service


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


@pytest_asyncio.fixture(loop_scope="module")
async def owner(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    try:
        yield connection
    finally:
        await connection.close()


async def export(caller: Caller, space: str = "default", **fields: Any) -> list[pb.ExportResponse]:
    scope = scope_pb2.Scope(space=space, **fields.pop("scope", {}))
    request = pb.ExportRequest(scope=scope, **fields)
    return [each async for each in caller.stub.Export(request, metadata=caller.metadata, timeout=20)]


def records_of(exported: Sequence[pb.ExportResponse]) -> list[Any]:
    """The records without the space and the end."""
    return [getattr(each, each.WhichOneof("record")) for each in exported[1:-1]]


def to_import(exported: Sequence[pb.ExportResponse], **config: str) -> list[pb.ImportRequest]:
    requests = [pb.ImportRequest(config=pb.ImportConfig(**config))]
    for each in exported:
        kind = each.WhichOneof("record")
        requests.append(pb.ImportRequest(**{kind: getattr(each, kind)}))
    return requests


def sealed(records: Sequence[pb.ImportRequest]) -> list[pb.ImportRequest]:
    """Records with a config before and the right end after them."""
    whole = b"".join(each.SerializeToString(deterministic=True) for each in records)
    end = pb.ExportCompleted(records=len(records), sha256=hashlib.sha256(whole).digest())
    return [pb.ImportRequest(config=pb.ImportConfig()), *records, pb.ImportRequest(completed=end)]


async def import_(caller: Caller, requests: Sequence[pb.ImportRequest]) -> pb.ImportResponse:
    answer: pb.ImportResponse = await caller.call("Import", iter(requests))
    return answer


async def fill(caller: Caller, seed: int) -> None:
    """Random records of every kind, with history."""
    rnd = random.Random(seed)
    letters = "abc \n\t'\"\\%_$é東京\u0301\U0001f469\u200d\x01"
    clock = MAY

    def words(most: int) -> str:
        return "x" + "".join(rnd.choices(letters, k=rnd.randrange(most)))

    def when() -> datetime:
        return MAY + timedelta(microseconds=rnd.randrange(10**15))

    for thread in ("talk", "a.b:c", "Talk"):
        turns = []
        for _ in range(rnd.randrange(1, 12)):
            turn = said(words(60), name=words(9), id=rnd.choice(["", f"m{rnd.random()}"]))
            clock += timedelta(minutes=rnd.choice([1, 5, 50, -70]), microseconds=rnd.randrange(10**6))
            if rnd.random() < 0.7:
                turn.occurred_at.FromDatetime(clock)
            if rnd.random() < 0.3:
                turn.message.created_at.FromDatetime(clock)
            if rnd.random() < 0.5:
                turn.metadata_json = json.dumps({words(5): [1.0, None, words(9)]})
            if rnd.random() < 0.5:
                call = content.ToolCall(call_id=words(9), name="t", arguments_json='{"a": 1.0,}')
                turn.message.parts.add().tool_call.CopyFrom(call)
                turn.message.parts.add().opaque.CopyFrom(content.OpaquePart(issuer="x", data=rnd.randbytes(9)))
            turns.append(turn)
        await caller.append(thread, *turns, scope={"subject": rnd.choice(["", "ann"]), "agent": rnd.choice(["", "a"])})
    memories = []
    for number in range(rnd.randrange(5, 30)):
        memory = record_pb2.Memory(
            kind=rnd.randrange(1, 6),
            text=f"{number} {words(80)}",
            id=rnd.choice(["", f"id{number}"]),
            predicate=words(9),
            scope=scope_pb2.Scope(subject=rnd.choice(["", "ann", "bob"]), thread=rnd.choice(["", "talk"])),
        )
        if rnd.random() < 0.8:
            memory.provenance.add(document=words(9), quote=words(9), origin=rnd.randrange(5))
        if rnd.random() < 0.5:
            memory.importance = rnd.random()
            memory.valid_from.FromDatetime(when())
            memory.metadata_json = json.dumps({"k": words(5)})
        if rnd.random() < 0.3:
            memory.expires_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
        memories.append(memory)
    await caller.remember(*memories)
    # What has expired comes back as another version of it.
    await caller.remember(*memories)


async def test_an_export_is_ordered_numbered_and_ends_in_its_checksum(ann: Caller) -> None:
    await fill(ann, 1)
    exported = await export(ann, include_history=True)
    assert [each.sequence for each in exported] == list(range(1, len(exported) + 1))
    kinds = [each.WhichOneof("record") for each in exported]
    assert kinds == sorted(kinds, key=["space", "turn", "memory", "version", "completed"].index)
    assert set(kinds) == {"space", "turn", "memory", "version", "completed"}
    turns = [each.turn for each in exported if each.HasField("turn")]
    for before, after in pairwise(turns):
        assert before.scope.thread != after.scope.thread or before.position + 1 == after.position
    assert len({turn.scope.thread for turn in turns}) == 3
    ids = [each.memory.id for each in exported if each.HasField("memory")]
    assert ids == sorted(ids)
    assert all(each.version.memory.HasField("superseded_at") for each in exported if each.HasField("version"))
    # The bytes of the checksum, made by hand: tag, length, record.
    sha256 = hashlib.sha256()
    for each in exported[:-1]:
        kind = each.WhichOneof("record")
        record = getattr(each, kind).SerializeToString(deterministic=True)
        number = each.DESCRIPTOR.fields_by_name[kind].number
        length, rest = bytearray(), len(record)
        while rest > 127:
            length.append(rest & 127 | 128)
            rest >>= 7
        sha256.update(bytes([number << 3 | 2, *length, rest]) + record)
    assert exported[-1].completed.sha256 == sha256.digest()
    assert exported[-1].completed.records == len(exported) - 1


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_imported_is_exported_the_same(memory: Memory, seed: int) -> None:
    ann, bob = memory.caller(), memory.caller()
    await fill(ann, seed)
    exported = await export(ann, include_history=True)
    done = await import_(bob, to_import(exported))
    assert (done.stored, done.unchanged) == (len(exported) - 1, 0)
    again = await export(bob, include_history=True)
    assert records_of(again) == records_of(exported)
    assert [each.SerializeToString(deterministic=True) for each in again[1:-1]] == [
        each.SerializeToString(deterministic=True) for each in exported[1:-1]
    ]
    done = await import_(bob, to_import(exported))
    assert (done.stored, done.unchanged) == (0, len(exported) - 1)
    done = await import_(ann, to_import(exported))
    assert (done.stored, done.unchanged) == (0, len(exported) - 1)


async def test_recall_gives_the_same_answers_after_an_import(memory: Memory) -> None:
    ann, bob = memory.caller(), memory.caller()
    space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA, dimensions=64, description="d")
    space.weights.speaker = 2
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
    turns = [said(f"the {noun} of day {n}", noun, MAY + timedelta(minutes=9 * n)) for n, noun in enumerate("abcde" * 6)]
    await ann.append("talk", *turns, scope={"space": "s"})
    await ann.remember(*(f"{noun} likes number {n}" for n, noun in enumerate("vwxyz")), scope={"space": "s"})
    await ann.indexed("s")
    await import_(bob, to_import(await export(ann, "s")))
    copied = (await bob.call("GetSpace", pb.GetSpaceRequest(name="s"))).space
    assert (copied.backend, copied.dimensions, copied.description) == (space.backend, 64, "d")
    assert copied.weights == space.weights
    await bob.indexed("s")
    for query in ("a day", "who likes number 3", "8 May 2023", "nubmer"):
        answers = [await who.recall(query, scope={"space": "s"}, limit=12, explain=True) for who in (ann, bob)]
        assert texts(answers[0]) == texts(answers[1])
        assert [hit.score for hit in answers[0].hits] == pytest.approx([hit.score for hit in answers[1].hits])
        assert not answers[1].degraded
    windows = [await who.window("talk", scope={"space": "s"}) for who in (ann, bob)]
    assert windows[0] == windows[1]


async def test_old_versions_are_recalled_as_of_their_time(memory: Memory, owner: asyncpg.Connection) -> None:
    ann, bob = memory.caller(), memory.caller()
    brief = record_pb2.Memory(kind=1, text="the heron sleeps")
    brief.expires_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=30))
    await ann.remember(brief)
    await owner.execute("UPDATE memory.memory SET expires_at = now() WHERE tenant = $1", ann.tenant)
    await ann.remember(brief)
    await owner.execute("UPDATE memory.memory SET expires_at = NULL WHERE tenant = $1", ann.tenant)
    exported = await export(ann, include_history=True)
    assert [each.WhichOneof("record") for each in exported] == ["space", "memory", "version", "completed"]
    await import_(bob, to_import(exported))
    await bob.indexed()
    was = exported[2].version.memory
    found = await bob.recall("heron", recorded_at=was.recorded_at)
    assert [(hit.memory.id, hit.memory.version) for hit in found.hits] == [(was.id, 1)]
    assert [hit.memory.version for hit in (await bob.recall("heron")).hits] == [2]
    assert len(await export(bob)) == 3


async def test_an_export_is_of_the_scope_that_was_asked_for(ann: Caller) -> None:
    for subject in ("ann", "bob"):
        await ann.append("talk", f"{subject} speaks", scope={"subject": subject})
        await ann.remember(f"{subject} is known", scope={"subject": subject})
    exported = await export(ann, scope={"subject": "bob"})
    assert [each.scope.subject for each in records_of(exported)] == ["bob", "bob"]
    assert records_of(exported)[0].position == 2
    assert records_of(await export(ann, scope={"thread": "other"})) == []


async def test_an_export_does_not_see_what_is_written_while_it_is_read(ann: Caller) -> None:
    await ann.append("talk", *(f"turn {n}" for n in range(200)))
    await ann.remember(*(f"fact {n}" for n in range(200)))
    call = ann.stub.Export(pb.ExportRequest(), metadata=ann.metadata, timeout=20)
    rest = aiter(call)
    exported = [await anext(rest)]
    await ann.append("talk", "late")
    await ann.remember("late", *(f"late {n}" for n in range(50)))
    exported.extend([each async for each in rest])
    assert exported[-1].completed.records == 401
    assert len(await export(ann)) == 454


async def test_an_export_that_is_left_gives_its_place_back(memory: Memory, ann: Caller) -> None:
    big = said("x" * 100_000)
    await ann.append("talk", *[big] * 30)
    # A window that does not grow: what is not read is not sent.
    async with connect(memory.host.address or "", options={"grpc.http2.bdp_probe": 0}) as channel:
        stub = rpc.MemoryServiceStub(channel)  # type: ignore[no-untyped-call]
        calls = [stub.Export(pb.ExportRequest(), metadata=ann.metadata, timeout=20) for _ in range(2)]
        for call in calls:
            await call.read()
        assert isinstance(await refused(export(ann)), ResourceExhausted)
        for call in calls:
            call.cancel()

    async def has_room() -> bool:
        try:
            # A whole one, which has given its own place back when it is read: the next test needs one.
            return bool(await export(ann))
        except grpc.aio.AioRpcError:
            return False

    await eventually(has_room)


async def test_an_export_that_nobody_reads_is_given_up(ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    await ann.append("talk", "one")
    # However fast it is read, that is too slow.
    monkeypatch.setattr(exporting, "PATIENCE_S", -1.0)
    error = await refused(export(ann))
    assert isinstance(error, DeadlineExceeded)
    assert error.metadata == {"leg": "reader"}


async def test_vectors_come_along_when_asked_for(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    for backend, name in ((space_pb2.VECTOR_BACKEND_PGVECTOR, "p"), (space_pb2.VECTOR_BACKEND_CHROMA, "c")):
        space = space_pb2.Space(name=name, backend=backend, dimensions=4)
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        own = record_pb2.Memory(kind=1, text="mine", embedding=[1.0, 2.0, 3.0, 4.0])
        await ann.remember(own, "the model's", scope={"space": name})
        await ann.indexed(name)
        exported = await export(ann, name, include_vectors=True)
        vectors = {each.text: list(each.embedding) for each in records_of(exported)}
        assert vectors["mine"] == [1.0, 2.0, 3.0, 4.0]
        assert sum(number * number for number in vectors["the model's"]) == pytest.approx(1)
        assert not any(each.embedding for each in records_of(await export(ann, name)))
        await import_(bob, to_import(exported))
        assert records_of(await export(bob, name, include_vectors=True)) == records_of(exported)
    await bob.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="other", dimensions=5)))
    error = await refused(import_(bob, to_import(exported, space="other")))
    assert (type(error), error.reason) == (InvalidArgument, "DIMENSION_MISMATCH")


async def test_a_text_without_words_is_exported_without_its_vector_and_can_be_imported(
    memory: Memory, ann: Caller
) -> None:
    await ann.remember("…", "herons eat fish")
    await ann.indexed()
    exported = await export(ann, include_vectors=True)
    assert {each.text: bool(each.embedding) for each in records_of(exported)} == {"…": False, "herons eat fish": True}
    bob = memory.caller()
    await import_(bob, to_import(exported))
    await bob.indexed()
    assert records_of(await export(bob, include_vectors=True)) == records_of(exported)


async def test_an_import_can_go_into_another_space(ann: Caller) -> None:
    await ann.append("talk", said("hello", id="m1"))
    exported = await export(ann)
    done = await import_(ann, to_import(exported, space="copy"))
    assert done.stored == 2
    [turn] = records_of(await export(ann, "copy"))
    assert (turn.scope.space, turn.message.id) == ("copy", "m1")
    assert len(records_of(await export(ann))) == 1


async def test_a_wrong_checksum_stores_nothing(memory: Memory, ann: Caller, owner: asyncpg.Connection) -> None:
    await fill(ann, 5)
    requests = to_import(await export(ann))
    changed = [pb.ImportRequest.FromString(each.SerializeToString()) for each in requests]
    next(each for each in changed if each.HasField("memory")).memory.text += "!"
    for broken in (changed, [*requests[:3], *requests[4:]], [*requests[:2], requests[3], requests[2], *requests[4:]]):
        bob = memory.caller()
        error = await refused(import_(bob, broken))
        assert (type(error), error.reason) == (DataLoss, "CHECKSUM_MISMATCH")
        for table in ("space", "thread", "turn", "memory", "unit", "outbox", "import_part", "request"):
            assert not await owner.fetchval(f"SELECT count(*) FROM memory.{table} WHERE tenant = $1", bob.tenant)


async def test_a_large_import_waits_in_pieces_that_are_gone_when_it_ends(
    memory: Memory, ann: Caller, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PART_BYTES", 2_000)
    await ann.append("talk", *(f"turn {n}" for n in range(100)))
    await ann.remember(*(f"fact {n}" for n in range(100)))
    exported = await export(ann)
    requests = to_import(exported)
    bob = memory.caller()
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[pb.ImportRequest]:
        for request in requests[:-1]:
            yield request
        await go_on.wait()
        yield requests[-1]

    call = bob.stub.Import(slowly(), metadata=bob.metadata, timeout=20)

    async def waits() -> bool:
        count = await owner.fetchval("SELECT count(*) FROM memory.import_part WHERE tenant = $1", bob.tenant)
        return bool(count > 3)

    await eventually(waits)
    assert not (await bob.window("talk")).turns
    go_on.set()
    assert (await call).stored == 201
    assert records_of(await export(bob)) == records_of(exported)
    assert not await owner.fetchval("SELECT count(*) FROM memory.import_part")

    async def is_clean() -> bool:
        return not await owner.fetchval("SELECT count(*) FROM memory.import_part")

    go_on.clear()
    # The end of what is sent and the cancel come in either order.
    for _ in range(20):
        call = bob.stub.Import(slowly(), metadata=bob.metadata, timeout=20)
        await eventually(waits)
        call.cancel()
        await eventually(is_clean)


async def test_an_import_whose_records_are_erased_meanwhile_stores_nothing(
    memory: Memory, ann: Caller, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PART_BYTES", 1_000)
    await ann.append("talk", *(f"turn {n}" for n in range(50)))
    requests = to_import(await export(ann))
    bob = memory.caller()

    async def robbed() -> AsyncIterator[pb.ImportRequest]:
        for request in requests[:-1]:
            yield request
        await eventually(waits)
        await owner.execute("DELETE FROM memory.import_part WHERE tenant = $1", bob.tenant)
        yield requests[-1]

    async def waits() -> bool:
        return bool(await owner.fetchval("SELECT count(*) FROM memory.import_part WHERE tenant = $1", bob.tenant))

    error = await refused(bob.stub.Import(robbed(), metadata=bob.metadata, timeout=20))
    assert isinstance(error, FailedPrecondition)
    assert not (await bob.window("talk")).turns


async def test_what_a_killed_import_left_is_removed_by_age(
    memory: Memory, owner: asyncpg.Connection, postgres_url: str
) -> None:
    await owner.execute(
        """INSERT INTO memory.import_part (tenant, import, number, records, created_at)
           VALUES ('a', gen_random_uuid(), 0, 'x', now() - interval '26 hours'),
                  ('b', gen_random_uuid(), 0, 'x', now())"""
    )
    async with database(patient_postgres(postgres_url), application="test") as pool:
        assert await PostgresRecords(pool).forget_imports() == 1
    assert [row["tenant"] for row in await owner.fetch("SELECT tenant FROM memory.import_part")] == ["b"]
    await owner.execute("DELETE FROM memory.import_part")


async def test_an_id_with_other_content_refuses_the_whole_import(memory: Memory, ann: Caller) -> None:
    await ann.append("talk", said("hello", id="m1"), said("again", id="m2"))
    await ann.remember(record_pb2.Memory(kind=1, text="fact", id="f1"), "other")
    requests = to_import(await export(ann))
    taken: list[tuple[str, str]] = []
    for prepare in (
        lambda who: who.append("talk", said("other", id="m1")),
        lambda who: who.append("talk", said("other", id="x")),
        lambda who: who.remember(record_pb2.Memory(kind=1, text="other fact", id="f1")),
        lambda who: who.remember("fact"),
    ):
        bob = memory.caller()
        await prepare(bob)
        before = records_of(await export(bob))
        error = await refused(import_(bob, requests))
        assert isinstance(error, AlreadyExists)
        taken.append((error.resource_type, error.resource_name))
        assert records_of(await export(bob)) == before
    assert taken == [("message", "m1"), ("message", "m1"), ("memory", "f1"), ("memory", "f1")]


async def test_an_import_goes_on_where_an_earlier_one_ended(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    await ann.append("talk", "one", "two")
    await import_(bob, to_import(await export(ann)))
    await ann.append("talk", "three")
    exported = await export(ann)
    done = await import_(bob, to_import(exported))
    assert (done.stored, done.unchanged) == (1, 3)
    assert texts(await bob.window("talk")) == ["one", "two", "three"]
    await bob.append("talk", "four")
    assert (await import_(bob, to_import(exported))).unchanged == 4
    assert texts(await bob.window("talk")) == ["one", "two", "three", "four"]


async def test_the_same_import_again_gives_the_stored_answer(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    await ann.append("talk", "one")
    requests = to_import(await export(ann), request_id="r1")
    first = await import_(bob, requests)
    assert await import_(bob, requests) == first
    await ann.append("talk", "two")
    error = await refused(import_(bob, to_import(await export(ann), request_id="r1")))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_a_stream_that_makes_no_sense_is_refused(memory: Memory, ann: Caller) -> None:
    await ann.append("talk", "one")
    await ann.remember("fact")
    good = to_import(await export(ann))
    space, turn, fact = good[1], good[2], good[3]

    def other(request: pb.ImportRequest, **fields: Any) -> pb.ImportRequest:
        copied = pb.ImportRequest.FromString(request.SerializeToString())
        record = getattr(copied, copied.WhichOneof("record"))
        for name, value in fields.items():
            record.ClearField(name)
            if value is not None:
                setattr(record, name, value)
        return copied

    wrong: list[tuple[list[pb.ImportRequest], str]] = [
        ([], "config"),
        (good[1:], "config"),
        (good[:-1], "completed"),
        ([*good, turn], "completed"),
        ([good[0], *good], "records[0]"),
        (sealed([turn]), "records[0]"),
        (sealed([space, space]), "records[1]"),
        (sealed([space, pb.ImportRequest()]), "records[1]"),
        (sealed([space, other(turn, position=0)]), "records[1].turn.position"),
        (sealed([space, other(turn, recorded_at=None)]), "records[1].turn.recorded_at"),
        (sealed([space, turn, other(fact, id="/")]), "records[2].memory.id"),
        (sealed([space, turn, other(fact, text="")]), "records[2].memory.text"),
        (sealed([space, other(fact, version=-1)]), "records[1].memory.version"),
        (sealed([other(space, name="elsewhere"), turn]), "records[1].turn.scope.space"),
        (sealed([other(space, dimensions=5_000)]), "space.dimensions"),
        (sealed([space, pb.ImportRequest(version=record_pb2.MemoryVersion(memory=fact.memory))]),
         "records[1].version.memory.superseded_at"),
    ]  # fmt: skip
    for requests, field in wrong:
        bob = memory.caller()
        error = await refused(import_(bob, requests))
        assert isinstance(error, InvalidArgument), (field, error)
        assert error.violations[0].field == field
        assert len(await export(bob)) == 2


async def test_another_tenants_space_is_as_if_it_had_never_been(memory: Memory, ann: Caller) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="secret")))
    for name in ("secret", "nothing"):
        error = await refused(export(memory.caller(), name))
        assert isinstance(error, NotFound)
        assert error.message == f"space '{name}' was not found"


async def test_ids_of_another_tenant_are_free(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    for who, text in ((ann, "ann's"), (bob, "bob's")):
        await who.remember(record_pb2.Memory(kind=1, text=text, id="f1"))
    exported = await export(ann)
    assert [each.text for each in records_of(exported)] == ["ann's"]
    assert (await import_(memory.caller(), to_import(exported))).stored == 2
    assert [each.text for each in records_of(await export(bob))] == ["bob's"]


async def test_a_space_on_a_backend_that_is_not_there_is_refused(
    memory: Memory, postgres_url: str, redis_url: str, ann: Caller
) -> None:
    space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
    exported = await export(ann, "s")
    async with running(postgres_url, redis_url) as without:
        error = await refused(import_(without.caller(), to_import(exported)))
    assert isinstance(error, FailedPrecondition)


async def test_a_killed_service_leaves_nothing_of_an_import_to_be_seen(
    memory: Memory, ann: Caller, owner: asyncpg.Connection
) -> None:
    await ann.append("talk", *(f"turn {n}" for n in range(250)))
    requests = to_import(await export(ann))
    bob = memory.caller()
    # As good as dead: the server ends its connections in the middle of the transaction.
    importing_now = asyncio.create_task(import_(bob, requests))

    async def is_storing() -> bool:
        ended = await owner.fetchval(
            """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND query LIKE 'INSERT INTO memory.turn%' AND state <> 'idle'"""
        )
        return bool(ended) or importing_now.done()

    await eventually(is_storing)
    await asyncio.wait([importing_now])
    turns = await owner.fetchval("SELECT count(*) FROM memory.turn WHERE tenant = $1", bob.tenant)
    assert turns == (0 if importing_now.exception() else 250)
    assert (await import_(bob, requests)).stored + turns >= 250


async def test_blocks_come_along_and_another_text_refuses_the_import(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    scope = scope_pb2.Scope(space="default", subject="ann")
    for number, text in enumerate(["likes herons", "likes otters"]):
        block = record_pb2.Block(scope=scope, name="persona", text=text, size_limit=100, description="who she is")
        await ann.call("PutBlock", pb.PutBlockRequest(block=block, expected_version=number))
    exported = await export(ann)
    assert [each.WhichOneof("record") for each in exported] == ["space", "block", "completed"]
    assert await import_(bob, to_import(exported)) == pb.ImportResponse(stored=2)
    there = (await bob.call("GetBlock", pb.GetBlockRequest(scope=scope, name="persona"))).block
    assert (there.text, there.size_limit, there.description) == ("likes otters", 100, "who she is")
    assert (there.version, there.updated_at) == (2, exported[1].block.updated_at)
    assert await import_(bob, to_import(exported)) == pb.ImportResponse(stored=0, unchanged=2)
    there.text = "likes geese"
    await bob.call("PutBlock", pb.PutBlockRequest(block=there, expected_version=there.version))
    assert isinstance(await refused(import_(bob, to_import(exported))), AlreadyExists)


async def test_why_versions_came_about_comes_along_and_what_was_forgotten_stays_so(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    kind = record_pb2.MEMORY_KIND_FACT
    for name, text in (("heron", "the heron nests here"), ("otter", "the otter swims")):
        await ann.call("Remember", pb.RememberRequest(memories=[record_pb2.Memory(id=name, kind=kind, text=text)]))
    change = pb.UpdateMemoryRequest(memory=record_pb2.Memory(id="heron", text="the heron left"), reason="autumn")
    change.update_mask.paths.append("text")
    await ann.call("UpdateMemory", change)
    await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id="otter", reason="a mistake"))
    await import_(bob, to_import(await export(ann, include_history=True)))
    told = await bob.call("GetHistory", pb.GetHistoryRequest(memory_id="otter"))
    assert [(each.change, each.reason) for each in told.versions] == [
        (record_pb2.CHANGE_CREATED, ""),
        (record_pb2.CHANGE_FORGOTTEN, "a mistake"),
    ]
    told = await bob.call("GetHistory", pb.GetHistoryRequest(memory_id="heron"))
    assert [each.change for each in told.versions] == [record_pb2.CHANGE_CREATED, record_pb2.CHANGE_IMPORTED]
    assert isinstance(await refused(bob.call("GetMemory", pb.GetMemoryRequest(memory_id="otter"))), NotFound)
    found = await bob.call("Recall", recall_pb2.RecallRequest(query="otter swims heron nests"))
    assert [hit.memory.text for hit in found.hits] == ["the heron left"]
