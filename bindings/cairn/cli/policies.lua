-- The policies that a command is about: one file, or all of a directory.

local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local policies = {}

-- --set K=V...: a table; the last one of a key counts.
function policies.settings(list)
  local settings = {}
  for _, pair in ipairs(list or {}) do
    local key, value = pair:match("^([^=]+)=(.*)$")
    settings[key] = value
  end
  return settings
end

-- --queue NAME=N...: as cairn.open takes queues | nil: none was given.
function policies.queues(list)
  if not list then return nil end
  local queues = {}
  for _, pair in ipairs(list) do
    local name, places = pair:match "^([^=]+)=(%d+)$"
    queues[name] = { concurrency = math.tointeger(tonumber(places)) }
  end
  return queues
end

-- The Lua files of a directory by name, as `cairn serve` takes them | nil: it
-- is none.
local function files_in(uv, path)
  local status = uv.fs_stat(path)
  if not status or status.type ~= "directory" then return nil end
  local request, message = uv.fs_scandir(path)
  if not request then
    say.fail(3, "%s: %s", text.printable(path), tostring(message))
  end
  local files = {}
  while true do
    local name = uv.fs_scandir_next(request)
    if not name then break end
    if name:find "%.lua$" and not name:find "^%." then
      files[#files + 1] = path:gsub("/+$", "") .. "/" .. name
    end
  end
  if #files == 0 then
    say.fail(2, "%s: no policy in this directory (a file *.lua)",
      text.printable(path))
  end
  table.sort(files)
  return files
end

-- The policies of a file or directory; ends the command when one is bad.
function policies.load(cairn, uv, path, settings)
  local list, from = {}, {}
  for _, file in ipairs(files_in(uv, path) or { path }) do
    local policy, message, code = cairn.policy_load(file, settings)
    if not policy then say.fail_with(cairn, message, code) end
    local other = from[policy.name]
    if other then
      say.fail(2, "%s and %s: both are the policy %s; give one of them another "
        .. "name (name = ..., beside jobs)", text.printable(other),
        text.printable(file), text.printable(policy.name))
    end
    from[policy.name] = file
    list[#list + 1] = policy
  end
  return list
end

return policies
