-- What crash.py kills: an engine with a store under load.
--
--   lua5.4 crash_driver.lua STORE DIRECTORY SEED work|finish
--
-- Says on standard output, unbuffered, what it was told: "ack ID KIND" when
-- submit has returned, "done ID STATE" when an event has told of an end,
-- "began ID RUN" from bodies. "finish" submits nothing, runs until all is over
-- and prints jobs, history and events as JSON, a line each.

local cairn = require "cairn"
local store, directory, seed, mode = table.unpack(arg)
math.randomseed(math.tointeger(tonumber(seed)))
io.stdout:setvbuf "no"

local function say(...)
  io.write(table.concat({ ... }, " "), "\n")
end

cairn.kind("crash.body", function(job)
  say("began", job.InstanceID, job.run_number)
  for i = 1, math.random(3) do
    job:progress(i * 10)
    job:sleep(math.random() * 0.01)
  end
  if math.random(10) == 1 then error("by chance", 0) end
end)

local engine <close> = assert(cairn.open { store = store,
  queues = { default = { concurrency = 3 } }, history_limit = 1000000 })

local function ended(event)
  if event.new_state >= 7 and event.new_state ~= 11 and event.new_state ~= 12
  then
    say("done", event.InstanceID, event.JobState)
  end
end
engine:on("JobState", ended)

local function farm(n)
  return cairn.collection {
    CollectionId = ("6F1D0C6A-5A0B-4E8C-9B52-0B6E6B1F9A%02d"):format(n),
    machines = { { VirtualMachineId =
      ("0C5A3E0E-7C7B-4B0E-8F70-55E0C2F400%02d"):format(n),
      disks = { { id = "vda", format = "raw",
        path = ("%s/disk%d.raw"):format(directory, n) } } } } }
end

local function submit(kind)
  local spec = { Name = kind, JobRunTimes = 1 }
  if kind == "export" then
    local n = math.random(2)
    spec.export = { collection = farm(n), base = "latest",
      directory = ("%s/out%d"):format(directory, n) }
  elseif kind == "marker" then
    spec.reference_point = { action = "create", collection = farm(1),
      directory = directory .. "/out1" }
  elseif kind == "held" then
    spec.run, spec.held = "crash.body", true
  else
    spec.run = "crash.body"
  end
  local job = assert(engine:submit(spec))
  say("ack", job.InstanceID, kind)
  return job
end

if mode == "work" then
  local kinds = { "export", "run", "run", "run", "held", "marker" }
  while true do
    cairn.spawn(function() submit(kinds[math.random(#kinds)]) end)
    for _ = 1, math.random(10) do engine:step(0.005) end
    if math.random(8) == 1 then
      local jobs = engine:jobs { JobState = "Running" }
      local job = jobs[math.random(math.max(#jobs, 1))]
      if job then
        local action = ({ "Suspend", "Terminate", "Kill" })[math.random(3)]
        job:RequestStateChange(action)
      end
    end
  end
end

-- to the end: what is held goes on
local is_over
repeat
  for _, job in ipairs(engine:jobs { phase = "held" }) do
    job:resume()
    if job.phase == "held" then job:RequestStateChange "Start" end
  end
  is_over = true
  engine:step(0.02)
  for _, job in ipairs(engine:jobs()) do
    is_over = is_over and job.phase == "done"
  end
until is_over
assert(engine:flush())
for _, job in ipairs(engine:jobs()) do say("job", job:json()) end
for _, record in ipairs(engine:history()) do
  say("record", (cairn.json_encode(record)))
end
local list
local cursor = 0
repeat
  list, cursor = assert(engine:changes(cursor, 1000))
  for _, event in ipairs(list) do
    event.job = nil
    say("event", (cairn.json_encode(event)))
  end
until #list == 0
