-- Takes and releases keys of a shard, if nobody else wrote since.
-- KEYS: the shard's state, then the key of each request.
-- ARGV: the sequence that is expected, the next one, the time in ms, a generation in case there is none; then for each
-- request: t(ake) or r(elease), the owner, when it expires (8 bytes), the key's time to live in ms.
-- Returns nothing if the sequence is another, else who else holds each key; an empty text for who asked.
local state = redis.call('GET', KEYS[1])
local sequence, generation = '0', ARGV[4]
if state then
    sequence, generation = string.match(state, '^(%d+):(.*)$')
end
if sequence ~= ARGV[1] then
    return false
end
local now, holders = tonumber(ARGV[3]), {}
for i = 2, #KEYS do
    local at = i * 4 - 3
    local action, owner, expires, ttl = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    -- A claim is its generation, when it expires, and its owner. What is of another generation was not loaded again.
    local holder = ''
    local held = redis.call('GET', KEYS[i])
    if held and string.sub(held, 1, 8) == generation and struct.unpack('>I8', held, 9) > now then
        holder = string.sub(held, 17)
    end
    if action == 't' then
        if holder == '' then
            redis.call('SET', KEYS[i], generation .. expires .. owner, 'PX', ttl)
        end
        holders[i - 1] = holder == owner and '' or holder
    else
        if holder == owner then
            redis.call('DEL', KEYS[i])
        end
        holders[i - 1] = ''
    end
end
redis.call('SET', KEYS[1], ARGV[2] .. ':' .. generation)
return holders
