-- Writes claims of a shard that is being loaded, unless another has begun to load it since.
-- KEYS: the shard's state, then the keys. ARGV: the state that is expected, the state after this; then for each key its
-- claim and its time to live in ms.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
for i = 2, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i * 2 - 1], 'PX', ARGV[i * 2])
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
