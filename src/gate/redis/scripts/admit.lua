-- The decision of `admission::decide`, and what it takes. KEYS[4]: the call's tombstone.
-- ARGV: 2 the time in milliseconds, or `-`: the server's, 3 call, 4 wanted, 5 at least, 6 enforce or observe, then five a limit:
--   c KEY ALLOWED - -
--   r KEY INTERVAL_US TOLERANCE_US AHEAD_US
local RATES_MAX = 10000

local bad = wrong()
if bad then
    return bad
end
local call = ARGV[3]
local own = lease(call)
if own then
    return { 'held', string.match(own, '^h|[^|]*|(%d+)|') }
end
if redis.call('EXISTS', KEYS[4]) == 1 then
    return { 'gone' }
end

local now = tonumber(ARGV[2])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local now_us = now * 1000
local wanted, at_least, enforce = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == 'enforce'

local limits = {}
for at = 7, #ARGV, 5 do
    limits[#limits + 1] = {
        rate = ARGV[at] == 'r',
        key = ARGV[at + 1],
        allowed = tonumber(ARGV[at + 2]),
        interval = tonumber(ARGV[at + 2]),
        tolerance = tonumber(ARGV[at + 3]),
        ahead = tonumber(ARGV[at + 4]),
    }
end

local function held(key)
    return redis.call('ZLEXCOUNT', KEYS[2], '[k|' .. key .. '|', '(k|' .. key .. '}')
end

local function oldest(key)
    local first = redis.call('ZRANGEBYLEX', KEYS[2], '[k|' .. key .. '|1|', '(k|' .. key .. '|1}', 'LIMIT', 0, 16)
    local since = {}
    for i, member in ipairs(first) do
        since[i] = string.match(member, '|(%d+)|[^|]*$')
    end
    return since
end

local function arrival(limit)
    local score = redis.call('ZSCORE', KEYS[3], 'r|' .. limit.key)
    return score and tonumber(score)
end

-- An arrival time that a clock which jumped back left in the far future is cut to a full window.
local function within(arrival_us, limit)
    return math.min(arrival_us or now_us, now_us + limit.ahead)
end

local function first_short()
    for i, limit in ipairs(limits) do
        if limit.rate then
            local wait_us = within(arrival(limit), limit) - limit.tolerance - now_us
            if wait_us > 0 then
                return { text(i - 1), '0', '0', text(math.floor((wait_us + 999) / 1000)) }
            end
        else
            limit.held = held(limit.key)
            local lacking = limit.held + at_least - limit.allowed
            if lacking > 0 then
                local short = { text(i - 1), text(limit.held), text(lacking), '' }
                for _, since in ipairs(oldest(limit.key)) do
                    short[#short + 1] = since
                end
                return short
            end
        end
    end
end

local short = first_short()
if short and enforce then
    return { 'refused', unpack(short) }
end
local places = wanted
if enforce then
    for _, limit in ipairs(limits) do
        if not limit.rate then
            places = math.min(places, math.max(limit.allowed - limit.held, 0))
        end
    end
    places = math.max(places, at_least)
end

local keys, taken = {}, {}
for _, limit in ipairs(limits) do
    if limit.rate then
        local before = taken[limit.key] or arrival(limit)
        taken[limit.key] = math.max(within(before, limit), now_us) + limit.interval
    else
        keys[#keys + 1] = limit.key
    end
end
for key, arrival_us in pairs(taken) do
    redis.call('ZADD', KEYS[3], text(arrival_us), 'r|' .. key)
end
-- Rates that have drained say the same as none.
if next(taken) and redis.call('ZCARD', KEYS[3]) > RATES_MAX then
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now_us))
end
hold(call, places, now, '0', keys)
return { 'admitted', text(places), unpack(short or {}) }
