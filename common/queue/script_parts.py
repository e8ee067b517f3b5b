"""What the queue's Lua scripts begin with: their keys, the fence, and the reply that is kept for a second sending of a call.

Used by common/queue/scripts.py, and by common/queue/queue.py for the names of the keys. All scripts take the same keys and, as
ARGV[1], the caller's incarnation. One older than the run's is refused before anything is written (FENCED), a newer one means
that the server lost the run (REGRESSED).

A reply can be lost after the script has run, and the caller then sends the same call again. The last two arguments are the
caller (one thread of one process) and the number of its call. `calls` holds the reply of each caller's last call that changed
something: a call that comes twice changes nothing the second time and gets the reply of the first.
"""

from __future__ import annotations

KEYS = ("meta", "work", "rollouts", "scored", "dead", "seen", "attempts", "ended", "calls")

HEAD = """
local META, WORK, ROLLOUTS, SCORED, DEAD, SEEN, ATTEMPTS, ENDED, CALLS = unpack(KEYS)
local CALL, CALLER = table.remove(ARGV), table.remove(ARGV)
"""

FENCE = """
local MINE = tonumber(ARGV[1])
local NOW = tonumber(redis.call('HGET', META, 'incarnation') or '0')
if MINE > NOW or NOW == 0 then return redis.error_reply('REGRESSED ' .. NOW) end
if MINE < NOW then return redis.error_reply('FENCED ' .. NOW) end
"""

STAGE = """
local STREAM, GROUP, REACHED = WORK, 'actors', '1'
if ARGV[2] == 'rollouts' then STREAM, GROUP, REACHED = ROLLOUTS, 'rewarders', '2' end
"""

GROUPS = """
local function make_groups()
  redis.pcall('XGROUP', 'CREATE', WORK, 'actors', '0', 'MKSTREAM')
  redis.pcall('XGROUP', 'CREATE', ROLLOUTS, 'rewarders', '0', 'MKSTREAM')
end
"""


def once(body: str, fence: str = FENCE) -> str:
    """A script whose reply is kept for a second sending of the same call. The body returns the reply, and whether it changed
    anything; what changed nothing may run again."""
    return f"""{HEAD}{fence}
local said = redis.call('HGET', CALLS, CALLER)
if said then
  local last = cmsgpack.unpack(said)
  if last[1] == CALL then return last[2] end
end
local function act()
{body}
end
local reply, changed = act()
if changed then redis.call('HSET', CALLS, CALLER, cmsgpack.pack({{CALL, reply}})) end
return reply
"""
