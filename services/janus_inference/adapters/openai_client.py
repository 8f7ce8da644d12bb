"""The client of OpenAI, and of every server that speaks like it, through the `openai` SDK."""

import importlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from janus_inference.adapters.upstream import MAX_CONNECTIONS, Lazy, note_sent, posted

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def sdk() -> ModuleType:
    """The SDK; the first call takes most of a second."""
    return importlib.import_module("openai")


def make_client(base_url: str, api_key: str | None) -> "AsyncOpenAI":
    """A client that neither retries nor follows redirects, and times out nothing by itself but connecting."""
    import httpx2
    import openai

    http_client = openai.DefaultAioHttpClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        follow_redirects=False,
        event_hooks={"request": [note_sent]},
    )
    client = openai.AsyncOpenAI(
        api_key=api_key or "none",
        base_url=base_url,
        max_retries=0,
        timeout=None,
        http_client=http_client,
    )
    # The SDK takes these from the environment; they would be told to every server.
    client.organization = client.project = None
    # Each is imported when it is first touched; here that is still in a thread.
    _ = client.chat.completions.with_streaming_response, client.embeddings.with_streaming_response
    _ = client.responses.with_streaming_response, client.responses.input_tokens
    return client


class OpenAIClient(Lazy["AsyncOpenAI"]):
    """The SDK's client, made at first use."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        super().__init__(lambda: make_client(base_url, api_key), lambda client: client.close())
        self._has_key = bool(api_key)

    def posted(
        self, client: "AsyncOpenAI", path: str, body: Mapping[str, Any], timeout: object
    ) -> AbstractAsyncContextManager[Any]:
        """A streamed answer to this body; see ``upstream.posted``."""
        # Said as the SDK's own methods say it: by itself ``post`` would also send an administrator's key.
        security = {"bearer_auth": True}
        return posted(client, path, body, timeout=timeout, headers=self.headers(), security=security)

    def headers(self) -> dict[str, Any] | None:
        """Headers of every call: servers of one's own often want no key; then none is sent."""
        return None if self._has_key else {"Authorization": sdk().Omit()}
