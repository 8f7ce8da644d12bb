"""A provider's answer is let go by whoever asked for it, and not by the garbage collector."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import serving
from tests.fakes.providers.prompts import NAME, prompt

from janus_inference.adapters import openai_embeddings
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_embeddings import OpenAIEmbeddings
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI
from janus_inference.provider_errors import ProviderFailure
from janus_inference.stopwatch import Unwatched


class Watched(OpenAIClient):
    """Keeps what it has posted, so that nothing but whoever asked can let it go."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url}/v1", "sk-test")
        self.posted: list[Any] = []

    async def post(self, *args: Any) -> Any:
        self.posted.append(await super().post(*args))
        return self.posted[-1]

    @property
    def let_go(self) -> int:
        """How many were closed."""
        return sum(response.is_closed for response in self.posted)


@pytest.fixture
async def client() -> AsyncIterator[Watched]:
    async with serving(openai_wire.application) as wire:
        made = Watched(wire.url)
        yield made
        await made.close()


async def read(client: Watched, directives: str, most: int | None = None) -> None:
    """So many batches of a stream, or all."""
    provider = OpenAIChat(NAME, client, OPENAI, issuer="openai", has_key=True, needs_key=True)
    ask = Ask(prompt(), f"fake{directives}", Unwatched(), 5.0)
    async with provider.stream(ask) as batches:
        assert client.let_go == 0
        for _ in range(1000 if most is None else most):
            if await anext(batches, None) is None:
                return


@pytest.mark.parametrize(
    ("directives", "most"),
    [(";tokens=3", None), (";whole=1", None), (";tokens=9;hang=2", 1), (";tokens=9;pace=5", 0)],
)
async def test_a_stream_is_let_go_at_the_end_of_its_block(client: Watched, directives: str, most: int | None) -> None:
    await read(client, directives, most)
    assert client.let_go == 1


@pytest.mark.parametrize(
    "directives", [";tokens=9;cut=2", ";tokens=9;error=2", ";tokens=9;garbage=2", ";type=text/html"]
)
async def test_a_stream_that_breaks_is_let_go(client: Watched, directives: str) -> None:
    with pytest.raises(ProviderFailure):
        await read(client, directives)
    assert client.let_go == 1


async def test_an_answer_in_one_piece_is_let_go(client: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = OpenAIEmbeddings(NAME, client, OPENAI, has_key=True, needs_key=True)
    await embedder.embed("fake-embed", ["x"], None, None, Unwatched())
    assert client.let_go == 1
    monkeypatch.setattr(openai_embeddings, "_MAX_BODY_BYTES", 10)
    with pytest.raises(ProviderFailure):
        await embedder.embed("fake-embed", ["x"], None, None, Unwatched())
    assert client.let_go == 2
