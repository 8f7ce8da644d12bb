"""Chat Completions: OpenAI itself and OpenAI-compatible servers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.options import with_options
from janus_inference.adapters.upstream import answering
from janus_inference.dialects.openai_chat_request import RESERVED, chat_body
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import ProviderEvent
from janus_inference.ports import Ask
from janus_inference.profiles import ChatProfile
from janus_inference.provider_errors import not_configured


class OpenAIChat:
    """A ``Provider`` that speaks Chat Completions.

    ``issuer`` marks reasoning and opaque blocks as its own. ``needs_key``: it
    cannot be asked without one.
    """

    def __init__(
        self,
        name: str,
        client: OpenAIClient,
        profile: ChatProfile,
        *,
        issuer: str,
        has_key: bool,
        needs_key: bool,
    ) -> None:
        self._name = name
        self._client = client
        self._profile = profile
        self._issuer = issuer
        self._usable = has_key or not needs_key

    def dialect(self, ask: Ask) -> str:
        return ChatReader.dialect

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        if not self._usable:
            raise not_configured(self._name)
        body = chat_body(ask.prompt, ask.model, self._profile, self._issuer)
        body |= with_options(body, ask.options, RESERVED, lists=("tools",))
        reader = ChatReader(
            self._name,
            ask.model,
            self._issuer,
            CallCheck.of(ask.prompt),
            needs_done=self._profile.needs_done,
            logprobs=bool(body.get("logprobs")),
        )
        return answering(self._client, "/chat/completions", body, ask, provider=self._name, reader=reader)

    async def warm(self) -> None:
        await self._client.warm()

    async def close(self) -> None:
        await self._client.close()
