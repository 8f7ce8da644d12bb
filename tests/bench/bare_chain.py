"""The least that could stand between a provider and a gRPC caller: the baseline of what Janus adds.

    python -m tests.bench.bare_chain http://127.0.0.1:PORT/v1      prints its port, ends with its stdin

The provider's SDK for the request, its raw bytes, jiter, what is waiting joined into one message,
grpc.aio on uvloop. It knows text and nothing else: no limits, no record, no errors, no time-outs.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import jiter
import openai
import uvloop
from tests.fakes.announced import announced

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc


class BareChain(rpc.InferenceServiceServicer):
    """StreamGenerate and Generate."""

    def __init__(self, base_url: str) -> None:
        self._client = openai.AsyncOpenAI(
            api_key="sk-bench", base_url=base_url, max_retries=0, http_client=openai.DefaultAioHttpClient()
        )

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        sequence = 0
        async for text in self._texts(request.prompt):
            sequence += 1
            delta = event_pb2.TextDelta(text=text)
            yield pb.StreamGenerateResponse(event=event_pb2.GenerationEvent(sequence=sequence, text_delta=delta))
        end = event_pb2.GenerationFinished(reason=event_pb2.FINISH_REASON_STOP)
        yield pb.StreamGenerateResponse(event=event_pb2.GenerationEvent(sequence=sequence + 1, finished=end))

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        text = "".join([text async for text in self._texts(request.prompt)])
        return pb.GenerateResponse(message=content.Message(parts=[content.Part(text=text)]))

    async def close(self) -> None:
        await self._client.close()

    async def _texts(self, prompt: request_pb2.Prompt) -> AsyncIterator[str]:
        create = self._client.chat.completions.with_streaming_response.create
        messages: Any = [{"role": "user", "content": prompt.messages[0].parts[0].text}]
        options: Any = {"include_usage": True}
        model = prompt.model.partition("/")[2]
        async with create(model=model, messages=messages, stream=True, stream_options=options) as response:
            rest = b""
            async for data in response.iter_bytes():
                *events, rest = (rest + data).split(b"\n\n")
                texts = [text for event in events if (text := _text(event[6:]))]
                if model.endswith("-apart"):
                    for text in texts:
                        yield text
                elif texts:
                    yield "".join(texts)


def _text(data: bytes) -> str:
    if data == b"[DONE]":
        return ""
    choices = jiter.from_json(data)["choices"]
    if not choices:
        return ""
    delta = choices[0]["delta"]
    return cast(str, delta.get("content") or delta.get("refusal") or "")


async def _main(base_url: str) -> None:
    server = grpc.aio.server()
    chain = BareChain(base_url)
    rpc.add_InferenceServiceServicer_to_server(chain, server)
    await announced(server)
    await chain.close()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
