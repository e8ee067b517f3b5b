"""The queue's Lua scripts: every change of the queue's state is one of these, hence atomic.

Owns the meaning of each script's arguments; called by common/queue/queue.py only. What all of them begin with, the fence
and the reply that is kept for a second sending, is common/queue/script_parts.py.
A full server refuses the first write of a script or none, so a script is never half applied; TAKE, TRIM and FORGET_DEAD, which
give memory back or hand on what is there, begin with a write that it does not refuse.
They need Redis 6.2 (XPENDING IDLE, exclusive ranges, XTRIM MINID).

`seen` holds the furthest stage of each slot: 1 admitted (work), 2 pushed (rollouts), 3 scored or dropped.
`ended` with the floor in `meta` holds the slots whose scored records were trimmed: all slots below the floor ended.
"""

from __future__ import annotations

from common.queue.script_parts import FENCE, GROUPS, HEAD, STAGE, once

# -> the new incarnation
BEGIN = once(
    GROUPS
    + """
local mine = redis.call('HINCRBY', META, 'incarnation', 1)
make_groups()
return mine, true
""",
    fence="",
)

# slot ... -> how many were new
ADMIT = once(
    """
local floor, count = tonumber(redis.call('HGET', META, 'floor') or '0'), 0
for i = 2, #ARGV do
  local slot = ARGV[i]
  if tonumber(slot) >= floor and redis.call('SISMEMBER', ENDED, slot) == 0
      and redis.call('HSETNX', SEEN, slot, '1') == 1 then
    redis.call('XADD', WORK, '*', 'slot', slot)
    count = count + 1
  end
end
return count, count > 0
"""
)

# stage, consumer, max entries, min idle (ms), max attempts -> {entries, the last entry that the group got}, an entry as
# {entry, slot, attempt}: new ones, each attempt counted as started, else those whose holder was silent for min idle.
# The last attempt of a slot is handed out alone, so that a poison neighbour in the same batch cannot be blamed on it.
# An attempt above max attempts is for the caller to dead-letter.
TAKE = once(
    STAGE
    + """
local consumer, most, idle, max_attempts, taken = ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), {}
local function tried(slot) return tonumber(redis.call('HGET', ATTEMPTS, ARGV[2] .. ':' .. slot) or '0') end
local function start(id, slot)
  taken[#taken + 1] = {id, slot, redis.call('HINCRBY', ATTEMPTS, ARGV[2] .. ':' .. slot, 1)}
end
while #taken < most do
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', STREAM, '>')
  if not read then break end
  local id, slot = read[1][2][1][1], read[1][2][1][2][2]
  local alone = tried(slot) == max_attempts - 1
  if alone and #taken > 0 then  -- it goes back, for anyone to take at once
    redis.call('XCLAIM', STREAM, GROUP, consumer, 0, id, 'IDLE', 1000000000, 'JUSTID')
    break
  end
  start(id, slot)
  if alone then break end
end
local waiting = #taken == 0 and redis.call('XPENDING', STREAM, GROUP, 'IDLE', idle, '-', '+', most) or {}
for _, held in ipairs(waiting) do
  local id = held[1]
  local entry = redis.call('XRANGE', STREAM, id, id)[1]
  if not entry then
    redis.call('XACK', STREAM, GROUP, id)
  else
    local slot = entry[2][2]
    local alone = tried(slot) == max_attempts - 1
    if alone and #taken > 0 then break end
    redis.call('XCLAIM', STREAM, GROUP, consumer, idle, id, 'JUSTID')
    start(id, slot)
    if alone then break end
  end
end
local last = '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', STREAM)) do
  for i = 1, #group, 2 do if group[i] == 'last-delivered-id' then last = group[i + 1] end end
end
return {taken, last}, #taken > 0
"""
)

# stage, entry ... -> the data of each, false where it is gone
DATA = (
    HEAD
    + FENCE
    + STAGE
    + """
local found = {}
for i = 3, #ARGV do
  local entry = redis.call('XRANGE', STREAM, ARGV[i], ARGV[i])[1]
  found[#found + 1] = entry and (entry[2][4] or '') or false
end
return found
"""
)

# stage, entry ... -> their idle time starts again
RENEW = (
    HEAD
    + FENCE
    + STAGE
    + """
for i = 3, #ARGV do
  local held = redis.call('XPENDING', STREAM, GROUP, ARGV[i], ARGV[i], 1)[1]
  if held then redis.call('XCLAIM', STREAM, GROUP, held[2], 0, ARGV[i], 'JUSTID') end
end
return 1
"""
)

# stage, entry, slot, data, capacity (0: none) -> 1 moved on, 0 it already had, -1 no room
PUSH = once(
    STAGE
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
return 1, true
"""
)

# stage, entry, slot, reason, payload ('': the entry's own data), encoded SlotDropped -> 1 dropped, 0 it had moved on
DROP = once(
    STAGE
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
return moved_on and 0 or 1, not moved_on
"""
)

# entry, slot, reason, data -> 1 recorded, 0 it was already
BAD_SCORED = (
    HEAD
    + FENCE
    + """
if redis.call('HSETNX', META, 'bad:' .. ARGV[2], 1) == 0 then return 0 end
redis.call('XADD', DEAD, '*', 'slot', ARGV[3], 'reason', ARGV[4], 'stage', 'scored', 'data', ARGV[5])
return 1
"""
)

# reason, (slot, encoded SlotDropped) ... -> how many scored groups became drops. They stay drops whatever is read again.
WRITE_OFF = once(
    """
local reason, record_of, count, from = ARGV[2], {}, 0, '-'
for i = 3, #ARGV, 2 do
  if redis.call('HEXISTS', META, 'off:' .. ARGV[i]) == 0 then record_of[ARGV[i]] = ARGV[i + 1] end
end
local found = {}
while true do
  local page = redis.call('XRANGE', SCORED, from, '+', 'COUNT', 16)
  if #page == 0 then break end
  for _, entry in ipairs(page) do
    if record_of[entry[2][2]] then found[#found + 1] = {entry[1], entry[2][2]} end
  end
  from = '(' .. page[#page][1]
end
for _, entry in ipairs(found) do
  local id, slot = entry[1], entry[2]
  redis.call('XADD', DEAD, '*', 'slot', slot, 'reason', reason, 'stage', 'learner', 'data', '')
  redis.call('XADD', SCORED, '*', 'slot', slot, 'data', record_of[slot])
  redis.call('HSET', META, 'off:' .. slot, 1)
  redis.call('XDEL', SCORED, id)
  count = count + 1
end
return count, count > 0
"""
)

# cursor -> how many entries before it were deleted; their slots are ended from now on
TRIM = once(
    """
local cursor, from = ARGV[2], '-'
if cursor == '0-0' then return 0 end
redis.call('HDEL', META, 'begins the script on a full server')
while true do
  local page = redis.call('XRANGE', SCORED, from, '(' .. cursor, 'COUNT', 16)
  if #page == 0 then break end
  for _, entry in ipairs(page) do
    redis.call('SADD', ENDED, entry[2][2])
    redis.call('HDEL', SEEN, entry[2][2])
    redis.call('HDEL', META, 'bad:' .. entry[1], 'off:' .. entry[2][2])
  end
  from = '(' .. page[#page][1]
end
local floor = tonumber(redis.call('HGET', META, 'floor') or '0')
while redis.call('SREM', ENDED, floor) == 1 do floor = floor + 1 end
redis.call('HSET', META, 'floor', floor)
return redis.call('XTRIM', SCORED, 'MINID', '=', cursor), true
"""
)

# -> a role died while it had work: the attempts that it started count in the runs that follow
BLAME = (
    HEAD
    + FENCE
    + """
redis.call('HSET', META, 'role_died', 1)
return 1
"""
)

# slot ... (those in scored) -> everything in flight is forgotten, but the attempts of a run that ended by a role's death
RESET = once(
    GROUPS
    + """
redis.call('DEL', WORK, ROLLOUTS, SEEN, CALLS)
if redis.call('HDEL', META, 'role_died') == 0 then redis.call('DEL', ATTEMPTS) end
for i = 2, #ARGV do redis.call('HSET', SEEN, ARGV[i], '3') end
local floor = tonumber(redis.call('HGET', META, 'floor') or '0')
for _, entry in ipairs(redis.call('XRANGE', DEAD, '-', '+')) do
  local slot = entry[2][2]
  if tonumber(slot) >= floor and redis.call('SISMEMBER', ENDED, slot) == 0 and redis.call('HEXISTS', SEEN, slot) == 0 then
    redis.call('XDEL', DEAD, entry[1])
  end
end
make_groups()
return 1, true
"""
)

# cursor -> how many scored records after it were forgotten; what was written off is never sampled again
FORGET_AFTER = once(
    """
local count = 0
for _, entry in ipairs(redis.call('XRANGE', SCORED, '(' .. ARGV[2], '+')) do
  if redis.call('HEXISTS', META, 'off:' .. entry[2][2]) == 0 then count = count + redis.call('XDEL', SCORED, entry[1]) end
end
return count, count > 0
"""
)

# -> nothing is left but the incarnation, by which a role of an earlier driver stays fenced, and empty streams, at which roles
# of this one may still be looking
DELETE = (
    HEAD
    + GROUPS
    + """
local incarnation = redis.call('HGET', META, 'incarnation')
redis.call('DEL', unpack(KEYS))
if incarnation then redis.call('HSET', META, 'incarnation', incarnation) end
make_groups()
return 1
"""
)

# stream, start of range, count -> {entry, slot} ... without the payloads
SLOTS = (
    HEAD
    + """
local found, streams = {}, {work = WORK, rollouts = ROLLOUTS, scored = SCORED}
for _, entry in ipairs(redis.call('XRANGE', streams[ARGV[2]], ARGV[3], '+', 'COUNT', ARGV[4])) do
  found[#found + 1] = {entry[1], entry[2][2]}
end
return found
"""
)

# -> {entry, slot, reason, stage, bytes} of each dead letter whose slot no checkpoint can bring back
SETTLED = (
    HEAD
    + """
local floor, found, from = tonumber(redis.call('HGET', META, 'floor') or '0'), {}, '-'
while true do
  local page = redis.call('XRANGE', DEAD, from, '+', 'COUNT', 16)
  if #page == 0 then return found end
  for _, entry in ipairs(page) do
    local slot = entry[2][2]
    if tonumber(slot) < floor or redis.call('SISMEMBER', ENDED, slot) == 1 then
      found[#found + 1] = {entry[1], slot, entry[2][4], entry[2][6], #(entry[2][8] or '')}
    end
  end
  from = '(' .. page[#page][1]
end
"""
)

# entry ... -> these dead letters, which are written down elsewhere, are deleted; `dead_gone` counts them
FORGET_DEAD = (
    HEAD
    + FENCE
    + """
local gone = 0
for i = 2, #ARGV do gone = gone + redis.call('XDEL', DEAD, ARGV[i]) end
redis.call('HINCRBY', META, 'dead_gone', gone)
return 1
"""
)
