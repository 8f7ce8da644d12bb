"""Background tasks of a process: started together, restarted when they fail, ended in order."""

import asyncio
import random
import time
from collections.abc import Iterable

from janus_kit.cancellation import cancel_wins
from janus_kit.mount import BackgroundTask
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 15.0
# A task that ran for this long was well; its next failure starts the back-off anew.
_WELL_AFTER_S = 30.0
_LAG_INTERVAL_S = 0.25


class Background:
    """A group of named tasks. One that returns is done; one that raises begins again."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, tasks: Iterable[tuple[str, BackgroundTask]]) -> None:
        """Start the tasks; they run until they return or ``stop``."""
        for name, factory in tasks:
            self._tasks.append(asyncio.create_task(_kept_running(name, factory), name=name))

    async def stop(self) -> None:
        """Cancel all and wait until they have cleaned up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


async def _kept_running(name: str, factory: BackgroundTask) -> None:
    backoff = _FIRST_BACKOFF_S
    while True:
        began = time.monotonic()
        try:
            with cancel_wins():
                await factory()
        except Exception as error:  # noqa: BLE001 - kept running whatever it raised
            if time.monotonic() - began > _WELL_AFTER_S:
                backoff = _FIRST_BACKOFF_S
            _log.error("background_task_failed", task=name, again_in_s=backoff, exc_info=error)
            metrics.background_restarts.labels(name).inc()
        else:
            return
        # Spread out, so that replicas which failed together do not return together.
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311
        backoff = min(backoff * 2, _LONGEST_BACKOFF_S)


async def watch_loop_lag(service: str) -> None:
    """Measure for ever how late the event loop is; a blocked loop stalls every stream."""
    histogram = metrics.event_loop_lag.labels(service)
    while True:
        asked = time.monotonic() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        histogram.observe(max(0.0, time.monotonic() - asked))
