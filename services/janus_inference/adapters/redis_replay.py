"""Replays in Redis: of each generation a stream of its events and a hash of what is known of it.

An entry of the stream is a batch, under the sequence of its last event: a
reader finds what comes after any sequence by that id, and Redis itself refuses
a second entry for the same one. The hash says who owns the generation, how far
it is, and how it ended; every write looks at it first, in one script, so an
owner that was given up cannot write past the end that somebody else wrote.
All keys of a generation have its tenant's hash tag.

While a generation runs its keys live for ``running_s`` at least and are renewed
with the lease, so that those of a crashed owner go away; after the end they
live for ``keep_s``.

A generation whose owner is gone cannot be ended once Redis was restarted,
unless it is set to sync every write before it answers, as the embedded one is:
Redis may have lost events that readers have. It is marked as lost instead.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

from redis.exceptions import ResponseError

from janus_inference.adapters import replay_scripts as scripts
from janus_inference.adapters.replay_waiter import ReplayWaiter
from janus_inference.adapters.together import Together
from janus_inference.events import Numbered
from janus_inference.ports import EventCodec, Pledge, ReplayAway, ReplayFenced, ReplayHead, ReplayLost
from janus_kit.redis import RedisClient, answering, key

RUNNING_S = 60.0
# A reader that was not announced again for so long is gone.
_PRESENCE_MS = 3_500
# Entries, each of up to 256 events, that are read at once, and generations that are read or looked at at once.
_PAGE, _PAGES, _HEADS = 32, 8, 500

# What is worked on, of all tenants, by when its lease runs out. It is told apart from the rest, being on
# another shard, and only says where to look.
_RUNNING = "janus:generations"

_FENCED, _UNKNOWN = -1, -2


class RedisReplay:
    """``readers`` is a client of its own for reads that block, so that they never take
    the connections of those that write. ``close`` ends them. ``keep_s`` and ``timeout_s`` are in seconds.
    """

    def __init__(
        self,
        writer: RedisClient,
        codec: EventCodec,
        *,
        keep_s: float,
        readers: RedisClient | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        self._writer = writer
        self._waiter = ReplayWaiter(readers or writer)
        self._heads = Together(self._heads_of, _HEADS)
        self._pages = Together(self._pages_of, _PAGES)
        self._codec = codec
        self._timeout_s = timeout_s
        self._keep_ms = max(1, round(keep_s * 1000))
        self._running_ms = max(self._keep_ms, round(RUNNING_S * 1000))
        self._open = writer.register_script(scripts.OPEN)
        self._append = writer.register_script(scripts.APPEND)
        self._fence = writer.register_script(scripts.FENCE)
        self._break_off = writer.register_script(scripts.BREAK_OFF)
        self._discard = writer.register_script(scripts.DISCARD)
        self._renew = writer.register_script(scripts.RENEW)
        self._announce = writer.register_script(scripts.ANNOUNCE)

    async def open(self, tenant: str, generation_id: str, owner: str, lease_s: float, pledge: Pledge | None) -> None:
        arguments: list[Any] = [owner, round(lease_s * 1000), self._running_ms, _pledged(pledge)]
        async with self._answering():
            opening = self._open, _keys(tenant, generation_id), arguments
            (result,) = await self._all([opening], listed={_listed(tenant, generation_id): time.time() + lease_s})
        if result == _FENCED:
            raise ReplayFenced(generation_id)

    async def append(
        self, tenant: str, generation_id: str, owner: str, batch: Sequence[Numbered], *, spoken: bool, terminal: bool
    ) -> int:
        first, last = batch[0].sequence, batch[-1].sequence
        data = self._codec.dump(batch)
        arguments: list[Any] = [owner, first, last, data, int(spoken), int(terminal), self._keep_ms]
        async with self._answering():
            result = int(await self._append(keys=_keys(tenant, generation_id), args=arguments))
        if result == _FENCED:
            raise ReplayFenced(generation_id)
        if result != last:
            raise ReplayLost(max(0, result))
        return len(data)

    async def fence(self, tenant: str, generation_id: str, last: int) -> bool:
        async with self._answering():
            return int(await self._fence(keys=_keys(tenant, generation_id), args=[last])) == 1

    async def break_off(self, tenant: str, generation_id: str, end: Numbered) -> None:
        arguments: list[Any] = [end.sequence, self._codec.dump([end]), self._keep_ms]
        async with self._answering():
            synced = await self._syncs_every_write()
            await self._break_off(keys=_keys(tenant, generation_id), args=[*arguments, int(synced)])

    async def discard(self, tenant: str, generation_id: str, owner: str) -> None:
        async with self._answering():
            await self._discard(keys=_keys(tenant, generation_id), args=[owner, self._keep_ms])

    async def head(self, tenant: str, generation_id: str) -> ReplayHead | None:
        return await self._heads.get((tenant, generation_id))

    async def page(self, tenant: str, generation_id: str, after: int) -> list[Numbered]:
        stream = _keys(tenant, generation_id)[1]
        return self._events(await self._pages.get((stream, after)), after)

    async def wait(self, tenant: str, generation_id: str, after: int, seconds: float) -> list[Numbered]:
        stream = _keys(tenant, generation_id)[1]
        async with self._answering(seconds):
            entries = await self._waiter.wait(stream, after, seconds)
        return self._events(entries, after)

    async def renew(
        self, owner: str, owned: Sequence[tuple[str, str]], read: Sequence[tuple[str, str]], lease_s: float
    ) -> Sequence[int | None]:
        lease = [owner, round(lease_s * 1000), self._running_ms]
        async with self._answering():
            results = await self._all(
                [
                    *((self._renew, _keys(*each), lease) for each in owned),
                    *((self._announce, _keys(*each), [owner, _PRESENCE_MS]) for each in read),
                ],
                listed={_listed(*each): time.time() + lease_s for each in owned},
            )
        counts = {_FENCED: None, _UNKNOWN: -1}
        return [counts.get(int(result), int(result)) for result in results[: len(owned)]]

    async def leave(self, owner: str, tenant: str, generation_id: str) -> None:
        async with self._answering():
            await self._writer.zrem(_keys(tenant, generation_id)[3], owner)

    async def overdue(self, seconds: float, most: int) -> Sequence[tuple[str, str]]:
        async with self._answering():
            found: Any = await self._writer.zrangebyscore(_RUNNING, "-inf", time.time() - seconds, start=0, num=most)
        return [(tenant, generation_id) for tenant, _, generation_id in (_text(each).partition(" ") for each in found)]

    async def forget(self, ended: Sequence[tuple[str, str]]) -> None:
        if ended:
            async with self._answering():
                await self._writer.zrem(_RUNNING, *(_listed(*each) for each in ended))

    async def close(self) -> None:
        """End what waits."""
        await self._waiter.close()
        await self._heads.close()
        await self._pages.close()

    async def _heads_of(self, wanted: Sequence[tuple[str, str]]) -> list[ReplayHead | None]:
        async with self._answering(), self._writer.pipeline(transaction=False) as pipeline:
            for state, _, lease, _ in (_keys(*each) for each in wanted):
                pipeline.hmget(state, ["last", "spoken", "end", "pledge"])
                pipeline.exists(lease)
            found = await pipeline.execute()
        return [_head(*fields, is_owned=bool(lease)) for fields, lease in zip(found[::2], found[1::2], strict=True)]

    async def _pages_of(self, wanted: Sequence[tuple[str, int]]) -> list[Sequence[Any]]:
        async with self._answering(), self._writer.pipeline(transaction=False) as pipeline:
            for stream, after in wanted:
                pipeline.xrange(stream, f"({after}-0", "+", count=_PAGE)
            return list(await pipeline.execute())

    async def _all(
        self, calls: Sequence[tuple[Any, list[str], list[Any]]], *, listed: Mapping[str, float]
    ) -> list[Any]:
        """Scripts in one round trip, and what is listed as worked on. (A pipeline that runs scripts asks first
        which ones are known.)"""
        async with self._writer.pipeline(transaction=False) as pipeline:
            if listed:
                # First: what is listed and was never opened is forgotten; the other way round it would be missed.
                pipeline.zadd(_RUNNING, dict(listed))
            for script, keys, arguments in calls:
                await script(keys=keys, args=arguments, client=pipeline)
            return list(await pipeline.execute())[1 if listed else 0 :]

    async def _syncs_every_write(self) -> bool:
        """Whether what Redis answered for survives its restart; no, where it may not be asked."""
        try:
            found: Any = await self._writer.config_get("appendonly", "appendfsync")
        except ResponseError:
            return False
        values = {_text(name): _text(value) for name, value in found.items()}
        return values.get("appendonly") == "yes" and values.get("appendfsync") == "always"

    def _events(self, entries: Sequence[Any], after: int) -> list[Numbered]:
        """What the entries hold beyond a sequence. Raises ValueError for what another version wrote."""
        found = [event for _, held in entries for event in self._codec.load(held[b"e"])]
        return found if not found or found[0].sequence > after else [e for e in found if e.sequence > after]

    def _answering(self, blocking_s: float = 0.0) -> AbstractAsyncContextManager[None]:
        return answering(self._timeout_s + blocking_s, ReplayAway)


def _head(
    last: bytes | None, spoken: bytes | None, end: bytes | None, pledge: bytes | None, *, is_owned: bool
) -> ReplayHead | None:
    if last is None:
        return None
    return ReplayHead(int(last), spoken == b"1", end is not None, is_owned, end == b"lost", _pledge_of(pledge))


def _pledged(pledge: Pledge | None) -> str:
    if pledge is None:
        return "null"
    said = [pledge.subject, dict(pledge.labels), pledge.started_at.isoformat()]
    return json.dumps([*said, pledge.prompt_tokens, pledge.at_list_price], ensure_ascii=False)


def _pledge_of(data: bytes | None) -> Pledge | None:
    """None when nobody was asked, and for what another version wrote."""
    try:
        subject, labels, started_at, tokens, at_list_price = json.loads(data or b"null")
        return Pledge(str(subject), dict(labels), datetime.fromisoformat(started_at), int(tokens), bool(at_list_price))
    except (ValueError, TypeError):
        return None


def _keys(tenant: str, generation_id: str) -> list[str]:
    """What is known of it, its events, its owner's lease, the processes that read it."""
    return [key(tenant, "generation", generation_id, name) for name in ("state", "events", "lease", "readers")]


def _listed(tenant: str, generation_id: str) -> str:
    """Neither of them has spaces."""
    return f"{tenant} {generation_id}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
