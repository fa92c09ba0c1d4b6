//! Identifiers and the hashes they are made of. The formats are stored and must never change.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use crate::record::Channel;

/// The longest tenant, user, template or topic id, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// A tenant's id: 1 to 64 of `a-z A-Z 0-9 _ - .`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// An id that does not have the form its kind demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(pub String);

impl TenantId {
    /// Checks the form of a tenant's id.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(InvalidId(format!(
                "tenant id {text:?} must be 1 to 64 letters, digits, '_', '-' or '.' (ASCII)"
            )));
        }
        Ok(Self(text.into()))
    }

    /// The id as it came from our own records, which were checked when they were written.
    pub fn trusted(text: &str) -> Self {
        Self(text.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Checks the form of a user, template or topic id: 1 to 256 bytes of UTF-8 without control characters.
pub fn check_id(what: &str, text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId(format!("{what} must not be empty")));
    }
    if text.len() > MAX_ID_BYTES {
        return Err(InvalidId(format!("{what} has {} bytes; at most {MAX_ID_BYTES} are allowed", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidId(format!("{what} must not contain control characters")));
    }
    Ok(())
}

/// The id of an admitted notification: UUIDv7, or a hash (as UUIDv8) for calls with an idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NotificationId(pub [u8; 16]);

impl NotificationId {
    /// A new UUIDv7 of the given time and 74 random bits.
    pub fn at(now_ms: u64, random: [u64; 2]) -> Self {
        let mut bytes = [0u8; 10];
        bytes[..8].copy_from_slice(&random[0].to_be_bytes());
        bytes[8..].copy_from_slice(&random[1].to_be_bytes()[..2]);
        Self(*uuid::Builder::from_unix_timestamp_millis(now_ms, &bytes).into_uuid().as_bytes())
    }

    /// The id of a call with an idempotency key: hash(tenant, key, UTC day of its first use).
    pub fn of_idempotency_key(tenant: &TenantId, key: &str, first_use_ms: u64) -> Self {
        let hash = hash128(&[tenant.as_str().as_bytes(), key.as_bytes(), &(first_use_ms / 86_400_000).to_be_bytes()]);
        Self(*uuid::Builder::from_custom_bytes(hash).into_uuid().as_bytes())
    }

    /// The id in a record; `None` unless it has 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The id's 64 bit hash, by which partitions are chosen.
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.0)
    }
}

impl fmt::Display for NotificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for NotificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NotificationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::parse_str(text)
            .map(|id| Self(id.into_bytes()))
            .map_err(|_| InvalidId(format!("{text:?} is not a request id (a UUID)")))
    }
}

/// One message to one user on one channel: hash(notification, user, channel).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub [u8; 16]);

impl InstanceId {
    /// The id of a notification's message to a user on a channel.
    pub fn of(notification: &NotificationId, user: &str, channel: Channel) -> Self {
        let mut buffer = [0u8; 17 + MAX_ID_BYTES];
        let end = 17 + user.len().min(MAX_ID_BYTES);
        buffer[..16].copy_from_slice(&notification.0);
        buffer[16] = channel as u8;
        buffer[17..end].copy_from_slice(&user.as_bytes()[..end - 17]);
        Self(xxh3_128(&buffer[..end]).to_be_bytes())
    }

    /// What the books add up: the low 64 bits.
    pub fn book_hash(&self) -> u64 {
        u64::from_be_bytes([
            self.0[8], self.0[9], self.0[10], self.0[11], self.0[12], self.0[13], self.0[14], self.0[15],
        ])
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All 128 bits as they are, so that the text leads back to the id.
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::parse_str(text)
            .map(|id| Self(id.into_bytes()))
            .map_err(|_| InvalidId(format!("{text:?} is not an instance id (a UUID)")))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash by which users and members are stored and paged.
pub fn user_hash(user: &str) -> u64 {
    xxh3_64(user.as_bytes())
}

/// The shard of a user: hash(tenant, user) mod the number of shards.
pub fn shard_of(tenant: &str, user: &str, shards: u32) -> u32 {
    // The tenant's hash seeds the user's, so neither is copied.
    (xxhash_rust::xxh3::xxh3_64_with_seed(user.as_bytes(), xxh3_64(tenant.as_bytes())) % u64::from(shards.max(1)))
        as u32
}

/// The partition of a requests topic: hash(tenant, ordering key).
pub fn ordering_partition(tenant: &str, ordering_key: &str, partitions: u32) -> u32 {
    shard_of(tenant, ordering_key, partitions)
}

/// A 128 bit hash over parts, each prefixed with its length so that no two lists of parts are alike.
pub fn hash128(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Xxh3::new();
    for part in parts {
        hasher.update(&(part.len() as u32).to_be_bytes());
        hasher.update(part);
    }
    hasher.digest128().to_be_bytes()
}

/// The key of a dedupe claim: hash128(tenant, template, user, channel, dedupe key). The tenant is always part of it.
pub fn claim_key(tenant: &str, template: &str, user: &str, channel: Channel, dedupe_key: &str) -> [u8; 16] {
    ClaimKeys::new(tenant, template, channel, dedupe_key).of(user)
}

/// Makes the [`claim_key`]s of many users of one notification and channel: what they share is laid out once.
#[derive(Debug, Clone)]
pub struct ClaimKeys {
    /// The parts before the user, then those of the last user that was asked for.
    parts: Vec<u8>,
    before_user: usize,
    after_user: Vec<u8>,
}

impl ClaimKeys {
    /// For one tenant, template, channel and dedupe key.
    pub fn new(tenant: &str, template: &str, channel: Channel, dedupe_key: &str) -> Self {
        let (mut parts, mut after_user) = (Vec::with_capacity(256), Vec::with_capacity(64));
        push_part(&mut parts, tenant.as_bytes());
        push_part(&mut parts, template.as_bytes());
        push_part(&mut after_user, &[channel as u8]);
        push_part(&mut after_user, dedupe_key.as_bytes());
        Self { before_user: parts.len(), parts, after_user }
    }

    /// The key of one user.
    pub fn of(&mut self, user: &str) -> [u8; 16] {
        self.parts.truncate(self.before_user);
        push_part(&mut self.parts, user.as_bytes());
        self.parts.extend_from_slice(&self.after_user);
        xxh3_128(&self.parts).to_be_bytes()
    }
}

fn push_part(parts: &mut Vec<u8>, part: &[u8]) {
    parts.extend_from_slice(&(part.len() as u32).to_be_bytes());
    parts.extend_from_slice(part);
}

/// A channel's name in the API.
pub fn channel_name(channel: Channel) -> &'static str {
    match channel {
        Channel::Unspecified => "unspecified",
        Channel::InApp => "in_app",
        Channel::Email => "email",
        Channel::Push => "push",
        Channel::Webhook => "webhook",
    }
}

/// The channel of a name in the API.
pub fn channel_of_name(name: &str) -> Option<Channel> {
    [Channel::InApp, Channel::Email, Channel::Push, Channel::Webhook].into_iter().find(|c| channel_name(*c) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_hash_never_changes() {
        let id = NotificationId([7; 16]);
        assert_eq!(InstanceId::of(&id, "u1", Channel::Email).book_hash(), STORED_BOOK_HASH);
        assert_eq!(shard_of("acme", "u1", 64), STORED_SHARD);
        assert_eq!(user_hash("u1"), STORED_USER_HASH);
    }

    const STORED_BOOK_HASH: u64 = 1_615_108_875_696_391_238;
    const STORED_SHARD: u32 = 60;
    const STORED_USER_HASH: u64 = 11_367_126_444_297_510_385;

    #[test]
    fn the_same_dedupe_key_of_two_tenants_is_two_claims() {
        let key = |tenant| claim_key(tenant, "t", "u", Channel::Email, "k");
        assert_ne!(key("a"), key("b"));
        assert_ne!(claim_key("ab", "c", "u", Channel::Email, "k"), claim_key("a", "bc", "u", Channel::Email, "k"));
    }

    #[test]
    fn claim_keys_of_many_users_are_those_of_each() {
        let mut keys = ClaimKeys::new("acme", "t", Channel::Email, "k");
        for user in ["u1", "a longer user", ""] {
            let parts: [&[u8]; 5] = [b"acme", b"t", user.as_bytes(), &[Channel::Email as u8], b"k"];
            assert_eq!(keys.of(user), hash128(&parts), "the stored form of {user:?}");
        }
    }

    #[test]
    fn an_idempotency_key_gives_the_same_id_within_its_day() {
        let tenant = TenantId::trusted("acme");
        let id = |ms| NotificationId::of_idempotency_key(&tenant, "k", ms);
        assert_eq!(id(1_000), id(86_399_999));
        assert_ne!(id(1_000), id(86_400_000));
        assert_eq!(id(5).to_string().parse::<NotificationId>().unwrap(), id(5));
        let instance = InstanceId::of(&id(5), "u", Channel::Email);
        assert_eq!(instance.to_string().parse::<InstanceId>().unwrap(), instance);
    }

    #[test]
    fn tenant_ids_are_checked() {
        assert!(TenantId::parse("acme-1.eu_x").is_ok());
        for bad in ["", "a b", "ü", "a/b", &"x".repeat(65)] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
