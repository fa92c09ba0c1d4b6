//! API keys: `hk_<key_id>_<secret>`. Only a hash is stored; the key is shown once.

use bytes::Bytes;
use herald_core::{
    auth::{Scope, TENANT_SCOPES, sha256_hex},
    clock::Entropy,
    policy::{KeyRow, kind},
    ports::registry::Written,
    problem::Problem,
};

use crate::{
    publisher::{Publisher, read, unwritable},
    tenants::{self, check_name},
};

/// Keys of one page that are looked at for a filtered list.
const MAX_SCANNED: usize = 1_000;
const KEY_ID_CHARS: usize = 10;
/// 130 bits.
const SECRET_CHARS: usize = 26;

/// What a key is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewKey {
    /// `None` for an operator's key.
    pub tenant_id: Option<String>,
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Milliseconds since the epoch; `None` never expires.
    pub expires_ms: Option<u64>,
}

/// A key, in the clear.
#[derive(Clone, PartialEq, Eq)]
pub struct CreatedKey {
    /// Its public part.
    pub key_id: String,
    /// The whole key.
    pub key: String,
}

/// Creates a key. Its tenant must exist.
pub async fn create(publisher: &Publisher, new: NewKey) -> Result<CreatedKey, Problem> {
    check_name(&new.name)?;
    check_scopes(&new)?;
    let now_ms = publisher.world().now_ms();
    if new.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
        return Err(Problem::field("expires_at", "invalid_value", "The key would have expired already."));
    }
    if let Some(tenant_id) = &new.tenant_id {
        tenants::require(publisher, tenant_id, "Create the tenant before its keys.").await?;
    }
    let entropy = &*publisher.world().entropy;
    let key_id = random_text(entropy, KEY_ID_CHARS);
    let key = format!("hk_{key_id}_{}", random_text(entropy, SECRET_CHARS));
    match put(publisher, &key_id, &key, new, 0).await? {
        Written::Done(_) => Ok(CreatedKey { key_id, key }),
        // One in 2^50: the caller tries again.
        Written::VersionMismatch(_) => Err(Problem::unavailable("The drawn key id is taken. Repeat the call.")),
    }
}

/// Stores a given key under a given id, if the stored version is `expect` (0 for none).
pub(crate) async fn put(
    publisher: &Publisher,
    key_id: &str,
    key: &str,
    new: NewKey,
    expect: u64,
) -> Result<Written, Problem> {
    let row = KeyRow {
        key_id: key_id.to_owned(),
        sha256: sha256_hex(key.as_bytes()),
        tenant_id: new.tenant_id,
        name: new.name,
        scopes: new.scopes,
        created_ms: publisher.world().now_ms(),
        expires_ms: new.expires_ms,
    };
    let value = serde_json::to_vec(&row).map_err(|error| unwritable(&error))?;
    publisher.put(kind::KEY, key_id, Some(Bytes::from(value)), expect).await
}

/// Keys after an id, in the order of ids, of one tenant if named. A bounded number is looked at: the list may be short
/// while there is a place to go on from.
pub async fn list(
    publisher: &Publisher,
    tenant_id: Option<&str>,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<KeyRow>, Option<String>), Problem> {
    let scanned = if tenant_id.is_some() { MAX_SCANNED } else { limit };
    let stored = publisher.registry().list(kind::KEY, "", after, scanned).await?;
    let mut next = (stored.len() == scanned).then(|| stored.last().map(|last| last.key.clone())).flatten();
    let mut rows = Vec::new();
    for stored in stored {
        let Some(value) = stored.value else { continue };
        let row: KeyRow = read(kind::KEY, &value)?;
        if tenant_id.is_none_or(|tenant_id| row.tenant_id.as_deref() == Some(tenant_id)) {
            rows.push(row);
            if rows.len() == limit {
                next = Some(stored.key);
                break;
            }
        }
    }
    Ok((rows, next))
}

/// Deletes a key. It and the tokens of end users that it made are refused everywhere once the policy has arrived.
///
/// The last key of an operator stays: nobody could make another, and no way leads back. Two operators who delete each
/// other's key in one moment are not kept from it.
pub async fn delete(publisher: &Publisher, key_id: &str) -> Result<(), Problem> {
    let stored = publisher.get::<KeyRow>(kind::KEY, key_id).await?;
    let is_operators = stored.is_some_and(|(row, _)| row.tenant_id.is_none());
    if is_operators && !is_left_to_operators(publisher, key_id).await? {
        let detail = "It is the only key of an operator that is valid. Create another one first.";
        return Err(Problem::refused("last_operator_key", detail));
    }
    publisher.delete(kind::KEY, key_id, "key").await
}

/// Whether operators have a valid key besides this one.
async fn is_left_to_operators(publisher: &Publisher, key_id: &str) -> Result<bool, Problem> {
    let now_ms = publisher.world().now_ms();
    let mut after = None;
    loop {
        let (rows, next) = list(publisher, None, after.as_deref(), MAX_SCANNED).await?;
        let is_another = |row: &KeyRow| row.tenant_id.is_none() && row.key_id != key_id && !row.has_expired(now_ms);
        if rows.iter().any(is_another) {
            return Ok(true);
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(false),
        }
    }
}

fn check_scopes(new: &NewKey) -> Result<(), Problem> {
    let allowed = |scope: &str| match new.tenant_id {
        Some(_) => TENANT_SCOPES.contains(&scope),
        // An operator's key may do everything; it can say so.
        None => scope == Scope::Operator.name(),
    };
    let (field, code) = match new.scopes.iter().position(|scope| !allowed(scope)) {
        Some(at) => (format!("scopes[{at}]"), "unknown_scope"),
        None if new.scopes.is_empty() && new.tenant_id.is_some() => ("scopes".to_owned(), "required"),
        None if new.scopes.len() > TENANT_SCOPES.len() => ("scopes".to_owned(), "too_many"),
        None => return Ok(()),
    };
    let detail = format!("A tenant's key has some of {}; an operator's has none.", TENANT_SCOPES.join(", "));
    Err(Problem::field(field, code, detail))
}

/// Random characters of Crockford's base 32, five bits each.
fn random_text(entropy: &dyn Entropy, chars: usize) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut text = String::with_capacity(chars);
    while text.len() < chars {
        let mut bits = entropy.next_u64();
        for _ in 0..(chars - text.len()).min(12) {
            text.push(ALPHABET[(bits & 31) as usize] as char);
            bits >>= 5;
        }
    }
    text
}
