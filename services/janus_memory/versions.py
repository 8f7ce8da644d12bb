"""Versions of a memory: how the next one comes about, whoever asks for it.

A version is never changed in place: a change makes the next one, with who made
it, because of which message, and why. Both meet at one moment: the old version
is superseded when the new one is recorded. Two changes close a memory instead:
their version is superseded at once, so that no search finds it and the history
still tells what was done.
"""

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from janus_memory.model import Cause, Change, Document, Kind, Memory, MemoryVersion, NewMemory, Scope, Space
from janus_memory.ports import Transaction
from janus_memory.text import LONG_TEXT, bag, lexeme, terms

TICK = timedelta(microseconds=1)
"""The least between two versions of a memory, also when the clock stands still or goes back."""
_CLOSING = frozenset({Change.SUPERSEDED, Change.FORGOTTEN})


class Held(NamedTuple):
    """A memory whose space is held against other writers: its last version, and when the next is recorded."""

    space: Space
    latest: MemoryVersion
    at: datetime


async def hold(tx: Transaction, memory_id: str) -> Held | None:
    """Hold a memory until the transaction ends; None when there is none."""
    found = await tx.latest_version(memory_id)
    space = await tx.space(found.memory.scope.space) if found else None
    if found is None or space is None:
        return None
    # Before any row, as an erasure does it, which waits for writers of the subject.
    at = await tx.lock_remembering(space.number, [found.memory.scope.subject])
    latest = await tx.latest_version(memory_id)
    return Held(space, latest, max(at, latest.memory.recorded_at + TICK)) if latest else None


async def change_memory(tx: Transaction, held: Held, change: Change, after: Memory, cause: Cause) -> MemoryVersion:
    """Make the version after the last, and let search follow in the same transaction.

    ``after`` is what the memory is from now on (UPDATED; INVALIDATED with
    another ``valid_to``) or was to the end (SUPERSEDED, see ``succeeded``;
    FORGOTTEN). Raises FailedPrecondition / STATE_CONFLICT when the memory is
    closed, AlreadyExists when another memory says the same, InvalidArgument
    when its validity would end before it begins.
    """
    latest = held.latest.memory
    if change is Change.FORGOTTEN:
        await tx.remove_from_search(held.space.number, latest.id)
    elif latest.superseded_at is not None:
        raise FailedPrecondition(
            "STATE_CONFLICT",
            f"another memory took the place of memory '{latest.id}'",
            {"state": "superseded"},
            subject=f"memory/{latest.id}",
        )
    made = replace(
        after,
        version=latest.version + 1,
        recorded_at=held.at,
        superseded_at=held.at if change in _CLOSING else None,
    )
    key = digest(made.kind, made.text, made.scope)
    written = None
    if change not in _CLOSING:
        if made.valid_from and made.valid_to and made.valid_to <= made.valid_from:
            raise InvalidArgument("memory.valid_to", "must be after valid_from")
        await _must_be_alone(tx, held.space, latest.id, key)
        written = document(held.space, made, made.version, held.at)
        if len(made.text) > LONG_TEXT:
            await asyncio.sleep(0)
    version = MemoryVersion(made, change, cause)
    await tx.add_version(held.space.number, version, key, written, same_text=made.text == latest.text)
    return version


def succeeded(memory: Memory, by: str) -> Memory:
    """A memory as its history shows it when another one took its place: that one is among its sources."""
    sources = [*json.loads(memory.provenance_json), {"memory_id": by, "quote": "", "origin": 0}]
    return replace(memory, provenance_json=json.dumps(sources))


def digest(kind: Kind, text: str, scope: Scope) -> bytes:
    """What makes two memories of a space the same."""
    return hashlib.sha256(json.dumps([kind, text, scope.subject, scope.agent, scope.thread]).encode()).digest()


def document(space: Space, memory: NewMemory | Memory, version: int, now: datetime) -> Document:
    """What a version contributes to search."""
    own = terms(memory.text)
    return Document(
        kind=memory.kind,
        record_id=memory.id,
        version=version,
        scope=memory.scope,
        position=0,
        session=0,
        speaker="",
        occurred_at=memory.valid_from or now,
        lexemes=tuple(lexeme(space.number, term) for term in dict.fromkeys(own)),
        bag=bag(own),
        importance=memory.importance,
        valid_from=memory.valid_from,
        valid_to=memory.valid_to,
        expires_at=memory.expires_at,
        metadata_json=memory.metadata_json,
        predicate=memory.predicate,
    )


async def _must_be_alone(tx: Transaction, space: Space, memory_id: str, key: bytes) -> None:
    for other in await tx.known_memories(space.number, [], [key]):
        if other.id != memory_id:
            raise AlreadyExists(
                "RESOURCE_EXISTS", f"memory '{other.id}' says the same in the same scope", "memory", other.id
            )
