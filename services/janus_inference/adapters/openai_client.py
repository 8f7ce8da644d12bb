"""The client of OpenAI, and of every server that speaks like it, through the `openai` SDK."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from janus_inference.adapters.sdk_client import SdkClient

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

_NONE: Mapping[str, str] = MappingProxyType({})


def make_client(
    base_url: str,
    api_key: str | None,
    http: "httpx2.AsyncClient | None" = None,
    headers: Mapping[str, str] = _NONE,
) -> "AsyncOpenAI":
    """A client that does not retry, with an HTTP client of its own unless one is given."""
    import openai

    client = openai.AsyncOpenAI(
        api_key=api_key or "none",
        base_url=base_url,
        default_headers=headers,
        max_retries=0,
        timeout=None,
        http_client=http,
    )
    # The SDK takes these from the environment; they would be told to every server.
    client.organization = client.project = None
    return client


class OpenAIClient(SdkClient["AsyncOpenAI"]):
    """The SDK's client, made at first use."""

    def __init__(self, base_url: str, api_key: str | None, own_headers: Mapping[str, str] = _NONE) -> None:
        def headers() -> Mapping[str, object]:
            """Servers of one's own often want no key; then none is sent."""
            return {} if api_key else {"Authorization": self.sdk.Omit()}

        super().__init__(
            "openai",
            lambda http: make_client(base_url, api_key, http, own_headers),
            headers=headers,
            # Said as the SDK's own methods say it: by itself ``post`` would also send an administrator's key.
            security={"bearer_auth": True},
        )
