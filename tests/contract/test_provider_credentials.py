"""Which credential goes to whom: the one that was configured, to the server it was configured for."""

import asyncio

import pytest
from pydantic import ValidationError
from tests.fakes.providers import anthropic_wire, openai_wire
from tests.fakes.providers.http_server import serving
from tests.fakes.providers.setups import NAME, prompt

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI
from janus_inference.settings import ProviderSettings
from janus_inference.stopwatch import Unwatched


@pytest.mark.parametrize("kind", [OpenAIChat, OpenAIResponses])
@pytest.mark.parametrize(("key", "header"), [("sk-own", "Bearer sk-own"), (None, None)])
async def test_only_the_configured_key_is_sent(
    kind: type[OpenAIChat] | type[OpenAIResponses],
    key: str | None,
    header: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK looks for others in the environment, and an administrator's must not reach a model's server."""
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-somebody")
    async with serving(openai_wire.application) as wire:
        provider = kind(
            NAME, OpenAIClient(f"{wire.url}/v1", key), OPENAI, issuer=NAME, has_key=bool(key), needs_key=False
        )
        try:
            async with asyncio.timeout(10), provider.stream(Ask(prompt("hello"), "fake", Unwatched(), 5.0)) as batches:
                assert [event async for batch in batches for event in batch]
            request = (await wire.exchange()).request
        finally:
            await provider.close()
    assert request.headers.get("authorization") == header
    assert not any("somebody" in value or "admin" in value for value in request.headers.values())


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_configured_headers_go_with_every_request(kind: str) -> None:
    """Twice, since requests after the first are made from it."""
    own = {"anthropic-beta": "files-api-2025-04-14", "X-Tenant": "acme"}
    application = openai_wire.application if kind == "openai" else anthropic_wire.application
    async with serving(application) as wire:
        provider = (
            OpenAIChat(
                NAME, OpenAIClient(f"{wire.url}/v1", "sk", own), OPENAI, issuer=NAME, has_key=True, needs_key=True
            )
            if kind == "openai"
            else Anthropic(NAME, wire.url, "sk", own, issuer="anthropic")
        )
        try:
            for number in range(2):
                ask = Ask(prompt("hello"), "fake", Unwatched(), 5.0)
                async with asyncio.timeout(10), provider.stream(ask) as batches:
                    assert [event async for batch in batches for event in batch]
                headers = (await wire.exchange(number)).request.headers
                assert headers["anthropic-beta"] == "files-api-2025-04-14"
                assert headers["x-tenant"] == "acme"
                assert (headers.get("authorization") or headers["x-api-key"]).endswith("sk")
        finally:
            await provider.close()


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        ({"Authorization": "Bearer x"}, "set by Janus"),
        ({"x api": "x"}, "no name of a header"),
        ({"x-a": "one\r\nx-b: two"}, "printable ASCII"),
        ({"x-a": " "}, "printable ASCII"),
        ({"x-a": "1", "X-A": "2"}, "unique"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        ProviderSettings.model_validate({"kind": "openai", "headers": headers})


async def test_a_stream_is_asked_for_uncompressed() -> None:
    """A compressor would hold tokens back until it has a block of them."""
    async with serving(openai_wire.application) as wire:
        provider = OpenAIChat(
            NAME, OpenAIClient(f"{wire.url}/v1", "sk-own"), OPENAI, issuer=NAME, has_key=True, needs_key=True
        )
        try:
            async with asyncio.timeout(10), provider.stream(Ask(prompt("hello"), "fake", Unwatched(), 5.0)) as batches:
                assert [event async for batch in batches for event in batch]
            request = (await wire.exchange()).request
        finally:
            await provider.close()
    assert request.headers["accept-encoding"] == "identity"
