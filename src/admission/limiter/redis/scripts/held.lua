-- A page of leases. ARGV: 2 the last one of the page before, or `|`; 3 how many.
local bad = wrong()
if bad then
    return bad
end
local from = ARGV[2] == '|' and '[h|' or '(' .. ARGV[2]
local page = redis.call('ZRANGEBYLEX', KEYS[2], from, '(h}', 'LIMIT', 0, ARGV[3])
table.insert(page, 1, 'page')
return page
