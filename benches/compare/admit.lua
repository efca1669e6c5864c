-- A place in every set, or in none. KEYS: the sets; ARGV: the call, then each set's limit.
for i, key in ipairs(KEYS) do
    if redis.call("SCARD", key) >= tonumber(ARGV[i + 1]) then
        return 0
    end
end
for _, key in ipairs(KEYS) do
    redis.call("SADD", key, ARGV[1])
end
return 1
