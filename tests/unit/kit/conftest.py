"""A tiny service with one RPC of each shape, on a real server and a real channel."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import grpc_tools
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

from janus_api.common.v1 import scope_pb2  # noqa: F401 - the probe's protos need it in the pool
from janus_kit.channel import connect
from janus_kit.mount import Mount
from janus_kit.server import Host, serve
from janus_kit.settings import ServerSettings
from janus_kit.telemetry import logging

HERE = Path(__file__).parent
SERVICE = "janus.probe.v1.ProbeService"
SHAPES = ("Unary", "ServerStream", "ClientStream", "Bidi")


@cache
def messages() -> tuple[Any, Any]:
    """The classes Ask and Answer; compiled and put into the pool once a process."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName("probe.proto")
    except KeyError:
        built = HERE / f".probe-{id(pool)}.bin"
        arguments = [
            f"-I{HERE}",
            f"-I{HERE.parents[2] / 'protos'}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--descriptor_set_out={built}",
            "probe.proto",
        ]
        assert protoc.main(["protoc", *arguments]) == 0
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(built.read_bytes())
        finally:
            built.unlink()
        pool.Add(files.file[0])
    found = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"janus.probe.v1.{name}"))
        for name in ("Ask", "Answer")
    ]
    return found[0], found[1]


async def echo(text: str) -> str:
    return text


@dataclass
class Probe:
    """The servicer and a client of it. ``act`` is what every RPC does with a message's text."""

    host: Host = field(init=False)
    channel: grpc.aio.Channel = field(init=False)
    act: Callable[[str], Awaitable[str]] = echo
    answers: int = 1
    """Messages that ServerStream sends before it ends."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a call's code has been left, for whatever reason."""

    def mount(self, **more: Any) -> Mount:
        return Mount("probe", self._register, (SERVICE,), **more)

    async def call(self, shape: str, *texts: str, channel: Any = None, **options: Any) -> list[str]:
        """Call an RPC of that shape as a client; returns the texts of the answers."""
        ask, _ = messages()
        requests = [ask(text=text).SerializeToString() for text in texts or ("hello",)]
        while True:
            try:
                return [answer.text async for answer in self.raw(shape, requests, channel=channel, **options)]
            except grpc.aio.AioRpcError as error:
                # grpc.aio forgets the status of a stream that was refused while it still sends.
                if "SendMessageOperation" not in (error.debug_error_string() or ""):
                    raise

    async def raw(
        self, shape: str, requests: Sequence[bytes], *, channel: Any = None, **options: Any
    ) -> AsyncIterator[Any]:
        """The same with bytes as they are, and answers as they come."""
        call = self.start(shape, requests, channel=channel, **options)
        if shape in ("Unary", "ClientStream"):
            yield await call
        else:
            async for answer in call:
                yield answer

    def start(self, shape: str, requests: Sequence[bytes], *, channel: Any = None, **options: Any) -> Any:
        """gRPC's own call object."""
        _, answer = messages()
        over = channel or self.channel
        kinds = {
            "Unary": over.unary_unary,
            "ServerStream": over.unary_stream,
            "ClientStream": over.stream_unary,
            "Bidi": over.stream_stream,
        }
        method = kinds[shape](f"/{SERVICE}/{shape}", None, answer.FromString)
        if shape in ("Unary", "ServerStream"):
            return method(requests[0], **options)
        return method(_each(requests), **options)

    def _register(self, server: grpc.aio.Server) -> None:
        ask, answer = messages()
        coding = (ask.FromString, answer.SerializeToString)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "Unary": grpc.unary_unary_rpc_method_handler(self._unary, *coding),
                        "ServerStream": grpc.unary_stream_rpc_method_handler(self._server_stream, *coding),
                        "ClientStream": grpc.stream_unary_rpc_method_handler(self._client_stream, *coding),
                        "Bidi": grpc.stream_stream_rpc_method_handler(self._bidi, *coding),
                    },
                ),
            )
        )

    async def _unary(self, request: Any, context: Any) -> Any:
        return await self._act(request)

    async def _server_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for _ in range(self.answers):
                yield await self._act(request)
        finally:
            self.closed.set()

    async def _client_stream(self, requests: AsyncIterator[Any], context: Any) -> Any:
        texts = [(await self._act(request)).text async for request in requests]
        return messages()[1](text=" ".join(texts))

    async def _bidi(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._act(request)

    async def _act(self, request: Any) -> Any:
        try:
            return messages()[1](text=await self.act(request.text))
        finally:
            self.closed.set()


async def _each(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


@asynccontextmanager
async def serving_probe(
    settings: ServerSettings | None = None, *, mount: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Probe]:
    messages()
    probe = Probe()
    chosen = settings or ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=5)
    async with serve([probe.mount(**(mount or {}))], chosen, **options) as host:
        probe.host = host
        async with connect(host.address or host.uds or "") as channel:
            probe.channel = channel
            yield probe


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    async with serving_probe() as running:
        yield running


@pytest.fixture
def serving() -> Callable[..., Any]:
    """``serving_probe``, for tests that choose settings."""
    return serving_probe


@pytest.fixture
def ask() -> Any:
    return messages()[0]


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """Wait until a condition holds that nothing announces; fails after 5 s."""

    async def wait(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.001)

    return wait


@dataclass
class Lines:
    """What was logged, as the JSON objects that an operator's tools read."""

    stream: StringIO

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["event"] == event]

    def at(self, level: str) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["level"] == level]


@pytest.fixture
def logs() -> Iterator[Lines]:
    stream = StringIO()
    logging.configure(level="debug", stream=stream)
    yield Lines(stream)
    logging.configure(level="warning")


@dataclass(frozen=True)
class Refusal:
    """A caught RPC error, taken apart."""

    code: grpc.StatusCode
    text: str
    reason: str
    metadata: dict[str, str]
    trailers: dict[str, Any]
    details: list[Any]

    def one(self, kind: Any) -> Any:
        """The detail of that kind; fails when there is none."""
        return next(detail for detail in self.details if isinstance(detail, kind))


@pytest.fixture
def refusal() -> Callable[[grpc.aio.AioRpcError], Refusal]:
    def taken_apart(error: grpc.aio.AioRpcError) -> Refusal:
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        details = []
        for packed in status.details:
            kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])
            details.append(kind.FromString(packed.value))
        info = next(detail for detail in details if isinstance(detail, error_details_pb2.ErrorInfo))
        assert info.domain == "janus"
        assert status.code == error.code().value[0]
        return Refusal(
            code=error.code(),
            text=error.details() or "",
            reason=info.reason,
            metadata=dict(info.metadata),
            trailers=trailers,
            details=details,
        )

    return taken_apart
