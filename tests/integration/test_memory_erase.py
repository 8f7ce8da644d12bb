"""Erase: a subject goes from every store, nobody else loses anything, and a receipt proves it."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from tests.fakes.memory_service import Caller, Memory, eventually, refused, said, texts
from tests.fakes.traces import traces

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2, space_pb2
from janus_kit.errors import AlreadyExists, InvalidArgument, NotFound
from janus_kit.postgres import Database
from janus_kit.redis import redis as redis_client
from janus_kit.settings import RedisSettings
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.erasure import Target
from janus_memory.model import Backend
from janus_memory.receipts import ReceiptError, verify_receipt
from janus_memory.reconcile import Reconcile

RYW = scope_pb2.CONSISTENCY_READ_YOUR_WRITES
PGVECTOR, CHROMA = space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA


@pytest.fixture
def desk(memory: Memory) -> Caller:
    """An application that keeps memories of many people."""
    return memory.caller()


def planted() -> str:
    """A word that is nowhere else, and that no stemmer touches."""
    return f"zq{uuid4().hex[:12]}x0"


async def erase(desk: Caller, subject: str, space: str = "", **fields: Any) -> pb.EraseReceipt:
    request = pb.EraseRequest(scope=scope_pb2.Scope(subject=subject, space=space), **fields)
    return (await desk.call("Erase", request)).receipt


def removed(receipt: pb.EraseReceipt) -> dict[str, int]:
    assert all(count.remaining == 0 for count in receipt.counts)
    return {count.store: count.removed for count in receipt.counts}


def fact(text: str, **fields: Any) -> record_pb2.Memory:
    return record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, **fields)


async def agree(db: Database, desk: Caller) -> bool:
    """Whether vectors and statistics are what the records say."""
    reconcile = Reconcile(PostgresRecords(db), _NoWindows(), {Backend.PGVECTOR: PgvectorIndex(db)})  # type: ignore[arg-type]
    return not any([findings.wrong async for findings in reconcile.tenant(desk.tenant, repair=False)])


class _NoWindows:
    async def held(self, tenant: str, incarnation: str) -> list[Any]:
        return []


@pytest.mark.parametrize("backend", [PGVECTOR, CHROMA])
async def test_nothing_of_a_subject_is_left_in_any_store(
    memory: Memory, desk: Caller, backend: int, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    secret, ann = planted(), planted()
    await desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s", backend=backend)))
    for space in ("s", "default"):
        where = {"space": space}
        await desk.append("talk", said(f"bob likes tea in {space}", "Bob"), scope={**where, "subject": "bob"})
        await desk.append("talk", said(f"my key is {secret}", "Ann"), scope={**where, "subject": ann}, request_id=space)
        await desk.append("talk", said(f"bob answers in {space}", "Bob"), scope={**where, "subject": "bob"})
        await desk.append("own", said(f"{secret} again"), scope={**where, "subject": ann})
        await desk.remember(
            fact(f"ann's key is {secret}", metadata_json=f'{{"word": "{secret}"}}'),
            fact(f"{secret} expires", expires_at={"seconds": 4_000_000_000}),
            scope={**where, "subject": ann},
        )
        await desk.window("talk", scope=where)
        await desk.indexed(space)
    assert len(await traces(postgres_url, redis_url, chroma_url, secret)) > 8
    counts = removed(await erase(desk, ann))
    assert counts["postgres.turn"] == counts["postgres.memory"] == 4
    assert counts["postgres.unit"] == 8
    assert counts["postgres.request"] == 2
    assert counts["postgres.thread"] == 2
    assert counts["redis.window"] == 4
    # In Postgres what is the same in both views is one vector.
    vectors = 10 if backend == PGVECTOR else 13
    assert counts["postgres.vector"] + counts["chroma"] == vectors
    assert counts["chroma"] == (8 if backend == CHROMA else 0)
    for word in (secret, ann):
        assert await traces(postgres_url, redis_url, chroma_url, word) == []
    for space in ("s", "default"):
        await desk.indexed(space)
        shown = texts(await desk.window("talk", scope={"space": space}))
        assert shown == [f"bob likes tea in {space}", f"bob answers in {space}"]
        found = texts(await desk.recall("bob tea answers key", scope={"space": space}, exact=True, limit=200))
        assert sorted(found) == sorted(shown)


async def test_statistics_and_vectors_are_as_if_it_had_never_been(desk: Caller, db: Database) -> None:
    for subject in ("ann", "bob"):
        await desk.append("talk", *(f"{subject} speaks of herons {i}" for i in range(5)), scope={"subject": subject})
        await desk.remember(f"{subject} likes herons", scope={"subject": subject}, consistency=RYW)
    await desk.indexed()
    await erase(desk, "ann")
    await desk.indexed()
    async with db.tenant(desk.tenant) as connection:
        assert await connection.fetchval("SELECT units FROM memory.statistics") == 6
        assert await connection.fetchval("SELECT units FROM memory.lexicon WHERE term = 'heron'") == 6
        assert await connection.fetchval("SELECT count(*) FROM memory.lexicon WHERE term = 'ann'") == 0
    assert await agree(db, desk)


async def test_turns_that_stay_keep_their_places_and_the_thread_goes_on(desk: Caller) -> None:
    for i in range(3):
        await desk.append("talk", f"ann {i}", scope={"subject": "ann"})
        await desk.append("talk", f"bob {i}", scope={"subject": "bob"})
    await erase(desk, "ann")
    window = await desk.window("talk")
    assert [(turn.position, turn.message.parts[0].text) for turn in window.turns] == [
        (2, "bob 0"), (4, "bob 1"), (6, "bob 2"),
    ]  # fmt: skip
    assert window.omitted == 0
    done = await desk.append("talk", "bob 3", scope={"subject": "bob"})
    assert done.first_position == 7
    for _ in range(2):
        window = await desk.window("talk", max_messages=3)
        assert texts(window) == ["bob 1", "bob 2", "bob 3"]
        assert window.omitted == 1


async def test_a_thread_without_turns_begins_anew(desk: Caller) -> None:
    await desk.append("talk", "ann 0", "ann 1", scope={"subject": "ann"})
    await erase(desk, "ann")
    assert not (await desk.window("talk")).turns
    assert (await desk.append("talk", "hello", scope={"subject": "ann"})).first_position == 1
    assert texts(await desk.window("talk")) == ["hello"]


async def test_a_late_turn_does_not_bring_a_window_back(
    desk: Caller, owner: asyncpg.Connection, db: Database, postgres_url: str, redis_url: str
) -> None:
    secret = planted()
    await desk.append("talk", f"the key is {secret}", scope={"subject": "ann"})
    old = await owner.fetchval("SELECT incarnation FROM memory.thread WHERE tenant = $1", desk.tenant)
    async with PostgresRecords(db).transaction(desk.tenant) as tx:
        space = await tx.space("default")
        assert space is not None
        [turn] = await tx.turns(space, _scope("talk"), 2, 1)
    await erase(desk, "ann")
    async with redis_client(RedisSettings(url=redis_url)) as client:
        windows = RedisWindows(client, length=10, ttl_s=60)
        await windows.put(desk.tenant, old.hex, [turn])
        assert await windows.newest(desk.tenant, old.hex, 1, 1) == []
    assert await traces(postgres_url, redis_url, None, secret) == []


def _scope(thread: str) -> Any:
    from janus_memory.model import Scope

    return Scope(thread=thread)


async def test_one_space_only_if_it_is_named(desk: Caller) -> None:
    await desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="work")))
    for space in ("work", "default"):
        await desk.append("talk", f"said at {space}", scope={"space": space, "subject": "ann"})
    assert removed(await erase(desk, "ann", "work"))["postgres.turn"] == 1
    assert not (await desk.window("talk", scope={"space": "work"})).turns
    assert texts(await desk.window("talk")) == ["said at default"]
    assert isinstance(await refused(erase(desk, "ann", "nowhere")), NotFound)


async def test_another_tenants_subject_of_the_same_name_stays(memory: Memory, desk: Caller) -> None:
    other = memory.caller()
    for caller in (desk, other):
        await caller.append("talk", "hello", scope={"subject": "ann"}, request_id="r")
        await caller.remember("ann likes tea", scope={"subject": "ann"})
    await erase(desk, "ann")
    assert texts(await other.window("talk")) == ["hello"]
    assert len((await other.recall("ann tea hello")).hits) == 2
    again = await other.append("talk", "hello", scope={"subject": "ann"}, request_id="r")
    assert again.first_position == again.last_position == 1


async def test_a_repeated_request_gets_the_same_receipt(desk: Caller) -> None:
    await desk.append("talk", "hello", scope={"subject": "ann"})
    first = await erase(desk, "ann", request_id="e1", reason="asked for it")
    await desk.append("talk", "a new life", scope={"subject": "ann"})
    assert await erase(desk, "ann", request_id="e1", reason="asked for it") == first
    assert texts(await desk.window("talk")) == ["a new life"]
    error = await refused(erase(desk, "bob", request_id="e1", reason="asked for it"))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "REQUEST_ID_REUSED"


async def test_a_subject_without_records_is_erased_all_the_same(desk: Caller) -> None:
    for space in ("", "default"):
        assert not any(removed(await erase(desk, "nobody", space)).values())


async def test_a_receipt_is_checked_with_the_key_that_it_names(memory: Memory, desk: Caller) -> None:
    await desk.append("talk", "hello", scope={"subject": "ann"})
    receipt = await erase(desk, "ann", reason="asked for it")
    assert receipt.reason == "asked for it"
    verify_receipt(receipt, receipt.key_id)
    later = await erase(desk, "bob")
    assert later.key_id == receipt.key_id
    assert later.id != receipt.id
    other = await erase(memory.caller(), "ann")
    assert other.key_id != receipt.key_id
    with pytest.raises(ReceiptError, match="another key"):
        verify_receipt(receipt, other.key_id)
    receipt.counts[0].removed += 1
    with pytest.raises(ReceiptError, match="changed"):
        verify_receipt(receipt, receipt.key_id)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.EraseRequest(), "scope.subject"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="a b")), "scope.subject"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann", space="\x00")), "scope.space"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann", agent="x")), "scope.agent"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann", thread="x")), "scope.thread"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann"), request_id="?"), "request_id"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann"), reason="x" * 1_025), "reason"),
        (pb.EraseRequest(scope=scope_pb2.Scope(subject="ann"), reason="\x00"), "reason"),
    ],
)
async def test_bad_input_names_the_field_and_erases_nothing(
    desk: Caller, request_: pb.EraseRequest, field: str
) -> None:
    await desk.append("talk", "hello", scope={"subject": "ann"})
    error = await refused(desk.call("Erase", request_))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == [field]
    assert texts(await desk.window("talk")) == ["hello"]


async def test_what_others_rest_on_an_erased_record_loses_the_source_and_its_words(
    desk: Caller, postgres_url: str, redis_url: str
) -> None:
    secret = planted()
    said_by_ann = (await desk.append("talk", f"bob likes {secret}", scope={"subject": "ann"})).message_ids[0]
    [known] = (await desk.remember(f"ann knows of {secret}", scope={"subject": "ann"})).memory_ids
    # A turn of the same id in another thread is another turn.
    await desk.append("other", said("bob likes tea", id=said_by_ann), scope={"subject": "bob"})
    kept = record_pb2.Provenance(document="letter.txt", quote="tea")
    await desk.remember(
        fact(
            "bob likes something",
            provenance=[
                record_pb2.Provenance(message_id=said_by_ann, quote=secret),
                kept,
                record_pb2.Provenance(memory_id=known, quote=secret),
            ],
        ),
        fact(
            "bob likes tea",
            scope=scope_pb2.Scope(subject="bob", thread="other"),
            provenance=[record_pb2.Provenance(message_id=said_by_ann, quote="likes tea")],
        ),
        scope={"subject": "bob"},
        consistency=RYW,
    )
    assert removed(await erase(desk, "ann"))["postgres.provenance"] == 1
    assert await traces(postgres_url, redis_url, None, secret) == []
    hits = {hit.memory.text: hit.memory for hit in (await desk.recall("bob likes", kinds=[2])).hits}
    assert list(hits["bob likes something"].provenance) == [kept]
    assert len(hits["bob likes tea"].provenance) == 1


async def test_what_rests_on_the_erased_is_found_alike_by_a_planner_that_knows_nothing(
    desk: Caller, db: Database
) -> None:
    plans: list[str] = []

    class Explaining:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        async def execute(self, sql: str, *values: Any) -> str:
            if "provenance_json" in sql:
                plans.extend(row[0] for row in await self._connection.fetch(f"EXPLAIN (VERBOSE) {sql}", *values))
            return str(await self._connection.execute(sql, *values))

    async with PostgresRecords(db).transaction(desk.tenant) as tx:
        tx._connection = Explaining(tx._connection)  # type: ignore[attr-defined]
        await tx.uncite(Target("bob", 0), 500)
    # Three ways to name a source: where it is looked for, and where it is taken out.
    assert len(set(re.findall(r"\(hashed (SubPlan \d+)\)", "\n".join(plans)))) == 6


async def test_who_spoke_after_an_erased_turn_is_embedded_anew_without_it(desk: Caller, db: Database) -> None:
    before = "SELECT v.embedding::text FROM memory.vector v JOIN memory.unit u USING (tenant, space_no, unit)"
    before += " WHERE v.view = 2 AND u.subject = 'bob' AND u.thread = $1"
    await desk.append("talk", said("herons and ponds"), scope={"subject": "ann"})
    for thread in ("talk", "alone"):
        await desk.append(thread, said("I see"), scope={"subject": "bob"})
    await desk.indexed()
    async with db.tenant(desk.tenant) as connection:
        alone = await connection.fetchval(before, "alone")
        assert await connection.fetchval(before, "talk") != alone
    await erase(desk, "ann")
    await desk.indexed()
    async with db.tenant(desk.tenant) as connection:
        assert await connection.fetchval(before, "talk") == alone


async def test_many_records_go_in_many_transactions(desk: Caller, db: Database) -> None:
    for thread in range(5):
        await desk.append(f"t{thread}", *(f"turn {i}" for i in range(250)), scope={"subject": "ann"})
    await desk.append("t0", "bob is here", scope={"subject": "bob"})
    counts = removed(await erase(desk, "ann"))
    assert (counts["postgres.turn"], counts["postgres.unit"], counts["postgres.thread"]) == (1_250, 1_250, 4)
    await desk.indexed()
    assert await agree(db, desk)


async def test_a_write_meanwhile_is_erased_or_comes_after(desk: Caller, db: Database) -> None:
    for thread in range(4):
        await desk.append(f"old{thread}", *(f"turn {i}" for i in range(200)), scope={"subject": "ann"})
    stop = asyncio.Event()
    ids: dict[int, list[str]] = {}

    async def write(number: int) -> None:
        ids[number] = []
        while not stop.is_set():
            done = await desk.remember(f"ann {number} {len(ids[number])}", scope={"subject": "ann"})
            ids[number].append(done.memory_ids[0])

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(write(number))
        await eventually(lambda: _true(all(len(ids.get(n, [])) > 2 for n in range(3))))
        await erase(desk, "ann")
        acknowledged = {number: len(written) for number, written in ids.items()}
        await eventually(lambda: _true(all(len(ids[n]) > acknowledged[n] + 2 for n in range(3))))
        stop.set()
    await desk.indexed()
    async with db.tenant(desk.tenant) as connection:
        left = {row["id"] for row in await connection.fetch("SELECT id FROM memory.memory")}
        assert await connection.fetchval("SELECT count(*) FROM memory.turn") == 0
    for number, written in ids.items():
        there = [each in left for each in written]
        # Of one writer's records the earlier are gone and the later are there, and nothing between.
        assert there == sorted(there)
        assert not any(there[:2])
        assert all(there[acknowledged[number] + 1 :])
    assert await agree(db, desk)


async def _true(value: bool) -> bool:
    return value
