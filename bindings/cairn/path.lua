-- Where relative paths point. What a file declares (a collection, a policy's
-- jobs) is relative to that file; what a program passes in a call is relative
-- to the working directory, as everywhere. Stored paths are absolute.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"

local path = {}

function path.cwd()
  local cwd, message, code = core.cwd()
  if not cwd then failure.raise(code, "%s", message) end
  return cwd
end

function path.absolute(name, base)
  if type(name) ~= "string" or name == "" or name:sub(1, 1) == "/" then
    return name
  end
  base = base or path.cwd()
  return (base == "/" and "" or base) .. "/" .. (name:gsub("^%./+", ""))
end

-- The directory of a chunk's source ("@file", as debug.getinfo gives it); the
-- working directory for what is no file.
function path.base_of(source)
  local file = type(source) == "string" and source:match("^@(.+)$")
  local directory = file and file:match("^(.*)/[^/]*$")
  if directory == "" then return "/" end
  if not directory then return path.cwd() end
  return path.absolute(directory)
end

return path
