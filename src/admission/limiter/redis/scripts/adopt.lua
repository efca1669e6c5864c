-- Holds a call over limits if need be, in place of what it held. ARGV: 2 call, 3 slots, 4 since, 5 over_limit, then its keys.
local bad = wrong()
if bad then
    return bad
end
local keys = {}
for i = 6, #ARGV do
    keys[#keys + 1] = ARGV[i]
end
let_go(ARGV[2])
hold(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], keys)
return { 'held' }
