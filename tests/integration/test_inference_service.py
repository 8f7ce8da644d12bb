"""The inference service over gRPC, with providers that speak the real wire formats."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.fakes.providers.inference_service import KEY, Refusal, Service, prompt, running, user

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2, model_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc

REAL = ["openai/fake", "compatible/fake", "anthropic/fake"]


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url, redis_url) as service:
        yield service


async def refusal(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (call.read() if hasattr(call, "__aiter__") else call)
    return Refusal.of(raised.value)


@pytest.mark.parametrize("model", REAL)
async def test_an_answer_is_streamed(inference: Service, model: str) -> None:
    events = await inference.stream(prompt(model=model))
    started, finished = events[0][1], events[-1][1]
    assert f"{started.provider}/{started.model}" == model
    assert started.generation_id
    assert "".join(event.text for kind, event in events if kind == "text_delta") == "wörd0 wörd1 wörd2"
    assert finished.reason == event_pb2.FINISH_REASON_STOP
    assert finished.provider_reason in ("stop", "end_turn", "completed")
    assert finished.usage.output_tokens == 3
    assert finished.usage.source == usage_pb2.USAGE_SOURCE_REPORTED
    assert not finished.usage.HasField("cost_micro_usd")
    assert finished.timings.total.ToNanoseconds() >= finished.timings.time_to_first_event.ToNanoseconds()


@pytest.mark.parametrize("model", [*REAL, "openai/fake;tools=1;think=2", "anthropic/fake;tools=1;think=2"])
async def test_the_unary_answer_is_the_folded_stream(inference: Service, model: str) -> None:
    if model.startswith("compatible"):
        model = "compatible/fake"
    events = await inference.stream(prompt(model=model))
    answer = await inference.generate(prompt(model=model))
    finished = events[-1][1]
    assert (answer.finish_reason, answer.provider_reason) == (finished.reason, finished.provider_reason)
    assert answer.usage == finished.usage
    assert answer.message.role == content.ROLE_ASSISTANT
    text = "".join(event.text for kind, event in events if kind == "text_delta")
    assert "".join(part.text for part in answer.message.parts) == text
    calls = [event.call for kind, event in events if kind == "tool_call_completed"]
    assert [part.tool_call for part in answer.message.parts if part.HasField("tool_call")] == calls


async def test_a_conversation_with_tools_goes_to_the_provider_and_back(inference: Service) -> None:
    tool = request_pb2.ToolDefinition(name="weather", parameters_schema_json='{"type": "object"}')
    asked = prompt("Rome?", model="anthropic/fake;tools=1;think=1", tools=[tool], system="be brief")
    answer = await inference.generate(asked)
    call = next(part.tool_call for part in answer.message.parts if part.HasField("tool_call"))
    result = content.ToolResult(call_id=call.call_id, parts=[content.Part(text="sunny")])
    answered = content.Message(role=content.ROLE_TOOL, parts=[content.Part(tool_result=result)])
    asked.messages.extend([answer.message, answered])
    asked.model = "anthropic/fake"
    await inference.generate(asked)
    sent = inference.anthropic.exchanges[-1].request.json
    assert sent["system"] == "be brief"
    thinking, used = sent["messages"][1]["content"]
    assert (thinking["type"], thinking["signature"]) == ("thinking", "c2lnbmVkIQ==")
    assert (used["type"], used["id"], used["name"]) == ("tool_use", call.call_id, "weather")
    assert sent["messages"][2]["content"][0] == {
        "type": "tool_result",
        "tool_use_id": call.call_id,
        "content": [{"type": "text", "text": "sunny"}],
    }


async def test_without_a_model_the_default_answers(inference: Service) -> None:
    answer = await inference.generate(prompt())
    assert (answer.provider, answer.model) == ("scripted", "rehearsal")


async def test_models_are_listed_by_name_in_pages(inference: Service) -> None:
    names: list[str] = []
    token = ""
    while True:
        page = await inference.stub.ListModels(pb.ListModelsRequest(page_size=5, page_token=token))
        names += [model.name for model in page.models]
        if not (token := page.next_page_token):
            break
    assert names == sorted(names)
    assert {"default", "scripted/rehearsal", "openai/gpt-5", "compatible/fake"} <= set(names)
    embedding = await inference.stub.ListModels(pb.ListModelsRequest(kind=model_pb2.MODEL_KIND_EMBEDDING))
    assert {model.kind for model in embedding.models} == {model_pb2.MODEL_KIND_EMBEDDING}


async def test_one_model_or_alias_can_be_looked_up(inference: Service) -> None:
    alias = (await inference.stub.GetModel(pb.GetModelRequest(name="default"))).model
    assert [target.model for target in alias.targets] == ["scripted/rehearsal"]
    model = (await inference.stub.GetModel(pb.GetModelRequest(name="scripted/rehearsal"))).model
    assert model.health == model_pb2.MODEL_HEALTH_OK
    gone = await refusal(inference.stub.GetModel(pb.GetModelRequest(name="nope")))
    assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


@pytest.mark.parametrize("model", ["", "openai/text-embedding-3-small", "compatible/fake-embed"])
async def test_vectors_come_in_the_order_of_the_texts(inference: Service, model: str) -> None:
    made = await inference.stub.Embed(pb.EmbedRequest(model=model, inputs=["a", "bb", "ccc"]))
    assert [list(vector.values) for vector in made.vectors] == [[1, 0.5, 0.5], [2, 0.5, 0.5], [3, 0.5, 0.5]]
    assert made.model == (model or "openai/text-embedding-3-small")
    assert (made.dimensions, made.usage.input_uncached_tokens) == (3, 5)


async def test_vectors_say_what_they_cost_where_the_price_is_known(postgres_url: str, redis_url: str) -> None:
    prices = {"openai/text-embedding-3-small": {"input_usd": 20, "output_usd": 0}}
    async with running(postgres_url, redis_url, prices=prices) as inference:
        priced = await inference.stub.Embed(pb.EmbedRequest(inputs=["a", "bb", "ccc"]))
        unpriced = await inference.stub.Embed(pb.EmbedRequest(model="compatible/fake-embed", inputs=["a"]))
    assert (priced.usage.input_uncached_tokens, priced.usage.cost_micro_usd) == (5, 100)
    assert priced.usage.price_version
    assert not unpriced.usage.HasField("cost_micro_usd")


async def test_vectors_can_be_shortened(inference: Service) -> None:
    made = await inference.stub.Embed(pb.EmbedRequest(inputs=["a"], dimensions=2))
    assert (made.dimensions, len(made.vectors[0].values)) == (2, 2)


@pytest.mark.parametrize(
    ("request_", "code", "reason", "fields"),
    [
        (pb.EmbedRequest(), grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", ["inputs"]),
        (
            pb.EmbedRequest(model="openai/gpt-5", inputs=["a"]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "MODEL_NOT_FOUND",
            ["model"],
        ),
        (
            pb.EmbedRequest(model="anthropic/embed", inputs=["a"]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "MODEL_NOT_FOUND",
            ["model"],
        ),
        (
            pb.EmbedRequest(model="openai/v;status=429", inputs=["a"]),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "PROVIDER_RATE_LIMITED",
            [],
        ),
        (
            pb.EmbedRequest(model="openai/v;nan=1", inputs=["a"]),
            grpc.StatusCode.UNAVAILABLE,
            "PROVIDER_STREAM_BROKEN",
            [],
        ),
        (
            pb.EmbedRequest(model="openai/v;missing=1", inputs=["a", "b"]),
            grpc.StatusCode.UNAVAILABLE,
            "PROVIDER_STREAM_BROKEN",
            [],
        ),
    ],
)
async def test_embedding_refuses_what_is_wrong(
    inference: Service, request_: pb.EmbedRequest, code: grpc.StatusCode, reason: str, fields: list[str]
) -> None:
    refused = await refusal(inference.stub.Embed(request_))
    assert (refused.code, refused.reason, refused.fields) == (code, reason, fields)


async def test_without_an_embedding_model_that_is_said(postgres_url: str, redis_url: str) -> None:
    async with running(postgres_url, redis_url, providers={}) as service:
        refused = await refusal(service.stub.Embed(pb.EmbedRequest(inputs=["a"])))
    assert (refused.reason, refused.fields) == ("MODEL_NOT_FOUND", ["model"])


AUDIO = content.Part(audio=content.Media(mime_type="audio/wav", data=b"x"))


@pytest.mark.parametrize(
    ("asked", "reason", "fields"),
    [
        (request_pb2.Prompt(), "FIELD_INVALID", ["prompt.messages"]),
        (prompt(model="nope"), "MODEL_NOT_FOUND", ["prompt.model"]),
        (prompt(model="compatible/nope"), "MODEL_NOT_FOUND", ["prompt.model"]),
        (prompt(model="openai/text-embedding-3-small"), "MODEL_NOT_FOUND", ["prompt.model"]),
        (
            prompt(messages=[content.Message()]),
            "FIELD_INVALID",
            ["prompt.messages[0].role", "prompt.messages[0].parts"],
        ),
        (prompt(messages=[user("x", content.Part())]), "FIELD_INVALID", ["prompt.messages[0].parts[1]"]),
        (
            prompt(model="anthropic/fake", messages=[user("x", AUDIO)]),
            "CAPABILITY_UNSUPPORTED",
            ["prompt.messages[0].parts[1].audio"],
        ),
        (
            prompt(sampling=request_pb2.Sampling(temperature=float("nan"))),
            "FIELD_INVALID",
            ["prompt.sampling.temperature"],
        ),
        (prompt(timeouts=request_pb2.Timeouts(idle=Duration(seconds=-1))), "FIELD_INVALID", ["prompt.timeouts.idle"]),
    ],
)
async def test_bad_input_names_its_field(
    inference: Service, asked: request_pb2.Prompt, reason: str, fields: list[str]
) -> None:
    for call in (
        inference.stub.Generate(pb.GenerateRequest(prompt=asked)),
        inference.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=asked)),
    ):
        refused = await refusal(call)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.reason, refused.fields) == (reason, fields)
    assert not inference.openai.exchanges


async def test_bytes_that_are_no_request_are_invalid(inference: Service) -> None:
    async with grpc.aio.insecure_channel(inference.address) as channel:
        for method in ("Generate", "StreamGenerate"):
            path = f"/janus.inference.v1.InferenceService/{method}"
            raw = channel.unary_unary(path) if method == "Generate" else channel.unary_stream(path)
            refused = await refusal(raw(b"\x0a\xff\xff\xff\xff\x0f garbage"))
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.reason == "REQUEST_UNDECODABLE"


async def test_an_oversize_message_is_refused(inference: Service) -> None:
    huge = prompt(messages=[user(*["x" * 1024 * 1024] * 5)])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await inference.generate(huge)
    assert raised.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_provider_s_part_of_health_tells_of_its_last_call(inference: Service) -> None:
    parts = {part.name: part for part in inference.mount.parts}
    assert set(parts) == {
        "postgres",
        "redis",
        "provider:openai",
        "provider:compatible",
        "provider:anthropic",
        "provider:scripted",
    }
    assert [name for name, part in parts.items() if part.required] == ["postgres"]
    await parts["provider:openai"].check()
    await refusal(inference.stub.Generate(pb.GenerateRequest(prompt=prompt(model="openai/fake;status=401"))))
    with pytest.raises(Exception, match="refused the credential"):
        await parts["provider:openai"].check()
    await inference.generate(prompt(model="openai/fake"))
    await parts["provider:openai"].check()


async def test_no_sdk_is_loaded_while_only_the_rehearsal_is_there(postgres_url: str, redis_url: str) -> None:
    script = f"""
        import asyncio, sys
        from tests.fakes.providers.inference_service import inference_on, InferenceSettings

        async def main():
            settings = InferenceSettings(openai_api_key=None)
            async with inference_on("{postgres_url}", "{redis_url}", settings) as made:
                await dict(made.background)["inference-warm"]()
            print(sorted({{"openai", "anthropic", "httpx2", "aiohttp"}} & set(sys.modules)))

        asyncio.run(main())
    """
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_it_runs_as_a_process_of_its_own(tmp_path: Any, postgres_url: str, redis_url: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    environ |= {"JANUS_POSTGRES_URL": postgres_url, "JANUS_REDIS_URL": redis_url}
    environ |= {"JANUS_SERVER__LISTEN": "", "JANUS_SERVER__UDS": str(tmp_path / "s"), "OPENAI_API_KEY": KEY}
    environ["JANUS_SERVER__LAME_DUCK_S"] = "0"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "janus_inference", env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while b'"serving"' not in (line := await process.stderr.readline()):
            assert line, "it ended before it served"
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            stub = rpc.InferenceServiceStub(channel)
            asked = pb.GenerateRequest(prompt=prompt(model="scripted/rehearsal"))
            assert (await stub.Generate(asked)).message.parts
            listed = await stub.ListModels(pb.ListModelsRequest())
            assert "openai/gpt-5" in {model.name for model in listed.models}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert KEY.encode() not in await process.stderr.read()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
