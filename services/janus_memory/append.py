"""AppendMessages: turns into a thread, in one transaction, without any model."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from janus_kit.clock import Clock
from janus_kit.errors import AlreadyExists, JanusError, Unavailable
from janus_kit.ids import new_id
from janus_memory.consistency import caught_up, token
from janus_memory.idempotency import Request, once
from janus_memory.model import Document, Kind, NewTurn, Scope, Space, ThreadHead, Turn
from janus_memory.parts import Parts
from janus_memory.ports import KnownTurn, Records, Transaction, Windows
from janus_memory.spaces import Spaces, away_for
from janus_memory.text import LONG_TEXT, bag, date_terms, lexeme, line, terms

SESSION_GAP = timedelta(minutes=30)
"""A turn this much before or after the one before it begins a new session."""


@dataclass(frozen=True)
class Appended:
    """What became of an append."""

    ids: tuple[str, ...]
    first_position: int
    last_position: int
    token: str
    searchable: bool
    degraded: tuple[str, ...]


class Placed(NamedTuple):
    """What became of one turn: its id and position, and whether it was stored just now."""

    id: str
    position: int
    fresh: bool


class AppendTurns:
    """Adds turns to threads."""

    def __init__(self, records: Records, windows: Windows, spaces: Spaces, parts: Parts, clock: Clock) -> None:
        self._records = records
        self._windows = windows
        self._spaces = spaces
        self._parts = parts
        self._clock = clock

    async def run(
        self, tenant: str, scope: Scope, turns: Sequence[NewTurn], request: Request, wait_s: float
    ) -> Appended:
        """All turns or none. With ``wait_s`` above 0, wait until Recall finds them, but no longer than that in all.

        A turn whose id is in the thread with the same content is there already
        and keeps its place; with other content: AlreadyExists.
        """
        until = asyncio.get_running_loop().time() + wait_s
        stored: list[Turn] = []
        incarnation = ""
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, scope.space)

            async def work() -> Mapping[str, Any]:
                nonlocal incarnation
                head = await tx.lock_thread(space.number, scope.thread, scope.subject)
                incarnation = head.incarnation
                found, fresh = await place(tx, space, head, turns, self._clock.now(), _raise)
                stored.extend(fresh)
                placed = [each for each in found if each]
                upto = await tx.enqueue(space.number)
                return {
                    "ids": [each.id for each in placed],
                    "positions": [each.position for each in placed],
                    "outbox": upto,
                }

            answer, _ = await once(tx, request, work)
        degraded = await self._to_window(tenant, incarnation, stored)
        degraded += away_for(space, self._parts)
        upto = int(answer["outbox"])
        # What was written just now is not indexed yet; only who waits, or comes again, asks.
        asks = wait_s > 0 or not stored
        searchable = asks and await caught_up(self._records, tenant, space.number, upto, until)
        return Appended(
            ids=tuple(answer["ids"]),
            first_position=answer["positions"][0],
            last_position=answer["positions"][-1],
            token=token(space.number, upto),
            searchable=searchable,
            degraded=tuple(dict.fromkeys(degraded)),
        )

    async def _to_window(self, tenant: str, incarnation: str, turns: Sequence[Turn]) -> list[str]:
        if not turns:
            return []
        try:
            await self._windows.put(tenant, incarnation, turns)
        except Unavailable as away:
            # The window is rebuilt from the record when it is next read.
            self._parts.away(away.part)
            return [away.part]
        self._parts.back("redis")
        return []


async def place(
    tx: Transaction,
    space: Space,
    head: ThreadHead,
    turns: Sequence[NewTurn],
    now: datetime,
    refuse: Callable[[int, JanusError], None],
) -> tuple[list[Placed | None], list[Turn]]:
    """Store turns of one thread, whose end is locked, after it; what became of each, and those that are new.

    ``refuse`` gets the place and the error of a turn that cannot be stored; if
    it does not raise, the others are stored and this one is None.
    """
    given = [turn.id for turn in turns if turn.id]
    known = await tx.known_turns(space.number, turns[0].scope.thread, given) if given else {}
    end = head
    found: list[Placed | None] = []
    fresh, documents = [], []
    waited = 0
    for at, turn in enumerate(turns):
        there = known.get(turn.id)
        if there is not None:
            if turn.digest == there.digest:
                found.append(Placed(turn.id, there.position, False))
            else:
                refuse(at, _taken(turn.id))
                found.append(None)
            continue
        occurred_at = turn.occurred_at or now
        placed = replace(turn, id=turn.id or new_id("msg"), occurred_at=occurred_at)
        end = advanced(end, occurred_at)
        known[placed.id] = KnownTurn(end.last_position, placed.digest)
        found.append(Placed(placed.id, end.last_position, True))
        fresh.append(placed)
        documents.append(turn_document(space, placed, end))
        waited += len(turn.text)
        if waited > LONG_TEXT:
            # Others on the event loop take their turn every few milliseconds.
            waited = 0
            await asyncio.sleep(0)
    return found, await tx.add_turns(space, head, fresh, documents) if fresh else []


def advanced(head: ThreadHead, occurred_at: datetime) -> ThreadHead:
    """The head after one more turn. A jump in time, either way, begins a session."""
    last = head.last_occurred_at
    same = last is not None and abs(occurred_at - last) <= SESSION_GAP
    return replace(
        head,
        last_position=head.last_position + 1,
        session=head.session + (0 if same else 1),
        last_occurred_at=occurred_at,
    )


def turn_document(space: Space, turn: NewTurn, head: ThreadHead) -> Document:
    """What is searched of a turn that is where a thread ends now."""
    assert turn.occurred_at is not None
    own = terms(line(turn.speaker, turn.text))
    return Document(
        kind=Kind.TURN,
        record_id=turn.id,
        version=1,
        scope=turn.scope,
        position=head.last_position,
        session=head.session,
        speaker=turn.speaker,
        occurred_at=turn.occurred_at,
        lexemes=tuple(lexeme(space.number, term) for term in dict.fromkeys([*own, *date_terms(turn.occurred_at)])),
        bag=bag(own),
        metadata_json=turn.metadata_json,
        role=turn.role,
    )


def _raise(at: int, error: JanusError) -> None:
    raise error


def _taken(turn_id: str) -> AlreadyExists:
    return AlreadyExists(
        "RESOURCE_EXISTS", f"message '{turn_id}' is in the thread with other content", "message", turn_id
    )
