"""Inference and memory that cost almost nothing, for measuring orchestration in front of them.

    python -m tests.fakes.bench_services      prints the port it listens on, ends with its stdin

The model's name says what to answer: `tokens-3` sends three tokens at once, `tokens-100-every-20` one each
20 ms, on ticks that all streams share. A token's text is a time (`time.perf_counter_ns`, one clock for all
processes of a machine): that of the first one when the call arrived, that of a paced one when it was sent.
Memory finds nothing and takes everything.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2_grpc
from tests.fakes.announced import announced
from tests.fakes.peers.inference_peer import PeerHealth

from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2, model_pb2
from janus_api.inference.v1 import inference_service_pb2 as inference
from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_api.memory.v1 import memory_service_pb2 as memory
from janus_api.memory.v1 import memory_service_pb2_grpc as memory_rpc
from janus_api.memory.v1 import recall_pb2

_USAGE = usage_pb2.Usage(input_uncached_tokens=10, output_tokens=5, source=usage_pb2.USAGE_SOURCE_REPORTED)
_STARTED = event_pb2.GenerationStarted(generation_id="gen_bench", provider="bench", model="bench", attempt=1)
_FINISHED = event_pb2.GenerationFinished(reason=event_pb2.FINISH_REASON_STOP, usage=_USAGE)


class Inference(inference_rpc.InferenceServiceServicer):
    """GetModel and StreamGenerate."""

    async def GetModel(self, request: inference.GetModelRequest, context: Any) -> inference.GetModelResponse:
        return inference.GetModelResponse(
            model=model_pb2.Model(name=request.name, kind=model_pb2.MODEL_KIND_GENERATIVE)
        )

    async def StreamGenerate(
        self, request: inference.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[inference.StreamGenerateResponse]:
        arrived = time.perf_counter_ns()
        _, tokens, *pace = request.prompt.model.rpartition("/")[2].split("-")
        every_s = float(pace[1]) / 1000 if pace else 0.0
        yield _response(1, started=_STARTED)
        for number in range(int(tokens)):
            is_paced = every_s and number
            if is_paced:
                await asyncio.sleep(every_s - time.perf_counter() % every_s)
            said = time.perf_counter_ns() if is_paced else arrived
            yield _response(number + 2, text_delta=event_pb2.TextDelta(text=f"{said} "))
        yield _response(int(tokens) + 2, finished=_FINISHED)


def _response(sequence: int, **event: Any) -> inference.StreamGenerateResponse:
    return inference.StreamGenerateResponse(event=event_pb2.GenerationEvent(sequence=sequence, **event))


class Memory(memory_rpc.MemoryServiceServicer):
    """Recall and AppendMessages."""

    async def Recall(self, request: recall_pb2.RecallRequest, context: Any) -> recall_pb2.RecallResponse:
        return recall_pb2.RecallResponse()

    async def AppendMessages(
        self, request: memory.AppendMessagesRequest, context: Any
    ) -> memory.AppendMessagesResponse:
        return memory.AppendMessagesResponse()


async def _main() -> None:
    server = grpc.aio.server()
    inference_rpc.add_InferenceServiceServicer_to_server(Inference(), server)
    memory_rpc.add_MemoryServiceServicer_to_server(Memory(), server)
    health_pb2_grpc.add_HealthServicer_to_server(PeerHealth(), server)
    await announced(server)


if __name__ == "__main__":
    uvloop.run(_main())
