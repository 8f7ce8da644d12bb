"""The event stream of a run as a Redis stream whose ids are the cursors.

An entry's id is ``<epoch>-<sequence>``. Redis refuses an id that is not beyond
the stream's last, so an older epoch cannot append after a newer one; opening a
stream moves its last id to ``<epoch>-<base>`` and so fences the older epoch
even before the new one has anything to say.

Beside the stream stands the id of the Redis process that it was begun on. When
that differs later, Redis was restarted or failed over, and unless it is set to
sync every write before it answers, as the embedded one is, the newest entries
may be lost: the next owner then goes on beyond every sequence that may have
been sent, and readers are told that something is missing.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from redis.exceptions import ResponseError

from janus_kit.redis import RedisClient, answering, key
from janus_orchestration.model import Cursor, Recorded
from janus_orchestration.ports import Fenced, Opened, StreamAway

# Field names say what a reader must know without decoding: e(vent) or t(erminal), d(urable) or not.
_FIELDS = {(False, False): b"e", (False, True): b"ed", (True, True): b"td", (True, False): b"t"}

_FENCED = -1
_MOST_DROPPED = 512

_COMMON = """
local function last_id(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local epoch, sequence = string.match(info[i + 1], '(%d+)-(%d+)')
      return tonumber(epoch), tonumber(sequence)
    end
  end
end
local function incarnation()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
-- A promoted replica may lack what its master had synced; it keeps that master's id here.
local function was_promoted()
  return not string.find(redis.call('INFO', 'replication'), 'master_replid2:00000000')
end
"""

# KEYS: stream, incarnation. ARGV: epoch, known, otherwise, ttl in ms, 1 when a restart loses nothing.
# Answers {base, intact}; {-1, 0} when a newer epoch was here.
_OPEN = (
    _COMMON
    + """
local epoch, base, intact = tonumber(ARGV[1]), tonumber(ARGV[3]), 0
local present = redis.call('EXISTS', KEYS[1]) == 1
if present then
  local last_epoch, last_sequence = last_id(KEYS[1])
  if last_epoch > epoch then return {-1, 0} end
  if (ARGV[5] == '1' and not was_promoted()) or redis.call('GET', KEYS[2]) == incarnation() then
    base, intact = math.max(tonumber(ARGV[2]), last_sequence), 1
  end
  if last_epoch == epoch then base = math.max(base, last_sequence) end
end
local id = string.format('%d-%d', epoch, base)
if present then
  redis.call('XSETID', KEYS[1], id)
else
  redis.call('XADD', KEYS[1], id, 'x', '')
  redis.call('XDEL', KEYS[1], id)
end
redis.call('SET', KEYS[2], incarnation(), 'PX', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {base, intact}
"""
)

# KEYS: stream, incarnation. ARGV: epoch, ttl in ms, 1 when a stream that is not there begins,
# then (sequence, field, wire) for each event. What is there already (an answer got lost) is passed over.
_APPEND = (
    _COMMON
    + """
local epoch = tonumber(ARGV[1])
local last_sequence = 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local last_epoch, sequence = last_id(KEYS[1])
  if last_epoch > epoch then return -1 end
  if last_epoch == epoch then last_sequence = sequence end
elseif ARGV[3] == '1' then
  redis.call('SET', KEYS[2], incarnation(), 'PX', ARGV[2])
end
for i = 4, #ARGV, 3 do
  if tonumber(ARGV[i]) > last_sequence then
    redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 0
"""
)


class RedisEvents:
    """Streams of runs in Redis.

    ``readers`` is a client of its own for reads that block, so that they never
    take the connections of those that write. Times are in seconds.
    """

    def __init__(self, writer: RedisClient, readers: RedisClient, *, ttl_s: float, timeout_s: float) -> None:
        self._writer = writer
        self._readers = readers
        self._ttl_ms = round(ttl_s * 1000)
        self._timeout_s = timeout_s
        self._open = writer.register_script(_OPEN)
        self._append = writer.register_script(_APPEND)

    async def open(self, tenant: str, run_id: str, epoch: int, *, known: int, otherwise: int) -> Opened:
        async with self._answering():
            synced = await self._syncs_every_write()
            arguments = [epoch, known, otherwise, self._ttl_ms, int(synced)]
            base, intact = await self._open(keys=_keys(tenant, run_id), args=arguments)
        if base == _FENCED:
            raise Fenced(run_id)
        return Opened(int(base), bool(intact))

    async def append(
        self, tenant: str, run_id: str, epoch: int, events: Sequence[Recorded], *, begins: bool = False
    ) -> None:
        arguments: list[Any] = [epoch, self._ttl_ms, int(begins)]
        for event in events:
            arguments += (event.cursor.sequence, _FIELDS[event.terminal, event.durable], event.wire)
        async with self._answering():
            result = await self._append(keys=_keys(tenant, run_id), args=arguments)
        if result == _FENCED:
            raise Fenced(run_id)

    async def page(self, tenant: str, run_id: str, after: Cursor, limit: int) -> list[Recorded]:
        async with self._answering():
            entries: Any = await self._writer.xrange(
                _keys(tenant, run_id)[0], f"({after.epoch}-{after.sequence}", "+", count=limit
            )
        return [_event(entry) for entry in entries]

    async def wait(self, tenant: str, run_id: str, after: Cursor, seconds: float) -> list[Recorded]:
        stream = _keys(tenant, run_id)[0]
        async with self._answering(seconds):
            answer: Any = await self._readers.xread(
                {stream: f"{after.epoch}-{after.sequence}"}, count=512, block=max(1, round(seconds * 1000))
            )
        return [_event(entry) for _, entries in answer or () for entry in entries]

    async def head(self, tenant: str, run_id: str) -> Cursor | None:
        async with self._answering():
            entries: Any = await self._writer.xrevrange(_keys(tenant, run_id)[0], "+", "-", count=1)
        return _cursor(entries[0][0]) if entries else None

    async def drop(self, tenant: str, run_ids: Sequence[str]) -> None:
        keys = [key for run_id in run_ids for key in _keys(tenant, run_id)]
        for start in range(0, len(keys), _MOST_DROPPED):
            async with self._answering():
                await self._writer.unlink(*keys[start : start + _MOST_DROPPED])

    async def _syncs_every_write(self) -> bool:
        """Whether what Redis answered for survives its restart; no, where it may not be asked."""
        try:
            found: Any = await self._writer.config_get("appendonly", "appendfsync")
        except ResponseError:
            return False
        values = {_text(name): _text(value) for name, value in found.items()}
        return values.get("appendonly") == "yes" and values.get("appendfsync") == "always"

    def _answering(self, blocking_s: float = 0.0) -> AbstractAsyncContextManager[None]:
        return answering(self._timeout_s + blocking_s, StreamAway)


def _keys(tenant: str, run_id: str) -> list[str]:
    return [key(tenant, "run", run_id, "events"), key(tenant, "run", run_id, "redis")]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cursor(entry_id: bytes) -> Cursor:
    epoch, _, sequence = entry_id.partition(b"-")
    return Cursor(int(epoch), int(sequence))


def _event(entry: Any) -> Recorded:
    entry_id, fields = entry
    ((name, wire),) = fields.items()
    return Recorded(_cursor(entry_id), "", wire, durable=b"d" in name, terminal=name.startswith(b"t"))
