"""Responses: OpenAI itself and the servers that have the same API."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.options import with_options
from janus_inference.adapters.upstream import answering, count_in, whole_answer
from janus_inference.dialects.openai_responses_request import (
    LISTS,
    OBJECTS,
    RESERVED,
    asks_logprobs,
    counted,
    responses_body,
)
from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import ProviderEvent
from janus_inference.model import Sampling
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI, ChatProfile
from janus_inference.provider_errors import not_configured


class OpenAIResponses:
    """A ``Provider`` and a ``TokenCounter`` that speaks Responses.

    ``issuer`` marks reasoning and opaque blocks as its own. ``needs_key``: it
    cannot be asked without one.
    """

    def __init__(
        self,
        name: str,
        client: OpenAIClient,
        profile: ChatProfile = OPENAI,
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
        return ResponsesReader.dialect

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        body = self._body(ask)
        reader = ResponsesReader(
            self._name, ask.model, self._issuer, CallCheck.of(ask.prompt), logprobs=asks_logprobs(body)
        )
        return answering(self._client, "/responses", body, ask, provider=self._name, reader=reader)

    async def count_tokens(self, ask: Ask) -> int:
        """Input tokens of the prompt, by the provider's own count. Raises ProviderFailure."""
        # How the answer is drawn and where it ends changes nothing, so it need not be what this API can say.
        ask = replace(ask, prompt=replace(ask.prompt, stop=(), max_output_tokens=None, sampling=Sampling()))
        answer = await whole_answer(
            self._client,
            "/responses/input_tokens",
            counted(self._body(ask)),
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

    def _body(self, ask: Ask) -> dict[str, Any]:
        if not self._usable:
            raise not_configured(self._name)
        body = responses_body(ask.prompt, ask.model, self._profile, self._issuer)
        return body | with_options(body, ask.options, RESERVED, lists=LISTS, objects=OBJECTS)
