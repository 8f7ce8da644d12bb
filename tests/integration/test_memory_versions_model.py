"""Memories on both axes of time, against a plain model of versions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.memory_statistics import COUNTED, CURRENT, counted, kept
from tests.fakes.patience import patient_postgres

from janus_kit.clock import SystemClock
from janus_kit.migrations import migrate
from janus_kit.postgres import database
from janus_memory.adapters.inference_embedder import KnownEmbedders
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.idempotency import Request
from janus_memory.indexer import Indexer
from janus_memory.lifecycle import Lifecycle
from janus_memory.model import (
    Backend,
    Cause,
    Change,
    HardFilter,
    Kind,
    Memory,
    NewMemory,
    RecallQuery,
    Scope,
    Weights,
)
from janus_memory.parts import Parts
from janus_memory.ports import VectorIndex
from janus_memory.recall import Recall
from janus_memory.remember import Remember
from janus_memory.retention import Sweep
from janus_memory.spaces import SpaceDefaults, Spaces
from janus_memory.versions import change_memory, digest, hold, succeeded

DAY = timedelta(days=1)
NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
LONG_AGO, FAR = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
NO_REQUEST = Request("", "", b"")
CAUSE = Cause("test")

days = st.one_of(st.none(), st.integers(0, 3))
expiries = st.sampled_from([None, LONG_AGO, FAR])
which = st.integers(0, 5)
texts = st.sampled_from(["memory of a heron", "memory of a pond", "memory of a heron by a pond"])
steps = st.one_of(
    st.tuples(st.just("remember"), texts, days, days, expiries, st.one_of(st.none(), which)),
    st.tuples(st.just("update"), which, st.one_of(texts, days, st.sampled_from([LONG_AGO, FAR]))),
    st.tuples(st.just("invalidate"), which, st.integers(1, 3)),
    st.tuples(st.just("supersede"), which, which),
    st.tuples(st.just("forget"), which, st.booleans()),
    st.tuples(st.sampled_from(["index", "sweep"])),
)  # fmt: skip


@dataclass
class Version:
    """A version as the model has it. ``found``: searches of some time may find it."""

    memory: Memory
    change: Change
    found: bool = True

    def shown(self, known: datetime | None, valid: datetime | None, now: datetime) -> bool:
        memory = self.memory
        ends = memory.superseded_at or FAR
        return (
            self.found
            and (memory.expires_at is None or memory.expires_at > now)
            and (memory.superseded_at is None if known is None else memory.recorded_at <= known < ends)
            and (valid is None or (memory.valid_from or LONG_AGO) <= valid < (memory.valid_to or FAR))
        )


class Seen(NamedTuple):
    """What names a version in an answer."""

    id: str
    version: int


@dataclass
class World:
    """The use cases on real Postgres, one tenant, and what they should know."""

    records: PostgresRecords
    owner: asyncpg.Connection
    remember: Remember
    recall: Recall
    lifecycle: Lifecycle
    indexer: Indexer
    sweep: Sweep
    tenant: str = ""
    known: dict[str, list[Version]] = field(default_factory=dict)

    def begin(self) -> None:
        self.tenant, self.known = f"t{uuid.uuid4().hex[:12]}", {}

    def named(self, place: int) -> str | None:
        """One of the memories so far."""
        return list(self.known)[place % len(self.known)] if self.known else None

    def current(self, memory_id: str | None) -> Memory | None:
        last = self.known[memory_id][-1] if memory_id else None
        return None if last is None or last.memory.superseded_at else last.memory

    def alone(self, text: str, but: str = "") -> bool:
        """No other memory says it now."""
        return all(
            self.current(memory_id) is None or versions[-1].memory.text != text or memory_id == but
            for memory_id, versions in self.known.items()
        )

    async def took(self, memory_id: str, change: Change, expected: Memory) -> None:
        """A version was made: it must be as expected, at a later time, and the one before ends with it."""
        found, _ = await self.lifecycle.history(self.tenant, memory_id, 0, 1_000)
        made = found[-1]
        past = self.known.setdefault(memory_id, [])
        closing = change in (Change.SUPERSEDED, Change.FORGOTTEN)
        at = made.memory.recorded_at
        assert (made.change, made.memory.version) == (change, len(past) + 1)
        assert not past or at > past[-1].memory.recorded_at
        if past and past[-1].memory.superseded_at is None:
            past[-1].memory = replace(past[-1].memory, superseded_at=at)
        memory = replace(
            expected, id=memory_id, version=len(past) + 1, recorded_at=at, superseded_at=at if closing else None,
            provenance_json=made.memory.provenance_json,
        )  # fmt: skip
        past.append(Version(memory, change, found=not closing))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture
def world(runner: asyncio.Runner, postgres_url: str) -> Iterator[World]:
    stack = AsyncExitStack()

    async def open_all() -> World:
        config = patient_postgres(postgres_url)
        await migrate(config, ["janus_memory"])
        pool = await stack.enter_async_context(database(config, application="test"))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        records, parts, clock = PostgresRecords(pool), Parts(), SystemClock()
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool)}
        embedders = KnownEmbedders(LexicalEmbedder(), OnnxModels(None, 0), None, 5)
        defaults = SpaceDefaults(Backend.PGVECTOR, "janus/lexical-v1", 64, frozenset({Backend.PGVECTOR}))
        spaces = Spaces(records, embedders, defaults)
        windows: Any = None  # no turn is removed
        return World(
            records,
            owner,
            Remember(records, spaces, parts, clock),
            Recall(records, indexes, embedders, spaces, parts, clock, 5, lambda: None),
            Lifecycle(records, spaces),
            Indexer(records, indexes, embedders, parts, poll_s=1),
            Sweep(records, windows, every_s=1),
        )

    try:
        yield runner.run(open_all())
    finally:
        runner.run(stack.aclose())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(steps, min_size=1, max_size=14))
def test_every_answer_agrees_with_a_plain_model_of_versions(
    runner: asyncio.Runner, world: World, program: list[tuple[Any, ...]]
) -> None:
    async def play() -> None:
        world.begin()
        for name, *arguments in program:
            await _STEPS[name](world, *arguments)
        assert await kept(world.owner, world.tenant) == await counted(world.owner, world.tenant, COUNTED)
        await agree(world)
        await index(world)
        await agree(world)
        await world.sweep.work()
        assert await kept(world.owner, world.tenant) == await counted(world.owner, world.tenant, CURRENT)

    runner.run(play())


async def agree(world: World) -> None:
    """Recall, ListMemories and GetHistory say what the model says."""
    now = datetime.now(UTC)
    everything = [version for versions in world.known.values() for version in versions]
    moments = {version.memory.recorded_at for version in everything}
    for known in (None, *sorted(moments), *sorted(moment - timedelta(microseconds=1) for moment in moments)):
        for valid in (NOON, NOON + DAY, NOON + 2 * DAY, NOON + 4 * DAY):
            where = HardFilter(Scope(), (), valid, known, now)
            found = await world.recall.run(world.tenant, RecallQuery("memory", 200, where, Weights()))
            assert not found.degraded
            records = [hit.record for hit in found.hits]
            assert sorted(Seen(each.id, each.version) for each in records if isinstance(each, Memory)) == sorted(
                Seen(version.memory.id, version.memory.version)
                for version in everything
                if version.shown(known, valid, now)
            )
    for inactive in (False, True):
        where = HardFilter(Scope(), (), now, None, now, whenever=True, inactive=inactive)
        listed, mark, size = [], None, 2
        while True:
            page, mark = await world.lifecycle.page(world.tenant, where, mark, size)
            listed += page
            if mark is None:
                break
        shown = [v.memory for v in everything if (v.found if inactive else v.shown(None, None, now))]
        assert listed == sorted(shown, key=lambda memory: (memory.recorded_at, memory.id), reverse=True)
    for memory_id, versions in world.known.items():
        history, _ = await world.lifecycle.history(world.tenant, memory_id, 0, 1_000)
        assert [(each.memory, each.change) for each in history] == [(each.memory, each.change) for each in versions]


async def remember(
    world: World, text: str, begins: int | None, ends: int | None, expires: datetime | None, place: int | None
) -> None:
    valid_from = None if begins is None else NOON + begins * DAY
    valid_to = None if ends is None else NOON + (ends + 4) * DAY
    memory_id = "" if place is None else world.named(place) or "mine"
    there = next((each for each in map(world.current, world.known) if each and each.text == text), None)
    now = datetime.now(UTC)
    if there is None and world.current(memory_id if memory_id in world.known else None):
        return  # the id is taken: refused, as other tests say
    new = NewMemory(
        memory_id, Kind.FACT, text, Scope(), "", "[]", valid_from, valid_to, expires, 0.5, "", (),
        digest(Kind.FACT, text, Scope()),
    )  # fmt: skip
    [given_id] = (await world.remember.run(world.tenant, "test", "default", [new], NO_REQUEST, 0)).ids
    if there is not None:
        assert given_id == there.id
        if there.expires_at is None or there.expires_at > now:
            return
    change = Change.UPDATED if given_id in world.known else Change.CREATED
    made = Memory(
        given_id, 0, Kind.FACT, text, Scope(), "", "[]", valid_from, valid_to, expires, 0.5, "", NOON, None
    )  # fmt: skip
    await world.took(given_id, change, made)


async def update(world: World, place: int, value: str | int | datetime | None) -> None:
    memory_id = world.named(place)
    memory = world.current(memory_id)
    if memory is None or (isinstance(value, str) and not world.alone(value, memory.id)):
        return
    if isinstance(value, str):
        values: dict[str, Any] = {"text": value}
    elif isinstance(value, datetime):
        values = {"expires_at": value}
    else:
        begins = None if value is None else NOON + value * DAY
        if begins and memory.valid_to and memory.valid_to <= begins:
            return
        values = {"valid_from": begins}
    await world.lifecycle.update(world.tenant, memory.id, values, memory.version, CAUSE, NO_REQUEST)
    await world.took(memory.id, Change.UPDATED, replace(memory, **values))


async def invalidate(world: World, place: int, day: int) -> None:
    memory = world.current(world.named(place))
    ends = NOON + day * DAY
    if memory is None or (memory.valid_from and memory.valid_from >= ends):
        return
    await change(world, memory, Change.INVALIDATED, replace(memory, valid_to=ends))


async def supersede(world: World, place: int, by: int) -> None:
    memory, other = world.current(world.named(place)), world.named(by)
    if memory is not None and other is not None and other != memory.id:
        await change(world, memory, Change.SUPERSEDED, succeeded(memory, other))


async def change(world: World, memory: Memory, what: Change, after: Memory) -> None:
    async with world.records.transaction(world.tenant) as tx:
        held = await hold(tx, memory.id)
        assert held is not None
        await change_memory(tx, held, what, after, CAUSE)
    await world.took(memory.id, what, after)


async def forget(world: World, place: int, purge: bool) -> None:
    memory_id = world.named(place)
    if memory_id is None:
        return
    await world.lifecycle.forget(world.tenant, memory_id, purge, CAUSE, NO_REQUEST)
    past = world.known[memory_id]
    if past[-1].change is not Change.FORGOTTEN:
        await world.took(memory_id, Change.FORGOTTEN, past[-1].memory)
    for version in past:
        version.found = False
        if purge:
            version.memory = replace(
                version.memory, text="", valid_from=None, valid_to=None, expires_at=None, provenance_json="[]"
            )


async def index(world: World) -> None:
    while await world.indexer.work():
        pass


async def sweep(world: World) -> None:
    await world.sweep.work()


_STEPS: dict[str, Any] = {
    "remember": remember, "update": update, "invalidate": invalidate, "supersede": supersede, "forget": forget,
    "index": index, "sweep": sweep,
}  # fmt: skip
