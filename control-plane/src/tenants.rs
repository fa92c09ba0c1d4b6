//! Tenants.

use herald_core::{
    ids::TenantId,
    policy::{QuotaRow, TenantRow, kind},
    problem::{Kind, Problem},
};

use crate::{
    limits::{NewQuota, check_quota},
    publisher::{Publisher, read},
};

const MAX_NAME_BYTES: usize = 256;

/// Creates a tenant, or replaces what is said of it; returns it and its version.
///
/// # Errors
/// 400 for what cannot be; 409 where `version` is given and not the stored one (0 for none).
pub async fn put(
    publisher: &Publisher,
    tenant_id: &str,
    name: &str,
    quota: Option<NewQuota>,
    version: Option<u64>,
) -> Result<(TenantRow, u64), Problem> {
    let tenant =
        TenantId::parse(tenant_id).map_err(|error| Problem::field("tenant_id", "invalid_id", error.to_string()))?;
    check_name(name)?;
    let quota = quota.map(|quota| check_quota("quota.", quota).map_err(Problem::malformed)).transpose()?;
    let quota = quota.map(|(per_second, burst)| QuotaRow { per_second, burst });
    let now_ms = publisher.world().now_ms();
    publisher
        .update_version(kind::TENANT, tenant.as_str(), version, |stored: Option<TenantRow>| {
            let created_ms = stored.map_or(now_ms, |stored| stored.created_ms);
            let name = if name.is_empty() { tenant_id } else { name }.to_owned();
            Ok(TenantRow {
                tenant_id: tenant_id.to_owned(),
                name,
                created_ms,
                updated_ms: now_ms,
                quota: quota.clone(),
            })
        })
        .await
}

/// A tenant and its version.
pub async fn get(publisher: &Publisher, tenant_id: &str) -> Result<(TenantRow, u64), Problem> {
    publisher.get(kind::TENANT, tenant_id).await?.ok_or_else(|| Problem::not_found("tenant"))
}

/// Refuses with 422 and this detail if there is no such tenant.
pub(crate) async fn require(publisher: &Publisher, tenant_id: &str, detail: &str) -> Result<(), Problem> {
    match get(publisher, tenant_id).await {
        Ok(_) => Ok(()),
        Err(problem) if problem.kind() == Kind::NotFound => Err(Problem::refused("unknown_tenant", detail)),
        Err(problem) => Err(problem),
    }
}

/// Tenants after an id, in the order of ids.
pub async fn list(publisher: &Publisher, after: Option<&str>, limit: usize) -> Result<Vec<(TenantRow, u64)>, Problem> {
    let stored = publisher.registry().list(kind::TENANT, "", after, limit).await?;
    stored
        .into_iter()
        .filter_map(|stored| Some((stored.value?, stored.version)))
        .map(|(value, version)| Ok((read(kind::TENANT, &value)?, version)))
        .collect()
}

/// Checks a name for people.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
        let detail = format!("A name has at most {MAX_NAME_BYTES} bytes and no control characters.");
        return Err(Problem::field("name", "invalid_value", detail));
    }
    Ok(())
}
