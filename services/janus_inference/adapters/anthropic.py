"""Messages, through the `anthropic` SDK."""

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from janus_inference.adapters.options import with_options
from janus_inference.adapters.upstream import (
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    Lazy,
    answering,
    note_sent,
    posted,
    whole_answer,
)
from janus_inference.dialects.anthropic_request import COUNTED, RESERVED, count_body, messages_body
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import ProviderEvent
from janus_inference.ports import Ask
from janus_inference.provider_errors import broken, not_configured

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

# Its reasoning and opaque blocks are Anthropic's, under whatever name the provider is configured.
ISSUER = "anthropic"


def _sdk() -> ModuleType:
    return importlib.import_module("anthropic")


def _make_client(base_url: str, api_key: str) -> "AsyncAnthropic":
    """A client that neither retries nor follows redirects, and times out nothing by itself but connecting."""
    import anthropic
    import httpx2

    http_client = anthropic.DefaultAioHttpClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        follow_redirects=False,
        event_hooks={"request": [note_sent]},
    )
    return anthropic.AsyncAnthropic(
        api_key=api_key, base_url=base_url, max_retries=0, timeout=None, http_client=http_client
    )


class Anthropic:
    """A ``Provider`` that speaks Messages."""

    dialect = "anthropic_messages"

    def __init__(self, name: str, base_url: str, api_key: str | None) -> None:
        self._name = name
        self._usable = bool(api_key)
        self._client = Lazy(lambda: _make_client(base_url, api_key or ""), lambda client: client.close())

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[AsyncIterator[Sequence[ProviderEvent]]]:
        if not self._usable:
            raise not_configured(self._name)
        body = messages_body(ask.prompt, ask.model, ISSUER)
        extra = with_options(body, ask.options, RESERVED)
        client = await self._client.get()
        anthropic = _sdk()
        timeout = anthropic.Timeout(None, connect=ask.connect_timeout, pool=ask.connect_timeout)
        async with answering(
            lambda: posted(client, "/v1/messages", body | extra, timeout=timeout),
            sdk=anthropic,
            provider=self._name,
            model=ask.model,
            connect_timeout=ask.connect_timeout,
            reader=MessagesReader(self._name, ask.model, ISSUER, CallCheck.of(ask.prompt)),
            stopwatch=ask.stopwatch,
        ) as batches:
            yield batches

    async def count_tokens(self, ask: Ask) -> int:
        """Tokens of the prompt, counted by the provider; see ``TokenCounter``."""
        if not self._usable:
            raise not_configured(self._name)
        body = count_body(ask.prompt, ask.model, ISSUER)
        extra = with_options(body, {name: ask.options[name] for name in COUNTED & ask.options.keys()}, RESERVED)
        client = await self._client.get()
        anthropic = _sdk()
        answer = await whole_answer(
            lambda: client.messages.with_streaming_response.count_tokens(
                model=ask.model,
                messages=(),
                extra_body=body | extra,
                timeout=anthropic.Timeout(None, connect=ask.connect_timeout, pool=ask.connect_timeout),
            ),
            sdk=anthropic,
            provider=self._name,
            model=ask.model,
            connect_timeout=ask.connect_timeout,
            most_bytes=MAX_BODY_BYTES,
        )
        tokens = answer.get("input_tokens")
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise broken(self._name, "the answer has no number of tokens")
        return tokens

    async def warm(self) -> None:
        await self._client.get()

    async def close(self) -> None:
        await self._client.close()
