"""GetWindow: a thread's newest turns, from Redis when it is right, else from Postgres."""

from dataclasses import dataclass, replace

from janus_kit.errors import Unavailable
from janus_memory.model import Scope, Turn
from janus_memory.parts import Parts
from janus_memory.ports import Records, Windows
from janus_memory.spaces import Spaces
from janus_memory.summary_text import shown
from janus_memory.window import newest, unparted


@dataclass(frozen=True)
class Window:
    """The newest turns of a thread, oldest first, and what they leave out: how many, and in short."""

    turns: tuple[Turn, ...]
    tokens: int
    omitted: int
    degraded: tuple[str, ...]
    summary: str = ""


class ReadWindow:
    """Reads working memory.

    Postgres says where the thread ends; what Redis holds is used only if it
    ends there too and has no gap. So a cache that missed appends, or was lost,
    is rebuilt and never believed. After an erasure a thread's positions may have
    gaps: its turns before one come from Postgres.
    """

    def __init__(self, records: Records, windows: Windows, spaces: Spaces, parts: Parts) -> None:
        self._records = records
        self._windows = windows
        self._spaces = spaces
        self._parts = parts

    async def run(self, tenant: str, scope: Scope, max_tokens: int, max_messages: int) -> Window:
        """The window of a thread; empty for a thread without turns."""
        filtered = bool(scope.subject or scope.agent)
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_read(tx, scope.space)
            head = await tx.thread_head(space.number, scope.thread) if space else None
            if space is None or head is None or not head.turns:
                return Window((), 0, 0, ())
            if filtered:
                found = await tx.turns(space, scope, head.last_position + 1, max_messages)
                total = await tx.count_turns(space, scope)
                given = {call for turn in found for call in turn.results}
                waiting = [call for turn in found for call in turn.calls if call not in given]
                # A filter may have the call, and not the result: then neither is shown.
                found = unparted(found, await tx.answered(space.number, scope.thread, waiting) if waiting else ())
                # The summary is of the whole thread, and a filter is a hard one.
                return _window(found, total, max_tokens, max_messages, ())
            summary = await tx.summary(space.number, scope.thread, head.incarnation)
        # One turn more than may be shown tells whether the first is parted from its call.
        wanted = min(max_messages + 1, head.turns)
        cached, degraded = await self._cached(tenant, head.incarnation, head.last_position, wanted)
        if len(cached) < wanted:
            below = cached[0].position if cached else head.last_position + 1
            async with self._records.transaction(tenant) as tx:
                older = await tx.turns(space, scope, below, wanted - len(cached))
            if not degraded:
                degraded = await self._refill(tenant, head.incarnation, older)
            cached = older + cached
        # A result is left out whose call is further back than may be shown, or is gone: it hides nothing else.
        window = _window(unparted(cached), head.turns, max_tokens, max_messages, degraded)
        if not window.omitted:
            return window
        first_shown = window.turns[0].position if window.turns else head.last_position + 1
        return replace(window, summary=shown(summary, first_shown))

    async def _cached(self, tenant: str, incarnation: str, last: int, limit: int) -> tuple[list[Turn], tuple[str, ...]]:
        try:
            turns = await self._windows.newest(tenant, incarnation, last, limit)
        except Unavailable as away:
            self._parts.away(away.part)
            return [], (away.part,)
        self._parts.back("redis")
        return turns, ()

    async def _refill(self, tenant: str, incarnation: str, turns: list[Turn]) -> tuple[str, ...]:
        try:
            await self._windows.put(tenant, incarnation, turns)
        except Unavailable as away:
            return (away.part,)
        return ()


def _window(turns: list[Turn], total: int, max_tokens: int, max_messages: int, degraded: tuple[str, ...]) -> Window:
    kept = newest(turns, max_tokens, max_messages)
    return Window(tuple(kept), sum(turn.tokens for turn in kept), total - len(kept), degraded)
