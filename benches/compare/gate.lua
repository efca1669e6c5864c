-- The gate as nginx + Lua + Redis do it: read the body, tell the business, ask one script, which decides over all sets at once.
ngx.req.read_body()
local body = cjson.decode(ngx.req.get_body_data() or "")
local business = body and business_of[body.agent_id]
if not business then
    return ngx.exit(403)
end
local redis = redis_client:new()
redis:set_timeout(1000)
local ok = redis:connect("127.0.0.1", 19020)
if not ok then
    return ngx.exit(503)
end
local verdict = redis:evalsha(
    admit_sha1, 3, "calls:" .. business, "calls:elevenlabs", "calls:all", ngx.var.request_id, 1000000, 1000000, 1000000
)
redis:set_keepalive(60000, 64)
if verdict ~= 1 then
    return ngx.exit(503)
end
