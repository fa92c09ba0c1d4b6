//! What must be there before the first call.

use bytes::Bytes;
use herald_core::{
    auth::{TENANT_SCOPES, sha256_hex},
    policy::{KeyRow, SIGNING_SECRET, SecretRow, TenantRow, kind},
    problem::Problem,
};

use crate::{
    keys::{self, NewKey},
    publisher::{Publisher, read, unwritable},
    tenants,
};

/// The tenant of `herald dev`.
pub const DEV_TENANT: &str = "demo";
/// A key of the dev tenant with every tenant scope.
pub const DEV_KEY: &str = "hk_dev_demo";
/// The operator's key of `herald dev`.
pub const DEV_ADMIN_KEY: &str = "hk_dev_admin";

/// Creates the secret that signs end-user tokens, unless there is one. Many processes may do so at once.
pub async fn ensure_secrets(publisher: &Publisher) -> Result<(), Problem> {
    if publisher.get::<SecretRow>(kind::SECRET, SIGNING_SECRET).await?.is_some() {
        return Ok(());
    }
    let entropy = &publisher.world().entropy;
    let row = SecretRow { value: (0..4).map(|_| format!("{:016x}", entropy.next_u64())).collect() };
    let value = serde_json::to_vec(&row).map_err(|error| unwritable(&error))?;
    // A mismatch means that another process was faster: its secret holds.
    publisher.put(kind::SECRET, SIGNING_SECRET, Some(Bytes::from(value)), 0).await?;
    Ok(())
}

/// The shortest secret of an operator's key that is not made here.
const MIN_SECRET_CHARS: usize = 22;

/// Stores an operator's key, unless there is or was one of its name: the first key, with which others are made. What is
/// stored holds, and one that was deleted stays so; that the given key is not used is told in the log.
///
/// # Errors
/// Where it is not `hk_NAME_SECRET` with a long secret, or the registry is away.
pub async fn ensure_operator(publisher: &Publisher, key: &str) -> Result<(), Problem> {
    let parts = key.strip_prefix("hk_").and_then(|rest| rest.split_once('_'));
    let named = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let Some((key_id, _)) = parts.filter(|(name, secret)| named(name) && secret.len() >= MIN_SECRET_CHARS) else {
        let detail = "an operator's key is hk_NAME_SECRET: the name of a-z and 0-9, the secret random and of 22 characters or more";
        return Err(Problem::refused("operator_key", detail));
    };
    match publisher.registry().get(kind::KEY, key_id).await?.map(|stored| stored.value) {
        None => {
            let new = NewKey { tenant_id: None, name: "first operator".into(), scopes: Vec::new(), expires_ms: None };
            keys::put(publisher, key_id, key, new, 0).await?;
        }
        Some(None) => tracing::warn!(
            key_id,
            "the operator's key of the configuration was deleted and opens nothing; give one of another name instead"
        ),
        Some(Some(value)) if read::<KeyRow>(kind::KEY, &value)?.sha256 != sha256_hex(key.as_bytes()) => tracing::warn!(
            key_id,
            "a key of the same name and with another secret is stored, so the operator's key of the configuration opens \
             nothing; give one of another name instead"
        ),
        Some(Some(_)) => {}
    }
    Ok(())
}

/// Creates the tenant and the keys of `herald dev`, unless they are there; keys that were deleted come back, since
/// `herald dev` says that it has them. For loopback only: the keys are public.
pub async fn ensure_dev(publisher: &Publisher) -> Result<(), Problem> {
    if publisher.get::<TenantRow>(kind::TENANT, DEV_TENANT).await?.is_none() {
        tenants::put(publisher, DEV_TENANT, "Demo", None, None).await?;
    }
    let scopes: Vec<String> = TENANT_SCOPES.iter().map(ToString::to_string).collect();
    for (key, tenant_id, scopes) in [(DEV_KEY, Some(DEV_TENANT), scopes), (DEV_ADMIN_KEY, None, Vec::new())] {
        let key_id = key.trim_start_matches("hk_");
        let stored = publisher.registry().get(kind::KEY, key_id).await?;
        if stored.as_ref().is_none_or(|stored| stored.value.is_none()) {
            let new = NewKey { tenant_id: tenant_id.map(str::to_owned), name: key.into(), scopes, expires_ms: None };
            keys::put(publisher, key_id, key, new, stored.map_or(0, |stored| stored.version)).await?;
        }
    }
    Ok(())
}
