-- Writes docs/lua-api.md and bindings/cairn.meta.lua from bindings/cairn/api.lua.
--
--   lua5.4 scripts/lua_reference.lua            writes both
--   lua5.4 scripts/lua_reference.lua --check    says which is out of date, exit 1
--
-- Needs no build: the table of the API is plain Lua.

local root = (arg[0]:match("^(.*)/[^/]*$") or ".") .. "/.."
local api = assert(loadfile(root .. "/bindings/cairn/api.lua", "t"))()

local function wrap(text, indent, first)
  local lines, line = {}, first or ""
  for word in text:gmatch("%S+") do
    if #line + #word + 1 > 79 and line:find("%S") then
      lines[#lines + 1] = line
      line = indent .. word
    else
      line = line:find("%S%s*$") and not line:find("^%s*[-]%s$")
        and line .. " " .. word or line .. word
    end
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
end

local function markdown()
  local out = {}
  local function add(s) out[#out + 1] = s end
  add "# Cairn in Lua"
  add ""
  add "<!-- Written by scripts/lua_reference.lua from bindings/cairn/api.lua. -->"
  for _, section in ipairs(api.sections) do
    add ""
    add("## " .. section.title)
    add ""
    add(section.text)
    for _, field in ipairs(section.fields or {}) do
      add ""
      add("### cairn." .. field[1])
      add ""
      add(wrap(("`%s`: %s."):format(field[2], field[3]), ""))
    end
    for _, entry in ipairs(section.entries) do
      add ""
      add("### " .. api.signature(entry))
      if entry.text ~= "" then
        add ""
        add(wrap(entry.text, ""))
      end
      local items = {}
      for _, param in ipairs(entry.params) do
        if param[3] ~= "" then
          items[#items + 1] = wrap(("`%s`: %s"):format(param[1], param[3]),
            "  ", "- ")
        end
      end
      for i, result in ipairs(entry.returns) do
        if result[2] ~= "" then
          items[#items + 1] = wrap(("%s `%s`: %s"):format(i == 1 and "returns"
            or "then", result[1], result[2]), "  ", "- ")
        end
      end
      if #items > 0 then
        add ""
        add(table.concat(items, "\n"))
      end
    end
  end
  return table.concat(out, "\n") .. "\n"
end

local function one_line(text) return (text:gsub("%s+", " ")) end

local function meta()
  local out = {}
  local function add(s) out[#out + 1] = s end
  add "---@meta cairn"
  add "-- Types for editors (LuaLS). Written by scripts/lua_reference.lua from"
  add "-- bindings/cairn/api.lua."
  add ""
  for _, class in ipairs { "cairn.collection", "cairn.policy", "cairn.datetime",
    "cairn.task", "cairn.open.options" } do
    add("---@class " .. class)
    add ""
  end
  for _, section in ipairs(api.sections) do
    if section.class then
      add("---@class " .. section.class)
      add(("local %s = {}"):format(section.class:match("%.(.*)$")))
      add ""
    elseif section.fields then
      add "---@class cairn"
      for _, field in ipairs(section.fields) do
        add(("---@field %s %s # %s"):format(field[1], field[2],
          one_line(field[3])))
      end
      add "local cairn = {}"
      add ""
    end
    for _, entry in ipairs(section.entries) do
      local names = {}
      if entry.text ~= "" then add("---" .. one_line(entry.text)) end
      for i, param in ipairs(entry.params) do
        names[i] = param[1]
        local name, kind = param[1], param[2]
        if kind:find("?$") and name ~= "..." then
          name, kind = name .. "?", kind:sub(1, -2)
        end
        add(("---@param %s %s %s"):format(name, kind, one_line(param[3]))
          :gsub("%s+$", "") .. "")
      end
      for _, result in ipairs(entry.returns) do
        add((("---@return %s # %s"):format(result[1], one_line(result[2]))
          :gsub("%s+#%s*$", "")))
      end
      add(("function %s(%s) end"):format(entry.name,
        table.concat(names, ", ")))
      add ""
    end
  end
  add "return cairn"
  return table.concat(out, "\n") .. "\n"
end

local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "a"
  file:close()
  return text
end

local files = { { "docs/lua-api.md", markdown() },
  { "bindings/cairn.meta.lua", meta() } }

if arg[1] == "--check" then
  local is_stale = false
  for _, file in ipairs(files) do
    if read(root .. "/" .. file[1]) ~= file[2] then
      io.stderr:write(file[1], " is out of date: lua5.4 ",
        "scripts/lua_reference.lua writes it\n")
      is_stale = true
    end
  end
  os.exit(is_stale and 1 or 0)
elseif arg[1] then
  io.stderr:write("lua_reference: unknown argument ", arg[1],
    " (valid: --check)\n")
  os.exit(2)
end
for _, file in ipairs(files) do
  local path = root .. "/" .. file[1]
  local out = assert(io.open(path .. ".tmp", "wb"))
  assert(out:write(file[2]))
  assert(out:close())
  assert(os.rename(path .. ".tmp", path))
end
