"""The queue's Lua scripts: every change of the queue's state is one of these, hence atomic.

Owns the order of the keys and the meaning of each script's arguments; called by common/queue/queue.py only.
All scripts take the same keys (KEYS below) and the caller's incarnation as ARGV[1]; an incarnation older than the
run's is refused before anything is written (FENCED), a newer one means that the server lost the run (REGRESSED).
In every script the first write is one that a full server refuses, so a script is never half applied.
They need Redis 6.2 (XPENDING IDLE, exclusive ranges, XTRIM MINID).

`seen` holds the furthest stage of each slot: 1 admitted (work), 2 pushed (rollouts), 3 scored or dropped.
`ended` with the floor in `meta` holds the slots whose scored records were trimmed: all slots below the floor ended.
"""

from __future__ import annotations

KEYS = ("meta", "work", "rollouts", "scored", "dead", "seen", "attempts", "ended")

_KEYS = "local META, WORK, ROLLOUTS, SCORED, DEAD, SEEN, ATTEMPTS, ENDED = unpack(KEYS)\n"

_FENCE = """
local MINE = tonumber(ARGV[1])
local NOW = tonumber(redis.call('HGET', META, 'incarnation') or '0')
if MINE > NOW or NOW == 0 then return redis.error_reply('REGRESSED ' .. NOW) end
if MINE < NOW then return redis.error_reply('FENCED ' .. NOW) end
"""

_STAGE = """
local STREAM, GROUP, REACHED = WORK, 'actors', '1'
if ARGV[2] == 'rollouts' then STREAM, GROUP, REACHED = ROLLOUTS, 'rewarders', '2' end
"""

_GROUPS = """
local function make_groups()
  redis.pcall('XGROUP', 'CREATE', WORK, 'actors', '0', 'MKSTREAM')
  redis.pcall('XGROUP', 'CREATE', ROLLOUTS, 'rewarders', '0', 'MKSTREAM')
end
"""

# -> the new incarnation
BEGIN = (
    _KEYS
    + _GROUPS
    + """
local mine = redis.call('HINCRBY', META, 'incarnation', 1)
make_groups()
return mine
"""
)

# slot ... -> how many were new
ADMIT = (
    _KEYS
    + _FENCE
    + """
local floor, count = tonumber(redis.call('HGET', META, 'floor') or '0'), 0
for i = 2, #ARGV do
  local slot = ARGV[i]
  if tonumber(slot) >= floor and redis.call('SISMEMBER', ENDED, slot) == 0
      and redis.call('HSETNX', SEEN, slot, '1') == 1 then
    redis.call('XADD', WORK, '*', 'slot', slot)
    count = count + 1
  end
end
return count
"""
)

# stage, consumer, (entry, slot) ... -> attempts of each, now started. A stale caller's entries go back at once.
START = (
    _KEYS
    + _STAGE
    + """
local NOW = tonumber(redis.call('HGET', META, 'incarnation') or '0')
if tonumber(ARGV[1]) < NOW then
  for i = 4, #ARGV, 2 do redis.call('XCLAIM', STREAM, GROUP, ARGV[3], 0, ARGV[i], 'IDLE', 1000000000, 'JUSTID') end
end
"""
    + _FENCE
    + """
local attempts = {}
for i = 4, #ARGV, 2 do
  attempts[#attempts + 1] = redis.call('HINCRBY', ATTEMPTS, ARGV[2] .. ':' .. ARGV[i + 1], 1)
end
return attempts
"""
)

# stage, consumer, min idle (ms), max entries, max attempts -> {entry, slot, data, attempt} ...
# The last attempt of a slot is handed out alone, so that a poison neighbour in the same batch cannot be blamed on it.
# An attempt above max attempts is for the caller to dead-letter.
RECLAIM = (
    _KEYS
    + _FENCE
    + _STAGE
    + """
local idle, most, max_attempts, taken = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), {}
for _, waiting in ipairs(redis.call('XPENDING', STREAM, GROUP, 'IDLE', idle, '-', '+', most)) do
  local id = waiting[1]
  local entry = redis.call('XRANGE', STREAM, id, id)[1]
  if not entry then
    redis.call('XACK', STREAM, GROUP, id)
  else
    local slot, field = entry[2][2], ARGV[2] .. ':' .. entry[2][2]
    local tried = tonumber(redis.call('HGET', ATTEMPTS, field) or '0')
    local alone = tried == max_attempts - 1
    if alone and #taken > 0 then break end
    local attempt = redis.call('HINCRBY', ATTEMPTS, field, 1)
    redis.call('XCLAIM', STREAM, GROUP, ARGV[3], idle, id, 'JUSTID')
    taken[#taken + 1] = {id, slot, entry[2][4] or '', attempt}
    if alone then break end
  end
end
return taken
"""
)

# stage, entry ... -> their idle time starts again
RENEW = (
    _KEYS
    + _FENCE
    + _STAGE
    + """
for i = 3, #ARGV do
  local held = redis.call('XPENDING', STREAM, GROUP, ARGV[i], ARGV[i], 1)[1]
  if held then redis.call('XCLAIM', STREAM, GROUP, held[2], 0, ARGV[i], 'JUSTID') end
end
return 1
"""
)

# stage, entry, slot, data, capacity (0: none) -> 1 moved on, 0 it already had, -1 no room
PUSH = (
    _KEYS
    + _FENCE
    + _STAGE
    + """
local id, slot, data, capacity = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local target, reached = ROLLOUTS, '2'
if ARGV[2] == 'rollouts' then target, reached = SCORED, '3' end
if redis.call('HGET', SEEN, slot) ~= REACHED then
  redis.call('XACK', STREAM, GROUP, id)
  redis.call('XDEL', STREAM, id)
  return 0
end
if capacity > 0 and redis.call('XLEN', target) >= capacity then
  local held = redis.call('XPENDING', STREAM, GROUP, id, id, 1)[1]
  if held then redis.call('XCLAIM', STREAM, GROUP, held[2], 0, id, 'JUSTID') end
  return -1
end
redis.call('XADD', target, '*', 'slot', slot, 'data', data)
redis.call('HSET', SEEN, slot, reached)
redis.call('XACK', STREAM, GROUP, id)
redis.call('XDEL', STREAM, id)
redis.call('HDEL', ATTEMPTS, ARGV[2] .. ':' .. slot)
return 1
"""
)

# stage, entry, slot, reason, payload ('': the entry's own data), encoded SlotDropped -> 1 dropped, 0 it had moved on
DROP = (
    _KEYS
    + _FENCE
    + _STAGE
    + """
local id, slot, reason, payload, record = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local moved_on = redis.call('HGET', SEEN, slot) ~= REACHED
if not moved_on then
  local entry = redis.call('XRANGE', STREAM, id, id)[1]
  if payload == '' and entry then payload = entry[2][4] or '' end
  redis.call('XADD', DEAD, '*', 'slot', slot, 'reason', reason, 'stage', ARGV[2], 'data', payload)
  redis.call('XADD', SCORED, '*', 'slot', slot, 'data', record)
  redis.call('HSET', SEEN, slot, '3')
  redis.call('HDEL', ATTEMPTS, ARGV[2] .. ':' .. slot)
end
redis.call('XACK', STREAM, GROUP, id)
redis.call('XDEL', STREAM, id)
return moved_on and 0 or 1
"""
)

# entry, slot, reason, data -> 1 recorded, 0 it was already
BAD_SCORED = (
    _KEYS
    + _FENCE
    + """
if redis.call('HSETNX', META, 'bad:' .. ARGV[2], 1) == 0 then return 0 end
redis.call('XADD', DEAD, '*', 'slot', ARGV[3], 'reason', ARGV[4], 'stage', 'scored', 'data', ARGV[5])
return 1
"""
)

# cursor -> how many entries before it were deleted; their slots are ended from now on
TRIM = (
    _KEYS
    + _FENCE
    + """
local cursor, from = ARGV[2], '-'
if cursor == '0-0' then return 0 end
while true do
  local page = redis.call('XRANGE', SCORED, from, '(' .. cursor, 'COUNT', 16)
  if #page == 0 then break end
  for _, entry in ipairs(page) do
    redis.call('SADD', ENDED, entry[2][2])
    redis.call('HDEL', SEEN, entry[2][2])
    redis.call('HDEL', META, 'bad:' .. entry[1])
  end
  from = '(' .. page[#page][1]
end
local floor = tonumber(redis.call('HGET', META, 'floor') or '0')
while redis.call('SREM', ENDED, floor) == 1 do floor = floor + 1 end
redis.call('HSET', META, 'floor', floor)
return redis.call('XTRIM', SCORED, 'MINID', '=', cursor)
"""
)

# slot ... (those in scored) -> everything in flight is forgotten
RESET = (
    _KEYS
    + _FENCE
    + _GROUPS
    + """
redis.call('DEL', WORK, ROLLOUTS, ATTEMPTS, SEEN)
for i = 2, #ARGV do redis.call('HSET', SEEN, ARGV[i], '3') end
local floor = tonumber(redis.call('HGET', META, 'floor') or '0')
for _, entry in ipairs(redis.call('XRANGE', DEAD, '-', '+')) do
  local slot = entry[2][2]
  if tonumber(slot) >= floor and redis.call('SISMEMBER', ENDED, slot) == 0 and redis.call('HEXISTS', SEEN, slot) == 0 then
    redis.call('XDEL', DEAD, entry[1])
  end
end
make_groups()
return 1
"""
)

# cursor -> how many scored records after it were forgotten
FORGET_AFTER = (
    _KEYS
    + _FENCE
    + """
local count = 0
for _, entry in ipairs(redis.call('XRANGE', SCORED, '(' .. ARGV[2], '+')) do
  count = count + redis.call('XDEL', SCORED, entry[1])
end
return count
"""
)

# -> nothing is left but the incarnation: a role of an earlier driver stays fenced
DELETE = (
    _KEYS
    + """
local incarnation = redis.call('HGET', META, 'incarnation')
redis.call('DEL', unpack(KEYS))
if incarnation then redis.call('HSET', META, 'incarnation', incarnation) end
return 1
"""
)

# stream, start of range, count -> {entry, slot} ... without the payloads
SLOTS = (
    _KEYS
    + """
local found, streams = {}, {work = WORK, rollouts = ROLLOUTS, scored = SCORED}
for _, entry in ipairs(redis.call('XRANGE', streams[ARGV[2]], ARGV[3], '+', 'COUNT', ARGV[4])) do
  found[#found + 1] = {entry[1], entry[2][2]}
end
return found
"""
)
