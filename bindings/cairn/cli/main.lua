-- The dispatcher of the `cairn` command: finds the command, parses its
-- options, runs it and turns what happened into an exit code (design: 0 well,
-- 1 a job or check failed, 2 wrong use or input, 3 environment).

local commands = require "cairn.cli.commands"
local options = require "cairn.cli.options"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local main = {}

-- Which file runs a command; loaded when it is called.
local modules = {
  run = "cairn.cli.run",
  preview = "cairn.cli.preview",
  simulate = "cairn.cli.simulate",
  calendar = "cairn.cli.calendar",
  top = "cairn.cli.top",
  export = "cairn.cli.exports",
  import = "cairn.cli.exports",
  points = "cairn.cli.exports",
  doctor = "cairn.cli.doctor",
  verify = "cairn.cli.exports",
  restore = "cairn.cli.exports",
  merge = "cairn.cli.exports",
  prune = "cairn.cli.exports",
  console = "cairn.cli.console",
  serve = "cairn.cli.serve",
}
for _, name in ipairs { "jobs", "show", "why", "history", "start", "suspend",
  "resume", "terminate", "kill", "set", "answer", "delete", "reload",
  "policies", "metrics" } do
  modules[name] = "cairn.cli.remote"
end

local function load_module()
  local ok, cairn = pcall(require, "cairn")
  if not ok then
    say.fail(3, "the module `cairn` cannot be loaded:\n%s", tostring(cairn))
  end
  return cairn
end

local function unknown_command(name)
  say.fail(2, "unknown command %s%s", text.printable(name),
    text.valid(name, commands.names))
end

-- A command as plain data, for programs.
local function describe(command)
  local function plain(list, fields)
    local out = {}
    for _, entry in ipairs(list) do
      local copy = {}
      for _, field in ipairs(fields) do copy[field] = entry[field] end
      if not entry.is_hidden then out[#out + 1] = copy end
    end
    return out
  end
  local exits = {}
  for i, exit in ipairs(command.exits) do
    exits[i] = { code = exit[1], meaning = exit[2] }
  end
  return {
    name = command.name, summary = command.summary,
    description = command.description, usage = options.usage(command),
    arguments = plain(command.arguments, { "name", "help", "optional",
      "rest" }),
    options = plain(command.options, { "name", "short", "value", "help",
      "required", "is_repeated", "choices" }),
    exit_codes = exits, examples = command.examples,
  }
end

local function help(parsed)
  if parsed.json then
    local cairn = load_module()
    if parsed.command and not commands.by_name[parsed.command] then
      unknown_command(parsed.command)
    end
    for _, command in ipairs(commands.list) do
      if not parsed.command or parsed.command == command.name then
        say.json(cairn, describe(command), { arguments = true })
      end
    end
  elseif parsed.man then
    say.result((require "cairn.cli.manual".page(commands,
      load_module().version):gsub("\n$", "")))
  elseif parsed.completion then
    say.result((require "cairn.cli.manual".bash(commands):gsub("\n$", "")))
  elseif parsed.command then
    local command = commands.by_name[parsed.command]
    if not command then unknown_command(parsed.command) end
    say.result((options.help(command):gsub("\n$", "")))
  else
    say.result((options.overview(commands):gsub("\n$", "")))
  end
  return 0
end

local function top(argv)
  local parsed, message = options.parse(
    { name = "", options = commands.top, arguments = {} }, argv)
  if not parsed then
    say.fail(2, "%s\ncairn --help lists the commands", message)
  end
  if parsed.help then
    return help {}
  elseif parsed.version then
    local cairn = load_module()
    if parsed.json then
      say.result(cairn.json_encode { version = cairn.version })
    else
      say.result("cairn " .. cairn.version)
    end
    return 0
  end
  say.fail(2, "a command is missing; cairn --help lists them")
end

-- A policy, a collection or the body of a job that ends the process would make
-- the command report success for work not done, or leave jobs behind. Only what
-- the console runs says with what code it ends.
local exit = os.exit

local function refuse_exit()
  error("os.exit is not for policies, collections and jobs: raise an error, "
    .. "or return", 2)
end

local function dispatch(argv)
  local name = argv[1]
  if name == nil or name:sub(1, 1) == "-" then return top(argv) end
  local command = commands.by_name[name]
  if not command then unknown_command(name) end
  local parsed, message = options.parse(command,
    table.move(argv, 2, #argv, 1, {}))
  if not parsed then
    say.fail(2, "%s: %s\ncairn %s --help describes it", name, message, name)
  end
  if parsed.help then return help { command = name } end
  if name == "help" then return help(parsed) end
  local cairn, uv = load_module(), require "luv"
  require "cairn.core".process_start()
  require "cairn.cli.guard".install(uv)
  os.exit = name == "console" and main.exit or refuse_exit -- luacheck: ignore
  return require(modules[name])[name](cairn, uv, parsed)
end

-- Runs the command line argv; returns the exit code. Never raises.
function main.run(argv)
  local ok, result = xpcall(function()
    local code = dispatch(argv)
    say.flush()
    return code
  end, function(err)
    if say.is_failure(err) then return err end
    return debug.traceback(tostring(err), 2)
  end)
  if ok then return result end
  pcall(io.stdout.flush, io.stdout)
  if say.is_failure(result) then
    say.note("cairn: " .. result.message)
    return result.exit
  end
  say.note("cairn: internal error, please report it: " .. result)
  return 1
end

-- Ends the process, without closing the Lua state: a luv handle that is still
-- closing then crashes luv, and the engine's threads may be at their last
-- instructions in a library that would be unloaded. What must be ended in
-- order (engines, the terminal, standard output) has been.
function main.exit(code)
  exit(code, false)
end

return main
