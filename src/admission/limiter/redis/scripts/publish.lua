-- Puts what was filled in in the place of what an epoch had, and makes it the epoch that counts: only upward, unless what is
-- published is another line's. KEYS: 4 and 5 leases and rates that were filled in, 6 and 7 those of the epoch before.
-- 8 which databases have something in this pool.
-- ARGV: 2 what was published when the caller looked, 3 the line it has filled, 4 how many members, 5 the caller's database, 6 the
-- pool's prefix.
local said = redis.call('GET', KEYS[1]) or ''
if said ~= ARGV[2] then
    return { 'again' }
end
local here = line()
local epoch, at = string.match(said, '^(%d+) (%w+)$')
if epoch and at == here then
    if tonumber(epoch) > tonumber(ARGV[1]) then
        redis.call('UNLINK', KEYS[4], KEYS[5])
        return { 'epoch', epoch }
    elseif epoch == ARGV[1] and marked(KEYS[2], KEYS[3]) then
        -- Published already, by a trip whose answer was lost. Leases have come since.
        redis.call('UNLINK', KEYS[4], KEYS[5])
        return { 'published' }
    end
end
if here ~= ARGV[3] or not marked(KEYS[4], KEYS[5]) or text(redis.call('ZCARD', KEYS[4])) ~= ARGV[4] then
    return { 'unfilled', 'what was filled in was lost on the way' }
end
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[6], KEYS[7])
redis.call('RENAME', KEYS[4], KEYS[2])
redis.call('RENAME', KEYS[5], KEYS[3])
redis.call('PERSIST', KEYS[2])
redis.call('PERSIST', KEYS[3])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. here)
redis.call('HSET', KEYS[8], ARGV[5], '')
-- What another database left here that nobody listens for any more: its replicas are gone. Should one come back, it fills its part anew.
for _, other in ipairs(redis.call('HKEYS', KEYS[8])) do
    local own = ARGV[6] .. ':' .. other .. ':'
    if other ~= ARGV[5] and redis.call('PUBSUB', 'NUMSUB', own .. 'news')[2] == 0 then
        local last = string.match(redis.call('GET', own .. 'epoch') or '', '^(%d+) ')
        redis.call('UNLINK', own .. 'epoch', own .. (last or '0') .. ':leases', own .. (last or '0') .. ':rates')
        redis.call('HDEL', KEYS[8], other)
    end
end
return { 'published' }
