std = "lua54"
max_line_length = 120
cache = false
exclude_files = { "build*", "bindings/cairn.meta.lua" } -- the latter: types only
files["tests/spec"] = { std = "lua54+busted" }
files["scripts/cairn"] = { std = "lua54" }
