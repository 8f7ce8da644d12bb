"""How a host ends.

In this order: health says NOT_SERVING; new calls from outside are refused, then
its connections are told to go, while whoever calls waits for its refusal; calls and ``Mount.drain`` get ``drain_s``, at
the end of which ``Mount.conclude`` lets streams say that they end, and calls that are left are ended as DRAINING;
background tasks are cancelled; the inside stops; and then whoever made the mounts closes their pools.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import grpc

from janus_kit.health import HealthMonitor
from janus_kit.interceptors.pipeline import Pipeline
from janus_kit.lifecycle import Background
from janus_kit.mount import Mount
from janus_kit.settings import ServerSettings
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# Time for statuses that are already written to reach their callers.
_FLUSH_S = 0.25
# Time for all who call in a loop to be waiting for an answer, and for connections to be told to go.
_HELD_S = 0.1
# Time for streams to end by themselves before calls are cancelled, where ``drain_s`` is at least twice as long.
_CONCLUDE_S = 1.0


class Listener(NamedTuple):
    """One gRPC server and what its calls pass."""

    server: grpc.aio.Server
    pipeline: Pipeline


class Host:
    """A running server. Leaving ``serve`` drains and stops it."""

    def __init__(self, monitor: HealthMonitor) -> None:
        self.monitor = monitor
        self.address: str | None = None
        """``host:port`` that was really bound; None without a TCP listener."""
        self.uds: str | None = None
        """``unix:/path``; None without a Unix socket."""
        self.metrics_address: str | None = None
        """``host:port`` of /metrics; None without one."""
        self._asked_to_stop = asyncio.Event()
        self._hurried = asyncio.Event()

    def stop(self) -> None:
        """Ask to stop. While it stops already: give calls no more time to finish."""
        if self._asked_to_stop.is_set():
            self._hurried.set()
        self._asked_to_stop.set()

    def stopping(self) -> None:
        """The host stops now, asked or not."""
        self._asked_to_stop.set()

    async def wait_closed(self) -> None:
        """Wait until somebody asks to stop."""
        await self._asked_to_stop.wait()

    async def wait_hurried(self) -> None:
        """Wait until somebody asks a second time."""
        await self._hurried.wait()


async def drain(host: Host, mounts: Sequence[Mount], outside: Listener, settings: ServerSettings) -> None:
    """Let calls and services finish, for ``drain_s`` or until somebody hurries."""
    began = time.monotonic()
    host.stopping()
    host.monitor.drain()
    outside.pipeline.drain()
    finishing = asyncio.create_task(_finish(outside, mounts, settings), name="drain")
    hurry = asyncio.create_task(host.wait_hurried(), name="hurry")
    try:
        await asyncio.wait([finishing, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not finishing.done():
            _conclude(mounts)
            await asyncio.wait([finishing], timeout=_FLUSH_S)
            outside.pipeline.cut()
            await asyncio.wait([finishing], timeout=_FLUSH_S)
    finally:
        finishing.cancel()
        hurry.cancel()
        await asyncio.gather(finishing, hurry, return_exceptions=True)
    _log.info("drained", seconds=round(time.monotonic() - began, 3))


async def stop(listeners: Sequence[Listener], background: Background) -> None:
    """End what is left: background tasks first, then the listeners, outside before inside."""
    await background.stop()
    for listener in listeners:
        listener.pipeline.drain()
        listener.pipeline.cut()
        await listener.server.stop(_FLUSH_S)
    _log.info("stopped")


async def _finish(outside: Listener, mounts: Sequence[Mount], settings: ServerSettings) -> None:
    async def calls() -> None:
        # Callers are told to come back later before connections close: a call that
        # arrives in the instant in which they do is answered by gRPC itself, with
        # CANCELLED. So whoever calls again at once is refused only after that.
        lame_duck = min(settings.lame_duck_s, settings.drain_s)
        grace = settings.drain_s - lame_duck
        held = min(_HELD_S, lame_duck / 2, grace / 2)
        await asyncio.sleep(lame_duck - held)
        async with asyncio.TaskGroup() as stopping:
            with outside.pipeline.refusing_later():
                await asyncio.sleep(held)
                stopping.create_task(_ended(outside, grace), name="stop")
                await asyncio.sleep(held)

    async def concluded() -> None:
        await asyncio.sleep(max(settings.drain_s - _CONCLUDE_S, settings.drain_s / 2))
        _conclude(mounts)

    concluding = asyncio.create_task(concluded(), name="conclude")
    try:
        await asyncio.gather(calls(), *(_drained(mount, settings.drain_s) for mount in mounts))
    finally:
        concluding.cancel()
        await asyncio.gather(concluding, return_exceptions=True)


async def _ended(listener: Listener, grace_s: float) -> None:
    """Until all its calls have ended. Those that have not by then are; what does not let go is left to gRPC."""
    cutting = asyncio.get_running_loop().call_later(grace_s, listener.pipeline.cut)
    try:
        await listener.server.stop(grace_s + _FLUSH_S)
    finally:
        cutting.cancel()


def _conclude(mounts: Sequence[Mount]) -> None:
    for mount in mounts:
        if mount.conclude is not None:
            mount.conclude()


async def _drained(mount: Mount, drain_s: float) -> None:
    if mount.drain is None:
        return
    try:
        async with asyncio.timeout(drain_s):
            await mount.drain()
    except TimeoutError:
        _log.warning("drain_timed_out", service=mount.name, seconds=drain_s)
    except Exception as error:  # noqa: BLE001 - the stop goes on whatever one service raised
        _log.error("drain_failed", service=mount.name, exc_info=error)
