-- Policies on an engine: their jobs given to it, and given again when a file
-- has changed.
--
-- A policy's job is known by policy name and key. Loading updates the job that
-- is there, submits one that is missing, and holds, never deletes, one that has
-- left the file. A job that has ended is left as it is. A file is taken whole or
-- not at all: it is loaded, its tests run, its functions tried on the last
-- decisions that were really made, and only then the jobs get their new
-- specifications. Whatever fails before leaves everything as it was.

local core = require "cairn.core"
core.trust()
local E = require "cairn.engine"
local failure = require "cairn.failure"
local path = require "cairn.path"
local policy = require "cairn.policy"

local M = {}

local Policies = { __name = "cairn.policies" }
Policies.__index = Policies

-- ---- the jobs of one policy ------------------------------------------------------------

-- The job of a policy that has not ended; else one that has.
local function existing(engine, spec)
  local ended
  for _, job in ipairs(engine:jobs { policy = spec.policy,
    policy_key = spec.policy_key }) do
    if not core.state_is_final(job:number "JobState") then return job end
    ended = job
  end
  return nil, ended
end

-- What another policy of that name was read from, when that file is there.
local function other_file(engine, spec)
  local other = E.other_policy_file(engine, spec.policy, spec.policy_file)
  local file = other and io.open(other, "rb")
  if not file then return nil end -- it was moved
  file:close()
  return other
end

-- Gives jobs what the policy has for them now, and submits those that are not
-- there, all or none: list of jobs | nil, message, code. Nothing is waited for.
-- old: the specifications that the jobs have, by policy_key, to be put back.
-- leaves_ended: one that has ended is not submitted anew. is_freed(file): the
-- policy that is there has another name by now.
function M.renew(engine, specs, old, leaves_ended, is_freed)
  local other = other_file(engine, specs[1])
  if other and not (is_freed and is_freed(other)) then
    return nil, ("the store has a policy %s already, from %s; give one of "
      .. "them another name (name = ..., beside jobs)"):format(
      failure.shown(specs[1].policy), other), "exists"
  end
  local jobs, missing, places, updated, strays = {}, {}, {}, {}, {}
  local function back()
    for _, spec in ipairs(updated) do
      local was = old and old[spec.policy_key]
      local job = existing(engine, spec)
      if was and job then engine:update(job, was) end
      if job and strays[spec] and job.phase ~= "held" then
        engine:disown(job)
      end
    end
  end
  for i, spec in ipairs(specs) do
    spec.wait = false
    local job, ended = existing(engine, spec)
    if job then
      strays[spec] = job.phase == "held" -- an update lets a stray go
      local ok, message, code = engine:update(job, spec)
      if not ok then
        back()
        return nil, message, code
      end
      updated[#updated + 1] = spec
      jobs[i] = job
    elseif ended and leaves_ended then
      jobs[i] = ended
    else
      missing[#missing + 1] = spec
      places[#missing] = i
    end
  end
  local made, message, code = engine:submit_all(missing)
  if not made then
    back()
    return nil, message, code
  end
  for i, job in ipairs(made) do jobs[places[i]] = job end
  return jobs
end

-- Holds the jobs of a policy whose keys are not in it (any more), until they
-- are again; tell(job) for each.
function M.hold_strays(engine, name, keys, tell)
  for _, job in ipairs(engine:jobs { policy = name }) do
    if not core.state_is_final(job:number "JobState")
      and not keys[job.policy_key] and job.phase ~= "held" then
      engine:disown(job)
      tell(job)
    end
  end
end

-- ---- before a file is taken ------------------------------------------------------------------

-- The tests of a policy: true | nil, message.
local function run_tests(loaded)
  if not loaded.tests or not loaded.decisions then return true end
  local failed = {}
  for _, name in ipairs(loaded.decisions:tests()) do
    local ok, message, _, trace = loaded.decisions:test(name)
    if not ok then
      failed[#failed + 1] = ("test %s: %s"):format(failure.shown(name),
        E.decide.with_trace(message, trace))
    end
  end
  if #failed == 0 then return true end
  return nil, table.concat(failed, "\n")
end

local function shown(value)
  return value == nil and "nothing" or (core.json_encode(value)
    or tostring(value))
end

-- How the new functions would have decided where the old ones really did: a
-- list of differences as text, how many were tried.
local function replay(engine, loaded)
  local differences, tried = {}, 0
  for _, was in ipairs(engine:decisions()) do
    local spec = loaded.jobs[was.key]
    if was.policy == loaded.name and spec then
      tried = tried + 1
      local answer, message
      if loaded.decisions and loaded.decisions:has(was.key, was.name) then
        local ok, result = loaded.decisions:call(was.key, was.name,
          table.unpack(was.arguments))
        if ok then answer = result else message = result end
      end
      local before = was.error and "failed" or shown(was.answer)
      local after = message and "failed: " .. message or shown(answer)
      if before ~= after then
        differences[#differences + 1] = ("%s of %s (%s): %s, now %s"):format(
          was.name, was.key, os.date("%F %T", was.time), before, after)
      end
    end
  end
  -- what they kept of the past is not what they would have kept
  if tried > 0 and loaded.decisions then loaded.decisions:forget() end
  return differences, tried
end

-- ---- a directory --------------------------------------------------------------------------------

local options_fields = { log = "function", settings = "table" }

-- open(engine, directory, { log = function(level, message), settings = })
function M.open(engine, directory, options)
  options = options or {}
  failure.check_fields(options, options_fields, "policies")
  return setmetatable({ engine = engine, directory = path.absolute(directory),
    log = options.log or function(_, message)
      E.log(core.state(engine), message)
    end, settings = options.settings, entries = {} }, Policies)
end

-- The *.lua files of the directory, sorted | nil, message. Hidden ones are what
-- editors leave behind.
local function scan(directory)
  local uv = require "luv"
  local list, message = uv.fs_scandir(directory)
  if not list then
    return nil, ("cannot read the directory of policies: %s"):format(message)
  end
  local files = {}
  for name in function() return uv.fs_scandir_next(list) end do
    if name:find "^[^.].*%.lua$" then
      files[#files + 1] = directory .. "/" .. name
    end
  end
  table.sort(files)
  return files
end

-- The other file that has a policy of this name now.
function Policies:file_of(name, file)
  for other, row in pairs(self.entries) do
    if other ~= file and row.policy and row.policy.name == name then
      return other
    end
  end
end

-- Takes one file: changes | nil, message, whether another one has its name.
function Policies:take(file, entry)
  local loaded, message, _, trace = policy.load(file, self.settings)
  if not loaded then
    return nil, E.decide.with_trace(message, trace)
  end
  local other = self:file_of(loaded.name, file)
  if other then
    return nil, ("the policy '%s' is in %s already; give one of them another "
      .. "name (name = ..., beside jobs)"):format(loaded.name, other), true
  end
  local ok
  ok, message = run_tests(loaded)
  if not ok then return nil, message end
  local differences, tried = replay(self.engine, loaded)
  local specs, keys, old = {}, {}, {}
  for key, spec in pairs(loaded.jobs) do
    specs[#specs + 1], keys[key] = spec, true
  end
  table.sort(specs, function(a, b) return a.policy_key < b.policy_key end)
  for key, spec in pairs(entry.policy and entry.policy.jobs or {}) do
    old[key] = spec
  end
  if specs[1] then
    ok, message = M.renew(self.engine, specs, old, true, function(freed)
      local row = self.entries[freed]
      return row and row.policy and row.policy.name ~= loaded.name
    end)
    if not ok then return nil, message end
  end
  local was = entry.policy
  entry.policy, entry.loaded_at, entry.error = loaded, os.time(), nil
  if was and was.name ~= loaded.name then
    M.hold_strays(self.engine, was.name, {}, function() end)
  end
  M.hold_strays(self.engine, loaded.name, keys, function(job)
    self.log("warning", ("policy %s: no job %s any more: held"):format(
      loaded.name, job.policy_key))
  end)
  return { file = file, name = loaded.name, version = loaded.version,
    jobs = #specs, differences = differences, tried = tried,
    was = was and was.version }
end

function Policies:tell(change)
  self.log("info", ("policy %s: version %s loaded from %s, %d job%s"):format(
    change.name, change.version, change.file, change.jobs,
    change.jobs == 1 and "" or "s"))
  if change.tried > 0 then
    self.log("info", ("policy %s: tried on %d decision%s: %d would have been "
      .. "different"):format(change.name, change.tried,
      change.tried == 1 and "" or "s", #change.differences))
    for _, text in ipairs(change.differences) do
      self.log("info", ("policy %s: %s"):format(change.name, text))
    end
  end
end

-- Looks at the directory and takes what has changed; with all = true every file,
-- changed or not (what it requires may have). A report: loaded (list of
-- changes), failed (list of { file =, message = }), held (names of policies
-- whose file is gone), unchanged (a count).
function Policies:load(all)
  local report = { loaded = {}, failed = {}, held = {}, unchanged = 0 }
  local files, message = scan(self.directory)
  if not files then
    report.failed[1] = { file = self.directory, message = message }
    self.log("error", message)
    return report
  end
  local is_there, gone, conflicts = {}, {}, {}
  for _, file in ipairs(files) do is_there[file] = true end
  for file, entry in pairs(self.entries) do
    if not is_there[file] then
      -- before the others are looked at: it may be one of them now
      self.entries[file] = nil
      if entry.policy then gone[file] = entry.policy.name end
    end
  end
  local function take(file, entry, is_last)
    local ok, change, why, conflicts_now = pcall(self.take, self, file, entry)
    if not ok then change, why = nil, tostring(change) end
    if change then
      report.loaded[#report.loaded + 1] = change
      self:tell(change)
      return true
    elseif conflicts_now and not is_last then
      conflicts[#conflicts + 1] = file -- the other one may be renamed too
      return false
    end
    local is_told = is_last and entry.error == why
    entry.error = why
    report.failed[#report.failed + 1] = { file = file, message = why }
    if is_told then return false end
    self.log("error", ("%s: not loaded%s: %s"):format(file, entry.policy
      and ", version " .. entry.policy.version .. " stays" or "", why))
    return false
  end
  for _, file in ipairs(files) do
    local entry = self.entries[file] or {}
    self.entries[file] = entry
    local text = core.read_script(file, "the policy")
    local print = text and core.fingerprint(text) or "unreadable"
    if not all and print == entry.seen then
      report.unchanged = report.unchanged + 1
    else
      entry.seen = print
      take(file, entry)
    end
  end
  local is_any
  repeat
    local again = conflicts
    is_any, conflicts = false, {}
    for _, file in ipairs(again) do
      is_any = take(file, self.entries[file]) or is_any
    end
  until not is_any
  for _, file in ipairs(conflicts) do
    self.entries[file].seen = nil -- to be tried again, whoever changes
    take(file, self.entries[file], true)
  end
  for file, name in pairs(gone) do
    if not self:file_of(name) then
      report.held[#report.held + 1] = name
      M.hold_strays(self.engine, name, {}, function(job)
        self.log("warning", ("policy %s: %s is gone: %s held"):format(name,
          file, job.policy_key))
      end)
    end
  end
  return report
end

-- Rows for people and programs, by file.
function Policies:list()
  local rows = {}
  for file, entry in pairs(self.entries) do
    local jobs = 0
    for _ in pairs(entry.policy and entry.policy.jobs or {}) do
      jobs = jobs + 1
    end
    rows[#rows + 1] = { file = file, jobs = jobs, error = entry.error,
      name = entry.policy and entry.policy.name,
      version = entry.policy and entry.policy.version,
      loaded_at = entry.loaded_at }
  end
  table.sort(rows, function(a, b) return a.file < b.file end)
  return rows
end

function Policies:close()
  for _, entry in pairs(self.entries) do
    if entry.policy and entry.policy.decisions then
      entry.policy.decisions:close()
    end
  end
  self.entries = {}
end

return M
