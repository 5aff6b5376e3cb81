-- cairn.schedule: the calendar of a job without a job, to see when it runs.

local core = require "cairn.core"
core.trust()
local failure = require "cairn.failure"

local M = {}

local fields = { RunMonth = "any", RunDay = "any", RunDayOfWeek = "any",
  RunStartInterval = "any", LocalOrUtcTime = "any", UntilTime = "any",
  JobRunTimes = "any", zone = "any", gap = "any", overlap = "any" }

-- The names that a schedule has, for those who take one out of a job.
M.fields = fields

function M.new(t)
  failure.check_fields(t, fields, "cairn.schedule")
  local schedule, message, code = core.schedule(t)
  if not schedule then failure.raise(code, "cairn.schedule: %s", message) end
  return schedule
end

return M
