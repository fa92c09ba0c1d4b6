-- Gives a shard's claims another sequence. KEYS: the shard's state. ARGV: the sequence that is expected, the next one.
local state = redis.call('GET', KEYS[1])
local sequence, generation
if state then
    sequence, generation = string.match(state, '^(%d+):(.*)$')
end
if sequence ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2] .. ':' .. generation)
return 1
