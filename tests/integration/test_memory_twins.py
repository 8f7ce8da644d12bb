"""Every RPC of memory, found in its descriptor, is called by one tenant with another's names.

A new RPC is covered by itself. It fails here until its owner can call it with
the values of `values_of`, and until what it stores is among what `seeded` stores.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import asyncpg
import chromadb
import grpc
import pytest
import redis.asyncio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.memory_requests import METHODS, Names, sealed, values_of
from tests.fakes.memory_service import Caller, Memory, eventually, running, said
from tests.fakes.patience import patient_postgres
from tests.fakes.reading_model import everything, reading_model
from tests.fakes.requests import UNSET, Leaf, leaves, requests

from janus_api.common.v1 import scope_pb2 as options_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2, space_pb2
from janus_kit.errors import JanusError
from janus_kit.postgres import database
from janus_kit.rpc_errors import from_rpc
from janus_memory.adapters import chroma_index
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.consistency import token
from janus_memory.model import View

T = TypeVar("T")

NONSENSE = "nonsense"
BACKENDS = (space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA)
# What is empty once nothing is under way.
PASSING = {"erasure", "erasing", "generation", "rebuild"}
OUR_FAULT = {"INTERNAL", "UNKNOWN", "UNIMPLEMENTED"}


@dataclass(frozen=True)
class Tenant:
    """Who asks: a client, a word that nobody else says, and the names of what it has, a space each."""

    caller: Caller
    word: str
    places: tuple[Names, ...] = ()

    @property
    def voice(self) -> str:
        """Its word within a sentence."""
        return f"{self.word} wades in the pond"


@dataclass(frozen=True)
class Outcome:
    """What came of a call: everything that was answered, or the error."""

    answer: bytes = b""
    error: JanusError | None = None
    raw: str = ""

    @property
    def code(self) -> str:
        return self.error.code if self.error else "OK"

    def holds(self, word: str) -> bool:
        return word.encode() in self.answer or word in self.raw

    def without(self, names: Names) -> tuple[str, str, str]:
        """What an error says, whatever was named."""
        if self.error is None:
            return ("OK", "", "")
        text = self.error.message
        for name in names.all:
            text = text.replace(name, "…")
        return self.error.code, self.error.reason, text


@dataclass
class World:
    """The service, its stores, and a loop that all of it runs on."""

    memory: Memory
    owner: asyncpg.Pool
    records: PostgresRecords
    redis: Any
    chroma: Any
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def stranger(self) -> Tenant:
        """Somebody who has nothing."""
        return Tenant(self.memory.caller(), f"zq{uuid4().hex[:12]}")

    async def sent(self, tenant: Tenant, method: str, names: Names, **changes: Any) -> list[Message]:
        """The request for a method, with names and the tenant's own words."""
        if method == "Import":
            return await self.exported(tenant, names)
        return requests(METHODS[method], {**values_of(names, tenant.voice), **changes})

    async def exported(self, tenant: Tenant, names: Names) -> list[Message]:
        """An import of an own space, as exported, into one of a name."""
        own = pb.GetSpaceRequest(name=names.space)
        space = names.space if (await self.ask(tenant, "GetSpace", [own])).code == "OK" else "default"
        request = pb.ExportRequest(scope=scope_pb2.Scope(space=space), include_history=True)
        config = pb.ImportConfig(space=names.space, request_id=names.request_id)
        messages: list[Message] = [pb.ImportRequest(config=config)]
        async for each in tenant.caller.stub.Export(request, metadata=tenant.caller.metadata, timeout=20):
            each.ClearField("sequence")
            messages.append(pb.ImportRequest.FromString(each.SerializeToString()))
        return messages

    async def ask(self, tenant: Tenant, method: str, sent: Sequence[Message]) -> Outcome:
        """Call whatever kind of method it is, to its end."""
        kind, caller = METHODS[method], tenant.caller
        request: Any = iter(sent) if kind.client_streaming else sent[0]
        call = getattr(caller.stub, method)(request, metadata=caller.metadata, timeout=20)
        try:
            answers = [each async for each in call] if kind.server_streaming else [await call]
        except grpc.aio.AioRpcError as error:
            return Outcome(error=from_rpc(error), raw=f"{error.details()} {error.trailing_metadata()}")
        return Outcome(b"\n".join(each.SerializeToString() for each in answers))

    async def snapshot(self, tenant: str) -> dict[str, list[str]]:
        """Everything of a tenant, byte for byte, by where it is."""
        found = {}
        tables = await self.owner.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'memory'::regnamespace AND relkind IN ('r', 'p')"
            # A number that is made when a space comes to be searched often, in the background.
            " AND NOT relispartition AND relname <> 'vector_era'"
        )
        for table in sorted(row["relname"] for row in tables):
            rows = await self.owner.fetch(f"SELECT t::text FROM memory.{table} t WHERE tenant = $1", tenant)
            found[table] = sorted(row[0] for row in rows)
        keys = sorted([key async for key in self.redis.scan_iter(f"*{tenant}*")])
        found["redis"] = [f"{key!r} {await self.redis.dump(key)!r}" for key in keys]
        async with self.records.transaction(tenant) as tx:
            spaces = await tx.spaces("", 100)
        own = {
            chroma_index._collection_name(tenant, space, view, part)
            for space in spaces
            for view in View
            for part in ("open", "timed")
        }
        found["chroma"] = sorted(
            [
                f"{collection.name} {row} {list(vector)} {sorted(about.items())}"
                for collection in await self.chroma.list_collections(limit=10_000)
                if collection.name in own
                for held in [await collection.get(include=["metadatas", "embeddings"])]
                for row, vector, about in zip(held["ids"], held["embeddings"], held["metadatas"], strict=True)
            ]
        )
        return found

    async def quiet(self, tenant: Tenant) -> None:
        """Wait until nothing of a tenant is left to do in the background."""

        async def done() -> bool:
            return not await self.owner.fetchval(
                """SELECT (SELECT count(*) FROM memory.outbox WHERE tenant = $1 AND dead_at IS NULL)
                        + (SELECT count(*) FROM memory.operation WHERE tenant = $1 AND ended_at IS NULL)
                        + (SELECT count(*) FROM memory.generation WHERE tenant = $1)
                        + (SELECT count(*) FROM memory.thread t LEFT JOIN memory.summary s
                             ON (s.tenant, s.space_no, s.thread) = (t.tenant, t.space_no, t.id)
                           WHERE t.tenant = $1 AND t.last_position - coalesce(s.upto, 0) >= 5)""",
                tenant.caller.tenant,
            )

        await eventually(done)

    async def seeded(self, *places: Names) -> Tenant:
        """A tenant that has one of everything in each place."""
        tenant = self.stranger()
        given = await asyncio.gather(*map(partial(self._space, tenant), places, BACKENDS))
        await tenant.caller.append("talk", tenant.voice, scope={"subject": "gone"})
        erase = pb.EraseRequest(scope=scope_pb2.Scope(subject="gone"), reason=tenant.voice)
        await tenant.caller.call("Erase", erase)
        # What only faults and broken streams leave behind.
        await self.quiet(tenant)
        await self.owner.execute(
            """INSERT INTO memory.outbox (tenant, space_no, unit, attempts, error, dead_at)
               SELECT tenant, space_no, unit, 8, $2, now() FROM memory.unit WHERE tenant = $1 LIMIT 1""",
            tenant.caller.tenant, tenant.voice,
        )  # fmt: skip
        await self.owner.execute(
            "INSERT INTO memory.import_part (tenant, import, number, records) VALUES ($1, $2, 0, $3)",
            tenant.caller.tenant, uuid4(), tenant.voice.encode(),
        )  # fmt: skip
        return replace(tenant, places=tuple(given))

    async def twins(self) -> tuple[Tenant, Tenant]:
        """Two tenants that have everything under the same names, but for those that the server gives."""
        places = Names.new(), Names.new()
        ann, twin = await asyncio.gather(*(self.seeded(*places) for _ in range(2)))
        return ann, twin

    @cached_property
    def baseline(self) -> tuple[Mapping[str, list[str]], list[str]]:
        """What the first of the readers has, and tokens that it was given."""
        ann, _ = self.readers
        return self.run(self.snapshot(ann.caller.tenant)), self.run(tokens_of(self, ann))

    @cached_property
    def readers(self) -> tuple[Tenant, Tenant]:
        """Twins for those who change nothing of theirs."""
        return self.run(self.twins())

    async def _space(self, tenant: Tenant, names: Names, backend: space_pb2.VectorBackend.ValueType) -> Names:
        count = itertools.count()

        async def done(method: str, **changes: Any) -> Any:
            request_id = f"{names.request_id}-seed-{next(count)}"
            [request] = await self.sent(tenant, method, names, **{"request_id": request_id, **changes})
            return await tenant.caller.call(method, request)

        await done("PutSpace", **{"space.backend": backend})
        await done("PutBlock", **{"PutBlock.expected_version": 0})
        await done("AppendMessages")
        more = [said(f"{tenant.voice}, {number}.") for number in range(8)]
        where = {"space": names.space, "subject": names.subject, "agent": names.agent}
        await tenant.caller.append(names.thread, *more, scope=where)
        for name, method in ((f"{names.memory_id}-u", "UpdateMemory"), (f"{names.memory_id}-f", "ForgetMemory")):
            other = {"memory.id": name, "memories.id": name, "memory_id": name, "purge": False}
            await done("Remember", **other, text=f"{tenant.voice} {name}")
            await done(method, **other, text=f"{tenant.voice} {name}, changed")
        await done("Remember")
        await tenant.caller.append(f"{names.thread}-n", f"{NONSENSE} {tenant.voice}", scope=where)
        for thread in (f"{names.thread}-n", names.thread):
            started = await done("Extract", thread=thread, message_ids=UNSET)
        return replace(names, operation_id=started.operation.id)


@pytest.fixture(scope="module")
def world(postgres_url: str, redis_url: str, chroma_url: str) -> Iterator[World]:
    def answer(given: Mapping[str, Any]) -> Any:
        is_nonsense = any(NONSENSE in turn["text"] for turn in given["turns"])
        return NONSENSE if is_nonsense else everything(given)

    async def opened(stack: AsyncExitStack) -> World:
        reader = await stack.enter_async_context(reading_model(answer))
        memory = await stack.enter_async_context(
            running(
                postgres_url, redis_url, chroma_url=chroma_url, inference_target=reader.target, extraction_model="fast",
                reconcile_every_s=0, retire_after_s=0.1, summary_poll_s=0.1, summary_keep_turns=4, summary_step_turns=1,
            )
        )  # fmt: skip
        owner = await stack.enter_async_context(asyncpg.create_pool(postgres_url, min_size=1, max_size=2))
        client = redis.asyncio.Redis.from_url(redis_url)
        stack.push_async_callback(client.aclose)
        host, _, port = chroma_url.rpartition("/")[2].partition(":")
        chroma = await chromadb.AsyncHttpClient(host=host, port=int(port))
        pool = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        return World(memory, owner, PostgresRecords(pool), client, chroma, runner)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(opened(stack))
        finally:
            runner.run(stack.aclose())


def test_a_tenant_that_has_everything_has_something_everywhere(world: World) -> None:
    ann, _ = world.readers
    found = world.run(world.snapshot(ann.caller.tenant))
    assert {where for where, held in found.items() if not held} == PASSING, "let `seeded` store what goes there"


@pytest.mark.parametrize("method", METHODS)
def test_anothers_names_are_as_names_that_never_were_and_nothing_of_it_changes(world: World, method: str) -> None:
    reads = METHODS[method].GetOptions().Extensions[options_pb2.scope] == "memory.read"
    ann, twin = world.readers if reads else world.run(world.twins())
    world.run(asked_by_others(world, method, ann, twin))


async def asked_by_others(world: World, method: str, ann: Tenant, twin: Tenant) -> None:
    unchanged = await world.snapshot(ann.caller.tenant)
    for names in ann.places:
        never = Names.new()
        bob, eve = world.stranger(), world.stranger()
        outcome = await said_nothing(world, bob, method, await world.sent(bob, method, names), ann)
        nothing = await world.ask(eve, method, await world.sent(eve, method, never))
        assert outcome.code in ("OK", "NOT_FOUND"), outcome
        assert outcome.without(names) == nothing.without(never)
        # Somebody with things of the same names is told of them, and of an operation of Ann's nothing.
        own = await said_nothing(world, twin, method, await world.sent(twin, method, names), ann)
        assert own.code == "OK" or names.operation_id in own.raw, own
    assert changed(unchanged, await world.snapshot(ann.caller.tenant)) == []
    for names in ann.places:
        sent = await world.sent(ann, method, names)
        outcome = await world.ask(ann, method, sent)
        assert outcome.code == "OK", f"the owner's own {sent} must succeed, or Bob's shows nothing: {outcome}"
        assert outcome.answer
        await world.quiet(ann)
        unchanged = await world.snapshot(ann.caller.tenant)
        # Now an answer is on record, under this very request id.
        late = world.stranger()
        outcome = await said_nothing(world, late, method, await world.sent(late, method, names), ann)
        assert outcome.code in ("OK", "NOT_FOUND"), outcome
        assert changed(unchanged, await world.snapshot(ann.caller.tenant)) == []


async def said_nothing(world: World, asker: Tenant, method: str, sent: Sequence[Message], ann: Tenant) -> Outcome:
    """What came of it: nothing that is Ann's and that the asker has not, nor has said."""
    outcome = await world.ask(asker, method, sent)
    known = b" ".join(each.SerializeToString() for each in sent)
    own = {name for names in asker.places for name in names.all}
    secrets = {ann.word, ann.caller.tenant, *(name for names in ann.places for name in names.all)} - own
    assert [each for each in secrets if each.encode() not in known and outcome.holds(each)] == []
    return outcome


def changed(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """Where something is not what it was."""
    return [where for where in after if after[where] != before[where]]


class Edit(NamedTuple):
    """Something else in the place of one of a request's values; ``value`` None: nothing."""

    place: int
    value: int | None

    def apply(self, found: Sequence[Leaf], texts: Sequence[str]) -> None:
        leaf = found[self.place % len(found)]
        if self.value is None:
            leaf.clear()
            return
        choices = _OTHERS.get(leaf.field.cpp_type, [])
        if leaf.field.type == FieldDescriptor.TYPE_BYTES:
            choices = [b"", b"\xff" * 10]
        elif leaf.field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            choices = texts
        if choices:
            leaf.put(choices[self.value % len(choices)])


_WHOLE = [0, 1, 2, -1, 2**31 - 1]
_OTHERS: Mapping[int, Sequence[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _WHOLE,
    FieldDescriptor.CPPTYPE_INT64: [*_WHOLE, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_FLOAT: [0.0, 1.0, -1.0, float("nan"), float("inf")],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, 1.0, -1.0, float("nan"), float("inf")],
    FieldDescriptor.CPPTYPE_BOOL: [False],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 99],
}
edits = st.lists(st.builds(Edit, st.integers(0, 200), st.one_of(st.none(), st.integers(0, 40))), max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(sorted(METHODS)),
    place=st.integers(0, 1),
    has_the_same=st.booleans(),
    changes=edits,
    kept=st.integers(0, 3),
)
def test_no_mix_of_anothers_ids_and_odd_values_tells_or_changes_anything(
    world: World, method: str, place: int, has_the_same: bool, changes: list[Edit], kept: int
) -> None:
    ann, twin = world.readers
    unchanged, tokens = world.baseline

    async def play() -> None:
        texts = ["", "never", "a/b", "' OR 1=1; --", *ann.places[0].all, *ann.places[1].all, *tokens]
        asker = twin if has_the_same else world.stranger()
        with_token = dict.fromkeys(("page_token", "consistency_token"), [UNSET, *tokens][kept])
        sent = await world.sent(asker, method, ann.places[place], **with_token)
        for edit in changes:
            if found := [leaf for message in sent for leaf in leaves(message)]:
                edit.apply(found, texts)
        if method == "Import":
            sent = sealed(sent)
        outcome = await said_nothing(world, asker, method, sent, ann)
        assert outcome.code not in OUR_FAULT, outcome
        assert changed(unchanged, await world.snapshot(ann.caller.tenant)) == []

    world.run(play())


async def tokens_of(world: World, tenant: Tenant) -> list[str]:
    """Tokens that a tenant was given."""
    names = tenant.places[0]
    scope = scope_pb2.Scope(space=names.space)
    listed = await tenant.caller.call("ListMemories", pb.ListMemoriesRequest(scope=scope, page_size=1))
    spaces = await tenant.caller.call("ListSpaces", pb.ListSpacesRequest(page_size=1))
    number = await world.owner.fetchval(
        "SELECT number FROM memory.space WHERE tenant = $1 AND name = $2", tenant.caller.tenant, names.space
    )
    return [listed.next_page_token, spaces.next_page_token, token(number, 1)]
