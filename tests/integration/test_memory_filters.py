"""Recall with typed filters, over gRPC, on both vector backends."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.fakes.memory_service import Caller, Memory, refused, running, said, texts

import janus_memory
from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import filter_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2, recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_kit.errors import InvalidArgument
from janus_memory import recall

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
RYW = scope_pb2.CONSISTENCY_READ_YOUR_WRITES
BACKENDS = [space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA]
both_backends = pytest.mark.parametrize("backend", BACKENDS, ids=["pgvector", "chroma"])


async def caller(memory: Memory, backend: Any, dimensions: int = 32) -> Caller:
    """A client of a new tenant whose space `s` is on the backend."""
    made = memory.caller()
    space = space_pb2.Space(name="s", backend=backend, dimensions=dimensions)
    await made.call("PutSpace", memory_service_pb2.PutSpaceRequest(space=space))
    return made


def fact(text: str, **fields: Any) -> record_pb2.Memory:
    metadata = fields.pop("metadata", None)
    if metadata is not None:
        fields["metadata_json"] = json.dumps(metadata)
    return record_pb2.Memory(**{"kind": record_pb2.MEMORY_KIND_FACT, "text": text, **fields})


def equal(path: str, **value: Any) -> pb.Filter:
    return pb.Filter(compare=pb.Comparison(field=pb.Field(path=path), value=pb.Value(**value)))


def any_of(*filters: pb.Filter) -> pb.Filter:
    return pb.Filter(any_of=pb.FilterList(filters=filters))


def exists(path: str) -> pb.Filter:
    return pb.Filter(exists=pb.Field(path=path))


def negated(condition: pb.Filter) -> pb.Filter:
    return pb.Filter(**{"not": condition})


ANYTHING = any_of(exists("kind"), negated(exists("kind")))


async def recalled(ann: Caller, condition: pb.Filter, query: str = "heron", **fields: Any) -> list[str]:
    return sorted(texts(await ann.recall(query, scope={"space": "s"}, filter=condition, limit=200, **fields)))


@both_backends
async def test_recall_gives_what_a_filter_allows_and_nothing_else(memory: Memory, backend: Any) -> None:
    ann = await caller(memory, backend)
    reply = said("heron reply", name="Eve", at=NOON)
    reply.message.role = content.ROLE_ASSISTANT
    await ann.append("talk", said("heron question", at=NOON), reply, scope={"space": "s"})
    await ann.remember(
        fact(
            "heron fact", predicate="saw", importance=0.9,
            metadata={"tags": ["bird", 7], "seen": "2024-05-01T14:00:00+02:00"},
        ),
        fact("heron event", kind=record_pb2.MEMORY_KIND_EVENT, metadata={"place": {"name": "the 100% _river_"}}),
        scope={"space": "s"},
        consistency=RYW,
    )  # fmt: skip
    await ann.indexed("s")
    turns, memories = ["heron question", "heron reply"], ["heron event", "heron fact"]
    noon = pb.Value(time={"seconds": int(NOON.timestamp())})
    seen = pb.Range(field=pb.Field(path="metadata.seen"), gte=noon, lte=noon)
    above = pb.Range(field=pb.Field(path="importance"), gt=pb.Value(number=0.5))
    tags = pb.Comparison(field=pb.Field(path="metadata.tags"), value=pb.Value(text="bird"))
    river = pb.Comparison(field=pb.Field(path="metadata.place.name"), value=pb.Value(text="% _"))
    for condition, expected in (
        (equal("kind", text="turn"), turns),
        (negated(equal("kind", text="turn")), memories),
        (equal("role", text="assistant"), ["heron reply"]),
        (negated(exists("role")), memories),
        (equal("speaker", text="Eve"), ["heron reply"]),
        (equal("predicate", text="saw"), ["heron fact"]),
        (pb.Filter(range=above), ["heron fact"]),
        (negated(exists("importance")), turns),
        (equal("importance", number=0.5), ["heron event"]),
        (equal("occurred_at", time=noon.time), turns),
        (pb.Filter(range=pb.Range(field=pb.Field(path="recorded_at"), lt=noon)), []),
        (pb.Filter(range=seen), ["heron fact"]),
        (pb.Filter(contains=tags), ["heron fact"]),
        (pb.Filter(contains=river), ["heron event"]),
        (any_of(equal("speaker", text="Eve"), pb.Filter(contains=river)), ["heron event", "heron reply"]),
        (equal("metadata.absent", boolean=True), []),
        (ANYTHING, sorted(turns + memories)),
    ):
        assert await recalled(ann, condition) == expected, condition


@both_backends
async def test_no_filter_shows_another_tenants_or_scopes_records(memory: Memory, backend: Any) -> None:
    ann, bob = await caller(memory, backend), await caller(memory, backend)
    for who, own in ((ann, "ann"), (bob, "bob")):
        for subject in ("eve", "kim"):
            given = fact(f"heron of {own} and {subject}", metadata={"a": 1})
            await who.remember(given, scope={"space": "s", "subject": subject}, consistency=RYW)
        await who.indexed("s")
    for condition in (ANYTHING, negated(equal("metadata.a", integer=2)), equal("metadata.a", integer=1)):
        answer = await ann.recall("heron", scope={"space": "s", "subject": "eve"}, filter=condition, limit=200)
        assert texts(answer) == ["heron of ann and eve"]
    for hostile in ("' OR true --", '{"$ne": ""}', "$1", "\\", "x' OR tenant <> '"):
        assert await recalled(ann, equal("metadata.a", text=hostile)) == []
        assert await recalled(ann, negated(equal("kind", text=hostile))) == [
            "heron of ann and eve",
            "heron of ann and kim",
        ]


@both_backends
async def test_a_narrow_filter_still_finds_the_nearest_it_allows(memory: Memory, backend: Any) -> None:
    ann = await caller(memory, backend, dimensions=8)
    generator = random.Random(3)
    vectors = [[generator.gauss(0, 1) for _ in range(8)] for _ in range(1_200)]
    given = [
        fact(f"note {place}", embedding=vector, metadata={"rare": place % 100 == 7})
        for place, vector in enumerate(vectors)
    ]
    for start in range(0, len(given), 240):
        await ann.remember(*given[start : start + 240], scope={"space": "s"})
    await ann.indexed("s")
    aim = [generator.gauss(0, 1) for _ in range(8)]

    def cosine(place: int) -> float:
        vector = vectors[place]
        return float(sum(a * b for a, b in zip(aim, vector, strict=True)) / sum(a * a for a in vector) ** 0.5)

    scanned = sorted(range(7, 1_200, 100), key=cosine, reverse=True)[:10]
    only_dense = recall_pb2.RecallWeights(
        lexical_turn=0, lexical_before=0, lexical_around=0, lexical_wide=0, speaker=0, session=0
    )
    for exact in (False, True):
        answer = await ann.recall(
            "note", scope={"space": "s"}, query_embedding=aim, weights=only_dense, exact=exact,
            filter=equal("metadata.rare", boolean=True), limit=10,
        )  # fmt: skip
        assert texts(answer) == [f"note {place}" for place in scanned]


async def test_a_narrow_filter_finds_by_common_words_without_vectors(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_ENOUGH", 3)
    async with running(postgres_url, redis_url, chroma_url="http://127.0.0.1:9", dense_timeout_s=0.2) as memory:
        ann = await caller(memory, space_pb2.VECTOR_BACKEND_CHROMA)
        common = [fact(f"heron heron {place}") for place in range(6)]
        rare = [fact(f"kingfisher {place}") for place in range(3)]
        await ann.remember(*common, *rare, fact("a heron", metadata={"a": 1}), scope={"space": "s"})
        assert await recalled(ann, equal("metadata.a", integer=1), "heron kingfisher") == ["a heron"]


async def test_what_is_not_indexed_yet_is_filtered_as_well(postgres_url: str, redis_url: str) -> None:
    async with running(postgres_url, redis_url, indexer=False) as memory:
        ann = await caller(memory, space_pb2.VECTOR_BACKEND_PGVECTOR)
        done = await ann.remember(
            fact("heron in", metadata={"a": 1}), fact("heron out", metadata={"a": 2}), scope={"space": "s"}
        )
        condition = equal("metadata.a", integer=1)
        assert await recalled(ann, condition, consistency_token=done.consistency_token) == ["heron in"]


async def test_what_chroma_does_not_have_yet_does_not_keep_it_from_the_rest(memory: Memory, chroma_url: str) -> None:
    ann = await caller(memory, space_pb2.VECTOR_BACKEND_CHROMA)
    many = [fact(f"heron {place}", metadata={"a": 1}) for place in range(255)]
    await ann.remember(*many[:254], scope={"space": "s"})
    lasting = fact("heron for a day", metadata={"a": 1})
    lasting.expires_at.FromDatetime(datetime(2100, 1, 1, tzinfo=UTC))
    await ann.remember(lasting, scope={"space": "s"})
    await ann.indexed("s")
    import chromadb

    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=int(chroma_url.rpartition(":")[2]))
    for listed in await client.list_collections(limit=1_000):
        collection = await client.get_collection(listed.name)
        if await collection.count() == 254:
            await collection.delete(ids=(await collection.get(limit=1))["ids"])
    answer = await ann.recall("heron", scope={"space": "s"}, filter=equal("metadata.a", integer=1), limit=10)
    assert len(answer.hits) == 10
    assert not answer.degraded


async def test_a_broken_filter_is_refused_by_its_field(memory: Memory) -> None:
    ann = memory.caller()
    broken = any_of(equal("kind", text="turn"), equal("metadata.a'; --", text="x"))
    error = await refused(ann.recall("heron", filter=broken))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["filter.any_of.filters[1].compare.field.path"]


async def test_old_records_are_filled_in_by_the_migration(postgres_url: str, memory: Memory) -> None:
    """The tables' owner need not be a superuser: row-level security binds it, too."""
    folder = Path(janus_memory.__file__).parent / "migrations"
    [own] = folder.glob("*_filters.sql")
    before = [path for path in sorted(folder.glob("*.sql")) if path.name < own.name]
    connection = await asyncpg.connect(postgres_url)
    try:
        async with connection.transaction():
            database = await connection.fetchval("SELECT quote_ident(current_database())")
            # As whoever made the role of the search view has it.
            await connection.execute(
                f"""DROP SCHEMA memory CASCADE;
                    CREATE ROLE plain_owner CREATEROLE;
                    GRANT CREATE ON DATABASE {database} TO plain_owner;
                    GRANT janus_search TO plain_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
                    SET LOCAL ROLE plain_owner"""
            )
            for path in before:
                await connection.execute(path.read_text())
            await connection.execute("RESET ROLE; SET LOCAL janus.tenant = 't'")
            await connection.execute(
                """INSERT INTO memory.turn (space_no, thread, position, id, subject, agent, role, speaker, content,
                       text, tokens, session, occurred_at, digest)
                   VALUES (1, 'x', 1, 'm', '', '', 3, '', '', '', 1, 1, now(), '');
                   INSERT INTO memory.memory (id, version, space_no, kind, text, subject, agent, thread, predicate,
                       importance, digest, changed_by)
                   VALUES ('f', 1, 1, 2, '', '', '', '', 'saw', 0.1, '', '');
                   INSERT INTO memory.unit (space_no, kind, record_id, version, subject, agent, thread, position,
                       session, speaker, occurred_at, importance, terms, bag)
                   VALUES (1, 1, 'm', 1, '', '', 'x', 1, 1, '', now(), 0.5, '', ''),
                          (1, 2, 'f', 1, '', '', '', 0, 0, '', now(), 0.1, '', '')"""
            )
            await connection.execute("SET LOCAL ROLE plain_owner")
            await connection.execute(own.read_text())
            await connection.execute("RESET ROLE; SET LOCAL ROLE janus_app")
            rows = await connection.fetch("SELECT role, predicate, importance FROM memory.searchable ORDER BY unit")
            assert [tuple(row) for row in rows] == [(3, "", 0.5), (None, "saw", 0.1)]
            await connection.execute("RESET ROLE")
            forced = await connection.fetchval(
                """SELECT bool_and(relforcerowsecurity) FROM pg_class
                   WHERE relnamespace = 'memory'::regnamespace AND relkind = 'r'"""
            )
            assert forced
            raise _UndoneError
    except _UndoneError:
        pass
    finally:
        await connection.close()


class _UndoneError(Exception):
    """Ends a transaction that must leave nothing behind."""
