-- Runs everything that the scripts use on two keys of its own. Says what did not work.
local a, b = KEYS[1], KEYS[2]
local answer = { 'probed' }
for _, command in ipairs({
    { 'SET', b, '1', 'PX', '60000' },
    { 'GET', b },
    { 'EXISTS', b },
    { 'UNLINK', a, b },
    { 'ZADD', a, '0', '!' },
    { 'ZCARD', a },
    { 'ZSCORE', a, '!' },
    { 'ZLEXCOUNT', a, '-', '+' },
    { 'ZRANGEBYLEX', a, '-', '+', 'LIMIT', '0', '1' },
    { 'RENAME', a, b },
    { 'PERSIST', b },
    { 'PEXPIRE', b, '60000' },
    { 'ZREM', b, '!' },
    { 'UNLINK', b },
    { 'HSET', a, '!', '' },
    { 'HGET', a, '!' },
    { 'HEXISTS', a, '!' },
    { 'HLEN', a },
    { 'HKEYS', a },
    { 'PUBSUB', 'NUMSUB', a },
    { 'HRANDFIELD', a, '1', 'WITHVALUES' },
    { 'HDEL', a, '!' },
    { 'TIME' },
    { 'INFO', 'replication' },
}) do
    local said = redis.pcall(unpack(command))
    if type(said) == 'table' and said.err then
        answer[#answer + 1] = command[1]
        answer[#answer + 1] = said.err
    end
end
return answer
