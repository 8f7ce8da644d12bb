"""One meaning of a filter: the plain evaluator's, Postgres's and that of both vector indexes."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fakes.filters import NOON, metadata, to_wire, trees
from tests.fakes.memory_service import Caller, Memory, running
from tests.fakes.patience import patient_postgres

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, space_pb2
from janus_kit.postgres import database
from janus_kit.validate import Violations
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.sql_filter import _read
from janus_memory.filters import Field, Filter, Not, OneOf, holds, metadata_of, moment
from janus_memory.model import HardFilter, Kind, Role, Scope, Space, View
from janus_memory.ports import VectorIndex
from janus_memory.wire.filters import filter_of

BACKENDS = {"pgvector": space_pb2.VECTOR_BACKEND_PGVECTOR, "chroma": space_pb2.VECTOR_BACKEND_CHROMA}
DIMENSIONS = 16
_subjects = itertools.count()


@dataclass
class Stores:
    """A tenant with a space on each backend, beside another tenant with the same."""

    memory: Memory
    ann: Caller
    bob: Caller
    records: PostgresRecords
    indexes: Mapping[str, VectorIndex]
    spaces: Mapping[str, Space]
    owner: asyncpg.Connection

    async def write(self, subject: str, records: Sequence[record_pb2.Turn | record_pb2.Memory]) -> None:
        """The records in both spaces; under another subject and as another tenant as well."""
        for caller, under in ((self.ann, subject), (self.ann, f"{subject}-other"), (self.bob, subject)):
            for space in BACKENDS:
                scope = {"space": space, "subject": under}
                turns = [each for each in records if isinstance(each, record_pb2.Turn)]
                memories = [each for each in records if isinstance(each, record_pb2.Memory)]
                if turns:
                    await caller.append(f"{under}-talk", *turns, scope=scope)
                if memories:
                    await caller.remember(*memories, scope=scope)
        for space in BACKENDS:
            await self.ann.indexed(space)

    async def facts(self, space: str, subject: str) -> dict[int, dict[str, Any]]:
        """What filters see of the subject's records, by unit, read from the records themselves."""
        rows = await self.owner.fetch(
            """SELECT u.unit, u.kind, t.role, t.speaker, m.predicate, m.importance, u.occurred_at,
                      coalesce(t.recorded_at, m.recorded_at) AS recorded_at,
                      coalesce(t.metadata_json, m.metadata_json) AS metadata
               FROM memory.unit u
               LEFT JOIN memory.turn t ON u.kind = 1 AND (t.tenant, t.space_no, t.thread, t.position)
                                                       = (u.tenant, u.space_no, u.thread, u.position)
               LEFT JOIN memory.memory m ON u.kind > 1 AND (m.tenant, m.id, m.version)
                                                         = (u.tenant, u.record_id, u.version)
               WHERE u.tenant = $1 AND u.space_no = $2 AND u.subject = $3""",
            self.ann.tenant, self.spaces[space].number, subject,
        )  # fmt: skip
        return {
            row["unit"]: {
                "kind": Kind(row["kind"]).name.lower(),
                "role": Role(row["role"]).name.lower() if row["role"] else None,
                "speaker": row["speaker"] or None,
                "predicate": row["predicate"] or None,
                "importance": None if row["importance"] is None else Decimal(repr(row["importance"])),
                "occurred_at": row["occurred_at"],
                "recorded_at": row["recorded_at"],
                "metadata": metadata_of(row["metadata"]),
            }
            for row in rows
        }

    async def allowed(self, space: str, where: HardFilter) -> set[int]:
        async with self.records.transaction(self.ann.tenant) as tx:
            found = await tx.allowed_units(self.spaces[space].number, where)
        assert not set(found.unbounded) & set(found.bounded)
        return {*found.unbounded, *found.bounded}

    async def near(self, space: str, where: HardFilter) -> set[int]:
        found = await self.indexes[space].search(
            self.ann.tenant, self.spaces[space], [View.ALONE], [1.0] * DIMENSIONS, where, 500, True
        )
        return {neighbour.unit for neighbour in found[View.ALONE]}


@pytest.fixture
async def stores(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(running(postgres_url, redis_url, chroma_url=chroma_url))
        pool = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        records = PostgresRecords(pool)
        chroma = ChromaIndex(chroma_url, records, timeout_s=20)
        stack.push_async_callback(chroma.close)
        ann, bob = memory.caller(), memory.caller()
        spaces = {}
        for name, backend in BACKENDS.items():
            wanted = space_pb2.Space(name=name, backend=backend, dimensions=DIMENSIONS)
            for caller in (ann, bob):
                await caller.call("PutSpace", pb.PutSpaceRequest(space=wanted))
            async with records.transaction(ann.tenant) as tx:
                found = await tx.space(name)
            assert found is not None
            spaces[name] = found
        yield Stores(memory, ann, bob, records, {"pgvector": PgvectorIndex(pool), "chroma": chroma}, spaces, owner)


def where(subject: str, condition: Filter | None) -> HardFilter:
    now = datetime.now(UTC) + timedelta(minutes=1)
    return HardFilter(Scope(subject=subject), (), now, None, now, condition)


_importances = st.sampled_from([0.0, 0.1, 0.5, 0.30000000000000004, 1.0, 5e-324])


@st.composite
def turns(draw: st.DrawFn) -> record_pb2.Turn:
    turn = record_pb2.Turn(metadata_json=draw(metadata))
    turn.message.role = draw(st.sampled_from([content.ROLE_USER, content.ROLE_ASSISTANT, content.ROLE_TOOL]))
    turn.message.name = draw(st.sampled_from(["", "a", "é", "2024-02-29T12:00:00Z"]))
    part = turn.message.parts.add()
    if turn.message.role == content.ROLE_TOOL:
        part.tool_result.call_id = "c1"
        part = part.tool_result.parts.add()
    part.text = "a turn"
    turn.occurred_at.FromDatetime(draw(st.sampled_from([NOON, NOON + timedelta(microseconds=500_000)])))
    return turn


@st.composite
def memories(draw: st.DrawFn) -> record_pb2.Memory:
    memory = record_pb2.Memory(
        kind=draw(st.sampled_from([record_pb2.MEMORY_KIND_FACT, record_pb2.MEMORY_KIND_DOCUMENT_CHUNK])),
        predicate=draw(st.sampled_from(["", "a", "' OR true --"])),
        importance=draw(_importances),
        metadata_json=draw(metadata),
    )
    if draw(st.booleans()):
        memory.valid_from.FromDatetime(NOON)
    return memory


@settings(
    max_examples=10,
    deadline=None,
    # Shrinking would ask real servers for minutes.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.lists(turns(), min_size=1, max_size=8),
    st.lists(memories(), min_size=1, max_size=8),
    st.lists(trees, min_size=5, max_size=20),
)
async def test_every_store_gives_a_filter_the_same_meaning(
    stores: Stores, turns: list[record_pb2.Turn], memories: list[record_pb2.Memory], conditions: list[Filter]
) -> None:
    subject = f"s{next(_subjects)}"
    for place, memory in enumerate(memories):
        memory.text = f"memory {place}"
    await stores.write(subject, [*turns, *memories])
    for space in BACKENDS:
        facts = await stores.facts(space, subject)
        assert len(facts) == len(turns) + len(memories)
        for condition in conditions:
            expected = {unit for unit, record in facts.items() if holds(condition, record)}
            assert await stores.allowed(space, where(subject, condition)) == expected, to_wire(condition)
            assert await stores.near(space, where(subject, condition)) == expected, to_wire(condition)
            inverse = Not(condition)
            assert await stores.allowed(space, where(subject, inverse)) == facts.keys() - expected, to_wire(inverse)


async def test_a_filter_that_allows_more_than_chroma_takes_at_once(stores: Stores) -> None:
    await stores.write("many", [record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="the heron", predicate="p")])
    [heron] = await stores.facts("chroma", "many")
    # Not in the index, as after a large import: Chroma knows the first of them alone.
    await stores.owner.execute(
        """INSERT INTO memory.unit (tenant, space_no, kind, record_id, version, subject, agent, thread, position,
               session, speaker, occurred_at, importance, terms, bag, predicate)
           SELECT tenant, space_no, kind, record_id, version, subject, agent, thread, position, session, speaker,
                  occurred_at, importance, terms, bag, predicate
           FROM memory.unit, generate_series(1, 40000) WHERE tenant = $1 AND unit = $2""",
        stores.ann.tenant, heron,
    )  # fmt: skip
    condition = OneOf(Field("predicate"), ("p",))
    assert len(await stores.allowed("chroma", where("many", condition))) == 40_001
    assert await stores.near("chroma", where("many", condition)) == {heron}


@given(trees)
def test_what_a_client_sends_is_what_is_evaluated(condition: Filter) -> None:
    check = Violations()
    assert filter_of(check, "filter", to_wire(condition)) == condition
    assert not check


async def test_postgres_has_the_same_calendar(postgres_url: str) -> None:
    texts = [
        f"{year:04}-{month:02}-{day:02}T12:00:00Z"
        for year, month, day in itertools.product(
            (0, 1, 4, 100, 400, 1900, 2000, 2023, 2024, 9999), range(14), range(33)
        )
    ]
    connection = await asyncpg.connect(postgres_url)
    try:
        read = _read(Field("metadata", ("a",)), "item", datetime)
        rows = await connection.fetch(
            f"SELECT item #>> '{{}}' AS text, {read} AS moment FROM unnest($1::text[]::jsonb[]) AS u (item)",
            [json.dumps(text) for text in texts],
        )
    finally:
        await connection.close()
    assert [row["moment"] for row in rows] == [moment(row["text"]) for row in rows]
