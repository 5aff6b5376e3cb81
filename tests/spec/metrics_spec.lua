-- Metrics, read by the parsers of prometheus_client, not by ours.

local uv = require "luv"
local cairn = require "cairn"
local core = require "cairn.core"
local support = _G.support

describe("metrics", function()
  local directory, remove

  before_each(function() directory, remove = support.directory() end)
  after_each(function() remove() end)

  -- The families of a text as another program reads them.
  local function families_of(text, format)
    local file = support.write(directory .. "/text", text)
    local code, _, output = support.run { "/usr/bin/python3",
      "tests/spec/metrics.py", format or "openmetrics", file }
    if code == 77 then
      pending "python3-prometheus-client is missing (scripts/setup --tests)"
    end
    assert(code == 0, output)
    return assert(cairn.json_decode(output))
  end

  -- The value of the sample with these labels.
  local function value(families, name, labels)
    local family = families[name] or families[name:gsub("_total$", "")]
      or families[name:gsub("_info$", "")]
    assert(family, "no family of " .. name)
    for _, sample in ipairs(family.samples) do
      local is_it = sample.name == name
      for key, wanted in pairs(labels or {}) do
        is_it = is_it and sample.labels[key] == wanted
      end
      if is_it then return sample.value end
    end
    return nil
  end

  local function settle(engine)
    for _ = 1, 200 do engine:step() end
  end

  it("count runs by how they ended, and what was skipped", function()
    local engine <close> = support.engine(cairn, { queues = {
      default = { concurrency = 9 } } })
    for _, name in ipairs { "well", "warned", "failed", "again", "killed",
      "terminated" } do
      assert(engine:submit { Name = name,
        RecoveryAction = name == "again" and "Re-run Job" or nil,
        run = function(job)
          if name == "warned" then job:warn "w" end
          if name == "failed" or name == "again" and job.attempts == 1 then
            error "x"
          end
          if name:find "ed$" and name ~= "warned" then job:sleep(1000) end
        end })
    end
    settle(engine)
    local families = families_of(engine:metrics())
    assert.equal(1, value(families, "cairn_runs_total",
      { result = "completed" }))
    assert.equal(1, value(families, "cairn_runs_total",
      { result = "retried" }))
    assert.equal(2, value(families, "cairn_jobs",
      { state = "Running", phase = "running" }))
    assert.equal(1, value(families, "cairn_jobs",
      { state = "Suspended", phase = "backoff" }))
    engine:jobs { Name = "killed" }[1]:KillJob(false)
    engine:jobs { Name = "terminated" }[1]:RequestStateChange "Terminate"
    settle(engine)
    local due = engine:jobs { Name = "again" }[1]:number "ScheduledStartTime"
    families = families_of(engine:metrics())
    assert.equal(due / 1e6, value(families,
      "cairn_job_next_due_timestamp_seconds", { job = "again" }))
    engine:advance(70)
    settle(engine)
    families = families_of(engine:metrics())
    for name, count in pairs { completed = 2, completed_with_warnings = 1,
      retried = 1, failed = 1, killed = 1, terminated = 1 } do
      assert.equal(count, value(families, "cairn_runs_total",
        { result = name }), name)
    end
    assert.is_nil(value(families, "cairn_job_next_due_timestamp_seconds",
      { job = "again" }))
    -- of a job that was tried again both are known
    assert.equal(70, value(families,
      "cairn_job_last_success_timestamp_seconds", { job = "again" })
      - value(families, "cairn_job_last_failure_timestamp_seconds",
      { job = "again" }))
    assert.equal("counter", families.cairn_runs.type)
    assert.equal("gauge", families.cairn_jobs.type)
    assert.equal("info", families.cairn_build.type)
    assert.equal(1, value(families, "cairn_build_info",
      { version = cairn.version }))
    assert.equal("seconds",
      families.cairn_job_last_success_timestamp_seconds.unit)
    assert.equal("bytes", families.cairn_exported_bytes.unit)
  end)

  it("count due times without a run", function()
    local engine <close> = support.engine(cairn)
    assert(engine:submit { Name = "daily", RunStartInterval = "1h",
      JobRunTimes = 0, zone = "UTC", catch_up = "none",
      run = function() end })
    settle(engine)
    assert.equal(0, value(families_of(engine:metrics()),
      "cairn_due_times_skipped_total", { reason = "missed" }))
    engine:advance(10 * 86400)
    settle(engine)
    assert.equal(10, value(families_of(engine:metrics()),
      "cairn_due_times_skipped_total", { reason = "missed" }))
  end)

  it("count what was exported", function()
    local engine <close> = assert(cairn.open {})
    support.write(directory .. "/disk.raw", ("x"):rep(1000000))
    local job = assert(engine:submit { Name = "e", export = {
      directory = directory .. "/out", collection = {
        CollectionId = "6F1D0000-0000-4000-8000-000000000001",
        machines = { { VirtualMachineId =
          "6F1D0000-0000-4000-8000-000000000002", disks = { { id = "vda",
          path = directory .. "/disk.raw", format = "raw" } } } } } } })
    assert.equal("Completed", job:wait())
    settle(engine)
    local families = families_of(engine:metrics())
    assert.is_true(job.bytes_done >= 1000000)
    assert.equal(job.bytes_done, value(families, "cairn_exported_bytes_total"))
    assert(engine:submit { Name = "v", verify = {
      directory = directory .. "/out" } }):wait()
    settle(engine)
    assert.equal(job.bytes_done, value(families_of(engine:metrics()),
      "cairn_exported_bytes_total"))
  end)

  it("describe queues", function()
    local engine <close> = support.engine(cairn, { queues = {
      default = { concurrency = 1 }, slow = { concurrency = 3 } } })
    for i = 1, 3 do
      assert(engine:submit { Name = "job" .. i, run = function(job)
        job:sleep(10)
      end })
    end
    settle(engine)
    local families = families_of(engine:metrics())
    local function of(name, queue)
      return value(families, "cairn_queue_" .. name, { queue = queue })
    end
    assert.equal(1, of("running", "default"))
    assert.equal(2, of("queued", "default"))
    assert.equal(3, of("unfinished", "default"))
    assert.equal(1, of("concurrency", "default"))
    assert.equal(3, of("concurrency", "slow"))
    assert.equal(0, of("running", "slow"))
  end)

  it("carry any name", function()
    local engine <close> = support.engine(cairn)
    local names = { 'a"b\\c\nd', "grün 東京 \u{1f600}", "\t#", "x}",
      ("ü"):rep(100) }
    for _, name in ipairs(names) do
      assert(engine:submit { Name = name, run = function() end })
    end
    settle(engine)
    for _, format in ipairs { "openmetrics", "prometheus" } do
      local families = families_of(engine:metrics(format), format)
      for i, name in ipairs(names) do
        -- 128 bytes, and no half of a character
        if i == 5 then name = ("ü"):rep(64) end
        assert.is_number(value(families,
          "cairn_job_last_success_timestamp_seconds", { job = name }), name)
      end
    end
  end)

  it("have one series for jobs of one name, and a bound", function()
    local engine <close> = support.engine(cairn)
    local specs = {}
    for i = 1, 1100 do
      specs[i] = { Name = "job" .. (i > 2 and i or 1), run = function() end }
    end
    specs[1101] = { Name = "of a policy", policy = "p", policy_key = "k",
      run = function() end }
    assert(engine:submit_all(specs))
    for _ = 1, 3000 do engine:step() end
    local text = engine:metrics()
    local families = families_of(text)
    assert.equal(1000,
      #families.cairn_job_last_success_timestamp_seconds.samples)
    assert.is_number(value(families, "cairn_job_last_success_timestamp_seconds",
      { job = "of a policy", policy = "p", key = "k" }))
    assert.equal(1101, value(families, "cairn_jobs", { state = "Completed" }))
    assert.equal(100, value(families, "cairn_jobs_unlisted"))
  end)

  it("have the latest of a name of which there are very many", function()
    local engine <close> = assert(cairn.open { clock = "virtual",
      start = "20250101000000.000000+000" })
    for i = 1, 1002 do
      assert(engine:submit { Name = "again", run = function() end,
        TimeBeforeRemoval = "30d" })
      while engine:step() do end
      if i < 1002 then engine:advance "10s" end
    end
    local families = families_of(engine:metrics())
    assert.equal(1735689600 + 10010, value(families,
      "cairn_job_last_success_timestamp_seconds", { job = "again" }))
    assert.equal(1002, value(families, "cairn_jobs", { state = "Completed" }))
    assert.equal(0, value(families, "cairn_jobs_unlisted"))
  end)

  it("know of a store, and what its earlier lives did", function()
    local store = directory .. "/cairn.db"
    cairn.kind("metrics_spec well", function() end)
    cairn.kind("metrics_spec bad", function() error "x" end)
    local first
    do
      local engine <close> = assert(cairn.open { store = store })
      local job = assert(engine:submit { Name = "j",
        run = "metrics_spec well" })
      job:wait()
      assert(engine:submit { Name = "bad",
        run = "metrics_spec bad" }):wait()
      assert(engine:flush())
      local families = families_of(engine:metrics())
      first = value(families, "cairn_job_last_success_timestamp_seconds",
        { job = "j" })
      assert.is_number(first)
      assert.is_true(value(families, "cairn_store_turns_total") > 0)
      assert.equal(0, value(families, "cairn_store_turns_waiting"))
      assert.equal(0, value(families, "cairn_store_degraded"))
      assert.is_true(value(families, "cairn_store_size_bytes") >= 4096)
    end
    local engine <close> = assert(cairn.open { store = store })
    local families = families_of(engine:metrics())
    assert.equal(first, value(families,
      "cairn_job_last_success_timestamp_seconds", { job = "j" }))
    assert.is_number(value(families, "cairn_job_last_failure_timestamp_seconds",
      { job = "bad" }))
    assert.equal(0, value(families, "cairn_runs_total",
      { result = "completed" }))
  end)

  it("forget a job that is gone", function()
    local engine <close> = support.engine(cairn)
    local job = assert(engine:submit { Name = "j", run = function() end })
    settle(engine)
    assert.is_number(value(families_of(engine:metrics()),
      "cairn_job_last_success_timestamp_seconds", { job = "j" }))
    assert(job:DeleteInstance())
    settle(engine)
    assert.is_nil(value(families_of(engine:metrics()),
      "cairn_job_last_success_timestamp_seconds", { job = "j" }))
    assert.is_nil(next(core.state(engine).metrics.last))
  end)

  it("are refused in a format that is none, and of a closed engine", function()
    local engine = support.engine(cairn)
    assert.has_error(function() engine:metrics "xml" end, "metrics: no format "
      .. "'xml'; valid are 'openmetrics' and 'prometheus'")
    engine:close()
    assert.has_error(function() engine:metrics() end)
  end)

  describe("in a file", function()
    local engine

    before_each(function() engine = support.engine(cairn) end)
    after_each(function() engine:close() end)

    local function names()
      local list = {}
      local request = assert(uv.fs_scandir(directory))
      while true do
        local name = uv.fs_scandir_next(request)
        if not name then break end
        list[#list + 1] = name
      end
      return table.concat(list, " ")
    end

    it("are for the textfile collector, readable, and leave nothing", function()
      local path = directory .. "/cairn.prom"
      assert.is_true(engine:write_metrics(path))
      assert.equal("cairn.prom", names())
      local text = support.read(path)
      assert.is_nil(text:find("EOF", 1, true))
      local families = families_of(text, "prometheus")
      -- a name and a type that node_exporter's reader knows
      assert.equal("gauge", families.cairn_build_info.type)
      assert.matches("# TYPE cairn_runs_total counter\n", text)
      assert.equal(0, value(families, "cairn_runs_total",
        { result = "failed" }))
      local plain = uv.fs_stat(support.write(directory .. "/plain", "")).mode
      assert.equal(plain & tonumber("100644", 8), uv.fs_stat(path).mode)
    end)

    it("take the place of the old at once", function()
      local path = directory .. "/cairn.prom"
      assert.is_true(engine:write_metrics(path))
      local held = assert(io.open(path, "rb")) -- a reader of the old file
      local old = uv.fs_stat(path).ino
      assert(engine:submit { Name = "j", run = function() end })
      settle(engine)
      assert.is_true(engine:write_metrics(path))
      assert.not_equal(old, uv.fs_stat(path).ino)
      local text = held:read "a"
      held:close()
      assert.matches('result="completed"} 0\n', text)
      assert.matches("cairn_store_degraded 0\n$", text)
      assert.matches('result="completed"} 1\n', support.read(path))
    end)

    it("are refused where they cannot be, and nothing is left", function()
      local ok, message, code = engine:write_metrics(directory .. "/no/x.prom")
      assert.is_nil(ok)
      assert.matches("cannot write .*/no/x%.prom", message)
      assert.equal("not_found", code)
      assert(uv.fs_mkdir(directory .. "/x.prom", 493))
      ok, message = engine:write_metrics(directory .. "/x.prom")
      assert.is_nil(ok)
      assert.matches("cannot write", message)
      assert.equal("x.prom", names())
      ok, message, code = engine:write_metrics(directory .. "/")
      assert.is_nil(ok)
      assert.matches("is not the name of a file", message)
      assert.equal("bad_path", code)
      ok = engine:write_metrics(directory .. "/a\0b")
      assert.is_nil(ok)
    end)
  end)
end)
