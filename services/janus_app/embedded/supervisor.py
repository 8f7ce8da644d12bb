"""Keeps one server running: starts it, starts it again when it dies, stops it."""

import asyncio
import time

from janus_app.embedded import logfile, process
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.part import Part
from janus_app.embedded.ports import choose, is_free
from janus_app.embedded.process import log

# Crash recovery replays at most max_wal_size, which takes seconds.
_READY_WITHIN_S = 120.0
_POLL_S = 0.01
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_STABLE_AFTER_S = 30.0
_FIRST_ATTEMPTS = 5
_LOOK_AT_LOG_EVERY_S = 30.0


class Supervisor:
    """One part and the process that runs it at the moment."""

    def __init__(self, part: Part, taken: set[int]) -> None:
        """``taken`` holds the ports that the parts of one stack have chosen so far."""
        self.part = part
        self._taken = taken
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is down."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """Return when it serves. Raises EmbeddedError."""
        await self.part.prepare()
        # Not before: a server left by an earlier run may have been on the port.
        self._choose_port(self.part.port or None)
        for attempt in range(_FIRST_ATTEMPTS):
            try:
                await self._launch()
                break
            except EmbeddedError:
                if attempt == _FIRST_ATTEMPTS - 1:
                    raise
                if not is_free(self.part.port):  # somebody else took it before our server did
                    self._choose_port(None)
                elif not await asyncio.to_thread(self.part.mend):
                    raise
        self._watch = asyncio.create_task(self._keep_running(), name=f"embedded {self.part.name}")

    def _choose_port(self, preferred: int | None) -> None:
        self.part.port = choose(preferred, self._taken)
        self._taken.add(self.part.port)

    async def stop(self) -> None:
        """End it, however it stands; returns when the process is gone."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._process is not None:
            await process.stop(self._process, self.part.stop_signals)

    async def _launch(self) -> None:
        part = self.part
        try:
            log_before = await asyncio.to_thread(self._make_way)
            self._process = await process.start(part.command())
        except (OSError, TimeoutError) as error:
            raise part.failure(f"cannot be started: {error}", "") from error
        deadline = time.monotonic() + _READY_WITHIN_S
        try:
            while not await part.ready():
                self._check_running(log_before)
                if time.monotonic() > deadline:
                    how = f"does not answer within {_READY_WITHIN_S:.0f} s"
                    raise part.failure(how, logfile.tail(part.log, log_before))
                await asyncio.sleep(_POLL_S)
            self._check_running(log_before)  # or else somebody else answered on the port
        except EmbeddedError:
            await process.stop(self._process, ())
            raise

    def _make_way(self) -> int:
        self.part.clear()
        logfile.bound(self.part.log)
        return logfile.size(self.part.log)

    def _check_running(self, log_before: int) -> None:
        if self._process is not None and self._process.returncode is not None:
            how = process.ended(self._process.returncode)
            raise self.part.failure(how, logfile.tail(self.part.log, log_before))

    async def _keep_running(self) -> None:
        pause = 0.0
        while self._process is not None:
            since = time.monotonic()
            code = await self._ended(self._process)
            if time.monotonic() - since > _STABLE_AFTER_S:
                pause = 0.0
            log.warning("embedded %s %s; starting it again", self.part.name, process.ended(code))
            pause = await self._launch_again(pause)
            log.warning("embedded %s is back on port %d", self.part.name, self.part.port)

    async def _launch_again(self, pause: float) -> float:
        """Try until it serves; returns the pause that the next restart has to begin with."""
        while True:
            await asyncio.sleep(pause)
            pause = min(max(pause * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            try:
                await self._launch()
            except EmbeddedError as error:
                log.error("embedded %s: %s; next attempt in %.1f s", self.part.name, error.problem, pause)
                await asyncio.to_thread(self.part.mend)
            except Exception:  # noqa: BLE001 - whatever it was, giving up on the part is worse
                log.exception("embedded %s: next attempt in %.1f s", self.part.name, pause)
            else:
                return pause

    async def _ended(self, running: asyncio.subprocess.Process) -> int:
        while True:
            try:
                async with asyncio.timeout(_LOOK_AT_LOG_EVERY_S):
                    return await running.wait()
            except TimeoutError:
                await asyncio.to_thread(logfile.bound, self.part.log)
