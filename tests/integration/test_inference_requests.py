"""Requests with an id: worked on once, answered the same, taken over when their owner dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import asyncpg
import pytest
from prometheus_client import REGISTRY
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.usage_records import at_work, eventually, keeping, migrated, record, rows

from janus_inference.adapters.postgres_requests import PostgresRequests
from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.events import Finished, FinishReason, Numbered, Started, TextDelta, Timings, Usage
from janus_inference.model import Caller
from janus_inference.ports import AnsweredRequest, Claim, Request
from janus_inference.requests import Begun, Requests, Running, Stored
from janus_inference.stored import ProtobufEvents
from janus_kit.errors import AlreadyExists, Internal, Unavailable
from janus_kit.postgres import Database, database

CODEC = ProtobufEvents()
FINISHED = Finished(FinishReason.STOP, "stop", Usage(1, 0, 0, 1), Timings(0.25, 0.5, 0.0))
ANSWER = [
    Numbered(1, Started("gen_1", "openai", "gpt-4o", 1)),
    Numbered(2, TextDelta(0, "hello")),
    Numbered(3, FINISHED),
]


@pytest.fixture
def here(db: Database) -> Requests:
    """One replica."""
    return Requests(PostgresRequests(db), CODEC)


@pytest.fixture
def there(db: Database) -> Requests:
    """Another one."""
    return Requests(PostgresRequests(db), CODEC)


def request(name: str, *, tenant: str = "acme", method: str = "Generate", body: bytes = b"body") -> Request:
    return Request(Caller(tenant, "alice"), method, name, body)


async def is_begun(replica: Requests, what: Request, generation_id: str) -> bool:
    return await replica.begin(what, generation_id) == Begun()


async def answer(db: Database, what: Request, generation_id: str, events: Sequence[Numbered] = ANSWER) -> None:
    """The end of a call: its usage record and its answer."""
    said = record(what.caller.tenant, generation_id=generation_id)
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(said, AnsweredRequest(what, generation_id, CODEC.dump(events)))


async def test_a_request_is_begun_once_and_answered_the_same_on_every_replica(
    db: Database, here: Requests, there: Requests
):
    what = request("once")
    assert await here.begin(what, "gen_1") == Begun()
    assert await here.begin(what, "gen_2") == Running("gen_1")
    assert await there.begin(what, "gen_3") == Running("gen_1")
    await answer(db, what, "gen_1")
    assert await here.begin(what, "gen_4") == Stored(ANSWER)
    assert await there.begin(what, "gen_5") == Stored(ANSWER)


async def test_ids_that_are_known_are_counted_by_what_is_known(db: Database, here: Requests):
    def counted() -> list[float]:
        name = "janus_idempotency_hits_total"
        outcomes = ("replayed", "conflict", "in_progress")
        return [REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0 for outcome in outcomes]

    before, what = counted(), request("counted")
    await here.begin(what, "gen_1")
    await here.begin(what, "gen_2")
    with pytest.raises(AlreadyExists):
        await here.begin(request("counted", body=b"another"), "gen_3")
    await answer(db, what, "gen_1")
    await here.begin(what, "gen_4")
    assert [after - then for after, then in zip(counted(), before, strict=True)] == [1, 1, 1]


async def test_of_many_that_begin_at_once_on_two_replicas_one_does_the_work(here: Requests, there: Requests):
    what = request("race")
    outcomes = await asyncio.gather(
        *(replica.begin(what, f"gen_{number}") for number in range(10) for replica in (here, there))
    )
    assert [type(outcome) for outcome in outcomes].count(Begun) == 1
    assert len({outcome.generation_id for outcome in outcomes if isinstance(outcome, Running)}) == 1


async def test_another_body_is_refused_while_it_runs_and_after_it_was_answered(
    db: Database, here: Requests, there: Requests
):
    what, other = request("reused"), request("reused", body=b"another body")
    await here.begin(what, "gen_reused")
    for replica in (here, there):
        with pytest.raises(AlreadyExists) as raised:
            await replica.begin(other, "gen_other")
        assert raised.value.reason == "REQUEST_ID_REUSED"
        assert raised.value.resource_name == "reused"
    await answer(db, what, "gen_reused")
    with pytest.raises(AlreadyExists):
        await there.begin(other, "gen_other")
    assert await there.begin(what, "gen_other") == Stored(ANSWER)


async def test_an_id_belongs_to_its_tenant_and_method(db: Database, here: Requests):
    first = request("twin", tenant="one")
    assert await here.begin(first, "gen_one") == Begun()
    await answer(db, first, "gen_one")
    assert await here.begin(request("twin", tenant="two", body=b"another"), "gen_two") == Begun()
    assert await here.begin(request("twin", tenant="one", method="StreamGenerate"), "gen_three") == Begun()
    async with db.tenant("two") as connection:
        found = await connection.fetch("SELECT tenant, generation_id FROM inference.request")
    assert [tuple(row) for row in found] == [("two", "gen_two")]


async def test_what_was_given_up_can_be_begun_anew(here: Requests, there: Requests):
    what = request("given-up")
    await here.begin(what, "gen_1")
    here.abandon(what, "gen_1")
    assert await here.begin(what, "gen_2") == Begun()
    here.abandon(what, "gen_2")
    await here.drain()
    assert await there.begin(what, "gen_3") == Begun()


async def test_giving_up_takes_nothing_from_another_replica_nor_an_answer(
    db: Database, here: Requests, there: Requests
):
    what = request("not-mine")
    await there.begin(what, "gen_there")
    here.abandon(what, "gen_here")
    await here.drain()
    assert await here.begin(what, "gen_here") == Running("gen_there")
    await answer(db, what, "gen_there")
    there.abandon(what, "gen_there")
    await there.drain()
    assert await here.begin(what, "gen_here") == Stored(ANSWER)


async def test_a_replica_at_work_frees_what_is_given_up_by_itself(here: Requests, there: Requests):
    what = request("freed")
    async with at_work(here.run):
        await here.begin(what, "gen_1")
        here.abandon(what, "gen_1")
        await eventually(partial(is_begun, there, what, "gen_2"))


async def test_the_claim_of_a_dead_owner_is_taken_over_and_its_late_answer_is_not_stored(db: Database, there: Requests):
    what = request("dead")
    dead = Requests(PostgresRequests(db), CODEC, lease_s=0.2)
    await dead.begin(what, "gen_dead")
    assert await there.begin(what, "gen_alive") == Running("gen_dead")
    await eventually(partial(is_begun, there, what, "gen_alive"))
    late = [Numbered(1, TextDelta(0, "late")), Numbered(2, FINISHED)]
    await answer(db, what, "gen_dead", late)
    assert await dead.begin(what, "gen_again") == Running("gen_alive")
    await answer(db, what, "gen_alive")
    assert await dead.begin(what, "gen_again") == Stored(ANSWER)


async def test_another_body_does_not_take_over_a_dead_owners_id(db: Database, there: Requests, postgres_url: str):
    await there.begin(request("dead-other"), "gen_dead")
    past = "UPDATE inference.request SET lease_until = now() - interval '1 minute' WHERE request_id = 'dead-other'"
    await rows(postgres_url, past)
    with pytest.raises(AlreadyExists):
        await there.begin(request("dead-other", body=b"another"), "gen_other")


async def test_a_living_owner_keeps_its_claims_with_one_renewal_for_all(db: Database, postgres_url: str):
    owner = Requests(PostgresRequests(db), CODEC, lease_s=30, renew_s=0.02)
    whats = [request("alive", tenant=tenant) for tenant in ("alive-1", "alive-2")]

    async def leases() -> list[tuple[datetime, str]]:
        query = "SELECT lease_until, xmin::text FROM inference.request WHERE request_id = 'alive' ORDER BY tenant"
        return [(row[0], row[1]) for row in await rows(postgres_url, query)]

    for what in whats:
        await owner.begin(what, "gen_alive")

    async def are_longer() -> bool:
        return all(now[0] > then[0] for now, then in zip(await leases(), before, strict=True))

    before = await leases()
    async with at_work(owner.run):
        await eventually(are_longer)
    # One transaction wrote both.
    assert len({transaction for _, transaction in await leases()}) == 1


async def test_an_answer_is_stored_with_its_usage_record_or_not_at_all(db: Database, here: Requests):
    what = request("together")
    await here.begin(what, "gen_together")
    unwritable = record("acme", generation_id="gen_together", labels={"team": "\x00"})
    async with keeping(PostgresUsage(db)) as ledger:
        with pytest.raises(Internal):
            await ledger.record(unwritable, AnsweredRequest(what, "gen_together", CODEC.dump(ANSWER)))
    assert await here.begin(what, "gen_other") == Running("gen_together")


async def test_an_answer_of_another_version_can_be_asked_for_again(db: Database, here: Requests):
    what = request("version")
    await here.begin(what, "gen_version")
    async with keeping(PostgresUsage(db)) as ledger:
        await ledger.record(record("acme"), AnsweredRequest(what, "gen_version", b"\xff of the future"))
    with pytest.raises(Unavailable) as raised:
        await here.begin(what, "gen_again")
    assert raised.value.retry_after is not None


async def test_after_a_day_the_id_is_new_and_what_is_old_is_forgotten(db: Database, here: Requests, postgres_url: str):
    for name in ("old", "older", "fresh"):
        await here.begin(request(name, tenant="days"), f"gen_{name}")
        await answer(db, request(name, tenant="days"), f"gen_{name}")
    past = "UPDATE inference.request SET created_at = now() - interval '25 hours' WHERE request_id LIKE 'old%'"
    await rows(postgres_url, past)
    assert await here.begin(request("old", tenant="days", body=b"another"), "gen_new") == Begun()
    assert not await PostgresRequests(db).forget_old()
    query = "SELECT request_id FROM inference.request WHERE tenant = 'days' ORDER BY request_id"
    assert [row["request_id"] for row in await rows(postgres_url, query)] == ["fresh", "old"]


async def test_a_claim_whose_outcome_is_unknown_does_not_block_its_id(db: Database, there: Requests):
    class Unsure(PostgresRequests):
        """Claims, and then the answer gets lost on the way."""

        async def claim(self, request: Request, generation_id: str, lease_s: float) -> Claim:
            await super().claim(request, generation_id, lease_s)
            raise Unavailable("postgres")

    what, unsure = request("unsure"), Requests(Unsure(db), CODEC)
    with pytest.raises(Unavailable):
        await unsure.begin(what, "gen_1")
    await unsure.drain()
    assert await there.begin(what, "gen_2") == Begun()


async def test_the_worker_sees_neither_bodies_nor_answers(db: Database):
    for column in ("body", "answer"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.worker() as connection:
                await connection.fetch(f"SELECT {column} FROM inference.request")


async def test_without_postgres_nothing_begins_and_giving_up_does_not_wait(postgres_url: str):
    proxy = TcpProxy.to(postgres_url)
    settings = await migrated(proxy.through(postgres_url), connect_timeout_s=1, pool_min=0)
    what = request("away")
    async with database(settings, application="test") as db:
        replica = Requests(PostgresRequests(db), CODEC)
        async with at_work(replica.run):
            await replica.begin(what, "gen_1")
            proxy.cut()
            with pytest.raises(Unavailable) as raised:
                await replica.begin(request("another"), "gen_2")
            assert raised.value.part == "postgres"
            replica.abandon(what, "gen_1")
            with pytest.raises(Unavailable):
                await replica.begin(what, "gen_3")
            proxy.mend()
            assert await replica.begin(what, "gen_3") == Begun()
    proxy.close()
