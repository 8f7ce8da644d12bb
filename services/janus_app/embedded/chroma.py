"""The embedded Chroma server. It has no passwords: loopback only, derived data only."""

import asyncio
import os
import signal
from collections.abc import Sequence

from janus_app.embedded import process
from janus_app.embedded.binaries import chroma_command
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.folder import DataFolder
from janus_app.embedded.part import exchange, start_failure
from janus_app.embedded.ports import LOOPBACK
from janus_app.embedded.process import Command

_HEARTBEAT = b"GET /api/v2/heartbeat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Chroma:
    """Chroma with its data in ``data/chroma``."""

    name = "chroma"
    stop_signals: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 5.0),)

    def __init__(self, data: DataFolder, port: int) -> None:
        self.port = port
        self.log = data.log / "chroma.log"
        self._command = chroma_command()
        self._folder = data.part("chroma")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def prepare(self) -> None:
        await asyncio.to_thread(self.clear)

    def clear(self) -> None:
        process.stop_leftovers(self._leftovers, self.stop_signals, "a Chroma server")

    def mend(self) -> bool:
        return False

    def command(self) -> Command:
        options = ("run", "--path", ".", "--host", LOOPBACK, "--port", str(self.port))
        return Command((*self._command, *options), self._folder, self.log, death_signal=signal.SIGTERM)

    async def ready(self) -> bool:
        return (await exchange(self.port, _HEARTBEAT)).startswith(b"HTTP/1.1 200 ")

    def failure(self, how: str, log_tail: str) -> EmbeddedError:
        return start_failure("Chroma", how, self.log, log_tail, "JANUS_CHROMA_URL")

    def _leftovers(self) -> list[process.Found]:
        return process.running_in(self._folder, _is_chroma)


def _is_chroma(program: str, words: Sequence[str]) -> bool:
    """It runs inside Python, so the command line has to tell."""
    if not program.startswith(("python", "chroma")):
        return False
    names = {os.path.basename(word) for word in words}
    return "chroma" in names and {"run", "--host", LOOPBACK, "--port"} <= names
