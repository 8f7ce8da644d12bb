"""Working memory in Redis: a sorted set a thread, scored by position.

Positions make it safe: what is put twice is there once, what comes late falls
into its place, and a reader that knows where the thread ends sees at once
whether something is missing. The key holds the thread's incarnation, so an
erased thread's window is never taken for a new one's of the same name.
"""

import json
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from redis.exceptions import ResponseError

from janus_kit.errors import Unavailable
from janus_kit.redis import RedisClient, answering, key
from janus_memory.model import Scope, Turn

T = TypeVar("T")

_FORMAT = 1
_HEAD = struct.Struct(">BI")
# Larger turns are rare and stay in Postgres alone, so that a window is bounded.
_MAX_ENTRY_BYTES = 64 * 1024
# Long enough for a busy server, short enough to fall back while a caller waits.
_TIMEOUT_S = 0.5
_REST_S = 1.0
# Longer than any call that read the thread before it was erased.
_MARK_TTL_S = 3_600


class RedisWindows:
    """Implements ports.Windows. Keeps ``length`` turns a thread for ``ttl_s`` after the last use."""

    def __init__(self, client: RedisClient, *, length: int, ttl_s: int) -> None:
        self._client = client
        self._length = length
        self._ttl_s = ttl_s
        self._resting_until = 0.0

    async def put(self, tenant: str, incarnation: str, turns: Sequence[Turn]) -> None:
        entries = {entry: turn.position for turn in turns[-self._length :] if (entry := _packed(turn))}
        if not entries:
            return
        name = _name(tenant, incarnation)

        async def work() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(name, entries)
                pipe.zremrangebyrank(name, 0, -self._length - 1)
                pipe.expire(name, self._ttl_s)
                await _unless_erased(pipe.execute())

        await self._guarded(work)

    async def erase(self, tenant: str, incarnations: Sequence[str]) -> int:
        """In an erased window's place is a mark of another type, which refuses turns that come late."""
        there = await self.kept(tenant, incarnations)

        async def work() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for each in incarnations:
                    pipe.set(_name(tenant, each), b"", ex=_MARK_TTL_S)
                await pipe.execute()

        if incarnations:
            await self._guarded(work)
        return there

    async def kept(self, tenant: str, incarnations: Sequence[str]) -> int:
        async def work() -> int:
            async with self._client.pipeline(transaction=False) as pipe:
                for each in incarnations:
                    pipe.type(_name(tenant, each))
                return sum(kind == b"zset" for kind in await pipe.execute())

        return await self._guarded(work) if incarnations else 0

    async def held(self, tenant: str, incarnation: str) -> list[Turn] | None:
        async def work() -> list[bytes]:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zrange(_name(tenant, incarnation), 0, -1)
                found: list[list[bytes]] | None = await _unless_erased(pipe.execute())
                return found[0] if found else []

        turns = [_unpacked(entry) for entry in await self._guarded(work)]
        read = [turn for turn in turns if turn is not None]
        return read if len(read) == len(turns) else None

    async def newest(self, tenant: str, incarnation: str, last: int, limit: int) -> list[Turn]:
        name = _name(tenant, incarnation)

        async def work() -> list[bytes]:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zrevrangebyscore(name, last, last - limit + 1)
                pipe.expire(name, self._ttl_s)
                found: list[list[bytes]] | None = await _unless_erased(pipe.execute())
                return found[0] if found else []

        turns: list[Turn] = []
        for entry in await self._guarded(work):
            turn = _unpacked(entry)
            if turn is None or turn.position != last - len(turns):
                break
            turns.append(turn)
        turns.reverse()
        return turns

    async def drop(self, tenant: str, incarnations: Sequence[str]) -> None:
        async def work() -> None:
            # One by one: what is deleted at once has to be in one slot of a cluster.
            async with self._client.pipeline(transaction=False) as pipe:
                for incarnation in incarnations:
                    pipe.unlink(_name(tenant, incarnation))
                await pipe.execute()

        await self._guarded(work)

    async def ping(self) -> None:
        async def work() -> None:
            await self._client.ping()

        # Health asks whether it is back, so it does not wait for the rest to end.
        self._resting_until = 0.0
        await self._guarded(work)

    async def _guarded(self, work: Callable[[], Awaitable[T]]) -> T:
        if time.monotonic() < self._resting_until:
            raise Unavailable("redis", "redis does not answer")
        async with answering(_TIMEOUT_S, self._rested):
            return await work()

    def _rested(self, _: str) -> Unavailable:
        """Callers fall back: one slow try a second is enough for all of them."""
        self._resting_until = time.monotonic() + _REST_S
        return Unavailable("redis", "redis does not answer")


async def _unless_erased(command: Awaitable[T]) -> T | None:
    """The answer; None when a mark is in the window's place."""
    try:
        return await command
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return None


def _name(tenant: str, incarnation: str) -> str:
    return key(tenant, "window", incarnation)


def _packed(turn: Turn) -> bytes | None:
    head = json.dumps(
        [
            turn.id,
            [turn.scope.space, turn.scope.subject, turn.scope.agent, turn.scope.thread],
            turn.speaker,
            turn.text,
            turn.tokens,
            turn.calls,
            turn.results,
            turn.position,
            turn.session,
            _microseconds(turn.occurred_at),
            _microseconds(turn.recorded_at),
            turn.metadata_json,
        ],
        ensure_ascii=False,
    ).encode("utf-8", "surrogatepass")
    if len(head) + len(turn.content) > _MAX_ENTRY_BYTES:
        return None
    return _HEAD.pack(_FORMAT, len(head)) + head + turn.content


def _unpacked(entry: bytes) -> Turn | None:
    """The turn; None for what another version, or nobody, wrote."""
    try:
        version, size = _HEAD.unpack_from(entry)
        if version != _FORMAT:
            return None
        head = json.loads(entry[_HEAD.size : _HEAD.size + size])
        return Turn(
            id=head[0],
            scope=Scope(*head[1]),
            speaker=head[2],
            text=head[3],
            content=entry[_HEAD.size + size :],
            tokens=head[4],
            calls=tuple(head[5]),
            results=tuple(head[6]),
            position=head[7],
            session=head[8],
            occurred_at=_time(head[9]),
            recorded_at=_time(head[10]),
            metadata_json=head[11],
        )
    except (struct.error, ValueError, IndexError, TypeError):
        return None


def _microseconds(when: datetime) -> int:
    delta = when - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _time(microseconds: int) -> datetime:
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
