"""The shop of `mcp_server.py` as a process, however it is reached, and what it saw."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.orchestration_service import eventually

from janus_kit.errors import Unavailable
from janus_orchestration.mcp_settings import McpServerSettings
from janus_orchestration.model import Tool

_PROGRAM = str(Path(__file__).with_name("mcp_server.py"))


class Shop:
    """A server's settings and journal; over HTTP its process as well."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.journal = folder / "journal"
        self.journal.touch()
        self.environment = {"JOURNAL": str(self.journal), **environment}
        self._process: asyncio.subprocess.Process | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    def saw(self, what: str) -> list[dict[str, Any]]:
        """What the journal has of a kind."""
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [line for line in lines if line["what"] == what]

    async def until(self, what: str, count: int = 1) -> list[dict[str, Any]]:
        async def is_there() -> bool:
            return len(self.saw(what)) >= count

        await eventually(is_there, 60)
        return self.saw(what)

    def tell(self, what: str) -> None:
        """A word to the server."""
        with self.journal.open("a") as journal:
            journal.write(json.dumps({"what": what}) + "\n")

    def stdio(self, **settings: Any) -> McpServerSettings:
        return McpServerSettings(
            command=(sys.executable, _PROGRAM, "stdio"), env=self.environment | settings.pop("env", {}), **settings
        )

    def http(self, **settings: Any) -> McpServerSettings:
        return McpServerSettings(url=f"http://127.0.0.1:{self._port}/mcp", **settings)

    async def open(self) -> None:
        """Serve over HTTP."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            _PROGRAM,
            "http",
            str(self._port),
            env=os.environ | self.environment,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(answers, 60)

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        await self.open()
        try:
            yield
        finally:
            await self.kill()


class Offer:
    """An ``McpOffer`` in memory, or one that is away."""

    def __init__(self, *tools: Tool) -> None:
        self.tools: Sequence[Tool] = tools
        self.is_away = False
        self.writes = 0

    async def read(self) -> Sequence[Tool]:
        if self.is_away:
            raise Unavailable("postgres")
        return self.tools

    async def write(self, tools: Sequence[Tool]) -> None:
        if self.is_away:
            raise Unavailable("postgres")
        self.writes += 1
        self.tools = tools


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
