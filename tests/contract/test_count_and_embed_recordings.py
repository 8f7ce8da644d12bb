"""Real counts and vectors of real providers, served byte for byte to the real SDKs.

The recordings are no part of the repository: without `../shared/recordings`
beside the checkout these tests are skipped.
"""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.providers import recorded
from tests.fakes.providers.http_server import serving
from tests.fakes.providers.prompts import prompt

from janus_inference.adapters.anthropic import Anthropic
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_embeddings import OpenAIEmbeddings
from janus_inference.events import Usage
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI
from janus_inference.stopwatch import Unwatched

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings" / "provider_exchanges.jsonl"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")


def body_of(exchange: dict[str, Any]) -> Any:
    return recorded.application(exchange["response"].encode(), 200, "application/json", recorded.every(7))


def others(ending: str) -> list[dict[str, Any]]:
    with RECORDINGS.open(encoding="utf-8") as lines:
        return [each for each in map(json.loads, lines) if each["path"].endswith(ending)]


async def test_recorded_embeddings_are_read_as_they_were_written() -> None:
    found = others("/embeddings")
    async with serving(lambda request: pytest.fail("no recording chosen")) as wire:
        client = OpenAIClient(wire.url, "test-key")
        embedder = OpenAIEmbeddings("recorded", client, OPENAI, has_key=True, needs_key=True)
        for exchange in found:
            body, asked = json.loads(exchange["response"]), exchange["request"]
            wire.application = body_of(exchange)
            made = await embedder.embed(asked["model"], asked["input"], asked.get("dimensions"), None, Unwatched())
            packed = base64.b64decode(body["data"][0]["embedding"])
            assert list(made.values[0]) == list(struct.unpack(f"<{len(packed) // 4}f", packed))
            assert made.usage == Usage(body["usage"]["prompt_tokens"])
            assert wire.exchanges[-1].request.json == asked
        await client.close()
    assert found


async def test_recorded_counts_are_read_as_they_were_written() -> None:
    found = others("/count_tokens")
    async with serving(lambda request: pytest.fail("no recording chosen")) as wire:
        counter = Anthropic("recorded", wire.url, "test-key", issuer="anthropic")
        for exchange in found:
            wire.application = body_of(exchange)
            tokens = await counter.count_tokens(Ask(prompt(), "model", Unwatched(), 5.0))
            assert tokens == json.loads(exchange["response"])["input_tokens"]
        await counter.close()
    assert found
