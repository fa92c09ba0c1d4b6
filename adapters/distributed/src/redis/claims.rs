//! Dedupe claims. A shard has a state, its sequence and the generation of what was loaded, and a key for each claim, all
//! in one slot. A round trip is one script, so that the sequence and the claims are of one moment: data that were lost
//! before it show in the sequence, and data that are lost after it show in the next.

use std::{collections::HashMap, sync::LazyLock};

use async_trait::async_trait;
use herald_core::{
    ids::NotificationId,
    ports::{
        StoreError,
        claims::{ClaimRequest, Claims, ROUND_TRIP_BITS},
    },
    record::Claim,
};
use redis::Script;
use uuid::Uuid;

use super::Redis;

static APPLY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claims.lua")));
static ADOPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claims_adopt.lua")));
static LOAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claims_load.lua")));

/// Claims that one script writes while a shard is loaded: half a millisecond of the server.
const LOADED_AT_ONCE: usize = 256;

/// Keys stay so much longer than their claims: clocks differ, and it is the caller's that decides.
const CLOCK_SLACK_MS: u64 = 60_000;

/// Claims in Redis.
#[derive(Clone)]
pub struct RedisClaims(Redis);

impl RedisClaims {
    /// Claims behind a connection.
    pub fn new(redis: Redis) -> Self {
        Self(redis)
    }

    /// The key of a shard's state, which is also what its claims' keys begin with.
    fn state_key(&self, shard: u32) -> Vec<u8> {
        self.0.key(&format!("claims:{shard}")).into_bytes()
    }
}

fn claim_key(state_key: &[u8], key: &[u8; 16]) -> Vec<u8> {
    [state_key, key].concat()
}

fn ttl_ms(expires_ms: u64, now_ms: u64) -> u64 {
    expires_ms.saturating_sub(now_ms).saturating_add(CLOCK_SLACK_MS).min(i64::MAX as u64 / 4)
}

/// Eight bytes that no other load has.
fn generation() -> [u8; 8] {
    // The last half of a UUIDv7 is random: 62 bits.
    Uuid::now_v7().into_bytes().split_at(8).1.try_into().unwrap_or_default()
}

/// The first sequence of an era that nobody else has, above 0 and within what servers count with a sign.
fn new_era(generation: [u8; 8]) -> u64 {
    let random = u64::from_be_bytes(generation) & (u64::from(u32::MAX) >> 1);
    random.max(1) << ROUND_TRIP_BITS
}

#[async_trait]
impl Claims for RedisClaims {
    async fn apply(
        &self,
        shard: u32,
        sequence: u64,
        requests: &[ClaimRequest],
        now_ms: u64,
    ) -> Result<Option<Vec<NotificationId>>, StoreError> {
        let state_key = self.state_key(shard);
        let mut call = APPLY.prepare_invoke();
        call.key(&state_key).arg(sequence).arg(sequence + 1).arg(now_ms).arg(&generation());
        for request in requests {
            match request {
                ClaimRequest::Take { key, owner, expires_ms } => {
                    let ttl_ms = ttl_ms(*expires_ms, now_ms);
                    call.key(claim_key(&state_key, key));
                    call.arg("t").arg(&owner.0).arg(&expires_ms.to_be_bytes()).arg(ttl_ms);
                }
                ClaimRequest::Release { key, owner } => {
                    call.key(claim_key(&state_key, key)).arg("r").arg(&owner.0).arg("").arg("");
                }
            }
        }
        let others: Option<Vec<Vec<u8>>> = self.0.script(&call).await?;
        let Some(others) = others else { return Ok(None) };
        let damaged = || StoreError::Damaged(format!("Redis answered {} claims of {}", others.len(), requests.len()));
        if others.len() != requests.len() {
            return Err(damaged());
        }
        let holder = |(request, other): (&ClaimRequest, &Vec<u8>)| match other.is_empty() {
            true => Ok(request.owner()),
            false => NotificationId::from_slice(other).ok_or_else(damaged),
        };
        requests.iter().zip(&others).map(holder).collect::<Result<_, _>>().map(Some)
    }

    async fn sequence(&self, shard: u32) -> Result<u64, StoreError> {
        let state: Option<Vec<u8>> = self.0.query(redis::cmd("GET").arg(self.state_key(shard))).await?;
        // One that is being loaded does not begin with a number.
        let sequence = |state: Vec<u8>| str::from_utf8(state.split(|byte| *byte == b':').next()?).ok()?.parse().ok();
        Ok(state.and_then(sequence).unwrap_or(0))
    }

    async fn adopt(&self, shard: u32, sequence: u64) -> Result<Option<u64>, StoreError> {
        let next = new_era(generation());
        let mut call = ADOPT.key(self.state_key(shard));
        let adopted: bool = self.0.script(call.arg(sequence).arg(next)).await?;
        Ok(adopted.then_some(next))
    }

    async fn load(&self, shard: u32, claims: Vec<Claim>, now_ms: u64) -> Result<u64, StoreError> {
        let (state_key, generation) = (self.state_key(shard), generation());
        let sequence = new_era(generation);
        let mut held: HashMap<[u8; 16], Claim> = HashMap::with_capacity(claims.len());
        for claim in claims {
            let damaged = || StoreError::Damaged("a claim whose key or owner is not 16 bytes".into());
            let key = claim.key[..].try_into().map_err(|_| damaged())?;
            NotificationId::from_slice(&claim.owner).ok_or_else(damaged)?;
            if !claim.released {
                held.insert(key, claim);
            } else if held.get(&key).is_some_and(|holder| holder.owner == claim.owner) {
                held.remove(&key);
            }
        }
        // From here on no sequence is right, until all claims are there.
        let loading = [b"loading:", &generation[..]].concat();
        let loaded = [sequence.to_string().as_bytes(), b":", &generation].concat();
        self.0.query::<()>(redis::cmd("SET").arg(&state_key).arg(&loading)).await?;
        let held: Vec<([u8; 16], Claim)> = held.into_iter().collect();
        let (chunks, last) = held.as_chunks::<LOADED_AT_ONCE>();
        for (chunk, after) in chunks.iter().map(|chunk| (&chunk[..], &loading)).chain([(last, &loaded)]) {
            let mut call = LOAD.prepare_invoke();
            call.key(&state_key).arg(&loading).arg(after);
            for (key, claim) in chunk {
                let value = [&generation[..], &claim.expires_ms.to_be_bytes(), &claim.owner].concat();
                call.key(claim_key(&state_key, key)).arg(value).arg(ttl_ms(claim.expires_ms, now_ms));
            }
            if !self.0.script::<bool>(&call).await? {
                return Err(StoreError::Unavailable(format!("another process loads the claims of shard {shard}")));
            }
        }
        Ok(sequence)
    }
}
