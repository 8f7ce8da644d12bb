"""A worker: tools, and a connection that is made again for as long as it takes."""

import asyncio
import logging
import os
import random
import signal
import socket
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar, overload

import grpc

from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_api.tools.v1 import tool_worker_service_pb2_grpc as rpc
from janus_worker.calls import Calls
from janus_worker.connection import Connection, Lost
from janus_worker.tool import SideEffect, Tool

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("janus_worker")

_OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that is back is found at once; how often it is asked is decided below.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.lb_policy_name", "round_robin"),
]
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 5.0
_WELL_AFTER_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Nothing that trying again would change.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}


class Refused(Exception):
    """The server does not take this worker, and will not: the text says why."""


class Worker:
    """Serves the functions that it decorates as tools.

    ``target`` is where Janus listens, ``host:port`` or ``dns:///name:port``.
    ``worker_id`` names this process in events and logs, and must be its own.
    ``concurrency`` is how many calls it takes at the same time. ``tenant`` is
    for servers with the development identity; ``metadata`` goes with the
    connection, e.g. an ``authorization``. ``drain_s`` is how long calls may
    finish after a stop.
    """

    def __init__(
        self,
        target: str,
        *,
        worker_id: str = "",
        concurrency: int = 8,
        tenant: str = "",
        metadata: Sequence[tuple[str, str]] = (),
        credentials: grpc.ChannelCredentials | None = None,
        drain_s: float = 30.0,
    ) -> None:
        self.worker_id = worker_id or f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._target = target
        self._concurrency = concurrency
        self._metadata = (*metadata, *([("janus-tenant", tenant)] if tenant else []))
        self._credentials = credentials
        self._drain_s = drain_s
        self._tools: dict[str, Tool] = {}
        self._stopping: asyncio.Event | None = None

    # -- tools -----------------------------------------------------------------------

    @overload
    def tool(self, function: F) -> F: ...

    @overload
    def tool(
        self,
        *,
        name: str = "",
        description: str = "",
        side_effect: SideEffect = "at_most_once",
        timeout: timedelta | None = None,
    ) -> Callable[[F], F]: ...

    def tool(
        self,
        function: F | None = None,
        *,
        name: str = "",
        description: str = "",
        side_effect: SideEffect = "at_most_once",
        timeout: timedelta | None = None,
    ) -> F | Callable[[F], F]:
        """Serve a function as a tool.

        The schema is made from its type hints, the description from its
        docstring. Arguments are checked, and are what the hints say. A result
        is a text, or anything that JSON can say, or a
        ``janus_api.content.v1`` ToolResult. ``timeout`` is the time for one
        call where the agent says nothing; 60 s unless given. Raises TypeError
        for a function that cannot be a tool.
        """

        def decorate(function: F) -> F:
            made = Tool.of(function, name=name, description=description, side_effect=side_effect, timeout=timeout)
            if made.name in self._tools:
                raise TypeError(f"there is a tool named '{made.name}' already")
            self._tools[made.name] = made
            return function

        return decorate if function is None else decorate(function)

    # -- serving ---------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then let calls finish, and return."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.stop()
            # A second signal ends the process at once.
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

        serving = asyncio.create_task(self.serve())
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop)
        await serving

    def stop(self) -> None:
        """Take no more calls, finish those under way, and end ``serve``."""
        if self._stopping is not None:
            self._stopping.set()

    async def serve(self) -> None:
        """Serve until ``stop``. Raises Refused when the server does not take this worker."""
        stopping = self._stopping = asyncio.Event()
        executor = ThreadPoolExecutor(self._concurrency, thread_name_prefix="tool")
        calls = Calls(self._tools, executor)
        serving = asyncio.create_task(self._serve(calls, stopping), name="worker-serves")
        stopped = asyncio.create_task(stopping.wait(), name="worker-stopped")
        try:
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([serving], timeout=self._drain_s)
            if serving.done():
                serving.result()
            else:
                _log.warning("calls did not finish within %g s: %s", self._drain_s, ", ".join(calls.running))
        finally:
            serving.cancel()
            stopped.cancel()
            await asyncio.gather(serving, stopped, return_exceptions=True)
            await calls.close()
            executor.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, calls: Calls, stopping: asyncio.Event) -> None:
        register = pb.Register(
            worker_id=self.worker_id,
            tools=[tool.registered() for tool in self._tools.values()],
            credits=self._concurrency,
        )
        backoff = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        async with self._channel() as channel:
            while not (stopping.is_set() and calls.is_idle):
                began = loop.time()
                await self._connect(channel, register, calls, stopping)
                backoff = _FIRST_BACKOFF_S if loop.time() - began > _WELL_AFTER_S else backoff
                if stopping.is_set() and calls.is_idle:
                    return
                # Spread out, so that workers which lost one server do not all come to the next at once.
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311
                backoff = min(backoff * 2, _LONGEST_BACKOFF_S)

    async def _connect(
        self, channel: grpc.aio.Channel, register: pb.Register, calls: Calls, stopping: asyncio.Event
    ) -> None:
        """One connection, to its end."""
        stream = rpc.ToolWorkerServiceStub(channel).Connect(metadata=self._metadata)
        try:
            await Connection(stream, register, calls, stopping).run()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, Lost) as error:
            self._check(error)
        finally:
            stream.cancel()

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=_OPTIONS)

    def _check(self, error: Exception) -> None:
        """Say why the connection was lost. Raises Refused when another one would fare no better."""
        if isinstance(error, grpc.aio.AioRpcError):
            if error.code() in _FINAL:
                raise Refused(f"{error.code().name}: {error.details()}") from error
            _log.warning("not connected: %s: %s", error.code().name, error.details())
        else:
            _log.warning("not connected: %s", error)


def _host() -> str:
    """The machine's name as an id may hold it."""
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in socket.gethostname()
    )
    return name[:64].lstrip("._-") or "worker"
