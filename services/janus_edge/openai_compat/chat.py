"""`POST /v1/chat/completions`: one gRPC call a request, unary or streamed."""

import asyncio
import json
import math
import time
from typing import Any

import grpc
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from janus_api.inference.v1 import event_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_edge.openai_compat import schema
from janus_edge.openai_compat.answer import completion
from janus_edge.openai_compat.body import read_json_body
from janus_edge.openai_compat.calls import tied, upstream_error
from janus_edge.openai_compat.errors import ErrorResponse, error_body
from janus_edge.openai_compat.frames import Frames, error_frame, is_semantic
from janus_edge.openai_compat.prompt import Translated, parse, translate
from janus_edge.openai_compat.reference import ChatCompletion, failures, json_body
from janus_kit.errors import JanusError, Unavailable
from janus_kit.rpc_errors import from_status

# OpenAI's clients say how long they wait for the next byte; of a whole answer
# that is the first, so there it is a deadline.
_READ_TIMEOUT = "x-stainless-read-timeout"

router = APIRouter(tags=["OpenAI-compatible"])


@router.post(
    "/v1/chat/completions",
    summary="Ask a model",
    response_model=None,
    responses={
        200: {
            "model": ChatCompletion,
            "description": (
                "The answer. With `stream: true`, server-sent events instead, each a "
                "`chat.completion.chunk`: the role, the deltas, the finish reason, with "
                "`stream_options.include_usage` the usage, then `data: [DONE]`. A failure after the "
                'answer began is an event `data: {"error": …}`, after which the stream ends without '
                "`[DONE]`."
            ),
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **failures(400, 413, 415, 429, 499, 500, 503, 504),
    },
    openapi_extra=json_body(schema.ChatRequest),
)
async def create_chat_completion(request: Request) -> Response:
    """Chat Completions, for clients of OpenAI's API.

    `model` is an alias or `provider/model` of this server. Fields that this
    server cannot honour are refused by name, never ignored. Leaving cancels
    the model's work.
    """
    body = await read_json_body(request)
    chat = parse(body)
    translated = translate(chat)
    stub = request.app.state.inference
    created = int(time.time())
    if chat.stream:
        usage = bool(chat.stream_options and chat.stream_options.include_usage)
        return StreamedCompletion(stub, translated, Frames(created, include_usage=usage))
    return WholeCompletion(stub, translated, created, _patience(request.headers.get(_READ_TIMEOUT)))


class WholeCompletion(Response):
    """The answer in one piece."""

    media_type = "application/json"

    def __init__(self, stub: Any, translated: Translated, created: int, timeout_s: float | None) -> None:
        super().__init__()
        self._stub = stub
        self._translated = translated
        self._created = created
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._stub.Generate(pb.GenerateRequest(prompt=self._translated.prompt), timeout=self._timeout_s)
        async with tied(call, receive) as client:
            try:
                answer = completion(await call, self._created)
                response = Response(json.dumps(answer), media_type=self.media_type)
            except asyncio.CancelledError:
                if client.gone:
                    return
                raise
            except grpc.aio.AioRpcError as error:
                response = ErrorResponse(upstream_error(error), self._translated.param_of)
        await response(scope, receive, send)


class StreamedCompletion(Response):
    """The answer as server-sent events, each flushed as its gRPC message comes.

    The head of the HTTP answer waits for the first event that is part of an
    answer: until then a failure still has an HTTP status, which clients act on.
    """

    def __init__(self, stub: Any, translated: Translated, frames: Frames) -> None:
        super().__init__()
        self._stub = stub
        self._translated = translated
        self._frames = frames
        self._opened = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._stub.StreamGenerate(pb.StreamGenerateRequest(prompt=self._translated.prompt))
        async with tied(call, receive) as client:
            try:
                failure = await self._pump(call, send)
            except asyncio.CancelledError:
                if client.gone:
                    return
                raise
            except grpc.aio.AioRpcError as error:
                failure = upstream_error(error)
        if failure is None:
            await send({"type": "http.response.body", "body": b""})
        elif self._opened:
            body = error_frame(error_body(failure, self._translated.param_of))
            await send({"type": "http.response.body", "body": body})
        else:
            await ErrorResponse(failure, self._translated.param_of)(scope, receive, send)

    async def _pump(self, call: Any, send: Send) -> JanusError | None:
        """Send frames until the stream ends; returns how it failed, if it did."""
        whole = False
        while (response := await call.read()) is not grpc.aio.EOF:
            event: event_pb2.GenerationEvent = response.event
            if event.HasField("failed"):
                return _failure(event.failed)
            if self._opened:
                body = self._frames.frame(event)
            elif is_semantic(event):
                self._opened = True
                await send(_HEAD)
                body = self._frames.open() + self._frames.frame(event)
            else:
                self._frames.announce(event)
                continue
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            whole = whole or event.HasField("finished")
        # By contract a stream without a terminal event was cut: it must not look whole.
        return None if whole else Unavailable("inference", "the stream ended before the answer did")


_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        # Proxies of nginx's kind would hold events back.
        (b"x-accel-buffering", b"no"),
    ],
}


def _failure(failed: event_pb2.GenerationFailed) -> JanusError:
    error = from_status(failed.status, part="inference")
    if error.retry_after is None and failed.HasField("retry_after"):
        error.retry_after = failed.retry_after.ToTimedelta().total_seconds()
    return error


def _patience(header: str | None) -> float | None:
    try:
        seconds = float(header) if header else math.inf
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
