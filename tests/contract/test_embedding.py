"""Texts to vectors at a server that speaks OpenAI's format: cut, joined, added up, bounded."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.fakes.providers import openai_wire
from tests.fakes.providers.directives import Directives, error_reply, one
from tests.fakes.providers.full_listener import full_listener
from tests.fakes.providers.http_server import Reply, Request, WireServer, serving
from tests.fakes.providers.setups import ONCE, Stores
from tests.fakes.usage_records import rows

from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_embeddings import OpenAIEmbeddings
from janus_inference.embedding import Embedded, Embedding
from janus_inference.events import Usage
from janus_inference.model import Caller, EmbedPurpose
from janus_inference.profiles import OPENAI, PROFILES, ChatProfile
from janus_inference.routing import ProviderModels, Routes
from janus_inference.settings import RoutingSettings
from janus_kit.errors import InvalidArgument, JanusError

ALICE, BOB = Caller("tenant", "alice"), Caller("tenant", "bob")


@dataclass
class Setup:
    embedding: Embedding
    wire: WireServer
    gate: asyncio.Event
    """Closed, the server answers nothing."""

    async def embed(self, *inputs: str, directives: str = "", caller: Caller = ALICE, **more: Any) -> Embedded:
        more.setdefault("labels", {})
        return await self.embedding.embed(f"upstream/fake-embed{directives}", list(inputs), caller=caller, **more)

    @property
    def asked(self) -> list[list[str]]:
        """The texts of every upstream request."""
        return [exchange.request.json["input"] for exchange in self.wire.exchanges]


@asynccontextmanager
async def embedding_at(
    stores: Stores,
    url: str,
    profile: ChatProfile = OPENAI,
    total_s: float = 30.0,
    routing: RoutingSettings = ONCE,
) -> AsyncIterator[Embedding]:
    client = OpenAIClient(f"{url}/v1", "sk-test")
    embedder = OpenAIEmbeddings("upstream", client, profile, has_key=True, needs_key=True)
    routes = Routes({"upstream": ProviderModels(frozenset(), frozenset(), True)}, {}, "")
    embedding = Embedding({"upstream": embedder}, routes, total_s, stores.desk(routing=routing))
    await client.warm()
    try:
        yield embedding
    finally:
        await embedding.close()
        await client.close()


@asynccontextmanager
async def setup_of(
    stores: Stores,
    profile: ChatProfile = OPENAI,
    total_s: float = 30.0,
    routing: RoutingSettings = ONCE,
    refusals: int = 0,
) -> AsyncIterator[Setup]:
    """``refusals``: so many requests are answered with 503 before the server answers any."""
    gate = asyncio.Event()
    gate.set()
    refused = itertools.count()

    def application(request: Request) -> Reply:
        if next(refused) < refusals:
            return error_reply(Directives({"status": "503"}), {"error": {"message": "overloaded"}})
        reply = openai_wire.application(request)
        pieces = reply.pieces

        async def gated() -> AsyncIterator[bytes]:
            await gate.wait()
            async for piece in pieces:
                yield piece

        return replace(reply, pieces=gated())

    async with serving(application) as wire, embedding_at(stores, wire.url, profile, total_s, routing) as embedding:
        yield Setup(embedding, wire, gate)


@pytest.fixture
async def setup(stores: Stores) -> AsyncIterator[Setup]:
    async with setup_of(stores) as made:
        yield made


def lengths(made: Embedded) -> list[float]:
    """The fake's vectors begin with the length of their text."""
    return [vector[0] for vector in made.vectors]


async def test_a_single_request_is_sent_as_it_is(setup: Setup) -> None:
    made = await setup.embed("a", "bbb", "cc")
    assert lengths(made) == [1, 3, 2]
    assert made.usage == Usage(5)
    assert setup.asked == [["a", "bbb", "cc"]]


async def test_too_many_texts_are_sent_as_several_requests_in_order(stores: Stores) -> None:
    async with setup_of(stores, replace(OPENAI, embed_inputs=3)) as setup:
        texts = ["x" * (number + 1) for number in range(10)]
        made = await setup.embed(*texts)
        assert lengths(made) == [len(text) for text in texts]
        assert sorted(map(len, setup.asked)) == [1, 3, 3, 3]
        assert made.usage == Usage(4 * 5)


async def test_requests_hold_no_more_tokens_than_the_provider_takes(stores: Stores) -> None:
    async with setup_of(stores, replace(OPENAI, embed_tokens=100)) as setup:
        made = await setup.embed("x" * 240, "y" * 160, "z" * 4)
        assert lengths(made) == [240, 160, 4]
        assert sorted(len(texts) for texts in setup.asked) == [1, 2]


async def test_one_part_that_fails_fails_all_and_ends_the_others(stores: Stores) -> None:
    async with setup_of(stores, replace(OPENAI, embed_inputs=2)) as setup:
        with pytest.raises(JanusError) as raised:
            await setup.embed(*map(str, range(20)), directives=";missing=1")
        assert raised.value.reason == "PROVIDER_STREAM_BROKEN"
        assert len(setup.asked) < 10


PATIENT = RoutingSettings(max_attempts=3, backoff_s=0.01)


async def test_a_request_that_failed_is_sent_again_and_each_one_is_on_record(stores: Stores, postgres_url: str) -> None:
    async with setup_of(stores, routing=PATIENT, refusals=2) as setup:
        made = await setup.embed("a", "bbb", caller=Caller("persistent", "alice"))
        assert lengths(made) == [1, 3]
        assert setup.asked == [["a", "bbb"]] * 3
    query = "SELECT attempt, outcome, input_uncached_tokens FROM inference.usage WHERE tenant = 'persistent' ORDER BY 1"
    found = [tuple(row) for row in await rows(postgres_url, query)]
    assert found == [(1, "unavailable", 0), (2, "unavailable", 0), (3, "ok", 5)]


@pytest.mark.parametrize(
    ("routing", "asked"),
    [(PATIENT, 3), (RoutingSettings(backoff_s=0.01, retry_budget_ratio=0, retry_budget_least=1), 2)],
    ids=["attempts", "budget"],
)
async def test_retries_end(stores: Stores, routing: RoutingSettings, asked: int) -> None:
    async with setup_of(stores, routing=routing, refusals=9) as setup:
        with pytest.raises(JanusError) as raised:
            await setup.embed("a")
        assert raised.value.code == "UNAVAILABLE"
        assert len(setup.asked) == asked


async def test_what_another_try_cannot_mend_is_not_tried_again(stores: Stores) -> None:
    async with setup_of(stores, routing=PATIENT) as setup:
        with pytest.raises(InvalidArgument):
            await setup.embed("a", directives=";status=400")
        assert len(setup.asked) == 1


async def waiting(setup: Setup, count: int, **more: Any) -> "list[asyncio.Task[Embedded]]":
    """Requests of one text each; the first is under way and the others wait for it when this returns."""
    setup.gate.clear()
    first = asyncio.create_task(setup.embed("x", **more))
    await setup.wire.exchange(0)
    others = [asyncio.create_task(setup.embed("x" * (number + 2), **more)) for number in range(count - 1)]
    # Each takes its place in the lane as soon as it runs for the first time.
    await asyncio.sleep(0)
    return [first, *others]


@pytest.mark.parametrize(
    ("status", "code", "message", "field", "reason"),
    [
        (404, "model_not_found", "no such model", "model", "MODEL_NOT_FOUND"),
        (400, "context_length_exceeded", "too long", "inputs", "CONTEXT_TOO_LONG"),
        (400, "", "malformed", "inputs", "PROVIDER_REJECTED_REQUEST"),
    ],
)
async def test_a_refusal_names_a_field_that_was_sent(
    setup: Setup, status: int, code: str, message: str, field: str, reason: str
) -> None:
    def refuse(request: Request) -> Reply:
        body = openai_wire.as_json({"error": {"message": message, "code": code}})
        return Reply(one(body), status=status, content_type="application/json")

    setup.wire.application = refuse
    with pytest.raises(InvalidArgument) as raised:
        await setup.embed("a")
    assert [violation.field for violation in raised.value.violations] == [field]
    assert raised.value.reason == reason
    assert raised.value.message.startswith(f"{field}: ")


async def test_small_requests_that_wait_travel_together(setup: Setup) -> None:
    tasks = await waiting(setup, 5)
    setup.gate.set()
    made = await asyncio.gather(*tasks)
    assert [lengths(each) for each in made] == [[1], [2], [3], [4], [5]]
    assert setup.asked == [["x"], ["xx", "xxx", "xxxx", "xxxxx"]]


async def test_the_usage_of_a_joined_request_is_shared_out_exactly(setup: Setup) -> None:
    tasks = await waiting(setup, 4)
    setup.gate.set()
    alone, *joined = [each.usage for each in await asyncio.gather(*tasks)]
    assert alone == Usage(5)
    assert sum(usage.input_uncached_tokens for usage in joined) == 5
    assert all(usage.estimated for usage in joined)


@pytest.mark.parametrize(
    "different",
    [{"caller": BOB}, {"dimensions": 2}, {"purpose": EmbedPurpose.QUERY}, {"labels": {"a": "b"}}],
    ids=["caller", "dimensions", "purpose", "labels"],
)
async def test_what_differs_does_not_travel_together_and_does_not_wait(setup: Setup, different: dict[str, Any]) -> None:
    first, second = await waiting(setup, 2)
    other = asyncio.create_task(setup.embed("other", **different))
    assert (await setup.wire.exchange(1)).request.json["input"] == ["other"]
    setup.gate.set()
    await asyncio.gather(first, second, other)
    assert setup.asked == [["x"], ["other"], ["xx"]]


async def test_a_request_that_is_stuck_does_not_stop_those_behind_it(setup: Setup) -> None:
    tasks = await waiting(setup, 3)
    # The gate stays closed: the second request leaves although the first was not answered.
    assert (await setup.wire.exchange(1)).request.json["input"] == ["xx", "xxx"]
    setup.gate.set()
    await asyncio.gather(*tasks)


async def test_one_that_gives_up_leaves_the_others_alone(setup: Setup) -> None:
    first, second, third = await waiting(setup, 3)
    await setup.wire.exchange(1)
    second.cancel()
    await asyncio.wait([second])
    setup.gate.set()
    assert second.cancelled()
    assert lengths(await third) == [3]
    assert lengths(await first) == [1]


async def test_a_request_that_nobody_waits_for_is_ended_upstream(setup: Setup) -> None:
    (first,) = await waiting(setup, 1)
    exchange = await setup.wire.exchange(0)
    first.cancel()
    await asyncio.wait_for(exchange.client_gone.wait(), 5)


async def test_a_text_that_is_refused_fails_its_own_request_alone(stores: Stores) -> None:
    async with setup_of(stores) as setup:
        tasks = await waiting(setup, 3)
        answer = setup.wire.application

        def picky(request: Request) -> Reply:
            if "xxx" in request.json["input"]:
                body = openai_wire.as_json({"error": {"message": "no", "type": "invalid_request_error"}})
                return Reply(one(body), status=400, content_type="application/json")
            return answer(request)

        setup.wire.application = picky
        setup.gate.set()
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, Embedded)
        assert isinstance(second, Embedded)
        assert isinstance(third, InvalidArgument)
        assert setup.asked == [["x"], ["xx", "xxx"], ["xx"], ["xxx"]]


def unfit(text: str, answer: Any) -> Any:
    """A provider that gives no vector for what holds a text, and is well otherwise."""

    def application(request: Request) -> Reply:
        given = request.json["input"]
        if any(text in each for each in given):
            data = [{"object": "embedding", "index": at, "embedding": []} for at in range(len(given))]
            body = openai_wire.as_json({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1}})
            return Reply(one(body), content_type="application/json")
        return answer(request)

    return application


async def test_a_text_without_a_usable_vector_fails_its_own_request_alone(stores: Stores) -> None:
    async with setup_of(stores) as setup:
        tasks = await waiting(setup, 3)
        setup.wire.application = unfit("xxx", setup.wire.application)
        setup.gate.set()
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, Embedded)
        assert isinstance(second, Embedded)
        assert isinstance(third, JanusError)
        assert (third.code, third.reason) == ("UNAVAILABLE", "PROVIDER_STREAM_BROKEN")
        assert third.metadata["answer"] == "unusable"


async def test_texts_without_usable_vectors_do_not_take_the_model_from_others(stores: Stores) -> None:
    async with setup_of(stores) as setup:
        setup.wire.application = unfit("poison", setup.wire.application)
        for _ in range(20):
            with pytest.raises(JanusError):
                await setup.embed("poison", caller=Caller("careless", "ann"))
        assert lengths(await setup.embed("fine", caller=Caller("careful", "ben"))) == [4]


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, {"data": [{"index": 0, "embedding": [0.1, None]}]}, "PROVIDER_STREAM_BROKEN"),
        (200, {"data": [{"index": 0, "embedding": None}]}, "PROVIDER_STREAM_BROKEN"),
        (200, {"data": [{"index": 0, "embedding": [10**400]}]}, "PROVIDER_STREAM_BROKEN"),
        (200, {"data": [{"index": 0, "embedding": "no base64"}]}, "PROVIDER_STREAM_BROKEN"),
        (200, {"data": [{"index": 7, "embedding": [0.1]}]}, "PROVIDER_STREAM_BROKEN"),
        (200, {"error": {"message": "failed"}}, "PROVIDER_STREAM_BROKEN"),
        (
            200,
            {"error": {"message": "too long", "code": "context_length_exceeded", "status_code": 400}},
            "CONTEXT_TOO_LONG",
        ),
        (500, {"error": {"message": "input (723 tokens) is too large to process."}}, "CONTEXT_TOO_LONG"),
        (500, {"error": "Out of range float values are not JSON compliant: nan"}, "PROVIDER_STREAM_BROKEN"),
        (500, {"error": "failed to encode response: json: unsupported value: NaN"}, "PROVIDER_STREAM_BROKEN"),
    ],
)
async def test_whatever_a_server_says_of_a_text_it_cannot_embed_is_about_that_text(
    stores: Stores, status: int, body: object, reason: str
) -> None:
    async with setup_of(stores) as setup:
        answer = setup.wire.application

        def application(request: Request) -> Reply:
            if "poison" not in request.json["input"]:
                return answer(request)
            return Reply(one(openai_wire.as_json(body)), status=status, content_type="application/json")

        setup.wire.application = application
        for _ in range(20):
            with pytest.raises(JanusError) as raised:
                await setup.embed("poison", caller=Caller("careless", "ann"))
            assert raised.value.reason == reason
        assert lengths(await setup.embed("fine", caller=Caller("careful", "ben"))) == [4]


async def test_a_refusal_that_is_about_no_text_is_everybody_s(setup: Setup) -> None:
    tasks = await waiting(setup, 3, directives=";status=401")
    setup.gate.set()
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, JanusError) and each.reason for each in failed] == ["PROVIDER_AUTH"] * 3
    assert len(setup.asked) == 2


async def test_vectors_that_are_too_much_together_are_refused_before_they_are_asked_for(setup: Setup) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await setup.embed(*["x"] * 2048, dimensions=2000)
    assert [violation.field for violation in raised.value.violations] == ["inputs"]
    assert setup.asked == []


async def test_vectors_of_unknown_length_are_refused_from_the_first_answer_and_then_at_once(stores: Stores) -> None:
    async with setup_of(stores, replace(OPENAI, embed_inputs=500)) as setup:
        for _ in range(2):
            with pytest.raises(InvalidArgument) as raised:
                await setup.embed(*["x"] * 2048, directives=";dimensions=4096")
            assert [violation.field for violation in raised.value.violations] == ["inputs"]
            asked = len(setup.asked)
        assert len(setup.asked) == asked <= 4


async def test_dimensions_that_a_model_cannot_give_are_refused(setup: Setup) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await setup.embed("x", directives=";dimensions=3", dimensions=2)
    assert raised.value.reason == "CAPABILITY_UNSUPPORTED"
    assert [violation.field for violation in raised.value.violations] == ["dimensions"]


@pytest.mark.parametrize("order", ["usage=0", "uncounted=zeros", "uncounted=total", "uncounted=nonsense"])
async def test_usage_that_is_not_said_is_estimated(setup: Setup, order: str) -> None:
    made = await setup.embed("x" * 40, directives=f";{order}")
    assert made.usage == Usage(10, estimated=True)


@pytest.mark.parametrize(("profile", "said"), [("jina", "retrieval.query"), ("openai", None), ("vllm", None)])
async def test_the_purpose_is_said_where_there_is_a_place_for_it(
    stores: Stores, profile: str, said: str | None
) -> None:
    async with setup_of(stores, PROFILES[profile]) as setup:
        await setup.embed("x", purpose=EmbedPurpose.QUERY)
        assert setup.wire.exchanges[0].request.json.get("task") == said


async def test_time_that_is_up_ends_the_request(stores: Stores) -> None:
    async with setup_of(stores, total_s=0.05) as setup:
        setup.gate.clear()
        with pytest.raises(JanusError) as raised:
            await setup.embed("x")
        assert (raised.value.code, raised.value.metadata["leg"]) == ("DEADLINE_EXCEEDED", "total")
        await asyncio.wait_for((await setup.wire.exchange(0)).client_gone.wait(), 5)


@pytest.mark.parametrize("end", ["timeout", "cancelled"])
async def test_what_never_had_a_connection_is_not_on_record(stores: Stores, postgres_url: str, end: str) -> None:
    async def ended(embedding: Embedding, model: str, under_way: Callable[[], Awaitable[object]]) -> list[str]:
        """The outcomes on record of a call that its time or its caller ended."""
        caller = Caller(f"ended-{model}-{end}", "alice")
        call = asyncio.create_task(embedding.embed(f"upstream/{model}", ["x"], caller=caller, labels={}))
        if end == "cancelled":
            await under_way()
            call.cancel()
        (result,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError if end == "cancelled" else JanusError)
        await stores.ledger.drain()
        query = "SELECT outcome FROM inference.usage WHERE tenant = $1"
        return [row["outcome"] for row in await rows(postgres_url, query, caller.tenant)]

    total_s = 30.0 if end == "cancelled" else 0.1
    with full_listener() as url:
        async with embedding_at(stores, url, total_s=total_s) as embedding:
            assert await ended(embedding, "unconnected", lambda: asyncio.sleep(0.1)) == []
    async with setup_of(stores, total_s=total_s) as setup:
        setup.gate.clear()
        assert await ended(setup.embedding, "connected", lambda: setup.wire.exchange(0)) == [end]
