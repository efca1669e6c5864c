-- Runs once: what an operator of nginx + Lua + Redis would have in memory.
cjson = require "cjson.safe"
redis_client = require "nginx.redis"
business_of = {}
for n = 1, 300 do
    business_of[string.format("agent_%03d", n)] = string.format("business_%03d", n)
end
-- The digest that Redis gave the script when it was loaded; not there where nothing is gated.
local file = io.open("admit.sha1")
admit_sha1 = file and file:read("*l")

