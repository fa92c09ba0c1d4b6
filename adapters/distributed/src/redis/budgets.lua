-- Leases tokens, by the arithmetic of herald_core::bucket. A double holds whole numbers to 2^53, and rates times times
-- pass that, so tokens and billionths of a token are counted apart, and so are a rate's whole tokens and its millionths.
-- KEYS: the bucket of each ask, group after group.
-- ARGV: the time in ms, empty for the server's own; then for each ask: whether it begins a group (1 or 0), the rate's whole
-- tokens a second and its millionths, the capacity, the tokens that are wanted, those that must stay, the key's time to
-- live in ms.
-- Returns for each ask what its bucket held before anything was taken: tokens and billionths.
local now, buckets, held = tonumber(ARGV[1]), {}, {}
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- A clock that is behind another's by less than this fills nothing; one that is farther behind was set back.
local SKEW_MS = 10000

local function fill(name, capacity)
    local bucket = buckets[name]
    if bucket then
        -- Filled by an ask before.
    else
        local state = redis.call('GET', name)
        if not state then
            bucket = { tokens = capacity, nanos = 0, at = now, rate = 0, part = 0 }
        else
            local tokens, nanos, at, rate, part = string.match(state, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
            bucket = { tokens = tonumber(tokens), nanos = tonumber(nanos), at = tonumber(at),
                rate = tonumber(rate), part = tonumber(part) }
        end
        buckets[name] = bucket
    end
    local ms = now - bucket.at
    if ms > 0 or ms < -SKEW_MS then
        bucket.at = now
    end
    ms = math.max(ms, 0)
    local s = math.min(math.floor(ms / 1000), 9e9)
    ms = ms % 1000
    if bucket.tokens + bucket.rate * s >= capacity then
        bucket.tokens, bucket.nanos = capacity, 0
    else
        local thousandths, millionths = bucket.rate * ms, bucket.part * s
        local nanos = bucket.nanos + thousandths % 1000 * 1e6 + millionths % 1e6 * 1e3 + bucket.part * ms
        bucket.tokens = bucket.tokens + bucket.rate * s + math.floor(thousandths / 1000)
            + math.floor(millionths / 1e6) + math.floor(nanos / 1e9)
        bucket.nanos = nanos % 1e9
        if bucket.tokens >= capacity then
            bucket.tokens, bucket.nanos = capacity, 0
        end
    end
    return bucket
end

-- Takes what the asks from `first` to `last` are given, unless one of them is given nothing.
local function settle(first, last)
    local given = {}
    for i = first, last do
        local tokens, floor = tonumber(ARGV[i * 7 - 1]), tonumber(ARGV[i * 7])
        given[i] = math.min(math.max(held[i * 2 - 1] - floor, 0), tokens)
        if given[i] == 0 and tokens > 0 then
            return
        end
    end
    for i = first, last do
        local bucket = buckets[KEYS[i]]
        if bucket.tokens < given[i] then
            bucket.nanos = 0
        end
        bucket.tokens = math.max(bucket.tokens - given[i], 0)
    end
end

local first = 1
for i = 1, #KEYS do
    local at = i * 7 - 5
    if ARGV[at] == '1' and i > 1 then
        settle(first, i - 1)
        first = i
    end
    local bucket = fill(KEYS[i], tonumber(ARGV[at + 3]))
    bucket.rate, bucket.part, bucket.ttl = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 6]
    held[i * 2 - 1], held[i * 2] = bucket.tokens, bucket.nanos
end
if #KEYS > 0 then
    settle(first, #KEYS)
end
for name, bucket in pairs(buckets) do
    local state = string.format('%.0f %.0f %.0f %.0f %.0f', bucket.tokens, bucket.nanos, bucket.at, bucket.rate, bucket.part)
    redis.call('SET', name, state, 'PX', bucket.ttl)
end
return held
