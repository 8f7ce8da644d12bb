"""An inference service whose model reads conversations as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.rpc_errors import to_trailers

Given: TypeAlias = Mapping[str, Any]
Script: TypeAlias = Callable[[Given], "Sequence[Mapping[str, Any]] | str | JanusError"]


def proposed(quote: str, text: str = "", **fields: Any) -> dict[str, Any]:
    """An entry of an answer, about the first turn unless it says otherwise."""
    return {
        "action": "add",
        "known": 0,
        "turn": 1,
        "quote": quote,
        "kind": "fact",
        "text": text or quote,
        "predicate": "is_so",
        "since": "",
        "reason": "somebody said so",
        **fields,
    }


def everything(given: Given) -> list[dict[str, Any]]:
    """A model that takes every turn for a fact."""
    return [proposed(turn["text"], turn=turn["number"]) for turn in given["turns"]]


def nothing(given: Given) -> list[dict[str, Any]]:
    """A model that notes nothing."""
    return []


def number_of(given: Given, word: str) -> int:
    """The number that something known was shown under."""
    [found] = [known["number"] for known in given["known"] if word in f"{known['predicate']} {known['text']}"]
    return int(found)


@dataclass
class Reader(rpc.InferenceServiceServicer):
    """Answers Generate by its script: with entries, with a text as it is, or with an error."""

    script: Script = everything
    held: bool = True
    """Whether a schema can hold it."""
    finish: event_pb2.FinishReason.ValueType = event_pb2.FINISH_REASON_STOP
    prompts: list[request_pb2.Prompt] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    pause_s: float = 0.0
    """How long it thinks."""
    target: str = ""

    def __post_init__(self) -> None:
        self.go.set()

    @property
    def shown(self) -> list[Given]:
        """What each request showed."""
        return [json.loads(prompt.messages[0].parts[0].text) for prompt in self.prompts]

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        prompt = request.prompt
        self.prompts.append(prompt)
        self.tenants.append(dict(context.invocation_metadata())["janus-tenant"])
        if prompt.HasField("response_format") and not self.held:
            await _abort(context, InvalidArgument("prompt", "cannot be held", reason="CAPABILITY_UNSUPPORTED"))
        answer = self.script(self.shown[-1])
        self.asked.set()
        await asyncio.sleep(self.pause_s)
        await self.go.wait()
        if isinstance(answer, JanusError):
            await _abort(context, answer)
        text = answer if isinstance(answer, str) else json.dumps({"memories": answer})
        usage = usage_pb2.Usage(
            input_uncached_tokens=100, output_tokens=10, cost_micro_usd=7, price_version="p1",
            source=usage_pb2.USAGE_SOURCE_REPORTED,
        )  # fmt: skip
        message = content.Message(role=content.ROLE_ASSISTANT, parts=[content.Part(text=text)])
        return pb.GenerateResponse(generation_id="g", message=message, finish_reason=self.finish, usage=usage)


async def _abort(context: Any, error: JanusError) -> None:
    code, text, trailers = to_trailers(error)
    context.set_trailing_metadata(trailers)
    await context.abort(code, text)


@asynccontextmanager
async def reading_model(script: Script = everything) -> AsyncIterator[Reader]:
    """The service on a port of its own."""
    server = grpc.aio.server()
    reader = Reader(script)
    rpc.add_InferenceServiceServicer_to_server(reader, server)
    reader.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield reader
    finally:
        reader.go.set()
        await server.stop(0)
