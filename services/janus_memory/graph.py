"""The graph keeper: moves vectors of spaces that outgrew scanning into a graph.

In the background and a few rows at a time, since a row costs milliseconds
there. Rows that wait are scanned by every search, so nothing depends on when
they arrive, and whoever dies in between leaves nothing to clean up.
"""

import asyncio

from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger
from janus_memory.ports import Graphs

_EVERY_S = 10.0
# Between two batches, so that others have the disk and the processor as well.
_BREATH_S = 0.05

_log = get_logger(__name__)


class GraphKeeper:
    """Keeps graphs up with their spaces. Any number may run, on any replica; one at a time works on a space."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    async def run(self) -> None:
        """Work for ever: every ten seconds all spaces that are large."""
        while True:
            try:
                await self.work()
            except JanusError as error:
                # Postgres is away, or busy; the next round will tell.
                _log.debug("graph_waits", reason=error.reason)
            await asyncio.sleep(_EVERY_S)

    async def work(self) -> int:
        """Put everything that waits into the graphs; how many vectors."""
        moved = 0
        for tenant, space_no in await self._graphs.outgrown():
            while count := await self._graphs.admit(tenant, space_no):
                moved += count
                await asyncio.sleep(_BREATH_S)
        if moved:
            _log.info("graph_grew", vectors=moved)
        return moved
