"""Composition root: settings and a channel in, an ASGI application or a running server out."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any, cast

import grpc
import uvicorn
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_edge import health, metrics
from janus_edge.boundary import INCIDENT, Boundary
from janus_edge.openai_compat import chat, models
from janus_edge.openai_compat.errors import ErrorResponse, HttpError
from janus_edge.openai_compat.reference import complete
from janus_edge.openai_compat.schema import ChatRequest
from janus_edge.settings import EdgeSettings
from janus_kit.channel import connect
from janus_kit.errors import Internal, JanusError
from janus_kit.ids import new_id
from janus_kit.transport import ListenError
from janus_kit.version import version

_DESCRIPTION = """The HTTP face of Janus.

The OpenAI-compatible paths take the unmodified OpenAI clients: set `base_url` to this server's `/v1`.
Everything else that Janus does is gRPC; see the protos.

Every path takes `x-request-id` and gives it back, and takes `janus-timeout` (seconds) as the request's deadline and
`traceparent`. Callers are not identified yet: an API key is not looked at, and `janus-tenant` chooses the tenant.
"""


@dataclass(frozen=True)
class Edge:
    """The ASGI application and the switch that takes it out of service."""

    asgi: ASGIApp
    api: FastAPI

    def drain(self) -> None:
        """From now on /readyz says that this process is leaving."""
        self.api.state.draining = True


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    address: str
    """host:port really bound."""

    @property
    def url(self) -> str:
        """Base of all paths, e.g. `http://127.0.0.1:8080`."""
        return f"http://{self.address}"


def create_app(
    settings: EdgeSettings,
    channel: grpc.aio.Channel,
    others: Mapping[str, grpc.aio.Channel] | None = None,
) -> Edge:
    """The application over open channels: to ``settings.target``, and to what /readyz shows besides."""
    api = FastAPI(
        title="Janus",
        version=version(),
        description=_DESCRIPTION,
        # Their pages load scripts from a CDN; /openapi.json is enough for any viewer.
        docs_url=None,
        redoc_url=None,
    )
    api.state.settings = settings
    api.state.draining = False
    api.state.inference = inference_rpc.InferenceServiceStub(channel)
    api.state.mesh = health.Mesh(
        settings.target, {settings.target: channel, **(others or {})}, settings.ready_timeout_s
    )
    api.include_router(models.router)
    api.include_router(chat.router)
    api.include_router(health.router)
    api.add_api_route(
        "/metrics",
        _metrics,
        tags=["Operations"],
        summary="Prometheus metrics",
        response_model=None,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    api.add_exception_handler(JanusError, _answer_error)
    api.add_exception_handler(HttpError, _answer_error)
    api.add_exception_handler(HTTPException, _answer_http)
    api.add_exception_handler(Exception, _answer_bug)
    describe = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            complete(describe(), ChatRequest)
        return describe()

    # FastAPI's own way to extend the document.
    api.openapi = openapi  # type: ignore[method-assign]
    return Edge(Boundary(api, settings), api)


@asynccontextmanager
async def application(settings: EdgeSettings) -> AsyncIterator[Edge]:
    """The application with channels of its own, for a process that serves it itself."""
    async with AsyncExitStack() as stack:
        targets = dict.fromkeys((settings.target, *settings.also_report))
        channels = {target: await stack.enter_async_context(connect(target)) for target in targets}
        channel = channels.pop(settings.target)
        yield create_app(settings, channel, channels)


@asynccontextmanager
async def server(settings: EdgeSettings, target: str | None = None) -> AsyncIterator[Running]:
    """Serve within the event loop at hand; signals stay with whoever has them.

    ``target`` replaces ``settings.target``. Leaving the block stops to listen,
    lets requests finish for ``settings.drain_s`` seconds, then cancels them.
    Raises ListenError.
    """
    if target is not None:
        settings = settings.model_copy(update={"target": target})
    listener = _bind(settings)
    async with application(settings) as edge:
        host = QuietServer(uvicorn_config(edge.asgi, settings))
        serving = asyncio.create_task(host.serve([listener]), name="edge")
        try:
            await asyncio.wait(
                {serving, up := asyncio.ensure_future(host.listening.wait())}, return_when="FIRST_COMPLETED"
            )
            up.cancel()
            if serving.done():
                serving.result()
            yield Running(_address(listener))
        finally:
            edge.drain()
            host.should_exit = True
            await serving


def uvicorn_config(app: ASGIApp, settings: EdgeSettings) -> uvicorn.Config:
    """What all ways to serve have in common."""
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        # Log lines go the way of all others; requests are logged by Boundary.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Whole seconds; 0 would mean "for ever".
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


class QuietServer(uvicorn.Server):
    """Uvicorn that leaves signals alone and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _bind(settings: EdgeSettings) -> socket:
    """Bound here rather than by uvicorn, which ends the process when it cannot."""
    listener = socket(AF_INET6 if ":" in settings.host else AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ListenError(f"edge.listen {settings.listen}: {error.strerror or error}") from None
    listener.set_inheritable(True)
    return listener


def _address(listener: socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _metrics(request: Request) -> Response:
    """Counters of this process, or of all workers of it; in the all-in-one process the services' too."""
    # Formatting thousands of series takes milliseconds that streams would wait for.
    body, content_type = await asyncio.to_thread(metrics.exposition, request.headers.get("accept", ""))
    return Response(body, media_type=content_type)


async def _answer_error(request: Request, error: Exception) -> Response:
    return ErrorResponse(cast(JanusError | HttpError, error))


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this answer; Boundary logs it under the same id."""
    incident = request.scope[INCIDENT] = new_id("inc")
    return ErrorResponse(Internal(incident))


async def _answer_http(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: no such path, not that method."""
    refused = cast(HTTPException, error)
    texts = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not offered at {request.url.path}",
    }
    return ErrorResponse(
        HttpError(
            refused.status_code,
            texts.get(refused.status_code, "the request was refused"),
            code={404: "unknown_url", 405: "method_not_allowed"}.get(refused.status_code),
            headers=refused.headers,
        )
    )
