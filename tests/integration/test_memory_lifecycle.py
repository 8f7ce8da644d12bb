"""Memories after they were remembered: read, list, change, forget, history; over gRPC on the real stores."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.memory_service import Caller, Memory, refused, running, texts
from tests.fakes.patience import patient_postgres

from janus_api.memory.v1 import filter_pb2, recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_kit.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from janus_kit.postgres import Database, database
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.inference_embedder import KnownEmbedders
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.indexer import Indexer
from janus_memory.model import Backend, Cause, Change, HardFilter, Scope, VectorRow, View
from janus_memory.parts import Parts
from janus_memory.ports import VectorIndex
from janus_memory.versions import change_memory, hold, succeeded

FACT = record_pb2.MEMORY_KIND_FACT
MAY = datetime(2023, 5, 8, tzinfo=UTC)
BACKENDS = [space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA]


# One service for all tests: each has a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Bench:
    """The service without an indexer of its own, and one that runs when it is told to."""

    memory: Memory
    records: PostgresRecords
    owner: asyncpg.Connection
    indexes: dict[int, VectorIndex]
    indexer: Indexer

    async def index(self) -> None:
        while await self.indexer.work():
            pass

    async def everything(self, tenant: str) -> str:
        """All that Postgres holds of a tenant, as text."""
        tables = await self.owner.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'memory'::regnamespace"
                                        " AND relkind = 'r'")  # fmt: skip
        found = []
        for table in tables:
            rows = await self.owner.fetch(f"SELECT t::text FROM memory.{table['relname']} t WHERE tenant = $1", tenant)
            found += [row[0] for row in rows]
        return "\n".join(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(running(postgres_url, redis_url, chroma_url=chroma_url, indexer=False))
        pool: Database = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        chroma = ChromaIndex(chroma_url, PostgresRecords(pool), timeout_s=20)
        stack.push_async_callback(chroma.close)
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        records = PostgresRecords(pool)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool), Backend.CHROMA: chroma}
        indexer = Indexer(
            records, indexes, KnownEmbedders(LexicalEmbedder(), OnnxModels(None, 0), None, 5), Parts(), poll_s=1
        )
        yield Bench(memory, records, owner, indexes, indexer)


@pytest.fixture
def ann(bench: Bench) -> Caller:
    return bench.memory.caller()


async def get(ann: Caller, memory_id: str) -> record_pb2.Memory:
    return (await ann.call("GetMemory", pb.GetMemoryRequest(memory_id=memory_id))).memory  # type: ignore[no-any-return]


async def update(ann: Caller, memory_id: str, **fields: Any) -> pb.UpdateMemoryResponse:
    """Changes the fields that are given; None clears one."""
    extra = {name: fields.pop(name) for name in ("expected_version", "request_id", "reason") if name in fields}
    given = {name: value for name, value in fields.items() if value is not None}
    request = pb.UpdateMemoryRequest(
        memory=record_pb2.Memory(id=memory_id, **given), update_mask=FieldMask(paths=list(fields)), **extra
    )
    return await ann.call("UpdateMemory", request)  # type: ignore[no-any-return]


async def forget(ann: Caller, memory_id: str, **fields: Any) -> datetime:
    done = await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=memory_id, **fields))
    return done.forgotten_at.ToDatetime(UTC)  # type: ignore[no-any-return]


async def history(ann: Caller, memory_id: str, **fields: Any) -> list[record_pb2.MemoryVersion]:
    return list((await ann.call("GetHistory", pb.GetHistoryRequest(memory_id=memory_id, **fields))).versions)


async def listed(ann: Caller, **fields: Any) -> list[str]:
    """Texts of all pages."""
    found, token = [], ""
    while True:
        page = await ann.call("ListMemories", pb.ListMemoriesRequest(page_token=token, **fields))
        found += [memory.text for memory in page.memories]
        token = page.next_page_token
        if not token:
            return found


async def recalled(ann: Caller, query: str, at: Timestamp | None = None, **fields: Any) -> list[str]:
    return texts(await ann.call("Recall", recall_pb2.RecallRequest(query=query, recorded_at=at, **fields)))


def stamp(when: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(when)
    return found


def fact(text: str, **fields: Any) -> record_pb2.Memory:
    return record_pb2.Memory(kind=FACT, text=text, **fields)


async def test_a_memory_is_read_by_its_id(ann: Caller) -> None:
    await ann.remember(fact("tea at four", id="mine", predicate="drinks", metadata_json='{"a": 1}'))
    found = await get(ann, "mine")
    assert (found.text, found.version, found.predicate, found.metadata_json) == ("tea at four", 1, "drinks", '{"a": 1}')
    assert not found.HasField("superseded_at")
    for unknown in ("other", "mine2"):
        error = await refused(ann.call("GetMemory", pb.GetMemoryRequest(memory_id=unknown)))
        assert isinstance(error, NotFound)


async def test_an_update_makes_a_new_version_of_the_named_fields(ann: Caller) -> None:
    memory = fact("lives in Oslo", id="m", predicate="lives_in", importance=0.9, metadata_json='{"a": 1}')
    memory.provenance.add(message_id="m1", quote="I live in Oslo")
    await ann.remember(memory)
    done = await update(ann, "m", text="lives in Rome", metadata_json=None, importance=None, reason="she moved")
    assert (done.memory.version, done.memory.text, done.memory.metadata_json) == (2, "lives in Rome", "")
    assert (done.memory.predicate, done.memory.importance) == ("lives_in", 0.5)
    assert done.memory.provenance == memory.provenance
    assert done.consistency_token
    assert await get(ann, "m") == done.memory
    first, second = await history(ann, "m")
    assert (first.memory.text, first.change, first.reason) == ("lives in Oslo", record_pb2.CHANGE_CREATED, "")
    assert (second.memory.text, second.change, second.reason) == (
        "lives in Rome", record_pb2.CHANGE_UPDATED, "she moved",
    )  # fmt: skip
    assert first.memory.superseded_at == second.memory.recorded_at
    assert first.changed_by == second.changed_by != ""


async def test_an_update_of_another_version_is_refused_and_says_which_is_current(ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    await update(ann, "m", text="two", expected_version=1)
    error = await refused(update(ann, "m", text="three", expected_version=1))
    assert isinstance(error, Aborted)
    assert (error.reason, error.metadata["current_version"]) == ("VERSION_MISMATCH", "2")
    assert (await get(ann, "m")).text == "two"


async def test_concurrent_updates_of_one_version_have_one_winner(ann: Caller) -> None:
    await ann.remember(fact("zero", id="m"))
    answers = await asyncio.gather(
        *(update(ann, "m", text=f"by {n}", expected_version=1) for n in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, pb.UpdateMemoryResponse) for answer in answers) == 1
    await asyncio.gather(*(update(ann, "m", text=f"then {n}") for n in range(5)))
    versions = await history(ann, "m")
    assert [version.memory.version for version in versions] == list(range(1, 8))
    for before, after in itertools.pairwise(versions):
        assert before.memory.superseded_at == after.memory.recorded_at
        assert before.memory.recorded_at.ToDatetime() < after.memory.recorded_at.ToDatetime()


async def test_an_update_to_what_another_memory_says_names_that_one(ann: Caller) -> None:
    await ann.remember(fact("the sky is blue", id="a"), fact("the sky is grey", id="b"))
    error = await refused(update(ann, "b", text="the sky is blue"))
    assert isinstance(error, AlreadyExists)
    assert error.resource_name == "a"


async def test_an_end_before_the_beginning_is_refused_with_what_is_on_record(ann: Caller) -> None:
    await ann.remember(fact("a", id="m", valid_from=stamp(MAY)))
    error = await refused(update(ann, "m", valid_to=stamp(MAY)))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "memory.valid_to"
    assert len(await history(ann, "m")) == 1


async def test_a_write_with_the_same_request_id_is_made_once(ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    first = await update(ann, "m", text="two", request_id="r")
    assert await update(ann, "m", text="two", request_id="r") == first
    assert (await refused(update(ann, "m", text="three", request_id="r"))).reason == "REQUEST_ID_REUSED"
    at = await forget(ann, "m", request_id="r", purge=True)
    assert await forget(ann, "m", request_id="r", purge=True) == at
    again = await update(ann, "m", text="two", request_id="r")
    assert again.memory == record_pb2.Memory(id="m", version=2)
    assert again.consistency_token == first.consistency_token
    assert len(await history(ann, "m")) == 3


async def test_a_repeated_write_is_answered_as_at_first_whatever_came_after_it(ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    first = await update(ann, "m", text="two", request_id="first")
    second = await update(ann, "m", text="three", request_id="second")
    assert await update(ann, "m", text="two", request_id="first") == first
    at = await forget(ann, "m", request_id="forget")
    await ann.remember(fact("four", id="m"))
    assert await forget(ann, "m", request_id="forget") == at
    assert await update(ann, "m", text="two", request_id="first") == first
    assert await update(ann, "m", text="three", request_id="second") == second
    assert (await get(ann, "m")).text == "four"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_search_follows_an_update_and_still_knows_what_was(bench: Bench, ann: Caller, backend: Any) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s", backend=backend)))
    await ann.remember(fact("lives in Oslo", id="m"), scope={"space": "s"})
    await bench.index()
    before = (await get(ann, "m")).recorded_at
    where = scope_pb2.Scope(space="s")
    done = await update(ann, "m", text="lives in Rome")
    for _ in range(2):
        assert await recalled(ann, "where lives", scope=where, exact=True) == ["lives in Rome"]
        assert await recalled(ann, "where lives", before, scope=where, exact=True) == ["lives in Oslo"]
        await bench.index()
    exact = recall_pb2.RecallRequest(query="lives in Rome", scope=where, explain=True)
    [hit] = (await ann.call("Recall", exact)).hits
    assert next(detail.raw for detail in hit.details if detail.leg == "dense_turn") > 0.9
    assert hit.memory == done.memory


@pytest.mark.parametrize("purge", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
async def test_what_is_forgotten_is_out_of_every_search_at_once(
    bench: Bench, ann: Caller, backend: Any, purge: bool
) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s", backend=backend)))
    await ann.remember(fact("the code is red", id="m"), fact("the code is long", id="n"), scope={"space": "s"})
    await update(ann, "m", text="the code is blue")
    await bench.index()
    where = scope_pb2.Scope(space="s")
    moments = [version.memory.recorded_at for version in await history(ann, "m")]
    assert "the code is red" in await recalled(ann, "code", moments[0], scope=where)
    await forget(ann, "m", purge=purge)
    for _ in range(2):
        for moment in (None, *moments):
            for query in ("the code is red", "the code is blue"):
                assert await recalled(ann, query, moment, scope=where, exact=True) == ["the code is long"]
        assert await listed(ann, scope=where, include_inactive=True) == ["the code is long"]
        assert isinstance(await refused(get(ann, "m")), NotFound)
        assert isinstance(await refused(update(ann, "m", text="x")), NotFound)
        await bench.index()
    async with bench.records.transaction(ann.tenant) as tx:
        space = await tx.space("s")
    assert space is not None
    index = bench.indexes[space.backend]
    everything = HardFilter(Scope("s"), (), MAY, datetime.now(UTC), MAY, whenever=True, inactive=True)
    found = await index.search(ann.tenant, space, list(View), [1.0] * 384, everything, 10, True)
    assert {view: len(units) for view, units in found.items()} == {View.ALONE: 1, View.BEFORE: 1}


async def test_the_history_of_a_forgotten_memory_stays(ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    at = await forget(ann, "m", reason="asked to")
    first, last = await history(ann, "m")
    assert (first.memory.text, last.memory.text) == ("one", "one")
    assert (last.change, last.reason, last.memory.version) == (record_pb2.CHANGE_FORGOTTEN, "asked to", 2)
    assert last.memory.recorded_at.ToDatetime(UTC) == at
    assert first.memory.superseded_at == last.memory.recorded_at == last.memory.superseded_at
    assert await forget(ann, "m") == at
    assert len(await history(ann, "m")) == 2


async def test_a_purge_leaves_ids_and_versions_only(bench: Bench, ann: Caller) -> None:
    memory = fact("the heron's nest", id="m", metadata_json='{"place": "willow"}', predicate="nesting")
    memory.provenance.add(document="notes on ducks", quote="quacking")
    await ann.remember(memory, scope={"subject": "beatrice"}, request_id="r1")
    await update(ann, "m", text="the otter's den", request_id="r2", reason="no geese")
    await bench.index()
    secrets = ("heron", "nest", "willow", "nesting", "ducks", "quacking", "beatrice", "otter", "den", "geese")
    before = (await bench.everything(ann.tenant)).lower()
    assert all(secret in before for secret in secrets)
    await forget(ann, "m")
    await forget(ann, "m", purge=True)
    await bench.index()
    # Whose a stored answer is stays with it, for the 24 h that it is kept.
    await bench.owner.execute("DELETE FROM memory.request WHERE tenant = $1", ann.tenant)
    after = (await bench.everything(ann.tenant)).lower()
    assert [secret for secret in secrets if secret in after] == []
    for number, version in enumerate(await history(ann, "m"), 1):
        assert version.memory == record_pb2.Memory(id="m", version=number)
        assert version.changed_by
    assert await bench.owner.fetchval("SELECT count(*) FROM memory.vector WHERE tenant = $1", ann.tenant) == 0


async def test_a_late_write_of_a_forgotten_memory_changes_nothing(bench: Bench, ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    await bench.index()
    async with bench.records.transaction(ann.tenant) as tx:
        space = await tx.space("default")
        assert space is not None
        unit = await bench.owner.fetchval("SELECT unit FROM memory.unit WHERE tenant = $1", ann.tenant)
        [late] = await tx.embeddables(space.number, [unit])
    await forget(ann, "m")
    await bench.index()
    index = bench.indexes[Backend.PGVECTOR]
    await index.upsert(ann.tenant, space, [VectorRow(late.about, View.ALONE, late.version, [1.0] * 384)])
    assert await bench.owner.fetchval("SELECT count(*) FROM memory.vector WHERE tenant = $1", ann.tenant) == 0


async def test_what_was_forgotten_can_be_remembered_anew(ann: Caller) -> None:
    [first] = (await ann.remember("the sky is blue")).memory_ids
    await forget(ann, first)
    [second] = (await ann.remember("the sky is blue")).memory_ids
    assert second != first
    assert await listed(ann) == ["the sky is blue"]
    assert len(await history(ann, first)) == 2


async def test_an_id_that_was_forgotten_goes_on_with_its_versions(ann: Caller) -> None:
    await ann.remember(fact("one", id="m"))
    await forget(ann, "m", purge=True)
    await ann.remember(fact("two", id="m"))
    assert [(version.memory.version, version.memory.text) for version in await history(ann, "m")] == [
        (1, ""), (2, ""), (3, "two"),
    ]  # fmt: skip
    assert (await get(ann, "m")).text == "two"
    assert await listed(ann) == ["two"]


async def test_what_has_expired_already_is_remembered_once_in_a_request(ann: Caller) -> None:
    past = stamp(datetime.now(UTC) - timedelta(hours=1))
    done = await ann.remember(fact("over", expires_at=past), fact("over", expires_at=past))
    assert done.memory_ids[0] == done.memory_ids[1]
    assert len(await history(ann, done.memory_ids[0])) == 1


async def test_an_id_belongs_to_one_space(ann: Caller) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s")))
    await ann.remember(fact("one", id="m"))
    await forget(ann, "m")
    assert isinstance(await refused(ann.remember(fact("one", id="m"), scope={"space": "s"})), AlreadyExists)


async def test_another_memory_takes_a_memorys_place(bench: Bench, ann: Caller) -> None:
    await ann.remember(fact("lives in Oslo", id="old", predicate="lives_in"), fact("lives in Rome", id="new"))
    before = (await get(ann, "old")).recorded_at
    cause = Cause("extraction", "msg_1", "she moved")
    async with bench.records.transaction(ann.tenant) as tx:
        held = await hold(tx, "old")
        assert held is not None
        await change_memory(tx, held, Change.SUPERSEDED, succeeded(held.latest.memory, "new"), cause)
    assert await recalled(ann, "where lives") == ["lives in Rome"]
    assert "lives in Oslo" in await recalled(ann, "where lives", before)
    assert await listed(ann) == ["lives in Rome"]
    assert sorted(await listed(ann, include_inactive=True)) == ["lives in Oslo", "lives in Rome"]
    last = (await history(ann, "old"))[-1]
    assert (last.change, last.changed_by, last.message_id, last.reason) == (
        record_pb2.CHANGE_SUPERSEDED, "extraction", "msg_1", "she moved",
    )  # fmt: skip
    assert last.memory.provenance[-1].memory_id == "new"
    found = await get(ann, "old")
    assert found == last.memory
    assert found.HasField("superseded_at")
    error = await refused(update(ann, "old", text="lives in Bonn"))
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "superseded")


async def test_a_memory_stops_being_true_at_a_time(bench: Bench, ann: Caller) -> None:
    await ann.remember(fact("lives in Oslo", id="m"))
    known = (await get(ann, "m")).recorded_at
    async with bench.records.transaction(ann.tenant) as tx:
        held = await hold(tx, "m")
        assert held is not None
        ended = replace(held.latest.memory, valid_to=MAY)
        await change_memory(tx, held, Change.INVALIDATED, ended, Cause("extraction", "msg_1"))
    assert await recalled(ann, "lives") == []
    assert await recalled(ann, "lives", valid_at=stamp(MAY - timedelta(days=1))) == ["lives in Oslo"]
    # What was known before said nothing about an end.
    assert await recalled(ann, "lives", known) == ["lives in Oslo"]
    assert [version.change for version in await history(ann, "m")] == [
        record_pb2.CHANGE_CREATED, record_pb2.CHANGE_INVALIDATED,
    ]  # fmt: skip


async def test_memories_are_listed_newest_first_by_scope_and_kind(ann: Caller) -> None:
    await ann.remember(fact("a", scope=scope_pb2.Scope(subject="bob")))
    await ann.remember(record_pb2.Memory(kind=record_pb2.MEMORY_KIND_EVENT, text="b"))
    await ann.remember(fact("c", scope=scope_pb2.Scope(subject="bob")))
    assert await listed(ann) == ["c", "b", "a"]
    assert await listed(ann, page_size=1) == ["c", "b", "a"]
    assert await listed(ann, scope=scope_pb2.Scope(subject="bob")) == ["c", "a"]
    assert await listed(ann, kinds=[record_pb2.MEMORY_KIND_EVENT]) == ["b"]
    assert await listed(ann, scope=scope_pb2.Scope(thread="x")) == []


async def test_inactive_memories_are_listed_when_they_are_asked_for(ann: Caller) -> None:
    past = stamp(datetime.now(UTC) - timedelta(hours=1))
    await ann.remember(fact("old", id="m"), fact("gone", expires_at=past), fact("was true", valid_to=past))
    await update(ann, "m", text="new")
    assert sorted(await listed(ann)) == ["new", "was true"]
    assert sorted(await listed(ann, include_inactive=True)) == ["gone", "new", "old", "was true"]


async def test_a_list_is_stable_under_writes(ann: Caller) -> None:
    ids = list((await ann.remember(*[f"fact {n}" for n in range(10)])).memory_ids)
    request = pb.ListMemoriesRequest(page_size=3)
    page = await ann.call("ListMemories", request)
    seen = [memory.id for memory in page.memories]
    for memory_id in ids:
        await update(ann, memory_id, text=f"changed {memory_id}")
    await ann.remember("another")
    while page.next_page_token:
        request.page_token = page.next_page_token
        page = await ann.call("ListMemories", request)
        seen += [memory.id for memory in page.memories]
        assert all(memory.text.startswith("fact") for memory in page.memories)
    assert sorted(seen) == sorted(ids)


async def test_a_page_token_is_of_one_query_of_one_tenant(bench: Bench, ann: Caller) -> None:
    bob = bench.memory.caller()
    for caller in (ann, bob):
        await caller.remember(fact("a", id="m"), fact("b"))
        await update(caller, "m", text="c")
    where = scope_pb2.Scope()
    lists = await ann.call("ListMemories", pb.ListMemoriesRequest(page_size=1))
    past = await ann.call("GetHistory", pb.GetHistoryRequest(memory_id="m", page_size=1))
    assert lists.next_page_token
    assert past.next_page_token
    for caller, method, request in (
        (bob, "ListMemories", pb.ListMemoriesRequest(page_token=lists.next_page_token)),
        (ann, "ListMemories", pb.ListMemoriesRequest(page_token=lists.next_page_token, include_inactive=True)),
        (ann, "ListMemories", pb.ListMemoriesRequest(page_token=lists.next_page_token, kinds=[FACT])),
        (ann, "ListMemories", pb.ListMemoriesRequest(page_token=past.next_page_token)),
        (ann, "ListBlocks", pb.ListBlocksRequest(page_token=lists.next_page_token)),
        (bob, "GetHistory", pb.GetHistoryRequest(memory_id="m", page_token=past.next_page_token)),
        (ann, "GetHistory", pb.GetHistoryRequest(memory_id="n", page_token=past.next_page_token)),
    ):
        error = await refused(caller.call(method, request))
        assert error.reason == "PAGE_TOKEN_INVALID", method
    assert (await ann.call("ListMemories", pb.ListMemoriesRequest(scope=where, page_size=1))).memories
    rest = await history(ann, "m", page_token=past.next_page_token)
    assert [version.memory.version for version in rest] == [2]


async def test_pages_of_large_memories_are_such_that_any_client_can_receive_them(ann: Caller) -> None:
    for place in range(16):
        await ann.remember(fact(f"{place} " + "x" * 250_000))
    page = await ann.call("ListMemories", pb.ListMemoriesRequest(page_size=1_000))
    assert 1 < len(page.memories) < 16
    assert page.ByteSize() <= 3 * 1024 * 1024 + 20_000
    assert len(await listed(ann, page_size=1_000)) == 16


async def test_another_tenants_memories_are_as_if_they_had_never_been(bench: Bench, ann: Caller) -> None:
    bob = bench.memory.caller()
    await ann.remember(fact("secret", id="m"))
    for method, theirs, absent in (
        ("GetMemory", pb.GetMemoryRequest(memory_id="m"), pb.GetMemoryRequest(memory_id="n")),
        ("GetHistory", pb.GetHistoryRequest(memory_id="m"), pb.GetHistoryRequest(memory_id="n")),
        ("ForgetMemory", pb.ForgetMemoryRequest(memory_id="m"), pb.ForgetMemoryRequest(memory_id="n")),
    ):
        error, same = await refused(bob.call(method, theirs)), await refused(bob.call(method, absent))
        assert isinstance(error, NotFound)
        assert error.message.replace("'m'", "'n'") == same.message
    assert isinstance(await refused(update(bob, "m", text="x")), NotFound)
    assert await listed(bob, include_inactive=True) == []
    await bob.remember(fact("bob's own", id="m"))
    await forget(bob, "m", purge=True)
    assert (await get(ann, "m")).text == "secret"


async def test_a_list_takes_filters_and_a_page_is_of_its_filter(ann: Caller) -> None:
    memories = [
        fact(f"heron {number}", metadata_json=f'{{"place": "{place}"}}') for number, place in enumerate("aabab")
    ]
    await ann.remember(*memories)
    here = filter_pb2.Filter(
        compare=filter_pb2.Comparison(field=filter_pb2.Field(path="metadata.place"), value=filter_pb2.Value(text="a"))
    )
    request = pb.ListMemoriesRequest(filter=here, page_size=2)
    first = await ann.call("ListMemories", request)
    request.page_token = first.next_page_token
    rest = await ann.call("ListMemories", request)
    found = [memory.text for memory in [*first.memories, *rest.memories]]
    assert sorted(found) == ["heron 0", "heron 1", "heron 3"]
    request.filter.compare.value.text = "b"
    assert (await refused(ann.call("ListMemories", request))).reason == "PAGE_TOKEN_INVALID"
