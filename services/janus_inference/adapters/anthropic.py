"""Messages, through the `anthropic` SDK."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from janus_inference.adapters.options import with_options
from janus_inference.adapters.sdk_client import SdkClient
from janus_inference.adapters.upstream import answering, count_in, whole_answer
from janus_inference.dialects.anthropic_request import COUNTED, LISTS, OBJECTS, RESERVED, count_body, messages_body
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import ProviderEvent
from janus_inference.ports import Ask
from janus_inference.provider_errors import not_configured

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

# Where a request may hold something to call.
_CALLABLE = ("tools", "mcp_servers")
_NONE: Mapping[str, str] = MappingProxyType({})


def with_own(body: Mapping[str, Any], options: Mapping[str, object]) -> dict[str, Any]:
    """The request with the fields that a caller adds to it. Raises InvalidArgument, see ``with_options``."""
    extra = with_options(body, options, RESERVED, lists=LISTS, objects=OBJECTS)
    whole = {**body, **extra}
    if "tool_choice" not in extra and not any(map(whole.get, _CALLABLE)):
        # Options might have had tools; a choice among none is refused.
        whole.pop("tool_choice", None)
    return whole


def _make_client(
    base_url: str, api_key: str, headers: Mapping[str, str], http: "httpx2.AsyncClient"
) -> "AsyncAnthropic":
    import anthropic

    return anthropic.AsyncAnthropic(
        api_key=api_key, base_url=base_url, default_headers=headers, max_retries=0, timeout=None, http_client=http
    )


class Anthropic:
    """A ``Provider`` that speaks Messages. ``issuer`` marks reasoning, sources and opaque blocks as its own."""

    def __init__(
        self, name: str, base_url: str, api_key: str | None, headers: Mapping[str, str] = _NONE, *, issuer: str
    ) -> None:
        self._name, self._issuer = name, issuer
        self._usable = bool(api_key)
        self._client = SdkClient("anthropic", lambda http: _make_client(base_url, api_key or "", headers, http))

    def dialect(self, ask: Ask) -> str:
        return MessagesReader.dialect

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        if not self._usable:
            raise not_configured(self._name)
        body = with_own(messages_body(ask.prompt, ask.model, self._issuer), ask.options)
        reader = MessagesReader(self._name, ask.model, self._issuer, CallCheck.of(ask.prompt))
        return answering(self._client, "/v1/messages", body, ask, provider=self._name, reader=reader)

    async def count_tokens(self, ask: Ask) -> int:
        """Tokens of the prompt, counted by the provider; see ``TokenCounter``."""
        if not self._usable:
            raise not_configured(self._name)
        options = {name: ask.options[name] for name in COUNTED & ask.options.keys()}
        answer = await whole_answer(
            self._client,
            "/v1/messages/count_tokens",
            with_own(count_body(ask.prompt, ask.model, self._issuer), options),
            provider=self._name,
            model=ask.model,
            stopwatch=ask.stopwatch,
            connect_timeout=ask.connect_timeout,
        )
        return count_in(answer, self._name)

    async def warm(self) -> None:
        await self._client.warm()

    async def close(self) -> None:
        await self._client.close()
