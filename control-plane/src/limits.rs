//! Limits: how much of what may be sent.

use herald_core::{
    bucket::{MAX_TOKENS, Quota},
    ids::{TenantId, channel_of_name, check_id},
    limits::{LimitRow, LimitScope},
    policy::kind,
    problem::{FieldError, Problem},
};

use crate::{
    publisher::{Publisher, read},
    scopes, tenants,
};

/// Limits of all scopes together: each message is held against those that could be about it.
const MAX_LIMITS: usize = 10_000;

/// A rate and a burst as a caller gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NewQuota {
    /// Required.
    pub per_second: Option<f64>,
    /// What comes in a second, and at least 1, unless given.
    pub burst: Option<u64>,
}

/// Sets the limit of a scope; returns it and its version.
///
/// # Errors
/// 400 for what cannot be; 422 for an unknown tenant, a new limit that nothing fits, and where there are too many.
pub async fn put(publisher: &Publisher, scope: LimitScope, quota: NewQuota) -> Result<(LimitRow, u64), Problem> {
    let mut errors = check_scope(&scope);
    let checked = check_quota("", quota).map_err(|mut wrong| errors.append(&mut wrong));
    let (Ok((per_second, burst)), true) = (checked, errors.is_empty()) else { return Err(Problem::malformed(errors)) };
    if let Some(tenant) = &scope.tenant {
        tenants::require(publisher, tenant, "Create the tenant before its limits.").await?;
    }
    let (id, now_ms) = (scope.id(), publisher.world().now_ms());
    if publisher.get::<LimitRow>(kind::LIMIT, &id).await?.is_none() {
        let (policy, LimitScope { tenant, template, provider, .. }) = (publisher.policy(), &scope);
        let unknown = scopes::unknown(&policy, "limit", tenant.as_deref(), template.as_deref(), provider.as_deref());
        if !unknown.is_empty() {
            return Err(scopes::matches_nothing("limit", unknown));
        }
        if policy.limits().len() >= MAX_LIMITS {
            return Err(Problem::refused("too_many_limits", format!("There are {MAX_LIMITS} limits. Delete some.")));
        }
    }
    publisher
        .update(kind::LIMIT, &id, |stored: Option<LimitRow>| {
            let created_ms = stored.map_or(now_ms, |stored| stored.created_ms);
            Ok(LimitRow { id: id.clone(), scope: scope.clone(), per_second, burst, created_ms, updated_ms: now_ms })
        })
        .await
}

/// Limits after an id, in the order of ids, with their versions.
pub async fn list(publisher: &Publisher, after: Option<&str>, limit: usize) -> Result<Vec<(LimitRow, u64)>, Problem> {
    let stored = publisher.registry().list(kind::LIMIT, "", after, limit).await?;
    stored
        .into_iter()
        .filter_map(|stored| Some((stored.value?, stored.version)))
        .map(|(value, version)| Ok((read(kind::LIMIT, &value)?, version)))
        .collect()
}

/// Deletes a limit.
pub async fn delete(publisher: &Publisher, id: &str) -> Result<(), Problem> {
    publisher.delete(kind::LIMIT, id, "limit").await
}

fn check_scope(scope: &LimitScope) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut wrong = |field: &str, detail: String| {
        errors.push(FieldError::new(format!("scope.{field}"), "invalid_value", detail));
    };
    if let Some(Err(error)) = scope.tenant.as_deref().map(TenantId::parse) {
        wrong("tenant", error.0);
    }
    if let Some(Err(error)) = scope.template.as_deref().map(|id| check_id("template", id)) {
        wrong("template", error.0);
    }
    if scope.channel.as_deref().is_some_and(|name| channel_of_name(name).is_none()) {
        wrong("channel", "The channels are in_app, email, push and webhook.".into());
    }
    if let Some(Err(error)) = scope.provider.as_deref().map(|name| check_id("provider", name)) {
        wrong("provider", error.0);
    }
    errors
}

/// Checks a rate and a burst; `within` is the path of the fields, with its dot.
pub(crate) fn check_quota(within: &str, quota: NewQuota) -> Result<(f64, u64), Vec<FieldError>> {
    let wrong = |field: &str, code, detail: String| FieldError::new(format!("{within}{field}"), code, detail);
    let mut errors = Vec::new();
    let per_second = quota.per_second.unwrap_or_else(|| {
        errors.push(wrong("per_second", "required", "Say how many a second; 0 stops them.".into()));
        0.0
    });
    let burst = quota.burst.unwrap_or((per_second.ceil() as u64).clamp(1, MAX_TOKENS));
    if !(1..=MAX_TOKENS).contains(&burst) {
        let detail = "A burst is 1 to 1000000000000. To let nothing through, set per_second to 0.";
        errors.push(wrong("burst", "out_of_range", detail.into()));
    } else if errors.is_empty() && Quota::new(per_second, burst).is_none() {
        let detail = "A rate is a number from 0 to 1000000000000, in steps of 0.000001.";
        errors.push(wrong("per_second", "out_of_range", detail.into()));
    }
    if errors.is_empty() { Ok((per_second, burst)) } else { Err(errors) }
}
