"""What every refusal of a provider means, through the real SDKs: before an answer, and within one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.fakes.providers import anthropic_wire, openai_wire
from tests.fakes.providers.http_server import Cut, Reply, Request, WireServer, serving
from tests.fakes.providers.prompts import prompt

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.events import ProviderEvent, Stopped, TextDelta
from janus_inference.ports import Ask, Provider
from janus_inference.profiles import OPENAI
from janus_inference.provider_errors import ProviderFailure
from janus_inference.stopwatch import Unwatched

KEY = "sk-test-very-secret"
SDKS = ("openai", "anthropic")
# Status, the code and reason for the caller, whether to try again here, and whether to try elsewhere.
STATUSES = [
    (400, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, False),
    (401, "FAILED_PRECONDITION", "PROVIDER_AUTH", False, True),
    (402, "FAILED_PRECONDITION", "PROVIDER_BILLING", False, True),
    (403, "FAILED_PRECONDITION", "PROVIDER_AUTH", False, True),
    (404, "INVALID_ARGUMENT", "MODEL_NOT_FOUND", False, True),
    (408, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True, True),
    (409, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
    (413, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, False),
    (422, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, False),
    (429, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED", True, True),
    (500, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
    (501, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
    (502, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
    (503, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
    (504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True, True),
    (529, "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, True),
]


class Both:
    """The same questions to both SDKs, at servers that speak their formats."""

    def __init__(self, providers: dict[str, tuple[Provider, WireServer]]) -> None:
        self._providers = providers

    async def ask(self, sdk: str, directives: str) -> tuple[list[ProviderEvent], ProviderFailure | None]:
        provider, _ = self._providers[sdk]
        events: list[ProviderEvent] = []
        try:
            async with provider.stream(Ask(prompt(), f"fake{directives}", Unwatched(), 5.0)) as batches:
                async for batch in batches:
                    events += batch
        except ProviderFailure as failure:
            return events, failure
        return events, None

    def provider(self, sdk: str) -> Provider:
        return self._providers[sdk][0]

    def wire(self, sdk: str) -> WireServer:
        return self._providers[sdk][1]


@asynccontextmanager
async def built() -> AsyncIterator[Both]:
    async with serving(openai_wire.application) as chat, serving(anthropic_wire.application) as messages:
        client = OpenAIClient(f"{chat.url}/v1", KEY)
        openai = OpenAIChat("upstream", client, OPENAI, issuer="openai", has_key=True, needs_key=True)
        anthropic = Anthropic("upstream", messages.url, KEY, issuer="anthropic")
        try:
            yield Both({"openai": (openai, chat), "anthropic": (anthropic, messages)})
        finally:
            await openai.close()
            await anthropic.close()


@pytest.fixture(params=["first", "later"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Both]:
    """The SDK makes the first request to a path; those after it are that one with another body."""
    async with built() as made:
        if request.param == "later":
            for sdk in SDKS:
                assert await made.ask(sdk, "") != ([], None)
                made.wire(sdk).exchanges.clear()
        yield made


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_later_request_is_the_first_one_with_another_body(sdk: str) -> None:
    async with built() as both:
        for text in ("hello", "and an answer that is longer, ☃"):
            ask = Ask(prompt(text), "fake", Unwatched(), 5.0)
            async with both.provider(sdk).stream(ask) as batches:
                assert [event async for batch in batches for event in batch]
        first, later = (exchange.request for exchange in both.wire(sdk).exchanges)
    assert (later.method, later.path) == (first.method, first.path)
    assert later.headers == first.headers | {"content-length": str(len(later.body))}
    assert first.headers["content-length"] == str(len(first.body))
    assert later.json == first.json | {"messages": later.json["messages"]}
    assert "and an answer that is longer, ☃" in later.body.decode()


@pytest.mark.parametrize("sdk", SDKS)
async def test_half_a_surrogate_pair_is_sent_as_it_was_said(both: Both, sdk: str) -> None:
    ask = Ask(prompt(), "fake", Unwatched(), 5.0, options={"metadata": {"user_id": "\ud800"}})
    async with both.provider(sdk).stream(ask) as batches:
        assert [event async for batch in batches for event in batch]
    assert both.wire(sdk).exchanges[-1].request.json["metadata"] == {"user_id": "\ud800"}


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_server_that_has_gone_is_unreachable(both: Both, sdk: str) -> None:
    await both.wire(sdk).stop()
    events, failure = await both.ask(sdk, "")
    assert events == []
    assert failure is not None
    # A connection that was kept is lost, which looks like one that was lost while the provider worked.
    assert (failure.error.code, failure.outcome) in (("UNAVAILABLE", "unreachable"), ("UNAVAILABLE", "broken"))
    again = (await both.ask(sdk, ""))[1]
    assert again is not None
    assert (again.error.code, again.outcome) == ("UNAVAILABLE", "unreachable")


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(("status", "code", "reason", "retryable", "elsewhere"), STATUSES)
async def test_every_status_means_the_same_through_either_sdk(
    both: Both, sdk: str, status: int, code: str, reason: str, retryable: bool, elsewhere: bool
) -> None:
    events, failure = await both.ask(sdk, f";status={status}")
    assert events == []
    assert failure is not None
    assert (failure.error.code, failure.error.reason) == (code, reason)
    assert (failure.retryable, failure.elsewhere) == (retryable, elsewhere)
    assert KEY not in f"{failure.error!r} {failure.error.metadata} {failure.detail}"
    assert len(both.wire(sdk).exchanges) == 1  # the SDK itself tried once


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250"}, 0.25),
        (
            {"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"},
            30.0,
        ),
        ({}, None),
    ],
)
async def test_how_long_to_wait_is_heard(both: Both, sdk: str, headers: dict[str, str], seconds: float | None) -> None:
    wire = both.wire(sdk)
    answer = wire.application
    wire.application = lambda request: replace(answer(request), headers=headers)
    _, failure = await both.ask(sdk, ";status=503")
    assert failure is not None
    assert failure.retry_after == seconds


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(("word", "retryable"), [("true", True), ("false", False)])
async def test_a_provider_s_word_on_retrying_counts(both: Both, sdk: str, word: str, retryable: bool) -> None:
    for status in (400, 503):
        _, failure = await both.ask(sdk, f";status={status};should-retry={word}")
        assert failure is not None
        assert failure.retryable is retryable


async def cut() -> AsyncIterator[bytes]:
    yield b'{"error": {"mess'
    raise Cut


async def hanging() -> AsyncIterator[bytes]:
    yield b'{"error": {"mess'
    await asyncio.Event().wait()


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65_536


async def broken_gzip() -> AsyncIterator[bytes]:
    yield b"\x1f\x8b this is no gzip"


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(
    ("pieces", "headers"),
    [(cut, {}), (hanging, {}), (endless, {}), (broken_gzip, {"content-encoding": "gzip"})],
)
async def test_an_error_means_what_its_status_says_whatever_becomes_of_its_body(
    both: Both, sdk: str, pieces: Any, headers: dict[str, str]
) -> None:
    said = {"retry-after": "7", **headers}
    both.wire(sdk).application = lambda request: Reply(pieces(), 529, "application/json", said)
    async with asyncio.timeout(5):
        _, failure = await both.ask(sdk, "")
    assert failure is not None
    assert (failure.error.reason, failure.retry_after) == ("PROVIDER_UNAVAILABLE", 7.0)


@pytest.mark.parametrize("sdk", SDKS)
async def test_who_leaves_while_the_body_of_an_error_comes_lets_the_connection_go(both: Both, sdk: str) -> None:
    wire, begun = both.wire(sdk), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"error": {"mess'
        begun.set()
        await asyncio.Event().wait()

    wire.application = lambda request: Reply(slow(), 529, "application/json")
    asking = asyncio.create_task(both.ask(sdk, ""))
    async with asyncio.timeout(5):
        await begun.wait()
        asking.cancel()
        (left,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(left, asyncio.CancelledError)
        await wire.exchanges[-1].client_gone.wait()


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize(
    "first", [b"HTTP/9.9 what\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"]
)
async def test_what_is_no_http_is_a_broken_answer(sdk: str, first: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = OpenAIClient(f"{url}/v1", KEY)
    openai = OpenAIChat("upstream", client, OPENAI, issuer="openai", has_key=True, needs_key=True)
    provider: Provider = openai if sdk == "openai" else Anthropic("upstream", url, KEY, issuer="anthropic")
    with pytest.raises(ProviderFailure) as raised:
        async with provider.stream(Ask(prompt(), "fake", Unwatched(), 5.0)):
            pytest.fail("there was no answer")
    await provider.close()
    server.close()
    assert (raised.value.error.code, raised.value.outcome) == ("UNAVAILABLE", "broken")


@pytest.mark.parametrize("sdk", SDKS)
async def test_an_error_within_an_answer_keeps_what_was_said(both: Both, sdk: str) -> None:
    events, failure = await both.ask(sdk, ";error=2")
    assert sum(isinstance(event, TextDelta) for event in events) == 2
    assert failure is not None
    assert (failure.error.reason, failure.retryable, failure.elsewhere) == ("PROVIDER_UNAVAILABLE", True, True)


def unheard_of(total: int) -> Any:
    """Answers with so many events of a kind that nobody knows yet before what is known."""

    def of(application: Any) -> Any:
        def answer(request: Request) -> Reply:
            reply = application(request)

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(total):
                    yield b'event: weather_report\ndata: {"type": "weather_report"}\n\n'
                async for piece in reply.pieces:
                    yield piece

            return replace(reply, pieces=pieces())

        return answer

    return of


@pytest.mark.parametrize(("sdk", "dialect"), [("openai", "openai_chat"), ("anthropic", "anthropic_messages")])
async def test_events_of_unknown_kinds_are_counted(both: Both, sdk: str, dialect: str) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("janus_inference_unknown_events_total", {"dialect": dialect}) or 0.0

    wire, before = both.wire(sdk), counted()
    wire.application = unheard_of(3)(wire.application)
    events, failure = await both.ask(sdk, "")
    assert failure is None
    assert isinstance(events[-1], Stopped)
    assert counted() - before == 3
