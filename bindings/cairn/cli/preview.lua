-- cairn preview: when the jobs of a policy would run.

local fields = require "cairn.schedule".fields
local moment = require "cairn.cli.moment"
local policies = require "cairn.cli.policies"
local say = require "cairn.cli.say"
local text = require "cairn.cli.text"

local preview = {}

local calendar = { "RunMonth", "RunDay", "RunDayOfWeek", "RunStartInterval" }

-- The schedule of a job, or nothing when it has no calendar.
function preview.schedule_of(cairn, path, key, spec, options)
  local has_calendar = false
  for _, name in ipairs(calendar) do
    has_calendar = has_calendar
      or (spec[name] ~= nil and spec[name] ~= cairn.null)
  end
  if not has_calendar then return nil end
  local copy = {}
  for name in pairs(fields) do copy[name] = spec[name] end
  if copy.JobRunTimes == nil then copy.JobRunTimes = 1 end
  if copy.zone == nil or copy.zone == cairn.null then
    copy.zone = options.zone
  end
  local ok, result = pcall(cairn.schedule, copy)
  if ok then return result end
  if type(result) ~= "table" then error(result, 0) end
  say.fail_with(cairn, ("%s: jobs.%s: %s"):format(path, key,
    (tostring(result.message):gsub("^cairn%.schedule: ", ""))), result.code)
end

function preview.note_of(run)
  if run.kind == "gap" then
    return ("the clock is put forward over %s"):format(
      table.concat(run.nominals or { run.nominal }, ", "))
  elseif run.kind == "overlap" then
    return "the clock shows this time twice"
  end
  return ""
end

-- When to begin to look for runs of a job: none comes before its
-- ScheduledStartTime.
function preview.beginning(cairn, job, from)
  local value = job.ScheduledStartTime
  local ok, time = pcall(cairn.datetime, value)
  if value == nil or not ok or time.kind ~= "timestamp" then return from end
  local now = from and from.microseconds or os.time() * 1000000
  if time.microseconds <= now then return from end
  return (time.microseconds - 1) / 1e6
end

function preview.preview(cairn, _, options)
  local policy, message, code = cairn.policy_load(options.policy,
    policies.settings(options.set))
  if not policy then say.fail_with(cairn, message, code) end
  local from_us = moment.parse(cairn, "preview: --from", options.from,
    options.zone)
  local from = from_us and cairn.datetime(from_us / 1e6)
  local keys, rows = {}, {}
  for key in pairs(policy.jobs) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local schedule = preview.schedule_of(cairn, options.policy, key,
      policy.jobs[key], options)
    local name = text.printable(key)
    if not schedule then
      say.note(("%s: no calendar: it runs at its ScheduledStartTime, or at "
        .. "once"):format(name))
    else
      if schedule.warning then
        say.note(("%s: %s"):format(name, schedule.warning))
      end
      local runs = schedule:next(tonumber(options.count) or 5,
        preview.beginning(cairn, policy.jobs[key], from))
      if #runs == 0 then
        say.note(("%s: no run is left (UntilTime)"):format(name))
      end
      for _, run in ipairs(runs) do
        if options.json then
          run.policy_key, run.zone = key, schedule.zone
          say.json(cairn, run, {})
        else
          rows[#rows + 1] = { name, moment.shown(run.local_time, run.unix_us), text.printable(schedule.zone),
            preview.note_of(run) }
        end
      end
    end
  end
  if #rows > 0 then
    for _, line in ipairs(text.table({ { title = "JOB" }, { title = "TIME" },
      { title = "ZONE" }, { title = "NOTE" } }, rows)) do
      say.result(line)
    end
  end
  return 0
end

return preview
