-- The load, for wrk: POSTs of 160 bytes, the agents of 300 businesses in turn. Prints what came of it as JSON.
local requests, at = {}, 0

function init()
    for n = 1, 300 do
        local body = string.format(
            '{"agent_id":"agent_%03d","agent_phone_number_id":"phnum_1","to_number":"+15550001111",'
                .. '"conversation_initiation_client_data":{"dynamic_variables":{"n":"0"}}}',
            n
        )
        body = body:gsub('"n":"0"', '"n":"' .. string.rep("0", 161 - #body) .. '"')
        assert(#body == 160, #body)
        requests[n] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"secs":%.6f,"errors":%d,"p50_us":%d,"p99_us":%d}\n',
        summary.requests,
        summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50),
        latency:percentile(99)
    ))
end
