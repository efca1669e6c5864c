-- The load, for wrk. Prints what came of it as JSON. After the address and "--":
--     create        POSTs of 160 bytes, the agents of 300 businesses in turn
--     get           GETs
--     post BYTES    POSTs of so many bytes
local requests, at = {}, 0

local function create(n)
    local body = string.format(
        '{"agent_id":"agent_%03d","agent_phone_number_id":"phnum_1","to_number":"+15550001111",'
            .. '"conversation_initiation_client_data":{"dynamic_variables":{"n":"0"}}}',
        n
    )
    body = body:gsub('"n":"0"', '"n":"' .. string.rep("0", 161 - #body) .. '"')
    assert(#body == 160, #body)
    return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
end

function init(arguments)
    local kind = arguments[1]
    if kind == "create" then
        for n = 1, 300 do
            requests[n] = create(n)
        end
    elseif kind == "get" then
        requests[1] = wrk.format("GET")
    elseif kind == "post" then
        local body = string.rep("0", tonumber(arguments[2]))
        requests[1] = wrk.format("POST", nil, { ["Content-Type"] = "application/octet-stream" }, body)
    else
        error("what load? " .. tostring(kind))
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"secs":%.6f,"errors":%d,"p50_us":%d,"p99_us":%d,"bytes":%d}\n',
        summary.requests,
        summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50),
        latency:percentile(99),
        summary.bytes
    ))
end
