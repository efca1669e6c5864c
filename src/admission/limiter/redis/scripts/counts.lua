-- Places in all, those of over-limit calls, and a page of slots by key. ARGV: 2 the last key of the page before, or `|`; 3 how many.
local bad = wrong()
if bad then
    return bad
end
local function count(prefix)
    return redis.call('ZLEXCOUNT', KEYS[2], '[' .. prefix .. '|', '(' .. prefix .. '}')
end
local answer = { 'counts', text(count('h') + count('p')), text(count('o')) }
local from = ARGV[2] == '|' and '[k|' or '[k|' .. ARGV[2] .. '}'
for _ = 1, tonumber(ARGV[3]) do
    local first = redis.call('ZRANGEBYLEX', KEYS[2], from, '(k}', 'LIMIT', 0, 1)[1]
    if not first then
        break
    end
    local key = string.match(first, '^k|([^|]*)|')
    answer[#answer + 1] = key
    answer[#answer + 1] = text(count('k|' .. key))
    from = '[k|' .. key .. '}'
end
return answer
