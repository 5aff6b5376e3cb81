-- Jobs through the public module: every property, writing, requests, errors.

local cairn = require "cairn"
local support = _G.support

-- The class page, a second time: number, name, type, R or W.
local class = {
  { "Caption", "string", "R" }, { "Description", "string", "R" },
  { "ElementName", "string", "R" }, { "InstallDate", "datetime", "R" },
  { "OperationalStatus", "uint16", "R", true },
  { "StatusDescriptions", "string", "R", true }, { "Status", "string", "R" },
  { "HealthState", "uint16", "R" }, { "CommunicationStatus", "uint16", "R" },
  { "DetailedStatus", "uint16", "R" }, { "OperatingStatus", "uint16", "R" },
  { "PrimaryStatus", "uint16", "R" }, { "JobStatus", "string", "R" },
  { "TimeSubmitted", "datetime", "R" },
  { "ScheduledStartTime", "datetime", "W" },
  { "StartTime", "datetime", "R" }, { "ElapsedTime", "datetime", "R" },
  { "JobRunTimes", "uint32", "W" }, { "RunMonth", "uint8", "W" },
  { "RunDay", "sint8", "W" }, { "RunDayOfWeek", "sint8", "W" },
  { "RunStartInterval", "datetime", "W" }, { "LocalOrUtcTime", "uint16", "W" },
  { "UntilTime", "datetime", "W" }, { "Notify", "string", "W" },
  { "Owner", "string", "R" }, { "Priority", "uint32", "W" },
  { "PercentComplete", "uint16", "R" },
  { "DeleteOnCompletion", "boolean", "W" }, { "ErrorCode", "uint16", "R" },
  { "ErrorDescription", "string", "R" }, { "RecoveryAction", "uint16", "R" },
  { "OtherRecoveryAction", "string", "R" }, { "InstanceID", "string", "R" },
  { "Name", "string", "R" }, { "JobState", "uint16", "R" },
  { "TimeOfLastStateChange", "datetime", "R" },
  { "TimeBeforeRemoval", "datetime", "W" }, { "Cancellable", "boolean", "R" },
  { "ErrorSummaryDescription", "string", "R" },
  { "CollectionId", "string", "R" }, { "ReferencePointGroupId", "string", "R" },
  { "BaseReferencePointGroupId", "string", "R" },
  { "VirtualMachineId", "string", "R", true },
  { "ExportDirectory", "string", "R" },
  { "ExportedDisks", "string", "R", true },
  { "ExportedLogFilePaths", "string", "R", true },
  { "ExportedConfigFilePaths", "string", "R", true },
  { "ExportedRuntimeFilePaths", "string", "R", true },
  { "ExportedGuestStateFilePaths", "string", "R", true },
}
local additions = { "phase", "queue", "zone", "gap", "overlap", "catch_up",
  "RecoveryJob", "attempts", "policy", "policy_key", "run_number",
  "bytes_total", "bytes_done", "rate", "eta" }

local function sleeper(engine, more)
  local spec = { Name = "sleeper", run = function(job) job:sleep(1000) end }
  for key, value in pairs(more or {}) do spec[key] = value end
  return assert(engine:submit(spec))
end

describe("the properties of a job", function()
  local engine, job
  before_each(function()
    engine = support.engine(cairn)
    job = sleeper(engine)
  end)
  after_each(function() engine:close { mode = "kill" } end)

  it("are the fifty of the class in order, then the additions", function()
    assert.equal(#class + #additions, #cairn.properties)
    for i, row in ipairs(class) do
      local p = cairn.properties[i]
      assert.equal(row[1], p.name)
      assert.equal(row[2], p.type, p.name)
      assert.equal(row[3] == "W", p.is_writable, p.name)
      assert.equal(row[4] or false, p.is_array, p.name)
      assert.is_false(p.is_addition, p.name)
    end
    for i, name in ipairs(additions) do
      local p = cairn.properties[#class + i]
      assert.equal(name, p.name)
      assert.is_true(p.is_addition)
      assert.is_false(p.is_writable)
    end
  end)

  it("are all readable by name, as label and as number", function()
    support.reach(engine, job, "Running")
    for _, p in ipairs(cairn.properties) do
      local value, number = job[p.name], job:number(p.name)
      assert.equal(value == nil, number == nil, p.name)
      if value ~= nil then
        local expected = p.is_array and "table"
          or (p.values or p.type == "string" or p.type == "datetime")
            and "string"
          or p.type == "boolean" and "boolean" or "number"
        assert.equal(expected, type(value), p.name)
        if p.type == "datetime" then
          assert.equal(25, #value)
          assert.equal("integer", math.type(number), p.name)
        elseif p.values and not p.is_array and p.type ~= "string" then
          assert.equal("integer", math.type(number), p.name)
        end
      end
    end
    assert.equal("Running", job.JobState)
    assert.equal(4, job:number "JobState")
    assert.same({ "OK" }, job.OperationalStatus)
    assert.same({ 2 }, job:number "OperationalStatus")
    assert.equal("20250101000000.000000+000", job.TimeSubmitted)
    assert.equal(1735689600000000, job:number "TimeSubmitted")
    assert.equal(300000000, job:number "TimeBeforeRemoval")
    assert.equal("running", job.phase)
    assert.equal("default", job.queue)
  end)

  it("come one by one, in order", function()
    local i = 0
    for name, value in job:properties() do
      i = i + 1
      assert.equal(cairn.properties[i].name, name)
      assert.same(job[name], value)
    end
    assert.equal(#cairn.properties, i)
  end)

  it("come whole as JSON, labels or numbers", function()
    local whole = cairn.json_decode(job:json())
    assert.equal(job.JobState, whole.JobState)
    assert.equal(job.InstanceID, whole.InstanceID)
    assert.equal(job:number "JobState",
      cairn.json_decode(job:json(true)).JobState)
  end)

  it("raise for an unknown name, with the nearest one", function()
    assert.error_matches(function() return job.JobStaet end,
      "did you mean 'JobState'")
    assert.error_matches(function() return job:number "RunMont" end,
      "did you mean 'RunMonth'")
    assert.error_matches(function() job.Prioritty = 1 end,
      "did you mean 'Priority'")
    assert.error_matches(function() return job[1] end, "indexed by names")
    assert.error_matches(function() job[1] = 2 end, "indexed by names")
  end)

  it("are the same job's whenever it is asked for", function()
    assert.equal(job, engine:job(job.InstanceID))
    assert.equal(job, engine:jobs()[1])
    assert.equal("cairn.job (" .. job.InstanceID .. ")", tostring(job))
  end)

  it("raise when the job is gone, except in tostring", function()
    local id = job.InstanceID
    support.reach(engine, job, "Running")
    assert.equal(0, (job:KillJob(false)))
    assert.equal(0, (job:DeleteInstance()))
    assert.error_matches(function() return job.JobState end,
      "job " .. id:gsub("%-", "%%-") .. " is gone")
    assert.equal("cairn.job (" .. id .. ")", tostring(job))
    assert.equal(6, (job:DeleteInstance()))
    local code, none, message = job:RequestStateChange "Start"
    assert.equal(2, code)
    assert.is_nil(none)
    assert.equal("string", type(message))
    local ok, _, why = job:set { Priority = 1 }
    assert.is_nil(ok)
    assert.equal("not_found", why)
    local state, _, reason = job:report()
    assert.is_nil(state)
    assert.equal("not_found", reason)
  end)
end)

describe("writing a property", function()
  local engine, job
  before_each(function()
    engine = support.engine(cairn)
    job = sleeper(engine)
  end)
  after_each(function() engine:close { mode = "kill" } end)

  -- name, value, as read, as number
  local accepted = {
    { "JobRunTimes", 0, 0, 0 }, { "JobRunTimes", 4294967295, 4294967295,
      4294967295 }, { "JobRunTimes", 3.0, 3, 3 },
    { "RunMonth", 0, "January", 0 }, { "RunMonth", 11, "December", 11 },
    { "RunMonth", "feb ruary", "February", 1 },
    { "RunDay", -31, -31, -31 }, { "RunDay", 31, 31, 31 },
    { "RunDayOfWeek", -6, "-Friday", -6 },
    { "RunDayOfWeek", "friday", "Friday", 6 },
    { "RunDayOfWeek", "exact-day-of-month", "ExactDayOfMonth", 0 },
    { "RunStartInterval", "00000000020000.000000:000",
      "00000000020000.000000:000", 7200000000 },
    { "RunStartInterval", "2h", "00000000020000.000000:000", 7200000000 },
    { "RunStartInterval", 7200.5, "00000000020000.500000:000", 7200500000 },
    { "RunStartInterval", cairn.interval "2h", "00000000020000.000000:000",
      7200000000 },
    { "LocalOrUtcTime", 2, "UTC Time", 2 },
    { "LocalOrUtcTime", "local time", "Local Time", 1 },
    { "UntilTime", "20300101000000.000000+060", "20300101000000.000000+060",
      1893452400000000 },
    { "UntilTime", "99999999999999.999999+000", "99999999999999.999999:000",
      math.maxinteger },
    { "UntilTime", cairn.interval "1d", "00000001000000.000000:000",
      86400000000 },
    { "Notify", "ops", "ops", "ops" }, { "Notify", "", "", "" },
    { "Priority", 0, 0, 0 }, { "Priority", 4294967295, 4294967295,
      4294967295 },
    { "DeleteOnCompletion", true, true, true },
    { "TimeBeforeRemoval", 300, "00000000000500.000000:000", 300000000 },
    { "TimeBeforeRemoval", "00000001000000.000000:000",
      "00000001000000.000000:000", 86400000000 },
    { "TimeBeforeRemoval", cairn.interval(0), "00000000000001.000000:000",
      1000000 },
    { "ScheduledStartTime", "20300101000000.000000+000", nil, nil },
  }

  it("takes every valid form", function()
    for _, case in ipairs(accepted) do
      local name, value, label, number = table.unpack(case, 1, 4)
      assert(job:set { RunMonth = cairn.null, RunDay = cairn.null })
      job[name] = value
      if label ~= nil then
        assert.equal(label, job[name], name)
        assert.equal(number, job:number(name), name)
      end
    end
  end)

  it("takes null where null is a value", function()
    for _, p in ipairs(cairn.properties) do
      if p.is_writable then
        if p.name == "JobRunTimes" or p.name == "TimeBeforeRemoval" then
          local ok, message, code = job:set { [p.name] = cairn.null }
          assert.is_nil(ok, p.name)
          assert.matches(p.name, message)
          assert.equal("wrong_type", code)
          assert.error_matches(function() job[p.name] = nil end, p.name)
        else
          assert.is_true(job:set { [p.name] = cairn.null })
          job[p.name] = nil
          assert.is_nil(job[p.name], p.name)
        end
      end
    end
  end)

  -- name, value, code
  local refused = {
    { "JobRunTimes", -1, "out_of_range" },
    { "JobRunTimes", 4294967296, "out_of_range" },
    { "JobRunTimes", "often", "wrong_type" },
    { "JobRunTimes", 1.5, "wrong_type" }, { "JobRunTimes", true, "wrong_type" },
    { "RunMonth", 12, "out_of_range" }, { "RunMonth", -1, "out_of_range" },
    { "RunMonth", "Brumaire", "invalid_argument" },
    { "RunDay", 32, "out_of_range" }, { "RunDay", -32, "out_of_range" },
    { "RunDay", "last", "wrong_type" },
    { "RunDayOfWeek", 8, "out_of_range" },
    { "RunDayOfWeek", "+Friday", "invalid_argument" },
    { "RunStartInterval", "20300101000000.000000+000", "wrong_type" },
    { "RunStartInterval", "2 o'clock", "invalid_argument" },
    { "RunStartInterval", -1, "out_of_range" },
    { "LocalOrUtcTime", 0, "out_of_range" },
    { "LocalOrUtcTime", 3, "out_of_range" },
    { "UntilTime", "tomorrow", "invalid_argument" },
    { "UntilTime", "20301301000000.000000+000", "out_of_range" },
    { "UntilTime", 3, "wrong_type" },
    { "Notify", 3, "wrong_type" }, { "Notify", "a\0b", "invalid_argument" },
    { "Notify", "\xff", "invalid_argument" },
    { "Priority", -1, "out_of_range" }, { "Priority", "high", "wrong_type" },
    { "DeleteOnCompletion", 1, "wrong_type" },
    { "DeleteOnCompletion", "true", "wrong_type" },
    { "TimeBeforeRemoval", "20300101000000.000000+000", "wrong_type" },
    { "TimeBeforeRemoval", true, "wrong_type" },
    { "Notify", {}, "wrong_type" }, { "Notify", print, "wrong_type" },
    { "NoSuch", 1, "no_such_property" },
  }

  it("refuses every invalid form and changes nothing", function()
    job:set { JobRunTimes = 5, RunMonth = 3, RunDay = 7, RunDayOfWeek = 2,
      RunStartInterval = "00000000030000.000000:000", LocalOrUtcTime = 1,
      UntilTime = "20400101000000.000000+000", Notify = "ops", Priority = 9 }
    local before = job:json()
    for _, case in ipairs(refused) do
      local name, value, expected = table.unpack(case)
      local ok, message, code = job:set { [name] = value }
      assert.is_nil(ok, name)
      assert.equal(expected, code, message)
      assert.matches(name, message)
      assert.has_error(function() job[name] = value end)
    end
    assert.equal(before, job:json())
  end)

  it("refuses every read-only property", function()
    local before = job:json()
    for _, p in ipairs(cairn.properties) do
      if not p.is_writable then
        for _, value in ipairs { 1, "x", true, cairn.null } do
          local ok, message, code = job:set { [p.name] = value }
          assert.is_nil(ok, p.name)
          assert.equal("read_only", code, p.name)
          assert.matches(p.name .. " is read%-only", message)
        end
        assert.error_matches(function() job[p.name] = 1 end, "read%-only")
      end
    end
    assert.equal(before, job:json())
  end)

  it("sets all or nothing", function()
    assert.is_true(job:set { RunMonth = 1, RunDay = 28 })
    local ok, _, code = job:set { RunMonth = 3, RunDay = 99, Priority = 1 }
    assert.is_nil(ok)
    assert.equal("out_of_range", code)
    assert.equal("February", job.RunMonth)
    assert.equal(28, job.RunDay)
    assert.is_nil(job.Priority)
    assert.is_true(job:set {})
  end)

  it("refuses dates that never come", function()
    local ok, message, code = job:set { RunMonth = "February", RunDay = 30 }
    assert.is_nil(ok)
    assert.matches("never comes", message)
    assert.equal("invalid_argument", code)
    assert.is_nil(job.RunMonth)
  end)

  it("raises for what is no set of properties", function()
    assert.error_matches(function() job:set(3) end, "table expected")
    assert.error_matches(function() job:set { 3 } end, "names of properties")
    assert.error_matches(function() job.set({}, {}) end, "cairn%.job expected")
  end)
end)

describe("a request", function()
  local engine
  before_each(function() engine = support.engine(cairn) end)
  after_each(function() engine:close { mode = "kill" } end)

  it("takes labels and numbers, whatever their case", function()
    for _, state in ipairs { "Suspend", "SUSPEND", "sus-pend", 3, 3.0 } do
      local job = sleeper(engine)
      support.reach(engine, job, "Running")
      assert.equal(4096, (job:RequestStateChange(state)))
      support.reach(engine, job, "Suspended")
    end
  end)

  it("answers as published to what is no state or no interval", function()
    local job = sleeper(engine)
    support.reach(engine, job, "Running")
    local before = job.TimeOfLastStateChange
    assert(engine:advance(5))
    for _, state in ipairs { "Sleep", "", 0, 1, 7, 2.5, 32768 } do
      assert.equal(5, (job:RequestStateChange(state)))
    end
    assert.equal(5, (job:RequestStateChange()))
    assert.equal(5, (job:RequestStateChange("Suspend",
      "20300101000000.000000+000")))
    assert.equal(5, (job:RequestStateChange("Suspend", "soon")))
    assert.equal(4097, (job:RequestStateChange "Start"))
    assert.error_matches(function() job:RequestStateChange {} end,
      "state .* expected")
    assert.error_matches(function() job:RequestStateChange("Suspend", {}) end,
      "interval expected")
    assert.equal(before, job.TimeOfLastStateChange)
    assert.equal("Running", job.JobState)
  end)

  it("waits for its TimeoutPeriod", function()
    local job = sleeper(engine)
    support.reach(engine, job, "Running")
    assert.equal(0, (job:RequestStateChange("Suspend", 5)))
    assert.equal("Suspended", job.JobState)
    assert.equal(0, (job:RequestStateChange("Start",
      "00000000000005.000000:000")))
    assert.equal("Running", job.JobState)
    assert.equal(0, (job:RequestStateChange("Terminate",
      cairn.interval(5))))
    assert.equal("Terminated", job.JobState)
  end)

  it("stands after its TimeoutPeriod has passed", function()
    local job = assert(engine:submit { Name = "slow to end",
      run = function(self)
        local _ <close> = setmetatable({}, { __close = function()
          self:sleep(0.9)
        end })
        self:sleep(1000)
      end })
    support.reach(engine, job, "Running")
    assert.equal(3, (job:RequestStateChange("Terminate", 0.1)))
    assert.equal("Shutting Down", job.JobState)
    assert.equal("Terminated", job:wait())
  end)

  it("kills and deletes", function()
    local job = sleeper(engine)
    support.reach(engine, job, "Running")
    assert.equal(0, (job:KillJob()))
    assert.equal("Killed", job.JobState)
    assert.equal(4, (job:KillJob()))
    local code, err = job:GetError()
    assert.equal(0, code)
    assert.equal("table", type(err))
    assert.error_matches(function() job:KillJob(1) end, "boolean expected")
    local other = sleeper(engine, { DeleteOnCompletion = true })
    support.reach(engine, other, "Running")
    assert.equal(1, (other:DeleteInstance()))
    assert.equal(0, (other:KillJob(false)))
    assert.equal(0, (other:DeleteInstance()))
  end)

  it("resumes, or releases a hold", function()
    local job = sleeper(engine)
    assert.equal(0, (job:RequestStateChange "Suspend"))
    assert.equal("held", job.phase)
    assert.is_true(job:resume())
    support.reach(engine, job, "Running")
    local ok, message, code = job:resume()
    assert.is_nil(ok)
    assert.equal("string", type(message))
    assert.equal("invalid_state", code)
  end)
end)

describe("the errors of a job", function()
  local error_properties = { "ErrorType", "OtherErrorType", "OwningEntity",
    "MessageID", "Message", "MessageArguments", "PerceivedSeverity",
    "ProbableCause", "ProbableCauseDescription", "RecommendedActions",
    "ErrorSource", "ErrorSourceFormat", "OtherErrorSourceFormat",
    "CIMStatusCode", "CIMStatusCodeDescription" }

  it("are none while it runs and after a good end", function()
    local engine <close> = support.engine(cairn)
    local job = sleeper(engine)
    support.reach(engine, job, "Running")
    assert.same({ 0, n = 2 }, table.pack(job:GetError()))
    assert.same({ 0, n = 2 }, table.pack(job:GetErrorEx()))
    local done = assert(engine:submit { Name = "a", run = function() end })
    assert.equal("Completed", done:wait())
    assert.same({ 0, n = 2 }, table.pack(done:GetError()))
    assert.equal(0, done.ErrorCode)
  end)

  it("are one CIM_Error, first of those of GetErrorEx", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function()
      error { code = "disk_full", message = "no room in /backup" }
    end })
    assert.equal("Exception", job:wait())
    local code, err = job:GetError()
    assert.equal(0, code)
    local known = {}
    for _, name in ipairs(error_properties) do known[name] = true end
    for name in pairs(err) do assert.truthy(known[name], name) end
    assert.equal("CAIRN0019", err.MessageID)
    assert.equal("no room in /backup", err.Message)
    assert.equal(50, err.ProbableCause)
    assert.equal(1, err.CIMStatusCode)
    local ex
    code, ex = job:GetErrorEx()
    assert.equal(0, code)
    assert.same(err, ex[1])
    assert.equal(19, job.ErrorCode)
    assert.equal("no room in /backup", job.ErrorSummaryDescription)
  end)

  it("are warnings after Completed With Warnings", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "a", run = function(self)
      self:warn "one disk was slow"
    end })
    assert.equal("Completed With Warnings", job:wait())
    assert.equal(32768, job:number "JobState")
    assert.same({ 0, n = 2 }, table.pack(job:GetError()))
    local _, warnings = job:GetErrorEx()
    assert.equal("one disk was slow", warnings[1].Message)
    assert.equal(3, warnings[1].PerceivedSeverity)
  end)
end)

describe("specifications", function()
  it("have a limit that their text counts for, escapes too", function()
    local engine <close> = support.engine(cairn)
    local piece = ("\1"):rep(1 << 20) -- \u0001
    local list = {}
    for i = 1, 44 do list[i] = piece end -- 44 MiB, 264 as text
    local job, message, code = engine:submit { Name = "a", verify = {
      directory = "/x", source_directories = list } }
    assert.is_nil(job)
    assert.equal("out_of_range", code)
    assert.matches("the specification has %d+ bytes, valid: at most 268435456",
      message)
    list[43], list[44] = nil, nil -- 252
    job, message, code = engine:submit { Name = "a", verify = {
      directory = "/x", source_directories = list } }
    assert.is_nil(job)
    assert.is_true(code ~= "out_of_range", message)
  end)

  it("that are refused are not kept", function()
    local engine <close> = support.engine(cairn)
    local function kib()
      return tonumber(support.read "/proc/self/status":match
        "VmRSS:%s*(%d+)")
    end
    local disk = { id = "vda", path = "/" .. ("x"):rep(4 << 20),
      format = "raw" }
    local spec = { Name = "a", export = { directory = "/x", collection = {
      CollectionId = "11111111-2222-3333-4444-555555555555", machines = {
        { VirtualMachineId = "11111111-2222-3333-4444-555555555556",
          ElementName = "m", disks = { disk, disk } } } } } }
    collectgarbage "stop"
    local before
    for i = 1, 40 do
      local job, message = engine:submit(spec)
      assert.is_nil(job)
      assert.is_true(#message < 4096)
      local jobs = engine:submit_all { spec }
      assert.is_nil(jobs)
      if i == 10 then before = kib() end
    end
    collectgarbage "restart"
    assert.is_true(kib() - before < 200 << 10, kib() - before)
  end)
end)
