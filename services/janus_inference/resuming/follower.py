"""A generation that another process works on, followed once for all its readers in this one."""

import asyncio
from collections.abc import Callable

from janus_inference.ports import ReplayAway, ReplayStore
from janus_inference.resuming import ending
from janus_inference.resuming.feed import Feed, is_terminal
from janus_inference.resuming.settling import Settling, break_off
from janus_kit.errors import JanusError, Unavailable
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# How long one read blocks, and then whether the owner is alive is asked. Far below any socket timeout.
WAIT_S = 0.5
# How long there must be no lease before the owner is given up, so that one whose
# lease ran out while the store was away can take it up again.
GRACE_S = 1.0
# How long the store may be away before the streams that are read here break.
PATIENCE_S = 5.0
_RETRY_S = 0.2


class Followed:
    """``run`` is its task; it ends with the generation, or with the last reader by being cancelled."""

    def __init__(
        self,
        store: ReplayStore,
        key: tuple[str, str],
        last: int,
        on_end: Callable[["Followed"], None],
        settling: Settling | None = None,
    ) -> None:
        self.key = key
        self.feed = Feed(last)
        self.task: asyncio.Task[None] | None = None
        self._store = store
        self._on_end = on_end
        self._settling = settling
        self._missing_since: float | None = None

    def stop(self) -> None:
        """Nobody reads it here any more."""
        if self.task is not None:
            self.task.cancel()

    def leave(self, error: JanusError) -> None:
        """It goes on, but its readers here get no more of it."""
        self._break(error)
        self.stop()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = 0.0
        try:
            while True:
                try:
                    if await self._has_ended():
                        return
                    give_up_at = 0.0
                except ReplayAway:
                    self._missing_since = None
                    give_up_at = give_up_at or loop.time() + PATIENCE_S
                    if loop.time() >= give_up_at:
                        self._break(Unavailable("redis"))
                        return
                    await asyncio.sleep(_RETRY_S)
        except Exception:  # noqa: BLE001 - a bug of ours, or what another version wrote, must not leave readers waiting
            _log.exception("follower_broken", generation_id=self.key[1])
            self._break(Unavailable("inference", "the generation's events cannot be read here"))
        finally:
            self._on_end(self)

    async def _has_ended(self) -> bool:
        """One round: events, or a look at what became of the owner."""
        events = await self._store.wait(*self.key, self.feed.published, WAIT_S)
        if events:
            self._missing_since = None
            self.feed.push(events)
            return is_terminal(events[-1])
        head = await self._store.head(*self.key)
        if head is None:
            # It was there: its owner gives a store that forgot it all that it needs again.
            raise ReplayAway("forgotten")
        if head.is_lost:
            self._break(ending.events_lost())
            return True
        now = asyncio.get_running_loop().time()
        if head.is_owned or head.has_ended or head.last > self.feed.published:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= GRACE_S:
            await break_off(self._store, self._settling, self.key, head)
        return False

    def _break(self, error: JanusError) -> None:
        # Before the feed: whoever comes next must not find this one.
        self._on_end(self)
        self.feed.fail(error)
