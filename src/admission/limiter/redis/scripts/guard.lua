-- Stands before every script below. KEYS: 1 epoch, 2 leases, 3 rates. ARGV[1]: the caller's epoch.
-- Members of the leases, all with score 0, are ordered by their text; keys of limits are escaped, so `|` stands between parts
-- only, and `}` is the character behind it:
--   !                                       these leases are whole
--   h|CALL|PLACES|SINCE|OVERRUN|KEY|KEY     a lease
--   k|KEY|1|SINCE|CALL                      its place, if it has one
--   k|KEY|n|SINCE|CALL|I                    its slots, if it has several
--   p|CALL|I                                its slots but the first, whatever binds it
--   o|CALL|I                                all of its slots, if it is an over-limit call

local function text(number)
    return string.format('%.0f', number)
end

-- Names this line of data: another one after a promotion and after a restart, taken over in a copy.
local function line()
    return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or '?'
end

local function marked(leases, rates)
    return redis.call('ZSCORE', leases, '!') and redis.call('HEXISTS', rates, '!') == 1
end

-- Why this server must not answer the caller, if so.
local function wrong()
    local epoch, at = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%w+)$')
    if not epoch then
        return { 'unfilled', 'nothing was ever filled in' }
    elseif at ~= line() then
        return { 'unfilled', 'its data is from before a restart or a failover' }
    elseif tonumber(epoch) > tonumber(ARGV[1]) then
        return { 'epoch', epoch }
    elseif epoch ~= ARGV[1] then
        return { 'unfilled', 'it was last filled for epoch ' .. epoch }
    elseif not marked(KEYS[2], KEYS[3]) then
        return { 'unfilled', 'a part of its data is gone' }
    end
end

local function lease(call)
    return redis.call('ZRANGEBYLEX', KEYS[2], '[h|' .. call .. '|', '(h|' .. call .. '}', 'LIMIT', 0, 1)[1]
end

local function members(call, slots, since, over_limit, keys)
    local own = 'h|' .. call .. '|' .. text(slots) .. '|' .. text(since) .. '|' .. over_limit
    local stamp = string.format('%016.0f', math.max(since, 0))
    local all = {}
    for _, key in ipairs(keys) do
        own = own .. '|' .. key
        if slots == 1 then
            all[#all + 1] = 'k|' .. key .. '|1|' .. stamp .. '|' .. call
        else
            for i = 1, slots do
                all[#all + 1] = 'k|' .. key .. '|n|' .. stamp .. '|' .. call .. '|' .. i
            end
        end
    end
    for i = 2, slots do
        all[#all + 1] = 'p|' .. call .. '|' .. i
    end
    for i = 1, over_limit == '1' and slots or 0 do
        all[#all + 1] = 'o|' .. call .. '|' .. i
    end
    all[#all + 1] = own
    return all
end

-- In portions: a call in Lua takes some thousand arguments.
local function write(command, all)
    for from = 1, #all, 1000 do
        local portion = {}
        for i = from, math.min(from + 999, #all) do
            if command == 'ZADD' then
                portion[#portion + 1] = 0
            end
            portion[#portion + 1] = all[i]
        end
        redis.call(command, KEYS[2], unpack(portion))
    end
end

local function hold(call, slots, since, over_limit, keys)
    write('ZADD', members(call, slots, since, over_limit, keys))
end

local function let_go(call)
    local own = lease(call)
    if not own then
        return '0'
    end
    local slots, since, over_limit, rest = string.match(own, '^h|[^|]*|(%d+)|(-?%d+)|([01])(.*)$')
    local keys = {}
    for key in string.gmatch(rest, '|([^|]*)') do
        keys[#keys + 1] = key
    end
    write('ZREM', members(call, tonumber(slots), tonumber(since), over_limit, keys))
    return '1'
end
