-- Ends a lease. ARGV[2]: the call. With KEYS[4] a late admission of it is refused from now on, for ARGV[3] milliseconds.
local bad = wrong()
if bad then
    return bad
end
local freed = let_go(ARGV[2])
if KEYS[4] then
    redis.call('SET', KEYS[4], '1', 'PX', ARGV[3])
end
return { 'released', freed }
