"""What the supervisor needs to know of a server."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.ports import LOOPBACK
from janus_app.embedded.process import Command


class Part(Protocol):
    """One server: Postgres, Valkey or Chroma.

    ``stop_signals`` are tried in order, each with the seconds it is given,
    before SIGKILL. ``port`` is 0 or the one of an earlier run until it is
    chosen, between `prepare` and the first launch.
    """

    name: str
    log: Path
    port: int
    stop_signals: Sequence[tuple[signal.Signals, float]]

    @property
    def url(self) -> str: ...

    async def prepare(self) -> None:
        """Once, before the first launch: end leftovers, initialise the data."""

    def clear(self) -> None:
        """Before each launch (blocking): end what a dead server left behind, write configuration."""

    def mend(self) -> bool:
        """After a failed launch (blocking): True when something was repaired and it may work now."""
        ...

    def command(self) -> Command:
        """The command line for the present ``port``."""
        ...

    async def ready(self) -> bool:
        """Ask once whether it serves. Raises EmbeddedError when it never will."""
        ...

    def failure(self, how: str, log_tail: str) -> EmbeddedError:
        """The error for a server that does not start; ``how`` is how it ended."""
        ...


def start_failure(what: str, how: str, log: Path, log_tail: str, variable: str) -> EmbeddedError:
    """The error for a server that does not start, quoting the end of its log."""
    quoted = f"; the end of {log}:\n{log_tail}" if log_tail else ""
    fix = f"Or set {variable} to a server of your own."
    if "No space left on device" in how + log_tail:
        fix = "Free some space, or choose a folder on another disk with --data."
    return EmbeddedError(f"the embedded {what} {how}{quoted}", fix)


async def exchange(port: int, request: bytes, patience: float = 1.0) -> bytes:
    """Send a request that ends the connection; its answer, empty when there is none in time."""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(request)
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
