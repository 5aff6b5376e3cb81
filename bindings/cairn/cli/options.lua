-- Command lines: parsed against the tables of commands.lua, and described.
-- An own parser of one page rather than a library: the script of `console
-- FILE -x` keeps its options, a message names the nearest option whatever the
-- typing error, and help, manual page and completion share one table.

local text = require "cairn.cli.text"

local options = {}

local function key_of(option)
  return option.key or (option.name:gsub("-", "_"))
end

local function find(list, spelling)
  for _, option in ipairs(list) do
    if spelling == "--" .. option.name
      or (option.short and spelling == "-" .. option.short) then
      return option
    end
  end
end

local function unknown(list, spelling)
  local names = {}
  for _, option in ipairs(list) do
    if not option.is_hidden then names[#names + 1] = "--" .. option.name end
  end
  return "unknown option " .. text.printable(spelling)
    .. text.valid(spelling, names)
end

-- Takes one option's value into `result`; nil | message.
local function take(result, option, value)
  local key = key_of(option)
  if option.choices then
    local is_valid = false
    for _, choice in ipairs(option.choices) do
      is_valid = is_valid or choice == value
    end
    if not is_valid then
      return ("--%s %s: valid are %s"):format(option.name,
        text.printable(value), table.concat(option.choices, ", "))
    end
  end
  if value == "" and not option.is_any then
    return ("--%s wants a value (%s), not an empty one"):format(option.name,
      option.value)
  end
  local message = option.check and option.check(value)
  if message then
    if not option.value then return message end
    return ("--%s %s: %s"):format(option.name, text.printable(value), message)
  end
  if option.is_repeated then
    result[key] = result[key] or {}
    table.insert(result[key], value)
  elseif result[key] ~= nil and option.value then
    return ("--%s is given twice"):format(option.name)
  else
    result[key] = option.value and value or true
  end
end

-- Parses argv (from index 1) for a command: a table keyed by the keys of
-- options and arguments | nil, message.
function options.parse(command, argv)
  local result, positional = {}, {}
  local at, only_arguments = 1, false
  while at <= #argv do
    local word = argv[at]
    local spelling, attached = word, nil
    if only_arguments or word == "-" or word:sub(1, 1) ~= "-" then
      positional[#positional + 1] = word
      only_arguments = only_arguments or command.is_script
    elseif word == "--" then
      only_arguments = true
    else
      if word:sub(1, 2) == "--" then
        local name, value = word:match("^(%-%-[^=]+)=(.*)$")
        if name then spelling, attached = name, value end
      elseif #word > 2 then
        spelling, attached = word:sub(1, 2), word:sub(3)
      end
      local option = find(command.options, spelling)
      if not option then
        return nil, unknown(command.options, spelling)
      end
      local value
      if not option.value then
        if attached and word:sub(1, 2) == "--" then
          return nil, ("--%s takes no value"):format(option.name)
        elseif attached then
          return nil, unknown(command.options, word)
        end
        value = true
      elseif attached then
        value = attached
      else
        at = at + 1
        value = argv[at]
        if value and not option.is_any and find(command.options, value) then
          return nil, ("--%s wants a value (%s), not %s; if that is meant: "
            .. "--%s=%s"):format(option.name, option.value, value,
            option.name, value)
        end
      end
      if value == nil then
        return nil, ("--%s wants a value (%s)"):format(option.name,
          option.value)
      end
      local message = take(result, option, value)
      if message then return nil, message end
    end
    at = at + 1
  end
  if result.help then return result end

  local next_argument = 1
  for _, argument in ipairs(command.arguments) do
    if argument.rest then
      result[argument.key] = table.move(positional, next_argument,
        #positional, 1, {})
      next_argument = #positional + 1
    else
      local value = positional[next_argument]
      if value == nil and not argument.optional then
        return nil, ("%s is missing: %s"):format(argument.name, argument.help)
      elseif value == "" then
        return nil, ("%s is empty: %s"):format(argument.name, argument.help)
      end
      result[argument.key] = value
      next_argument = next_argument + 1
    end
  end
  if positional[next_argument] ~= nil then
    return nil, ("one argument too many: %s"):format(
      text.printable(positional[next_argument]))
  end
  for _, option in ipairs(command.options) do
    if option.required and result[key_of(option)] == nil
      and not result[option.unless] then
      return nil, ("--%s %s is missing: %s"):format(option.name, option.value,
        option.help)
    end
  end
  return result
end

-- ---- help ---------------------------------------------------------------------

-- "--to DIR", "[--job KEY]..."
local function usage_of(option)
  local out = option.short and "-" .. option.short or "--" .. option.name
  if option.value then out = out .. " " .. option.value end
  if not option.required or option.unless then out = "[" .. out .. "]" end
  return option.is_repeated and out .. "..." or out
end

-- The words of a usage line, for help and manual.
function options.usage_words(command)
  local words = {}
  for _, argument in ipairs(command.arguments) do
    local word = argument.name
    if argument.rest then word = word .. "..." end
    if argument.optional then word = "[" .. word .. "]" end
    words[#words + 1] = word
  end
  for _, option in ipairs(command.options) do
    if not option.is_hidden and option.name ~= "help" then
      words[#words + 1] = usage_of(option)
    end
  end
  return words
end

-- "-e, --eval LUA"
function options.label(option)
  local out = "--" .. option.name
  if option.short then out = "-" .. option.short .. ", " .. out end
  return option.value and out .. " " .. option.value or out
end

local COLUMNS, INDENT = 79, 22

function options.usage(command)
  local lines, current = {}, "usage: cairn " .. command.name
  for _, word in ipairs(options.usage_words(command)) do
    if #current + 1 + #word > COLUMNS then
      lines[#lines + 1] = current
      current = (" "):rep(#"usage: cairn " + #command.name) .. " " .. word
    else
      current = current .. " " .. word
    end
  end
  lines[#lines + 1] = current
  return table.concat(lines, "\n")
end

local function add_entries(out, title, entries)
  if #entries == 0 then return end
  out[#out + 1] = ""
  out[#out + 1] = title
  for _, entry in ipairs(entries) do
    local label, help = entry[1], text.wrap(entry[2], COLUMNS - INDENT)
    if #label + 2 > INDENT - 2 then
      out[#out + 1] = "  " .. label
    else
      out[#out + 1] = text.fit("  " .. label, INDENT) .. table.remove(help, 1)
    end
    for _, line in ipairs(help) do
      out[#out + 1] = (" "):rep(INDENT) .. line
    end
  end
end

-- Paragraphs of a description: wrapped, except lines that start with a space.
function options.paragraphs(description)
  local out, current = {}, nil
  for line in (description .. "\n"):gmatch("(.-)\n") do
    if line == "" or line:find("^ ") then
      out[#out + 1] = current
      current = nil
      out[#out + 1] = line
    else
      current = current and current .. " " .. line or line
    end
  end
  out[#out + 1] = current
  return out
end

local function exit_entries(exits)
  local entries = {}
  for i, exit in ipairs(exits) do
    entries[i] = { tostring(exit[1]), exit[2] }
  end
  return entries
end

-- What `cairn COMMAND --help` prints.
function options.help(command)
  local out = { options.usage(command), "" }
  for _, paragraph in ipairs(options.paragraphs(command.description)) do
    for _, line in ipairs(text.wrap(paragraph, COLUMNS)) do
      out[#out + 1] = line
    end
  end
  local entries = {}
  for _, argument in ipairs(command.arguments) do
    entries[#entries + 1] = { argument.name, argument.help }
  end
  add_entries(out, "Arguments:", entries)
  entries = {}
  for _, option in ipairs(command.options) do
    if not option.is_hidden then
      entries[#entries + 1] = { options.label(option), option.help }
    end
  end
  add_entries(out, "Options:", entries)
  add_entries(out, "Exit codes:", exit_entries(command.exits))
  out[#out + 1] = ""
  out[#out + 1] = "Examples:"
  for _, example in ipairs(command.examples) do
    out[#out + 1] = "  " .. example
  end
  return table.concat(out, "\n") .. "\n"
end

-- What `cairn --help` prints.
function options.overview(commands)
  local out = {
    "usage: cairn COMMAND [ARGUMENT...] [OPTION...]",
    "",
    "Exports collections of virtual machines as of a reference point, and",
    "proves what it wrote. Policies are Lua files.",
  }
  local entries = {}
  for i, command in ipairs(commands.list) do
    entries[i] = { command.name, command.summary }
  end
  add_entries(out, "Commands:", entries)
  entries = {}
  for i, option in ipairs(commands.top) do
    entries[i] = { options.label(option), option.help }
  end
  add_entries(out, "Options:", entries)
  add_entries(out, "Exit codes:", exit_entries(commands.exits))
  out[#out + 1] = ""
  out[#out + 1] = "cairn COMMAND --help describes a command; so does cairn(1)."
  return table.concat(out, "\n") .. "\n"
end

return options
