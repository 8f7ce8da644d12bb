"""A service as a process of its own that can be stopped, frozen and killed."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import grpc

from janus_kit.channel import connect


class ServiceProcess(ABC):
    """``python -m <module>`` over the given stores, on a port of its own.

    ``environ`` is added to what it sees; what it says goes to ``log``, if there is one.
    """

    def __init__(
        self, module: str, postgres_url: str, redis_url: str, environ: dict[str, str], log: Path | None = None
    ) -> None:
        self.address = f"127.0.0.1:{_port()}"
        self._module = module
        self._log = log
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("JANUS_")},
            "JANUS_POSTGRES_URL": postgres_url,
            # A machine that stands still for a moment keeps no service from starting.
            "JANUS_POSTGRES__CONNECT_TIMEOUT_S": "5",
            "JANUS_REDIS_URL": redis_url,
            "JANUS_SERVER__LISTEN": self.address,
            "JANUS_SERVER__LAME_DUCK_S": "0",
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._old_channels: list[grpc.aio.Channel] = []

    @abstractmethod
    async def answer(self) -> Any:
        """Make any call; an RPC error while the service does not answer yet."""

    async def start(self) -> Self:
        # To start a process takes no time; to wait for it is done below.
        with self._log.open("ab") if self._log else nullcontext() as output:
            command = [sys.executable, "-m", self._module]
            self._process = subprocess.Popen(command, env=self._environ, stdout=output, stderr=output)  # noqa: ASYNC220
        self._channel = connect(self.address)
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.answer()
                    return self
                except grpc.aio.AioRpcError:
                    assert self._process.poll() is None, "the process has ended"
                    await asyncio.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    async def again(self, meanwhile: Awaitable[None]) -> None:
        """Kill -9, something while it is down, and start.

        The old channel stays: to close it would cancel whoever still calls through it.
        """
        self.kill()
        await meanwhile
        if self._channel is not None:
            self._old_channels.append(self._channel)
        await self.start()

    async def stop(self) -> None:
        for channel in (self._channel, *self._old_channels):
            if channel is not None:
                await channel.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            await asyncio.to_thread(self._process.wait)


def _port() -> int:
    """A port that is free, and not of those that the system gives out: it stays free while a killed process is away."""
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
