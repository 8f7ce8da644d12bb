"""The Responses reader held against the SDK's own typed objects, over the same bytes of our fakes."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import serving
from tests.fakes.providers.prompts import prompt

from janus_inference.adapters.openai_client import OpenAIClient, make_client
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.events import (
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
    UsageUpdated,
)
from janus_inference.model import Sampling
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI
from janus_inference.stopwatch import Unwatched

ORDERS = ["", ";tokens=40", ";tools=3", ";think=4", ";refuse=1", ";finish=max_output_tokens", ";usage=0", ";whole=1"]


@dataclass
class Said:
    """What an answer says, however it was read."""

    text: str = ""
    refusal: str = ""
    reasoning: str = ""
    ciphers: list[str | None] = field(default_factory=list)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    logprobs: list[tuple[str, float, int]] = field(default_factory=list)
    status: str | None = None
    identity: str = ""
    output_tokens: int | None = None


def ours(events: list[ProviderEvent]) -> Said:
    said = Said()
    fragments: dict[int, str] = {}
    for event in events:
        match event:
            case TextDelta():
                said.text += event.text
                said.logprobs += [(token.token, token.logprob, len(token.top)) for token in event.logprobs]
            case RefusalDelta():
                said.refusal += event.text
            case ReasoningDelta(text=str(text)):
                said.reasoning += text
            case ReasoningSignature():
                said.ciphers.append(json.loads(event.signature)["encrypted_content"])
            case ToolCallArguments():
                fragments[event.part_index] = fragments.get(event.part_index, "") + event.fragment
            case ToolCallCompleted(call=call):
                assert json.loads(fragments.get(event.part_index) or "{}") == json.loads(call.arguments_json)
                said.calls.append((call.call_id, call.name, call.arguments_json))
            case UsageUpdated():
                said.output_tokens = event.usage.output_tokens
            case Stopped():
                said.status, said.identity = event.provider_reason, event.response_id
    return said


def finished(said: Said, answer: Any) -> Said:
    """What the SDK's object of a whole answer says."""
    for item in answer.output:
        if item.type == "function_call":
            said.calls.append((item.call_id, item.name, item.arguments))
        elif item.type == "reasoning":
            said.ciphers.append(item.encrypted_content)
            said.reasoning += "".join(part.text for part in item.content or [])
        else:
            said.text += "".join(part.text for part in item.content if part.type == "output_text")
            said.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
    details = answer.incomplete_details
    said.status, said.identity = details.reason if details else answer.status, answer.id
    said.output_tokens = answer.usage.output_tokens if answer.usage else None
    return said


@pytest.mark.parametrize("orders", ORDERS)
async def test_the_reader_and_the_sdk_read_the_same(orders: str) -> None:
    model = f"fake{orders}"
    async with serving(openai_wire.application) as wire:
        provider = OpenAIResponses(
            "upstream", OpenAIClient(f"{wire.url}/v1", "k"), OPENAI, issuer="openai", has_key=True, needs_key=True
        )
        events: list[ProviderEvent] = []
        ask = Ask(prompt(sampling=Sampling(top_logprobs=2)), model, Unwatched(), 5)
        async with provider.stream(ask) as batches:
            async for batch in batches:
                events += batch
        await provider.close()

        theirs, typed = Said(), None
        client = make_client(f"{wire.url}/v1", "k")
        # The very request that the adapter made.
        body = wire.exchanges[0].request.json
        if "whole" in orders:
            typed = await client.responses.create(extra_body=body)
        else:
            async for event in await client.responses.create(stream=True, extra_body=body):
                if event.type == "response.output_text.delta":
                    tokens = event.logprobs
                    theirs.logprobs += [(each.token, each.logprob, len(each.top_logprobs or [])) for each in tokens]
                typed = getattr(event, "response", typed)
        await client.close()
    assert ours(events) == finished(theirs, typed)
