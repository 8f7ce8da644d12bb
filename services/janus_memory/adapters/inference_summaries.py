"""A model of the inference service that writes summaries, asked through its Generate RPC."""

import grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.errors import Unavailable
from janus_kit.rpc_errors import from_rpc

# A model that thinks first needs room for that as well.
_MAX_OUTPUT_TOKENS = 8_192
_WHOLE = frozenset(
    {event_pb2.FINISH_REASON_STOP, event_pb2.FINISH_REASON_STOP_SEQUENCE, event_pb2.FINISH_REASON_LENGTH}
)


class InferenceSummaries:
    """Implements ports.SummaryModel. The tenant of the work at hand travels on with the call."""

    def __init__(self, stub: "rpc.InferenceServiceAsyncStub", model: str, timeout_s: float) -> None:
        self._stub = stub
        self._model = model
        self._timeout_s = timeout_s

    async def write(self, instructions: str, material: str) -> str:
        prompt = request_pb2.Prompt(
            model=self._model,
            system=instructions,
            messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(text=material)])],
            max_output_tokens=_MAX_OUTPUT_TOKENS,
            labels={"purpose": "memory.summary"},
        )
        try:
            answer = await self._stub.Generate(pb.GenerateRequest(prompt=prompt), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="inference") from error
        if answer.finish_reason not in _WHOLE:
            raise Unavailable("summary_model", "the model did not write a summary")
        return "".join(part.text for part in answer.message.parts)
