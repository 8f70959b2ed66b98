-- lua.least_loaded: the cell with the fewest unfinished videos, as GET /load of its server says. Needs HAProxy >= 2.5,
-- and --public-metrics on the servers. A cell is a backend cell_NAME; one that is not healthy gets no new videos.

local PERIOD = 500  -- milliseconds between two questions
local loads = {}    -- by cell: its unfinished videos; nil while it cannot make any
local sent = {}     -- by cell: videos that were sent there since it was asked
local turns = 0     -- videos that were sent to any cell
local last = {}     -- by cell: the turn in which it got its last video

local function get(address, path)
  local answer = core.httpclient():get({url = "http://" .. address .. path, timeout = 5000})
  if answer and answer.status == 200 then return answer.body end
end

local function ask(backend)
  for _, server in pairs(backend.servers) do
    if string.match(server:get_stats()["status"] or "", "^UP") then
      local address = server:get_addr()
      if get(address, "/health") then
        return tonumber(string.match(get(address, "/load") or "", '"server_load"%s*:%s*(%d+)'))
      end
    end
  end
end

core.register_task(function()
  while true do
    for name, backend in pairs(core.backends) do
      local cell = string.match(name, "^cell_(.+)$")
      if cell then
        local before = sent[cell] or 0
        loads[cell] = ask(backend)
        sent[cell] = (sent[cell] or 0) - before  -- those that were sent in the meantime
      end
    end
    core.msleep(PERIOD)
  end
end)

core.register_fetches("least_loaded", function()
  local best, least
  for cell, load in pairs(loads) do
    local total = load + (sent[cell] or 0)
    local is_first = not best or (last[cell] or 0) < (last[best] or 0)
    if not least or total < least or (total == least and is_first) then
      best, least = cell, total
    end
  end
  if best then
    turns = turns + 1
    sent[best], last[best] = (sent[best] or 0) + 1, turns
  end
  return best or ""
end)
