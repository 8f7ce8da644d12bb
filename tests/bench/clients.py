"""Load clients: one over gRPC, one over bare HTTP, which is the connection that Janus is compared with."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import asyncpg
import grpc
from tests.fakes.bench_provider import WORD

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.inference.v1 import request_pb2

PROMPT = "What was said about the venting gas?"
_TIMED = re.compile(rb'"content":"(\d{19}) ')
_CONTENT = f'"content":"{WORD}"'.encode()


def prompt(provider: str, model: str) -> request_pb2.Prompt:
    """One question."""
    said = content.Message(role=content.ROLE_USER, parts=[content.Part(text=PROMPT)])
    return request_pb2.Prompt(model=f"{provider}/{model}", messages=[said])


@dataclass
class Heard:
    """One stream as its client saw it; times are of ``time.perf_counter``."""

    first_s: float = 0.0
    tokens: int = 0
    messages: int = 0
    sent_ns: list[int] = field(default_factory=list)
    """When the provider sent each token of a paced stream."""
    got_ns: list[int] = field(default_factory=list)
    """When each of them arrived here."""


class Client(Protocol):
    """Somebody who asks for answers."""

    async def unary(self, model: str) -> None:
        """Ask for a whole answer and wait for it."""
        ...

    async def stream(self, model: str, *, timed: bool = False) -> Heard:
        """Read a stream to its end; ``timed`` reads the times that paced tokens carry."""
        ...

    async def close(self) -> None: ...


class Grpc:
    """Janus over TCP, by a real client with a few connections."""

    def __init__(self, address: str, provider: str, connections: int) -> None:
        # Without a pool of their own all channels to one address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
        self._stubs = [rpc.InferenceServiceStub(channel) for channel in self._channels]
        self._provider = provider
        self._turn = 0

    async def unary(self, model: str) -> None:
        answer = await self._stub().Generate(pb.GenerateRequest(prompt=prompt(self._provider, model)), timeout=60)
        assert answer.message.parts[0].text

    async def stream(self, model: str, *, timed: bool = False) -> Heard:
        heard = Heard()
        began = time.perf_counter()
        ended = False
        async for reply in self._stub().StreamGenerate(
            pb.StreamGenerateRequest(prompt=prompt(self._provider, model)), timeout=300
        ):
            event = reply.event
            if event.HasField("text_delta") or event.HasField("refusal_delta"):
                text = event.text_delta.text or event.refusal_delta.text
                heard.first_s = heard.first_s or time.perf_counter() - began
                heard.messages += 1
                heard.tokens += text.count(" ")
                if timed:
                    now = time.perf_counter_ns()
                    for word in text.split():
                        heard.sent_ns.append(int(word))
                        heard.got_ns.append(now)
            else:
                ended = event.HasField("finished")
        assert ended, "a stream ended without its end"
        return heard

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _stub(self) -> "rpc.InferenceServiceAsyncStub":
        self._turn += 1
        return cast("rpc.InferenceServiceAsyncStub", self._stubs[self._turn % len(self._stubs)])


class PlainGrpc:
    """Janus by gRPC's blocking client, which costs least: for one call at a time."""

    def __init__(self, address: str, provider: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = rpc.InferenceServiceStub(self._channel)
        self._provider = provider

    async def unary(self, model: str) -> None:
        answer = self._stub.Generate(pb.GenerateRequest(prompt=prompt(self._provider, model)), timeout=60)
        assert answer.message.parts[0].text

    async def stream(self, model: str, *, timed: bool = False) -> Heard:
        heard = Heard()
        began = time.perf_counter()
        ended = False
        for reply in self._stub.StreamGenerate(
            pb.StreamGenerateRequest(prompt=prompt(self._provider, model)), timeout=60
        ):
            if reply.event.HasField("text_delta"):
                heard.first_s = heard.first_s or time.perf_counter() - began
                heard.messages += 1
                heard.tokens += reply.event.text_delta.text.count(" ")
            ended = reply.event.HasField("finished")
        assert ended, "a stream ended without its end"
        return heard

    async def close(self) -> None:
        self._channel.close()


class Committed(PlainGrpc):
    """A gateway without a database, and one row committed to Postgres after each whole answer."""

    def __init__(self, address: str, postgres_url: str) -> None:
        super().__init__(address, "bench")
        self._url = postgres_url
        self._connection: Any = None

    async def unary(self, model: str) -> None:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._url)
            await self._connection.execute("CREATE TABLE IF NOT EXISTS public.bench (said text)")
        await super().unary(model)
        await self._connection.execute("INSERT INTO public.bench (said) VALUES ($1)", model)

    async def close(self) -> None:
        await self._connection.close()
        await super().close()


class Http:
    """Chat Completions by hand on kept connections: as little as a client can do."""

    def __init__(self, address: str, *, key: str = "sk-bench") -> None:
        self._address, self._key = address, key
        self._idle: list[_Exchange] = []

    async def unary(self, model: str) -> None:
        exchange = await self._ask(model, stream=False)
        await exchange.done
        self._idle.append(exchange)

    async def stream(self, model: str, *, timed: bool = False) -> Heard:
        exchange = await self._ask(model, stream=True, timed=timed)
        await exchange.done
        self._idle.append(exchange)
        return exchange.heard

    async def close(self) -> None:
        for exchange in self._idle:
            exchange.transport.close()
        self._idle.clear()

    async def _ask(self, model: str, *, stream: bool, timed: bool = False) -> "_Exchange":
        began = time.perf_counter()
        if self._idle:
            exchange = self._idle.pop()
        else:
            host, _, port = self._address.partition(":")
            _, exchange = await asyncio.get_running_loop().create_connection(_Exchange, host, int(port))
        options = b',"stream":true,"stream_options":{"include_usage":true}' if stream else b""
        body = b'{"model":"%b","messages":[{"role":"user","content":"%b"}]%b}' % (
            model.encode(),
            PROMPT.encode(),
            options,
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._address}\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        exchange.begin(began, head.encode() + body, stream=stream, timed=timed)
        return exchange


class _Exchange(asyncio.Protocol):
    """A connection and what is being said on it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.heard = Heard()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""
        self._began = 0.0
        self._stream = self._timed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server closed the connection"))

    def begin(self, began: float, request: bytes, *, stream: bool, timed: bool) -> None:
        self.heard, self._tail = Heard(), b""
        self._began, self._stream, self._timed = began, stream, timed
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        heard = self.heard
        if not heard.messages and not data.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(data[:500].decode(errors="replace")))
            return
        heard.messages += 1
        self._tail += data
        if not self._stream:
            self._read_body()
            return
        end = self._tail.rfind(b"\n\n") + 2
        if end > 1:
            events, self._tail = self._tail[:end], self._tail[end:]
            tokens = events.count(_CONTENT)
            if self._timed:
                sent = [int(word) for word in _TIMED.findall(events)]
                tokens = len(sent)
                heard.sent_ns += sent
                heard.got_ns += [now] * tokens
            heard.tokens += tokens
            if tokens and not heard.first_s:
                heard.first_s = time.perf_counter() - self._began
        if self._tail.endswith(b"\r\n0\r\n\r\n"):
            self._ended()

    def _read_body(self) -> None:
        head, _, body = self._tail.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: *(\d+)", head)
        if found and len(body) >= int(found[1]):
            self._ended()

    def _ended(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def total(heard: Sequence[Heard]) -> tuple[int, int]:
    """Tokens and messages of several streams."""
    return sum(each.tokens for each in heard), sum(each.messages for each in heard)
