"""Extraction through the real inference service, whose providers answer as real ones do.

The recordings are no part of the repository: without `../shared/recordings`
beside the checkout the tests with recorded answers are skipped.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tests.fakes.memory_service import Caller, running
from tests.fakes.providers.directives import one
from tests.fakes.providers.http_server import Reply, Request
from tests.fakes.providers.inference_service import Service
from tests.fakes.providers.inference_service import running as inference_running
from tests.fakes.reading_model import proposed

from janus_api.common.v1 import operation_pb2
from janus_api.content.v1 import usage_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_kit.rpc_errors import from_status

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings" / "provider_exchanges.jsonl"
recorded = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")

ANN = scope_pb2.Scope(thread="talk", subject="ann")
TURN = "I moved to Oslo."
ANSWER = json.dumps({"memories": [proposed(TURN, "Ann lives in Oslo.", predicate="lives_in")]})


@dataclass
class Bench:
    """Memory and inference, each a service of its own."""

    app: Caller
    inference: Service

    def answers(self, body_of: Callable[[Any], Any], status: int = 200) -> None:
        """What providers answer from now on, by the body of the request."""

        def application(request: Request) -> Reply:
            body = json.dumps(body_of(request.json), ensure_ascii=False).encode()
            return Reply(one(body), status=status, content_type="application/json")

        self.inference.openai.application = self.inference.anthropic.application = application

    async def extract(self, model: str) -> pb.ExtractionResult:
        told = await self.app.append("talk", TURN, scope={"subject": "ann"})
        request = pb.ExtractRequest(scope=ANN, model=model, message_ids=told.message_ids)
        name = (await self.app.call("Extract", request)).operation.id
        stream = self.app.stub.WatchOperation(
            pb.WatchOperationRequest(operation_id=name), metadata=self.app.metadata, timeout=30
        )
        *_, last = [event async for event in stream]
        assert last.ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED, from_status(last.ended.error)
        return json_format.Parse(last.ended.result_json, pb.ExtractionResult())

    async def believed(self) -> list[str]:
        answer = await self.app.call("ListMemories", pb.ListMemoriesRequest(scope=scope_pb2.Scope(subject="ann")))
        return [memory.text for memory in answer.memories]


@pytest.fixture
async def bench(postgres_url: str, redis_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        inference = await stack.enter_async_context(inference_running(postgres_url, redis_url))
        memory = await stack.enter_async_context(running(postgres_url, redis_url, inference_target=inference.address))
        yield Bench(memory.caller(), inference)


def chat(text: str, body: Any) -> Any:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }  # fmt: skip


def messages(text: str, body: Any) -> Any:
    return {
        "id": "m", "type": "message", "role": "assistant", "model": body["model"],
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 3},
    }  # fmt: skip


def responses(text: str, body: Any) -> Any:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": "r", "object": "response", "created_at": 1, "model": body["model"], "status": "completed",
        "error": None, "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "output": [
            {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": content}
        ],
        "usage": {
            "input_tokens": 12, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 15,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "said", "schema_of"),
    [
        ("openai/gpt-4o", responses, lambda body: body["text"]["format"]["schema"]),
        ("compatible/fake", chat, lambda body: body["response_format"]["json_schema"]["schema"]),
        ("anthropic/claude-sonnet-4-5", messages, lambda body: body["output_config"]["format"]["schema"]),
    ],
    ids=["OpenAI", "a compatible server", "Anthropic"],
)
async def test_every_provider_is_held_to_the_schema_and_its_answer_believed(
    bench: Bench, model: str, said: Callable[[str, Any], Any], schema_of: Callable[[Any], Any]
) -> None:
    asked: list[Any] = []

    def answer(body: Any) -> Any:
        asked.append(body)
        return said(ANSWER, body)

    bench.answers(answer)
    report = await bench.extract(model)
    assert [entry.action for entry in report.memories] == [pb.EXTRACT_ACTION_ADD]
    assert await bench.believed() == ["Ann lives in Oslo."]
    assert report.usage.input_uncached_tokens == 12
    assert report.usage.source == usage_pb2.USAGE_SOURCE_REPORTED
    [body] = asked
    assert schema_of(body)["properties"]["memories"]["items"]["additionalProperties"] is False


async def test_a_server_that_refuses_schemas_is_asked_in_words(bench: Bench) -> None:
    asked: list[Any] = []

    def application(request: Request) -> Reply:
        asked.append(request.json)
        if "response_format" in request.json:
            refusal = {"error": {"message": "unknown field", "type": "invalid_request_error", "code": None}}
            return Reply(one(json.dumps(refusal).encode()), status=400, content_type="application/json")
        body = json.dumps(chat(f"```json\n{ANSWER}\n```", request.json)).encode()
        return Reply(one(body), content_type="application/json")

    bench.inference.openai.application = application
    assert len((await bench.extract("compatible/fake")).memories) == 1
    assert [("response_format" in body) for body in asked] == [True, False]


async def test_the_rehearsal_says_nothing_that_can_be_used(bench: Bench) -> None:
    report = await bench.extract("scripted/rehearsal")
    assert (report.unusable_turns, await bench.believed()) == (1, [])


def whole_answers() -> list[dict[str, Any]]:
    with RECORDINGS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [
        each
        for each in found
        if not each["stream"]
        and each["status"] == 200
        and model_for(each["path"])
        and "count_tokens" not in each["path"]
    ]


def model_for(path: str) -> str:
    endings = {
        "/chat/completions": "compatible/fake",
        "/responses": "openai/gpt-4o",
        "/messages": "anthropic/claude-sonnet-4-5",
    }
    return next((model for ending, model in endings.items() if path.endswith(ending)), "")


@recorded
async def test_no_recorded_answer_to_another_question_is_taken_for_an_extraction(bench: Bench) -> None:
    tried = 0
    for exchange in whole_answers()[::6]:
        body = json.loads(exchange["response"])
        bench.answers(lambda _, body=body: body)
        report = await bench.extract(model_for(exchange["path"]))
        assert (report.turns, report.unusable_turns, len(report.memories)) == (1, 1, 0), exchange["id"]
        tried += 1
    assert tried > 40
    assert await bench.believed() == []


@recorded
async def test_a_recorded_answer_that_says_what_was_asked_for_is_believed(bench: Bench) -> None:
    """The provider's own envelope around it: its fields, usage and reasoning, as they came."""
    tried = set()
    for exchange in whole_answers():
        body = json.loads(exchange["response"])
        if not put_answer(body) or exchange["host"] in tried:
            continue
        bench.answers(lambda _, body=body: body)
        report = await bench.extract(model_for(exchange["path"]))
        assert (report.unusable_turns, len(report.memories)) == (0, 1), exchange["id"]
        assert report.usage.output_tokens > 0, exchange["id"]
        tried.add(exchange["host"])
    assert len(tried) > 3
    assert await bench.believed() == ["Ann lives in Oslo."]


def put_answer(body: Any) -> bool:
    """Put the answer where a recorded body has its only text; whether it has one and ended with it."""
    match body:
        case {"choices": [{"finish_reason": "stop", "message": {"content": str()} as message}]} if not message.get(
            "tool_calls"
        ):
            message["content"] = ANSWER
        case {"stop_reason": "end_turn", "content": [*_, {"type": "text", **__} as last]} if (
            sum(each["type"] == "text" for each in body["content"]) == 1
        ):
            last["text"] = ANSWER
        case {"status": "completed", "output": [*_, {"type": "message", "content": [{"type": "output_text"} as part]}]}:
            part["text"] = ANSWER
        case _:
            return False
    return True
