"""What keeps this process's generations alive, and ends those that nobody reads.

One task for all: it renews the leases of the generations that are worked on
here, so that others know that their owner lives; tells the owners elsewhere
what is read here, so that they go on; and ends what had no reader on any
replica for as long as it may linger.
"""

import asyncio
from collections.abc import Mapping

from janus_inference.ports import ReplayAway, ReplayStore
from janus_inference.resuming import ending
from janus_inference.resuming.follower import Followed
from janus_inference.resuming.owner import Owned
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# An owner that does not renew for so long is taken for dead; readers find out
# within WAIT_S and GRACE_S of ``follower`` more: 6 s in all.
LEASE_S = 4.0
RENEW_S = 1.0
_RENEW_AGAIN_S = 0.2

Key = tuple[str, str]


class Keeper:
    """Keeps ``owned`` and ``followed``, which are somebody else's; runs only while there is something in them."""

    def __init__(
        self, store: ReplayStore, name: str, owned: Mapping[Key, Owned], followed: Mapping[Key, Followed]
    ) -> None:
        self._store, self._name = store, name
        self._owned, self._followed = owned, followed
        self._left: set[Key] = set()
        self._ended: list[Key] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def look(self) -> None:
        """Something came or went: look now."""
        self._wake.set()
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="resumables-keeper")

    def left(self, key: Key) -> None:
        """Nobody here reads that one any more."""
        self._left.add(key)
        self.look()

    def ended(self, key: Key) -> None:
        """That one, which was worked on here, is over. The store learns it with the next leases, or from a sweep."""
        if self._owned:
            self._ended.append(key)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._closed and (self._owned or self._followed or self._left):
            self._wake.clear()
            owned = [each for each in self._owned.values() if each.is_open]
            wait_s = RENEW_S
            try:
                await self._renew(owned)
            except ReplayAway:
                wait_s = _RENEW_AGAIN_S
            except Exception:  # noqa: BLE001 - it keeps many alive; it logs and goes on
                _log.exception("resumables_keeper_failed")
            until = min((_until_unread(each) for each in owned), default=wait_s)
            try:
                async with asyncio.timeout(min(wait_s, until)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _renew(self, owned: list[Owned]) -> None:
        left, self._left = self._left - self._followed.keys(), set()
        counts = await self._store.renew(self._name, [each.key for each in owned], list(self._followed), LEASE_S)
        for each, count in zip(owned, counts, strict=True):
            if count is None:
                each.fence()
            elif count < 0:
                each.restore()
            else:
                each.readers_elsewhere = count
        for key in left:
            await self._store.leave(self._name, *key)
        ended, self._ended = self._ended, []
        await self._store.forget(ended)


def _until_unread(owned: Owned) -> float:
    """Seconds until a generation has been without readers for too long; ends it when that is now."""
    if owned.feed.subscribers or owned.readers_elsewhere:
        owned.unread_since = None
        return RENEW_S
    now = asyncio.get_running_loop().time()
    if owned.unread_since is None:
        owned.unread_since = now
    left = owned.unread_since + owned.linger_s - now
    if left <= 0:
        owned.stop(ending.unread())
        return RENEW_S
    return left
