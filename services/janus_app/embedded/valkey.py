"""The embedded Valkey: Redis's protocol, append-only file on, with a password."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from janus_app.embedded import logfile, process
from janus_app.embedded.binaries import valkey_server
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.folder import DataFolder
from janus_app.embedded.part import exchange, start_failure
from janus_app.embedded.ports import LOOPBACK
from janus_app.embedded.process import Command

# What is written survives a kill at once and a power cut after a second: Redis
# holds only what may be lost or rebuilt. Under memory pressure keys go that
# have a time to live, the soonest to end first.
# What was not used for longest goes first when memory is full: cached answers that nobody asks for, and
# not the counters, leases and streams, which are used all the time.
_CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass "{password}"
daemonize no
supervised no
appendonly yes
appendfsync always
save ""
maxmemory 512mb
maxmemory-policy volatile-lru
maxmemory-samples 10
"""
_BROKEN = "Bad file format reading the append only file"


class Valkey:
    """Valkey with its data in ``data/redis``."""

    name = "redis"
    stop_signals: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 8.0),)

    def __init__(self, data: DataFolder, port: int) -> None:
        self.port = port
        self.log = data.log / "redis.log"
        self._program = valkey_server()
        self._folder = data.part("redis")
        self._password = data.secret_file("redis")[0].read_text(encoding="ascii").strip()
        self._log_before = 0

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    async def prepare(self) -> None:
        await asyncio.to_thread(self._stop_leftovers)

    def clear(self) -> None:
        self._stop_leftovers()
        configuration = self._folder / "valkey.conf"
        # The password is in the file and not on the command line, which everybody can read.
        descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_CONFIGURATION.format(host=LOOPBACK, port=self.port, password=self._password))
        self._log_before = logfile.size(self.log)

    def command(self) -> Command:
        # Everything relative to the working directory: paths in its
        # configuration would need quoting rules of their own.
        return Command((str(self._program), "./valkey.conf"), self._folder, self.log, death_signal=signal.SIGTERM)

    async def ready(self) -> bool:
        request = f"AUTH {self._password}\r\nPING\r\nQUIT\r\n".encode()
        return b"+PONG\r\n" in await exchange(self.port, request)

    def failure(self, how: str, log_tail: str) -> EmbeddedError:
        return start_failure("Valkey", how, self.log, log_tail, "JANUS_REDIS_URL")

    def mend(self) -> bool:
        """Set a damaged append-only file aside and begin empty: nothing in it is irreplaceable."""
        if _BROKEN not in logfile.tail(self.log, self._log_before):
            return False
        aside = self._folder / f"appendonlydir.damaged-{time.time_ns()}"
        try:
            (self._folder / "appendonlydir").rename(aside)
        except OSError:
            return False
        process.log.error("Valkey's append-only file is damaged; starting empty, the old one is %s", aside)
        return True

    def _stop_leftovers(self) -> None:
        def find() -> list[process.Found]:
            return process.running_in(self._folder, lambda program, words: program == "valkey-server")

        process.stop_leftovers(find, self.stop_signals, "a Valkey server")
