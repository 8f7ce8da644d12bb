"""The scripts of ``redis_replay``; each one looks and writes in one step.

KEYS of all: state (hash), events (stream), lease (string), readers (sorted
set). Fields of the state: `owner`, empty once somebody took it away; `last`
sequence; `spoken`; `end`, `done` or `lost`, absent while it runs; `redis`, the
id of the Redis process that last had all events; `pledge`, what a record of it needs.
"""

_COMMON = """
local function incarnation()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
-- A promoted replica may lack what its master had synced; it keeps that master's id here.
local function was_promoted()
  return not string.find(redis.call('INFO', 'replication'), 'master_replid2:00000000')
end
"""

# ARGV: owner, lease in ms, time to live in ms, pledge. Answers the last sequence; -1 when it is not the owner's.
OPEN = (
    _COMMON
    + """
local state = redis.call('HMGET', KEYS[1], 'owner', 'last', 'end')
if state[1] and (state[1] ~= ARGV[1] or state[3]) then return -1 end
if not state[1] then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'last', '0', 'spoken', '0', 'pledge', ARGV[4])
end
redis.call('HSET', KEYS[1], 'redis', incarnation())
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
return tonumber(state[2] or 0)
"""
)

# ARGV: owner, first and last sequence, events, 1 when an answer has begun, 1 when the end is among them,
# time to live after the end in ms. Answers the last sequence that is there now; -1 when fenced; -2 when unknown.
APPEND = """
local state = redis.call('HMGET', KEYS[1], 'owner', 'last', 'end')
if not state[1] then return -2 end
if state[1] ~= ARGV[1] then return -1 end
local last = tonumber(state[2])
-- The answer to the same append may have been lost.
if last == tonumber(ARGV[3]) then return last end
if state[3] then return -1 end
if last ~= tonumber(ARGV[2]) - 1 then return last end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'e', ARGV[4])
redis.call('HSET', KEYS[1], 'last', ARGV[3], 'spoken', ARGV[5])
if last == 0 then redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1])) end
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], 'end', 'done')
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
  redis.call('DEL', KEYS[3], KEYS[4])
end
return tonumber(ARGV[3])
"""

# ARGV: last sequence. Answers 1 when nobody owns it any more.
FENCE = """
local state = redis.call('HMGET', KEYS[1], 'last', 'end')
if state[1] ~= ARGV[1] or state[2] or redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'owner', '')
return 1
"""

# ARGV: sequence of the end, the end, time to live in ms, 1 when a restart loses nothing.
BREAK_OFF = (
    _COMMON
    + """
local state = redis.call('HMGET', KEYS[1], 'last', 'end', 'redis')
if not state[1] or state[2] or redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
if tonumber(state[1]) ~= tonumber(ARGV[1]) - 1 then return 0 end
local is_whole = state[3] == incarnation() or (ARGV[4] == '1' and not was_promoted())
if is_whole and state[1] ~= '0' then
  redis.call('XADD', KEYS[2], ARGV[1] .. '-0', 'e', ARGV[2])
  redis.call('HSET', KEYS[1], 'owner', '', 'last', ARGV[1], 'end', 'done')
else
  redis.call('HSET', KEYS[1], 'owner', '', 'end', 'lost')
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

# ARGV: owner, time to live in ms.
DISCARD = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
if redis.call('HGET', KEYS[1], 'last') == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'owner', '', 'last', '0', 'end', 'lost')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
"""

# ARGV: owner, lease in ms, time to live in ms. Answers how many processes read it; -1 when it is not the
# owner's, -2 when it is unknown.
RENEW = """
local state = redis.call('HMGET', KEYS[1], 'owner', 'end')
if not state[1] then return -2 end
if state[1] ~= ARGV[1] then return -1 end
if state[2] then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZCARD', KEYS[4])
"""

# ARGV: the reading process, how long it counts in ms.
ANNOUNCE = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[4], ARGV[2])
return 0
"""
