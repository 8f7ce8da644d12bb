"""`/v1/chat/completions` over real HTTP and real gRPC."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from google.rpc import status_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_edge.settings import EdgeSettings
from janus_kit.errors import InvalidArgument, JanusError, ResourceExhausted, Unavailable
from janus_kit.rpc_errors import to_status
from janus_kit.telemetry import tracing

PATH = "/v1/chat/completions"
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**ASK, "stream": True}


def whole(*parts: content.Part) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        generation_id="gen_1",
        provider="scripted",
        model="echo",
        finish_reason=event_pb2.FINISH_REASON_STOP,
        message=content.Message(role=content.ROLE_ASSISTANT, parts=parts),
    )


def failed(error: JanusError, *, partial: bool) -> event_pb2.GenerationEvent:
    status: status_pb2.Status = to_status(error)
    return event_pb2.GenerationEvent(failed=event_pb2.GenerationFailed(status=status, partial=partial))


async def lines(response: httpx2.Response) -> list[str]:
    return [line async for line in response.aiter_lines() if line]


async def test_a_whole_answer_has_openai_shape(edge: httpx2.AsyncClient, inference: Any):
    call = content.ToolCall(call_id="c1", name="add", arguments_json='{"a":1}')
    inference.answer = lambda prompt: whole(
        content.Part(text="Hel"), content.Part(text="lo"), content.Part(tool_call=call)
    )
    response = await edge.post(PATH, json=ASK)
    assert response.status_code == 200
    body = response.json()
    assert (body["object"], body["id"], body["model"]) == ("chat.completion", "chatcmpl-gen_1", "scripted/echo")
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}],
    }
    assert inference.prompts[0].messages[0].parts[0].text == "hello"


async def test_each_event_is_sent_before_the_next_one_comes(
    edge: httpx2.AsyncClient, inference: Any, answering: Any, playing: Any
):
    started, first, second, finished = answering("one", "two")
    go_on = asyncio.Event()
    inference.events = playing(started, first, go_on, second, finished)
    async with edge.stream("POST", PATH, json=STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = response.aiter_lines()
        got = ""
        while '"one"' not in got:
            got += await anext(stream)
        assert '"two"' not in got
        go_on.set()
        rest = [line async for line in stream if line]
    assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("mode", ["status", "event"])
async def test_a_failure_before_the_answer_is_an_http_status(
    edge: httpx2.AsyncClient, inference: Any, answering: Any, playing: Any, mode: str
):
    error = ResourceExhausted("QUOTA_EXCEEDED", "too many requests", None, 2.5)
    started = answering()[0]
    inference.events = playing(started, error if mode == "status" else failed(error, partial=False))
    response = await edge.post(PATH, json=STREAM)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["retry-after-ms"] == "2500"
    assert response.json() == {
        "error": {
            "message": "too many requests",
            "type": "rate_limit_error",
            "param": None,
            "code": "quota_exceeded",
        }
    }


@pytest.mark.parametrize("mode", ["status", "event", "cut"])
async def test_a_failure_within_the_answer_is_an_event_and_never_done(
    edge: httpx2.AsyncClient, inference: Any, answering: Any, playing: Any, mode: str
):
    started, delta, _ = answering("half")
    error = Unavailable("", "the provider is gone", reason="PROVIDER_UNAVAILABLE")
    ends = {"status": [error], "event": [failed(error, partial=True)], "cut": []}
    inference.events = playing(started, delta, *ends[mode])
    async with edge.stream("POST", PATH, json=STREAM) as response:
        assert response.status_code == 200
        got = await lines(response)
    last = json.loads(got[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert last["error"]["code"] == ("dependency_unavailable" if mode == "cut" else "provider_unavailable")
    assert "data: [DONE]" not in got


@pytest.mark.parametrize("stream", [False, True])
async def test_a_field_that_the_mesh_refuses_is_named_as_the_caller_wrote_it(
    edge: httpx2.AsyncClient, inference: Any, playing: Any, stream: bool
):
    error = InvalidArgument("prompt.max_output_tokens", "must be 1 to 1,000,000")

    def refuse(prompt: Any) -> Any:
        raise error

    inference.answer, inference.events = refuse, playing(error)
    response = await edge.post(PATH, json={**ASK, "max_tokens": -1, "stream": stream})
    assert response.status_code == 400
    found = response.json()["error"]
    assert (found["type"], found["param"]) == ("invalid_request_error", "max_tokens")
    assert found["message"] == "max_tokens: must be 1 to 1,000,000"


async def test_a_client_that_leaves_a_stream_cancels_the_call(
    edge: httpx2.AsyncClient, inference: Any, answering: Any, playing: Any
):
    started, delta, finished = answering("half")
    inference.events = playing(started, delta, asyncio.Event(), finished)
    async with edge.stream("POST", PATH, json=STREAM) as response:
        await anext(response.aiter_lines())
    await asyncio.wait_for(inference.cancelled.wait(), 10)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_answer_cancels_the_call(
    edge: httpx2.AsyncClient, inference: Any, playing: Any, stream: bool
):
    never = asyncio.Event()
    inference.answer, inference.events = (lambda prompt: never.wait()), playing(never)
    asking = asyncio.create_task(edge.post(PATH, json={**ASK, "stream": stream}))
    await asyncio.wait_for(inference.called.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(inference.cancelled.wait(), 10)


async def test_nothing_is_left_behind_by_clients_that_leave(
    edge: httpx2.AsyncClient, inference: Any, answering: Any, playing: Any
):
    def ours() -> set[str]:
        return {
            task.get_coro().__qualname__  # type: ignore[union-attr]
            for task in asyncio.all_tasks()
            if "janus_edge" in getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", "")
        }

    before = ours()
    started, delta, finished = answering("half")
    for _ in range(5):
        inference.cancelled.clear()
        inference.events = playing(started, delta, asyncio.Event(), finished)
        async with edge.stream("POST", PATH, json=STREAM) as response:
            await anext(response.aiter_lines())
        await asyncio.wait_for(inference.cancelled.wait(), 10)
    async with asyncio.timeout(10):
        while ours() != before:  # noqa: ASYNC110 - tasks that end tell nobody
            await asyncio.sleep(0)


async def test_the_callers_time_and_ids_go_with_the_call(edge: httpx2.AsyncClient, inference: Any):
    inference.answer = lambda prompt: whole(content.Part(text="x"))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "x-request-id": "my-request",
        "janus-tenant": "acme",
        "janus-timeout": "7.5",
        "traceparent": trace,
    }
    response = await edge.post(PATH, json=ASK, headers=headers)
    assert response.headers["x-request-id"] == "my-request"
    assert inference.metadata["x-request-id"] == "my-request"
    assert inference.metadata["janus-tenant"] == "acme"
    assert inference.metadata["traceparent"] == trace
    assert 0 < inference.time_remaining <= 7.5


async def test_a_recorded_trace_has_the_request_and_its_call_below_the_caller(edge: httpx2.AsyncClient, inference: Any):
    inference.answer = lambda prompt: whole(content.Part(text="x"))
    exporter = InMemorySpanExporter()
    tracing.configure(endpoint=None, service="edge", version="0", exporter=exporter)
    try:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await edge.post(PATH, json=ASK, headers={"traceparent": trace})
        request = next(span for span in exporter.get_finished_spans() if span.name == f"POST {PATH}")
        assert request.parent is not None
        assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"
        assert dict(request.attributes or {})["http.response.status_code"] == 200
        assert "rpc.method" not in dict(request.attributes or {})
        # The call's own span ends a turn of the loop after its answer was read.
        carried = inference.metadata["traceparent"].split("-")
        assert carried[1] == "0af7651916cd43dd8448eb211c80319c"
        assert carried[2] not in ("b7ad6b7169203331", format(request.context.span_id, "016x"))
    finally:
        tracing.shutdown()


async def test_a_message_that_the_mesh_finds_too_large_is_not_one_to_send_again(
    edge: httpx2.AsyncClient, inference: Any, playing: Any
):
    inference.events = playing(ResourceExhausted("MESSAGE_TOO_LARGE", "the message is too large"))
    assert (await edge.post(PATH, json=STREAM)).status_code == 413


async def test_a_deadline_that_passes_is_a_504(edge: httpx2.AsyncClient, inference: Any, playing: Any):
    inference.events = playing(asyncio.Event())
    response = await edge.post(PATH, json=STREAM, headers={"janus-timeout": "0.1"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_a_body_of_another_type_is_refused(edge: httpx2.AsyncClient, inference: Any):
    response = await edge.post(PATH, content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert inference.prompts == []


@pytest.mark.parametrize("said", [True, False], ids=["length said", "chunked"])
async def test_a_body_over_the_limit_is_refused(
    edge: httpx2.AsyncClient, settings: EdgeSettings, inference: Any, said: bool
):
    size = settings.max_body_bytes + 1

    async def pieces() -> Any:
        yield b" " * size

    response = await edge.post(
        PATH,
        content=b" " * size if said else pieces(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert inference.prompts == []


async def test_a_bug_answers_an_incident_id_and_nothing_else(
    edge: httpx2.AsyncClient, inference: Any, monkeypatch: pytest.MonkeyPatch
):
    def bug(*args: Any) -> Callable[..., Any]:
        raise RuntimeError("a secret")

    monkeypatch.setattr("janus_edge.openai_compat.chat.translate", bug)
    response = await edge.post(PATH, json=ASK)
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal"
    assert "secret" not in error["message"]
    assert "incident inc_" in error["message"]
