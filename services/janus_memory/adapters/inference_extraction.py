"""A model of the inference service that reads conversations, asked through its Generate RPC."""

import json
from collections.abc import Mapping
from typing import Any

import grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.rpc_errors import from_rpc
from janus_memory.extraction import Answered, Usage

_ENDS = {
    event_pb2.FINISH_REASON_STOP: "whole",
    event_pb2.FINISH_REASON_STOP_SEQUENCE: "whole",
    event_pb2.FINISH_REASON_LENGTH: "cut",
}


class InferenceExtraction:
    """Implements extraction.ExtractionModel. The tenant of the work at hand travels on with the call."""

    def __init__(self, stub: "rpc.InferenceServiceAsyncStub", timeout_s: float) -> None:
        self._stub = stub
        self._timeout_s = timeout_s

    async def answer(self, model: str, instructions: str, material: str, schema: Mapping[str, Any] | None) -> Answered:
        held = request_pb2.JsonSchemaFormat(name="memories", schema_json=json.dumps(schema), strict=True)
        prompt = request_pb2.Prompt(
            model=model,
            system=instructions,
            messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(text=material)])],
            response_format=request_pb2.ResponseFormat(json_schema=held) if schema else None,
            labels={"purpose": "memory.extract"},
        )
        try:
            answer = await self._stub.Generate(pb.GenerateRequest(prompt=prompt), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="inference") from error
        usage = Usage(
            answer.usage.input_uncached_tokens,
            answer.usage.cache_read_tokens,
            answer.usage.cache_write_tokens,
            answer.usage.output_tokens,
            answer.usage.reasoning_tokens,
            answer.usage.cost_micro_usd if answer.usage.HasField("cost_micro_usd") else None,
            answer.usage.price_version,
            answer.usage.source,
        )
        text = "".join(part.text for part in answer.message.parts)
        return Answered(text, _ENDS.get(answer.finish_reason, "declined"), usage)
