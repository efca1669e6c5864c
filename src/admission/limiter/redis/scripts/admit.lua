-- The decision of `admission::decide`, and what it takes. KEYS[4]: the call's tombstone.
-- ARGV: 2 the time in milliseconds, or `-`: the server's, 3 call, 4 wanted, 5 at least, 6 enforce or observe, then five a limit:
--   c KEY ALLOWED - -
--   r KEY COUNT HELD_MS SLICE_MS
local RATES_MAX = 10000
local RATES_LOOKED_AT = 20

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
local wanted, at_least, enforce = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == 'enforce'

local limits = {}
for at = 7, #ARGV, 5 do
    limits[#limits + 1] = {
        rate = ARGV[at] == 'r',
        key = ARGV[at + 1],
        allowed = tonumber(ARGV[at + 2]),
        held_ms = tonumber(ARGV[at + 3]),
        slice = tonumber(ARGV[at + 4]),
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

-- What counts of a rate's log: `admission::RateLog`.
local function counting(log, limit)
    local entries, total = {}, 0
    for at, n in string.gmatch(log or '', '(-?%d+):(%d+)') do
        at, n = tonumber(at), tonumber(n)
        if at + limit.held_ms > now and at <= now + limit.held_ms then
            entries[#entries + 1] = { at, n }
            total = total + n
        end
    end
    return entries, total
end

local function logged(key)
    return redis.call('HGET', KEYS[3], 'r|' .. key)
end

local function wait_ms(limit)
    local entries, total = counting(logged(limit.key), limit)
    local too_many = total + 1 - limit.allowed
    if too_many <= 0 then
        return 0
    end
    for _, entry in ipairs(entries) do
        too_many = too_many - entry[2]
        if too_many <= 0 then
            return entry[1] + limit.held_ms - now
        end
    end
    return limit.held_ms
end

local function with_one(log, limit)
    local entries, total = counting(log, limit)
    local at = math.ceil(now / limit.slice) * limit.slice
    local here = #entries + 1
    while here > 1 and entries[here - 1][1] > at do
        here = here - 1
    end
    if here > 1 and entries[here - 1][1] == at then
        entries[here - 1][2] = entries[here - 1][2] + 1
    else
        table.insert(entries, here, { at, 1 })
    end
    total = total + 1
    local words = {}
    for _, entry in ipairs(entries) do
        if #words == 0 and total - entry[2] >= limit.allowed then
            total = total - entry[2]
        else
            words[#words + 1] = text(entry[1]) .. ':' .. text(entry[2])
        end
    end
    return text(limit.held_ms) .. ';' .. table.concat(words, ',')
end

local function first_short()
    for i, limit in ipairs(limits) do
        if limit.rate then
            local wait = wait_ms(limit)
            if wait > 0 then
                return { text(i - 1), '0', '0', text(wait) }
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
local slots = wanted
if enforce then
    for _, limit in ipairs(limits) do
        if not limit.rate then
            slots = math.min(slots, math.max(limit.allowed - limit.held, 0))
        end
    end
    slots = math.max(slots, at_least)
end

local keys, taken = {}, {}
for _, limit in ipairs(limits) do
    if limit.rate then
        taken[limit.key] = with_one(taken[limit.key] or logged(limit.key), limit)
    else
        keys[#keys + 1] = limit.key
    end
end
for key, log in pairs(taken) do
    redis.call('HSET', KEYS[3], 'r|' .. key, log)
end
-- Rates of which nothing counts any more say the same as none. A few are looked at each time, so nothing ever stands still.
if next(taken) and redis.call('HLEN', KEYS[3]) > RATES_MAX then
    local some = redis.call('HRANDFIELD', KEYS[3], RATES_LOOKED_AT, 'WITHVALUES')
    for i = 1, #some, 2 do
        local held_ms, newest = string.match(some[i + 1], '^(%d+);.-(-?%d+):%d+$')
        if held_ms and tonumber(newest) + tonumber(held_ms) <= now then
            redis.call('HDEL', KEYS[3], some[i])
        end
    end
end
hold(call, slots, now, '0', keys)
return { 'admitted', text(slots), unpack(short or {}) }
