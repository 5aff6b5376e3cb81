-- The manual page cairn(1) and the shell completion, made from the tables of
-- commands.lua. docs/man/cairn.1 is this text; a test compares them.

local options = require "cairn.cli.options"

local manual = {}

local function escape(s)
  s = s:gsub("\\", "\\e"):gsub("%-", "\\-"):gsub("'", "\\(aq")
    :gsub("`", "\\(ga"):gsub("%^", "\\(ha"):gsub("~", "\\(ti")
  return (s:gsub("^%.", "\\&."))
end

-- "--to DIR" with the option bold and the value italic
local function label(option)
  local out = ""
  if option.short then out = "\\fB\\-" .. option.short .. "\\fR, " end
  out = out .. "\\fB\\-\\-" .. escape(option.name) .. "\\fR"
  if option.value then out = out .. " \\fI" .. escape(option.value) .. "\\fR" end
  return out
end

local function add_tagged(out, entries)
  for _, entry in ipairs(entries) do
    out[#out + 1] = ".TP"
    out[#out + 1] = entry[1]
    out[#out + 1] = escape(entry[2])
  end
end

local function add_exits(out, exits)
  for _, exit in ipairs(exits) do
    out[#out + 1] = ".TP"
    out[#out + 1] = ".B " .. exit[1]
    out[#out + 1] = escape(exit[2])
  end
end

local function add_command(out, command)
  out[#out + 1] = (".SS cairn %s"):format(command.name)
  out[#out + 1] = ".nh"
  out[#out + 1] = ".B cairn " .. command.name
  for _, word in ipairs(options.usage_words(command)) do
    out[#out + 1] = escape(word)
  end
  out[#out + 1] = ".hy"
  local is_literal = false
  out[#out + 1] = ".PP"
  for _, line in ipairs(options.paragraphs(command.description)) do
    local literal = line:find("^ ") ~= nil
    if literal ~= is_literal then
      out[#out + 1] = literal and ".PP\n.nf" or ".fi"
      is_literal = literal
    end
    out[#out + 1] = line == "" and ".PP" or escape(line)
  end
  if is_literal then out[#out + 1] = ".fi" end
  local entries = {}
  for _, argument in ipairs(command.arguments) do
    entries[#entries + 1] =
      { "\\fI" .. escape(argument.name) .. "\\fR", argument.help }
  end
  for _, option in ipairs(command.options) do
    if not option.is_hidden then
      entries[#entries + 1] = { label(option), option.help }
    end
  end
  add_tagged(out, entries)
  out[#out + 1] = ".PP"
  out[#out + 1] = "Exit codes:"
  add_exits(out, command.exits)
  out[#out + 1] = ".PP"
  out[#out + 1] = "Examples:"
  out[#out + 1] = ".PP\n.nf\n.RS"
  for _, example in ipairs(command.examples) do
    out[#out + 1] = escape(example)
  end
  out[#out + 1] = ".RE\n.fi"
end

function manual.page(commands, version)
  local out = {
    '.\\" Made by `cairn help --man`; do not edit.',
    (".TH CAIRN 1 \"\" \"cairn %s\" \"User Commands\""):format(version),
    ".SH NAME",
    "cairn \\- export collections of virtual machines, and prove it",
    ".SH SYNOPSIS",
    ".B cairn",
    "\\fICOMMAND\\fR [\\fIARGUMENT\\fR...] [\\fIOPTION\\fR...]",
    ".SH DESCRIPTION",
    "Cairn is a job engine scripted in Lua. Its main job exports a collection",
    "of virtual machines as of a reference point; verify proves that what was",
    "written is right, restore writes it back.",
    ".PP",
    "Results go to standard output, progress and messages to standard error.",
    "On a terminal progress is shown as bars, elsewhere as plain lines.",
    ".SH OPTIONS",
  }
  local entries = {}
  for i, option in ipairs(commands.top) do
    entries[i] = { label(option), option.help }
  end
  add_tagged(out, entries)
  out[#out + 1] = ".SH COMMANDS"
  for _, command in ipairs(commands.list) do add_command(out, command) end
  out[#out + 1] = ".SH EXIT STATUS"
  add_exits(out, commands.exits)
  for _, line in ipairs {
    ".PP",
    "A signal that comes before any job exists, or that finds Lua code which",
    "does not return, ends the process as that signal: a shell shows 128 and",
    "its number.",
    ".SH NOTES",
    "Every disk of a machine keeps descriptors open while its job runs. The",
    "soft limit of open files is raised to the hard one (\\fBulimit \\-Hn\\fR),",
    "also for the programs that a policy runs.",
    ".PP",
    "Paths and names must be UTF\\-8; others are refused.",
    ".SH ENVIRONMENT",
    ".TP",
    ".B NO_COLOR",
    "when set and not empty: no colour",
    ".TP",
    ".B TERM",
    "when unset or \\fBdumb\\fR: plain lines instead of bars",
    ".TP",
    ".BR LC_ALL ,\\  LC_CTYPE ,\\  LANG",
    "whether the terminal shows UTF\\-8",
    ".SH SEE ALSO",
    ".BR qemu\\-img (1)",
  } do
    out[#out + 1] = line
  end
  return table.concat(out, "\n") .. "\n"
end

-- ---- completion -----------------------------------------------------------------

local takes_path = {
  FILE = true, DIR = true, ["FILE.lua"] = true, ["POLICY.lua"] = true,
}

-- One bash function, its cases made from the tables.
function manual.bash(commands)
  local out = {
    "# bash completion for cairn; made by `cairn help --completion bash`",
    "_cairn() {",
    "  local word=${COMP_WORDS[COMP_CWORD]}",
    "  local before=${COMP_WORDS[COMP_CWORD-1]}",
    "  local words=",
    "  if [ \"$COMP_CWORD\" -eq 1 ]; then",
    ("    words='%s --help --version'"):format(
      table.concat(commands.names, " ")),
    "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))",
    "    return",
    "  fi",
    "  case ${COMP_WORDS[1]}:$before in",
  }
  for _, command in ipairs(commands.list) do
    for _, option in ipairs(command.options) do
      if option.value and not option.is_hidden then
        local spelling = command.name .. ":--" .. option.name
        if option.short then
          spelling = spelling .. "|" .. command.name .. ":-" .. option.short
        end
        if option.choices then
          out[#out + 1] = ("  %s) words='%s' ;;"):format(spelling,
            table.concat(option.choices, " "))
        elseif takes_path[option.value] then
          out[#out + 1] = ("  %s)"):format(spelling)
          out[#out + 1] = "    COMPREPLY=($(compgen -f -- \"$word\")); return ;;"
        else
          out[#out + 1] = ("  %s) return ;;"):format(spelling)
        end
      end
    end
  end
  out[#out + 1] = "  *)"
  out[#out + 1] = "    case ${COMP_WORDS[1]}:$word in"
  for _, command in ipairs(commands.list) do
    local names = {}
    for _, option in ipairs(command.options) do
      if not option.is_hidden then names[#names + 1] = "--" .. option.name end
    end
    out[#out + 1] = ("    %s:-*) words='%s' ;;"):format(command.name,
      table.concat(names, " "))
  end
  for _, line in ipairs {
    ("    help:*) words='%s' ;;"):format(table.concat(commands.names, " ")),
    "    *) COMPREPLY=($(compgen -f -- \"$word\")); return ;;",
    "    esac ;;",
    "  esac",
    "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))",
    "}",
    "complete -o filenames -F _cairn cairn",
  } do
    out[#out + 1] = line
  end
  return table.concat(out, "\n") .. "\n"
end

return manual
