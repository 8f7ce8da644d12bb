"""GetUsage: sums by time and group, page by page, of the caller's tenant alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.usage_records import NOON, migrated, record

from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.events import Cost, Usage
from janus_inference.usage_report import UsageReport
from janus_inference.usage_wire import usage_page_to, usage_query_from
from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.postgres import Database, database

HOUR = timedelta(hours=1)


@pytest.fixture
def store(db: Database) -> PostgresUsage:
    return PostgresUsage(db)


def stamp(time: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(time)
    return made


def asked(start: datetime = NOON, end: datetime = NOON + 24 * HOUR, **fields: Any) -> pb.GetUsageRequest:
    bucket = fields.pop("bucket", None)
    return pb.GetUsageRequest(
        start_time=stamp(start),
        end_time=stamp(end),
        bucket=Duration(seconds=int(bucket.total_seconds())) if bucket else None,
        **fields,
    )


async def said(store: PostgresUsage, tenant: str, request: pb.GetUsageRequest) -> pb.GetUsageResponse:
    return usage_page_to(await UsageReport(store).page(tenant, usage_query_from(request)))


async def written(store: PostgresUsage, *records: Any) -> None:
    await store.write([(each, None) for each in records])


async def refusal(store: PostgresUsage, request: pb.GetUsageRequest) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        await said(store, "refused", request)
    return raised.value.violations[0].field, raised.value.reason


async def test_a_report_sums_tokens_and_cost(store: PostgresUsage):
    await written(
        store,
        record("sums", usage=Usage(100, 20, 3, 50, 7), cost=Cost(1_000, "2026-01-01")),
        record("sums", usage=Usage(10, 0, 0, 5, 0), cost=Cost(24, "2026-01-01")),
    )
    (bucket,) = (await said(store, "sums", asked())).buckets
    assert (bucket.calls, bucket.unpriced_calls) == (2, 0)
    assert (bucket.start_time, bucket.end_time) == (stamp(NOON), stamp(NOON + 24 * HOUR))
    assert bucket.usage == usage_pb2.Usage(
        input_uncached_tokens=110,
        cache_read_tokens=20,
        cache_write_tokens=3,
        output_tokens=55,
        reasoning_tokens=7,
        cost_micro_usd=1_024,
        price_version="2026-01-01",
        source=usage_pb2.USAGE_SOURCE_REPORTED,
    )


async def test_the_cost_of_a_sum_is_unset_when_one_price_is_unknown(store: PostgresUsage):
    await written(
        store, record("priced", cost=Cost(5, "v")), record("priced", model="own"), record("priced", model="own")
    )
    (whole,) = (await said(store, "priced", asked())).buckets
    assert not whole.usage.HasField("cost_micro_usd")
    assert whole.usage.price_version == ""
    assert (whole.calls, whole.unpriced_calls) == (3, 2)
    split = (await said(store, "priced", asked(group_by=[pb.USAGE_DIMENSION_MODEL]))).buckets
    assert [(each.model, each.usage.HasField("cost_micro_usd"), each.unpriced_calls) for each in split] == [
        ("gpt-4o", True, 0),
        ("own", False, 2),
    ]


async def test_free_is_a_cost_and_versions_of_price_tables_are_all_said(store: PostgresUsage):
    await written(store, record("free", cost=Cost(0, "v2")), record("free", cost=Cost(0, "v1")))
    (bucket,) = (await said(store, "free", asked())).buckets
    assert bucket.usage.HasField("cost_micro_usd")
    assert (bucket.usage.cost_micro_usd, bucket.usage.price_version) == (0, "v1,v2")


async def test_a_sum_with_one_estimate_is_estimated(store: PostgresUsage):
    await written(
        store,
        record("estimate", model="a", usage=Usage(1, 0, 0, 1)),
        record("estimate", model="b"),
        record("estimate", model="b", usage=Usage(1, 0, 0, 1, estimated=True)),
    )
    buckets = (await said(store, "estimate", asked(group_by=[pb.USAGE_DIMENSION_MODEL]))).buckets
    assert [each.usage.source for each in buckets] == [
        usage_pb2.USAGE_SOURCE_REPORTED,
        usage_pb2.USAGE_SOURCE_ESTIMATED,
    ]


async def test_calls_that_were_refused_counted_nothing(store: PostgresUsage):
    await written(store, record("rejected", usage=Usage()))
    (bucket,) = (await said(store, "rejected", asked())).buckets
    assert (bucket.calls, bucket.unpriced_calls) == (1, 1)
    assert bucket.usage == usage_pb2.Usage()


async def test_buckets_lie_from_the_start_on_and_the_last_ends_with_the_report(store: PostgresUsage):
    start = NOON + timedelta(minutes=10)
    at = [NOON + timedelta(minutes=minutes) for minutes in (9, 10, 69, 70, 190, 209, 210)]
    await written(store, *(record("buckets", at=time) for time in at))
    request = asked(start, NOON + timedelta(minutes=210), bucket=HOUR)
    buckets = (await said(store, "buckets", request)).buckets
    # The start is inclusive, the end is exclusive, and an hour without calls is not there.
    assert [(each.start_time.ToDatetime(UTC) - start, each.end_time.ToDatetime(UTC) - start) for each in buckets] == [
        (0 * HOUR, HOUR),
        (HOUR, 2 * HOUR),
        (3 * HOUR, timedelta(minutes=200)),
    ]
    assert [each.calls for each in buckets] == [2, 1, 2]


async def test_usage_is_split_by_every_dimension(store: PostgresUsage):
    await written(
        store,
        record("split", model="a", provider="x", subject="alice", labels={"team": "red"}),
        record("split", model="a", provider="x", subject="bob", labels={"team": "blue", "other": "red"}),
        record("split", model="b", provider="x", subject="bob", labels={"other": "red"}),
        record("split", model="a", provider="y", subject="bob"),
    )

    async def groups(*dimensions: pb.UsageDimension, label_key: str = "") -> list[tuple[Any, ...]]:
        request = asked(group_by=dimensions, label_key=label_key)
        buckets = (await said(store, "split", request)).buckets
        return [(each.model, each.provider, each.label_value, each.subject, each.calls) for each in buckets]

    assert await groups() == [("", "", "", "", 4)]
    assert await groups(pb.USAGE_DIMENSION_MODEL) == [("a", "", "", "", 3), ("b", "", "", "", 1)]
    assert await groups(pb.USAGE_DIMENSION_PROVIDER) == [("", "x", "", "", 3), ("", "y", "", "", 1)]
    assert await groups(pb.USAGE_DIMENSION_SUBJECT) == [("", "", "", "alice", 1), ("", "", "", "bob", 3)]
    # Calls without the label are a group of their own.
    assert await groups(pb.USAGE_DIMENSION_LABEL, label_key="team") == [
        ("", "", "", "", 2),
        ("", "", "blue", "", 1),
        ("", "", "red", "", 1),
    ]
    assert await groups(pb.USAGE_DIMENSION_SUBJECT, pb.USAGE_DIMENSION_MODEL, pb.USAGE_DIMENSION_PROVIDER) == [
        ("a", "x", "", "alice", 1),
        ("a", "x", "", "bob", 1),
        ("a", "y", "", "bob", 1),
        ("b", "x", "", "bob", 1),
    ]


async def test_pages_give_every_bucket_once_also_while_calls_are_made(store: PostgresUsage):
    models = ["b", "a", "Z", "é", "z-1"]
    await written(
        store, *(record("pages", model=model, at=NOON + hour * HOUR) for model in models for hour in range(3))
    )
    request = asked(bucket=HOUR, group_by=[pb.USAGE_DIMENSION_MODEL], page_size=4)
    seen: list[tuple[int, str]] = []
    pages = 0
    while True:
        page = await said(store, "pages", request)
        pages += 1
        assert len(page.buckets) <= 4
        seen += [((each.start_time.ToDatetime(UTC) - NOON) // HOUR, each.model) for each in page.buckets]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        # Into groups that were given, and one that comes before them.
        await written(store, record("pages", model="a"), record("pages", model="A"))
    assert pages == 4
    assert seen == [(hour, model) for hour in range(3) for model in sorted(models, key=str.encode)]


async def test_now_stays_where_it_was_on_the_first_page(store: PostgresUsage):
    begun = datetime.now(UTC)
    await written(store, *(record("now", model=model, at=begun - timedelta(minutes=1)) for model in "abc"))
    request = pb.GetUsageRequest(group_by=[pb.USAGE_DIMENSION_MODEL], page_size=2)
    first = await said(store, "now", request)
    await written(store, record("now", model="d", at=datetime.now(UTC)))
    request.page_token = first.next_page_token
    second = await said(store, "now", request)
    assert [each.model for each in (*first.buckets, *second.buckets)] == ["a", "b", "c"]
    assert {each.end_time.ToNanoseconds() for each in (*first.buckets, *second.buckets)} == {
        first.buckets[0].end_time.ToNanoseconds()
    }
    span = first.buckets[0].end_time.ToDatetime(UTC) - first.buckets[0].start_time.ToDatetime(UTC)
    assert span == 24 * HOUR


async def test_a_last_page_that_is_just_full_says_that_it_is_the_last(store: PostgresUsage):
    await written(store, *(record("full", model=model) for model in "ab"))
    page = await said(store, "full", asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_size=2))
    assert len(page.buckets) == 2
    assert page.next_page_token == ""


async def test_a_tenant_without_calls_gets_an_empty_report(store: PostgresUsage):
    assert await said(store, "nobody", asked()) == pb.GetUsageResponse()


async def test_twin_tenants_see_their_own_usage_only(store: PostgresUsage):
    """The same generation, subject and labels in both; and one's page token is nothing to the other."""
    for tenant, tokens in (("twin-a", 1), ("twin-b", 1_000)):
        usage = Usage(tokens, 0, 0, 0)
        await written(
            store,
            record(tenant, generation_id="gen_twin", labels={"team": "same"}, usage=usage),
            record(tenant, generation_id="gen_twin", attempt=2, model="other", usage=usage),
        )
    request = asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_size=1)
    for tenant, tokens in (("twin-a", 1), ("twin-b", 1_000)):
        (whole,) = (await said(store, tenant, asked())).buckets
        assert (whole.calls, whole.usage.input_uncached_tokens) == (2, 2 * tokens)
    request.page_token = (await said(store, "twin-a", request)).next_page_token
    with pytest.raises(InvalidArgument) as raised:
        await said(store, "twin-b", request)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_page_token_belongs_to_its_query(store: PostgresUsage):
    await written(store, *(record("refused", model=model) for model in "ab"))
    first = asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_size=1)
    token = (await said(store, "refused", first)).next_page_token
    others = [
        asked(group_by=[pb.USAGE_DIMENSION_PROVIDER], page_token=token),
        asked(group_by=[pb.USAGE_DIMENSION_MODEL], bucket=HOUR, page_token=token),
        asked(NOON + HOUR, group_by=[pb.USAGE_DIMENSION_MODEL], page_token=token),
        asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_token=token[:-2]),
        asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_token="ä not a token"),
    ]
    for other in others:
        assert await refusal(store, other) == ("page_token", "PAGE_TOKEN_INVALID")
    # Another page size is the same query.
    again = asked(group_by=[pb.USAGE_DIMENSION_MODEL], page_token=token, page_size=7)
    assert [each.model for each in (await said(store, "refused", again)).buckets] == ["b"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(NOON, NOON), "start_time"),
        (asked(NOON + HOUR, NOON), "start_time"),
        (pb.GetUsageRequest(start_time=stamp(datetime(9000, 1, 1, tzinfo=UTC))), "start_time"),
        (pb.GetUsageRequest(start_time=Timestamp(seconds=10**15)), "start_time"),
        (pb.GetUsageRequest(end_time=Timestamp(seconds=-(10**15))), "end_time"),
        (asked(bucket=timedelta(seconds=59)), "bucket"),
        (asked(bucket=timedelta(days=31, seconds=1)), "bucket"),
        (pb.GetUsageRequest(bucket=Duration(seconds=10**18)), "bucket"),
        (pb.GetUsageRequest(bucket=Duration(seconds=-60)), "bucket"),
        (asked(group_by=[pb.USAGE_DIMENSION_UNSPECIFIED]), "group_by[0]"),
        (asked(group_by=[pb.USAGE_DIMENSION_MODEL, pb.USAGE_DIMENSION_MODEL]), "group_by[1]"),
        (pb.GetUsageRequest(group_by=[99]), "group_by[0]"),  # type: ignore[list-item]
        (asked(group_by=[pb.USAGE_DIMENSION_LABEL]), "label_key"),
        (asked(group_by=[pb.USAGE_DIMENSION_LABEL], label_key="Team"), "label_key"),
        (asked(group_by=[pb.USAGE_DIMENSION_LABEL], label_key="a" * 65), "label_key"),
        (asked(group_by=[pb.USAGE_DIMENSION_LABEL], label_key="team\n"), "label_key"),
        (asked(label_key="team"), "label_key"),
        (asked(page_size=-1), "page_size"),
        (asked(page_size=1001), "page_size"),
    ],
)
async def test_a_query_that_makes_no_sense_names_the_field(
    store: PostgresUsage, request_: pb.GetUsageRequest, field: str
):
    assert (await refusal(store, request_))[0] == field


async def test_the_ends_of_time_can_be_asked_for(store: PostgresUsage):
    await written(store, record("ends"))
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    (bucket,) = (await said(store, "ends", asked(first, last))).buckets
    assert (bucket.calls, bucket.start_time, bucket.end_time) == (1, stamp(first), stamp(last))
    final = datetime.max.replace(tzinfo=UTC)
    (bucket,) = (await said(store, "ends", asked(first, final, bucket=timedelta(days=31), page_size=1))).buckets
    assert bucket.calls == 1
    assert bucket.start_time.ToDatetime(UTC) <= NOON < bucket.end_time.ToDatetime(UTC)
    await written(store, record("start", at=first), record("start"))
    early = asked(first, final, bucket=timedelta(days=31), page_size=1)
    page = await said(store, "start", early)
    assert [bucket.start_time for bucket in page.buckets] == [stamp(first)]
    early.page_token = page.next_page_token
    assert [bucket.calls for bucket in (await said(store, "start", early)).buckets] == [1]
    late = asked(datetime(9999, 12, 31, 23, tzinfo=UTC), last, bucket=timedelta(days=31))
    await written(store, record("ends", at=datetime(9999, 12, 31, 23, 30, tzinfo=UTC)))
    (bucket,) = (await said(store, "ends", late)).buckets
    assert bucket.end_time == stamp(last)
    assert await said(store, "ends", pb.GetUsageRequest(end_time=stamp(first + HOUR))) == pb.GetUsageResponse()


async def test_without_postgres_a_report_is_unavailable(postgres_url: str):
    proxy = TcpProxy.to(postgres_url)
    settings = await migrated(proxy.through(postgres_url), connect_timeout_s=1, pool_min=0)
    proxy.cut()
    async with database(settings, application="test") as db:
        with pytest.raises(Unavailable) as raised:
            await said(PostgresUsage(db), "acme", asked())
    assert raised.value.part == "postgres"
    proxy.close()
