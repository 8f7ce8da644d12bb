"""What every call passes, whatever its shape, in one interceptor.

Outermost first: telemetry, which sees the status that really went out; the
guard, which decodes and turns every failure into that status; deadline;
identity and scope; limits. Each concern lives in a file of its own; here they
are put together once a method and shape. Each awaits the one within, which costs
less than generators as context managers; what a stream says passes nothing.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext
from types import CoroutineType
from typing import Any

import grpc

from janus_kit.auth.identity import acting_as
from janus_kit.errors import Unavailable, Unimplemented
from janus_kit.interceptors import guard, identity, telemetry
from janus_kit.interceptors.call import Call, Method
from janus_kit.interceptors.deadline import Deadline
from janus_kit.interceptors.guard import Decode
from janus_kit.interceptors.identity import Authenticator
from janus_kit.interceptors.limits import Admission
from janus_kit.telemetry import names

Handler = Any  # grpc.RpcMethodHandler; its type parameters say nothing here
Work = Callable[[Call], Awaitable[Any]]

# Longer than the host waits before it closes connections: who comes back finds
# another replica, or this one restarted.
_COME_BACK_S = 1.0
_HEALTH = "grpc.health.v1.Health"
_UNKNOWN = Method(names.OTHER, "", None, True, True)


class Pipeline(grpc.aio.ServerInterceptor):
    """The interceptor of one listener."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        authenticator: Authenticator,
        admission: Admission,
        deadline: Deadline,
        max_message_bytes: int,
    ) -> None:
        self._methods = methods
        self._authenticator = authenticator
        self._admission = admission
        self._deadline = deadline
        self._max_bytes = max_message_bytes
        self._handlers: dict[str, Handler] = {}
        self._working: set[asyncio.Task[Any]] = set()
        self._debugging: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._may_refuse = asyncio.Event()
        self._may_refuse.set()
        self._unknown = _refusing_handler(self)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The wrapped handler, made at a method's first call."""
        path = str(details.method)
        known = self._handlers.get(path)
        if known is not None:
            return known
        handler = await continuation(details)
        method = self._methods.get(path)
        if handler is None or method is None:
            # Not kept: anybody can make up names.
            return self._unknown
        self._handlers[path] = self._wrapped(method, handler)
        return self._handlers[path]

    def drain(self) -> None:
        """Refuse new calls from now on, and end reflection and the like at once."""
        self._is_draining = True
        _end(self._debugging)

    def cut(self) -> None:
        """End the calls that are still under way; each caller is told when to try again."""
        _end(self._working)

    @contextmanager
    def refusing_later(self) -> Iterator[None]:
        """Within, a new call to a draining server waits for its refusal until the block ends."""
        self._may_refuse.clear()
        try:
            yield
        finally:
            self._may_refuse.set()

    async def run(self, method: Method, context: Any, work: Work) -> Any:
        """One call, through all concerns."""
        call = Call(method, context)
        limited = self._deadline.limited(call, self._admitted(call, work))
        return await telemetry.observed(call, guard.answered(call, limited))

    async def _admitted(self, call: Call, work: Work) -> Any:
        """The work of a call that may begin now, as its caller."""
        if self._is_draining and call.method.service != _HEALTH:
            await self._may_refuse.wait()
            raise _draining()
        if call.method.is_infrastructure:
            return await self._infrastructure(call, work)
        caller = await identity.identified(self._authenticator, call)
        with acting_as(caller), self._admission.admit(call):
            return await _among(self._working, work(call))

    async def _infrastructure(self, call: Call, work: Work) -> Any:
        if call.method.service == _HEALTH:
            return await work(call)
        return await _among(self._debugging, work(call))

    def _wrapped(self, method: Method, handler: Handler) -> Handler:
        """The handler with its behaviour inside the pipeline and its bytes undecoded."""
        decode = guard.decoder(method, handler.request_deserializer, self._max_bytes)
        encode = handler.response_serializer
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream_stream(method, handler.stream_stream, decode), None, encode
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._stream_unary(method, handler.stream_unary, decode, encode), None, None
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._unary_stream(method, handler.unary_stream, decode), None, encode
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary_unary(method, handler.unary_unary, decode, encode), None, None
        )

    def _unary_unary(self, method: Method, behaviour: Any, decode: Decode, encode: Any) -> Any:
        async def unary_unary(raw: bytes, context: Any) -> Any:
            async def work(call: Call) -> Any:
                # Encoded here, so that an answer of the wrong type is an incident too.
                return _encoded(encode, await _result(behaviour(decode(raw), context)))

            return await self.run(method, context, work)

        return unary_unary

    def _stream_unary(self, method: Method, behaviour: Any, decode: Decode, encode: Any) -> Any:
        async def stream_unary(requests: Any, context: Any) -> Any:
            async def work(call: Call) -> Any:
                decoded = guard.Requests(requests, decode)
                reading = guard.ReadingContext(context, decode)
                return _encoded(encode, await _result(behaviour(decoded, reading)))

            return await self.run(method, context, work)

        return stream_unary

    def _unary_stream(self, method: Method, behaviour: Any, decode: Decode) -> Any:
        async def unary_stream(raw: bytes, context: Any) -> None:
            def work(call: Call) -> Awaitable[None]:
                return _send(call, behaviour(decode(raw), context))

            await self.run(method, context, work)

        return unary_stream

    def _stream_stream(self, method: Method, behaviour: Any, decode: Decode) -> Any:
        async def stream_stream(requests: Any, context: Any) -> None:
            def work(call: Call) -> Awaitable[None]:
                decoded = guard.Requests(requests, decode)
                reading = guard.ReadingContext(context, decode)
                return _send(call, behaviour(decoded, reading))

            await self.run(method, context, work)

        return stream_stream


async def _among(tasks: set[asyncio.Task[Any]], work: Awaitable[Any]) -> Any:
    """The work, as one of those that ``_end`` ends. Raises Unavailable when it did."""
    task = asyncio.current_task()
    assert task is not None
    tasks.add(task)
    try:
        return await work
    except asyncio.CancelledError:
        # One cancel is ours, and the call has yet to end with a status.
        if task in tasks or task.uncancel() > 0:
            raise
        raise _draining() from None
    finally:
        tasks.discard(task)


def _end(tasks: set[asyncio.Task[Any]]) -> None:
    while tasks:
        tasks.pop().cancel()


async def _send(call: Call, responses: Any) -> None:
    """Write what an async generator yields, or let the behaviour write by itself."""
    if not hasattr(responses, "__aiter__"):
        await _result(responses)
        return
    # Closed here, not by the garbage collector: a call that is cancelled while
    # it writes must let go of its upstream at once.
    async with aclosing(responses) if hasattr(responses, "aclose") else nullcontext():
        async for response in responses:
            if call.first_write is None:
                # The headers go with it. If it were cut off, gRPC would send them again
                # with the status, which is an error, and the caller would wait for ever.
                call.first_write = asyncio.ensure_future(call.context.write(response))
                await asyncio.shield(call.first_write)
            else:
                await call.context.write(response)


async def _result(value: Any) -> Any:
    # What a coroutine function returns is told at a glance.
    return await value if type(value) is CoroutineType or inspect.isawaitable(value) else value


def _encoded(encode: Any, response: Any) -> Any:
    return response if encode is None else encode(response)


def _draining() -> Unavailable:
    return Unavailable("", "the server is draining", reason="DRAINING", retry_after=_COME_BACK_S)


def _refusing_handler(pipeline: Pipeline) -> Handler:
    """For methods that are not there: takes any shape, reads nothing, says so."""

    async def refuse(requests: Any, context: Any) -> None:
        async def work(call: Call) -> None:
            raise Unimplemented(message="the server has no such method")

        await pipeline.run(_UNKNOWN, context, work)

    return grpc.stream_stream_rpc_method_handler(refuse, None, None)
