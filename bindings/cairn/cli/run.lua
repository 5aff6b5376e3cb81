-- cairn run: the jobs of a policy, each once, now, or by their calendars, in
-- memory or in a store.

local policies = require "cairn.cli.policies"
local say = require "cairn.cli.say"
local session = require "cairn.cli.session"
local summary = require "cairn.cli.summary"
local text = require "cairn.cli.text"

local run = {}

local function keys_of(jobs)
  local keys = {}
  for key in pairs(jobs) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- The keys to run, in the order asked for, else sorted.
local function chosen(path, jobs, wanted)
  local keys = keys_of(jobs)
  if #keys == 0 then
    say.fail(2, "%s: the policy has no jobs", text.printable(path))
  end
  if not wanted then return keys end
  local seen, out = {}, {}
  for _, key in ipairs(wanted) do
    if jobs[key] == nil then
      say.fail(2, "%s: the policy has no job %s%s", text.printable(path),
        text.printable(key), text.valid(key, keys))
    end
    if not seen[key] then out[#out + 1] = key end
    seen[key] = true
  end
  return out
end

function run.run(cairn, uv, options)
  local policy, message, code = cairn.policy_load(options.policy,
    policies.settings(options.set))
  if not policy then say.fail_with(cairn, message, code) end
  local store = options.store ~= ":memory:" and options.store or nil
  local specs = {}
  for i, key in ipairs(chosen(options.policy, policy.jobs, options.job)) do
    local spec = policy.jobs[key] -- itself: messages say where it is from
    spec.once = spec.once or not options.follow
    spec.Name = spec.Name or key
    if spec.once and store then -- not the one that has a calendar
      spec.policy_key = key .. " (once)"
    end
    specs[i] = spec
  end
  if options.dry_run then
    return summary.plan(cairn, specs, options)
  end
  local keys = {}
  for key in pairs(policy.jobs) do
    keys[key], keys[key .. " (once)"] = true, true
  end
  local outcomes, exit = session.run({ cairn = cairn, uv = uv,
    queues = policies.queues(options.queue),
    follow = options.follow, store = store, keys = keys }, specs)
  for _, outcome in ipairs(outcomes) do
    if options.json then
      say.result(outcome.json(options.numbers))
    else
      say.result(summary.line(outcome))
    end
  end
  return exit
end

return run
