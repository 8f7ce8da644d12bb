-- One call's hold on every counter that applies to it: taken, corrected or renewed at once, or not at all.
--
-- KEYS[1] is the hold's record, KEYS[2..] are the counters.
-- ARGV: operation, hold id, lease in ms, whether an unknown hold is charged in full (1 or 0),
--       then four for each counter: kind, limit, amount, window.
--
-- Kinds of counters and what is kept of them:
--   rate   "<used> <at>"         a bucket of one minute's worth that drains all the time; above its limit it is in debt
--   slots  sorted set            ids of holds by the end of their leases in ms
--   spend  "<window> <amount>"   what was spent in one calendar window
--
-- reserve  -> {0, 0}, or {number of the counter that refuses, ms to wait}; amounts are cut to the limit
-- settle   -> {0, 0}; amounts are what was used in the end, empty to keep what was reserved
-- renew    -> {0, 0}
--
-- Time is this server's alone, in microseconds.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now / 1000)

local MINUTE = 60000000
local SLACK_MS = 60000       -- keys live a little longer than they matter
local RECORD_MS = 86400000   -- a hold that nobody settles: its process died
local SETTLED_MS = 60000     -- for how long a repeated settle, or a reserve that it overtook, is recognised
local FULL_MS = 1000         -- slots come back at any time
local SETTLED = '-'
local ROUNDING = 0.000001

local operation, id, lease_ms, charge_unknown = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'

local function text(number)
  return string.format('%.17g', number)
end

-- What is used of a bucket now.
local function used_of(key, limit)
  local stored = redis.call('GET', key)
  if not stored then return 0 end
  local used, at = string.match(stored, '^(%S+) (%S+)$')
  local drained = math.max(0, now - tonumber(at)) * limit / MINUTE
  return math.max(0, tonumber(used) - drained)
end

local function set_used(key, limit, used)
  if used <= 0 then
    redis.call('DEL', key)
  else
    local ttl = math.ceil(used * 60000 / limit) + SLACK_MS
    redis.call('SET', key, text(used) .. ' ' .. text(now), 'PX', string.format('%.0f', ttl))
  end
end

local function is_leap(year)
  return (year % 4 == 0 and year % 100 ~= 0) or year % 400 == 0
end

-- Number of the month since year 0, and the seconds at which it ends; all in UTC.
local function month_of(seconds)
  local days = math.floor(seconds / 86400)
  local year = 1970
  while true do
    local length = is_leap(year) and 366 or 365
    if days < length then break end
    days, year = days - length, year + 1
  end
  local lengths = { 31, is_leap(year) and 29 or 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }
  local month = 1
  while days >= lengths[month] do
    days, month = days - lengths[month], month + 1
  end
  local left = (lengths[month] - days) * 86400 - seconds % 86400
  return year * 12 + month, seconds + left
end

-- Number of the calendar window that is now, and the ms until it ends.
local function window_of(kind)
  local seconds = math.floor(now / 1000000)
  local number, ends
  if kind == 'month' then
    number, ends = month_of(seconds)
  else
    local length = kind == 'hour' and 3600 or 86400
    number = math.floor(seconds / length)
    ends = (number + 1) * length
  end
  return number, math.ceil(ends * 1000 - now / 1000)
end

local function spent_of(key, window)
  local stored = redis.call('GET', key)
  if not stored then return 0 end
  local number, amount = string.match(stored, '^(%S+) (%S+)$')
  return tonumber(number) == window and tonumber(amount) or 0
end

local function set_spent(key, window, left_ms, amount)
  redis.call('SET', key, text(window) .. ' ' .. text(math.max(0, amount)), 'PX', string.format('%.0f', left_ms + SLACK_MS))
end

local function occupy(key)
  redis.call('ZADD', key, string.format('%.0f', now_ms + lease_ms), id)
  redis.call('PEXPIRE', key, string.format('%.0f', lease_ms + SLACK_MS))
end

local counters = {}
for i = 2, #KEYS do
  local at = 4 + (i - 2) * 4
  counters[i - 1] = {
    key = KEYS[i], kind = ARGV[at + 1], limit = tonumber(ARGV[at + 2]),
    amount = tonumber(ARGV[at + 3]), window = ARGV[at + 4],
  }
end

local function reserve()
  -- Asked twice because an answer was lost, or given up already.
  if redis.call('EXISTS', KEYS[1]) == 1 then return { 0, 0 } end
  local refuses, longest = 0, -1
  for number, counter in ipairs(counters) do
    local wait
    if counter.kind == 'rate' then
      counter.amount = math.min(counter.amount, counter.limit)
      counter.used = used_of(counter.key, counter.limit)
      local over = counter.used + counter.amount - counter.limit
      if over > ROUNDING then wait = math.ceil(over * 60000 / counter.limit) end
    elseif counter.kind == 'slots' then
      redis.call('ZREMRANGEBYSCORE', counter.key, '-inf', string.format('%.0f', now_ms))
      if redis.call('ZCARD', counter.key) >= counter.limit then wait = FULL_MS end
    else
      counter.amount = math.min(counter.amount, counter.limit)
      counter.number, counter.left_ms = window_of(counter.window)
      counter.used = spent_of(counter.key, counter.number)
      local over = counter.used + counter.amount - counter.limit
      -- What costs nothing needs no room.
      if over > 0 and counter.amount > 0 then wait = counter.left_ms end
    end
    if wait and wait > longest then refuses, longest = number, wait end
  end
  if refuses > 0 then return { refuses, longest } end
  local record = {}
  for _, counter in ipairs(counters) do
    if counter.kind == 'rate' then
      set_used(counter.key, counter.limit, counter.used + counter.amount)
    elseif counter.kind == 'slots' then
      occupy(counter.key)
    else
      set_spent(counter.key, counter.number, counter.left_ms, counter.used + counter.amount)
    end
    record[#record + 1] = text(counter.amount or 0) .. ' ' .. text(counter.number or 0)
  end
  redis.call('SET', KEYS[1], table.concat(record, ' '), 'PX', RECORD_MS)
  return { 0, 0 }
end

local function settle()
  local record = redis.call('GET', KEYS[1])
  if record == SETTLED then return end
  local reserved = {}
  for amount, number in string.gmatch(record or '', '(%S+) (%S+)') do
    reserved[#reserved + 1] = { amount = tonumber(amount), number = tonumber(number) }
  end
  for number, counter in ipairs(counters) do
    local held = reserved[number]
    if counter.kind == 'slots' then
      redis.call('ZREM', counter.key, id)
    elseif counter.amount and (held or charge_unknown) then
      local more = counter.amount - (held and held.amount or 0)
      if more ~= 0 and counter.kind == 'rate' then
        set_used(counter.key, counter.limit, used_of(counter.key, counter.limit) + more)
      elseif more ~= 0 then
        -- Money belongs to the window in which the call began.
        local window, left_ms = window_of(counter.window)
        if not held or held.number == window then
          set_spent(counter.key, window, left_ms, spent_of(counter.key, window) + more)
        end
      end
    end
  end
  redis.call('SET', KEYS[1], SETTLED, 'PX', SETTLED_MS)
end

if operation == 'reserve' then return reserve() end
if operation == 'settle' then
  settle()
elseif redis.call('GET', KEYS[1]) ~= SETTLED then
  -- Also a lease that expired or was lost: the call goes on, so it counts.
  for _, counter in ipairs(counters) do occupy(counter.key) end
end
return { 0, 0 }
