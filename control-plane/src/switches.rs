//! Switches: set, listed and removed by operators.
//!
//! They are written to `control` and nowhere else, so that an operator can stop everything while every database is down.
//! What is there is read from the snapshot that `control` makes.

use std::time::Duration;

use bytes::Bytes;
use herald_api::{
    audit::AuditNote,
    time::{millis, timestamp},
};
use herald_core::{
    ids::{TenantId, channel_name, channel_of_name},
    policy::{Policy, kind},
    ports::ledger::{RequestRow, RequestScope},
    problem::{FieldError, Problem},
    switches::{MAX_SWITCHES, SwitchRow, SwitchScope, SwitchState, Traffic},
};
use herald_proto::v1;
use tokio::time::Instant;

use crate::{
    publisher::{Publisher, unwritable},
    reports, scopes,
    service::Deps,
};

/// How long a call waits until every process runs what it changed.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

const MAX_REASON_BYTES: usize = 1_000;

/// Requests that are looked at, the newest of each tenant first, to say how much waits behind a switch.
const COUNTED_REQUESTS: usize = 2_000;

/// How long an answer waits for that count: what has been counted by then is told.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);

/// A switch that holds nothing back any more is forgotten after this time.
const FORGET_AFTER_MS: u64 = 86_400_000;

/// Sets the switch of a scope.
///
/// # Errors
/// 400 for what cannot be; 422 for a scope that nothing fits, and where there are too many switches.
pub async fn put(deps: &Deps, operator: &str, asked: v1::PutSwitchRequest) -> Result<v1::PutSwitchResponse, Problem> {
    let publisher = &deps.publisher;
    let now_ms = publisher.world().now_ms();
    let row = row_of(operator, &asked, now_ms)?;
    let (id, policy) = (row.scope.switch_id(), publisher.policy());
    if policy.switches().get(&id).is_none() {
        check_scope(deps, &policy, &row.scope)?;
        if policy.switches().len() >= MAX_SWITCHES {
            let detail = format!("There are {MAX_SWITCHES} switches already. Delete those that are not needed.");
            return Err(Problem::refused("too_many_switches", detail));
        }
    }
    let value = serde_json::to_vec(&row).map_err(|error| unwritable(&error))?;
    let version = publisher.put_log_first(kind::SWITCH, vec![(id.clone(), Some(value.into()))]).await?;
    let (applied, queued) = tokio::join!(applied(deps, version), async {
        let until = Instant::now() + COUNTED_WITHIN;
        if row.state.sends() { None } else { Some(queued(deps, &policy, &row.scope, until).await) }
    });
    Ok(v1::PutSwitchResponse {
        id,
        version: small(version),
        applied: Some(applied),
        scope: Some(scope_message(&row.scope)),
        state: row.state.name().to_owned(),
        reason: row.reason,
        expires_at: asked.expires_at,
        queued,
    })
}

/// What the audit log says of a switch that was set.
pub(crate) fn note_of(set: &v1::PutSwitchResponse) -> AuditNote {
    let scope = set.scope.clone().unwrap_or_default();
    let fields = [
        ("tenant", &scope.tenant),
        ("template", &scope.template),
        ("channel", &scope.channel),
        ("provider", &scope.provider),
        ("region", &scope.region),
    ];
    let mut words = vec![set.state.clone()];
    words.extend(fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))));
    if scope.all == Some(true) {
        words.push("all".to_owned());
    }
    let reason = if set.reason.is_empty() { String::new() } else { format!(": {}", set.reason) };
    AuditNote { tenant: scope.tenant, detail: format!("{}{reason}", words.join(" ")) }
}

/// Removes a switch: what it held back goes on.
///
/// # Errors
/// 404 where there is none.
pub async fn delete(deps: &Deps, id: &str) -> Result<v1::DeleteSwitchResponse, Problem> {
    if deps.publisher.policy().switches().get(id).is_none() {
        return Err(Problem::not_found("switch"));
    }
    let version = deps.publisher.put_log_first(kind::SWITCH, vec![(id.to_owned(), None)]).await?;
    Ok(v1::DeleteSwitchResponse { version: small(version), applied: Some(applied(deps, version).await) })
}

/// Switches after an id, in the order of ids, with what waits behind each.
pub async fn list(deps: &Deps, after: Option<&str>, limit: usize) -> Vec<v1::Switch> {
    let policy = deps.publisher.policy();
    let now_ms = deps.publisher.world().now_ms();
    let until = Instant::now() + COUNTED_WITHIN;
    let mut switches = Vec::new();
    for (id, row) in policy.switches().iter().filter(|(id, _)| after.is_none_or(|after| *id > after)).take(limit) {
        let expired = row.has_expired(now_ms);
        let queued = match row.state.sends() || expired {
            true => None,
            false => Some(queued(deps, &policy, &row.scope, until).await),
        };
        switches.push(v1::Switch {
            id: id.to_owned(),
            scope: Some(scope_message(&row.scope)),
            state: row.state.name().to_owned(),
            reason: row.reason.clone(),
            expires_at: row.expires_ms.map(timestamp),
            set_at: Some(timestamp(row.set_ms)),
            set_by: row.set_by.clone(),
            expired,
            queued,
        });
    }
    switches
}

/// Forgets switches that have been `on`, or expired, for a day. Returns how many.
pub(crate) async fn forget_spent(publisher: &Publisher) -> Result<usize, Problem> {
    let now_ms = publisher.world().now_ms();
    let policy = publisher.policy();
    let gone: Vec<(String, Option<Bytes>)> = policy
        .switches()
        .iter()
        .filter(|(_, row)| is_spent(row, now_ms))
        .map(|(id, _)| (id.to_owned(), None))
        .collect();
    let count = gone.len();
    if count > 0 {
        publisher.put_log_first(kind::SWITCH, gone).await?;
    }
    Ok(count)
}

/// Whether a switch has held nothing back for so long that nobody looks for it any more.
fn is_spent(row: &SwitchRow, now_ms: u64) -> bool {
    let since_ms = match row.state {
        SwitchState::On => Some(row.set_ms),
        _ => row.expires_ms,
    };
    since_ms.is_some_and(|since_ms| since_ms.saturating_add(FORGET_AFTER_MS) <= now_ms)
}

async fn applied(deps: &Deps, version: u64) -> v1::Applied {
    reports::applied(&*deps.fleet, deps.publisher.world(), version, APPLIED_WITHIN).await
}

fn row_of(operator: &str, asked: &v1::PutSwitchRequest, now_ms: u64) -> Result<SwitchRow, Problem> {
    let mut errors = Vec::new();
    let scope = scope_of(asked.scope.as_ref(), &mut errors);
    let state = SwitchState::of_name(&asked.state).unwrap_or_else(|| {
        let code = if asked.state.is_empty() { "required" } else { "invalid_value" };
        errors.push(FieldError::new("state", code, "The states are off, hold, slow and on."));
        SwitchState::On
    });
    if asked.reason.len() > MAX_REASON_BYTES || asked.reason.contains(char::is_control) {
        let detail = format!("A reason has at most {MAX_REASON_BYTES} bytes and no control characters.");
        errors.push(FieldError::new("reason", "invalid_value", detail));
    }
    let expires_ms = asked.expires_at.as_ref().map(|at| millis(at).unwrap_or(0));
    if expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
        let detail = "The switch would have expired already: it would do nothing. Name a time to come, or none.";
        errors.push(FieldError::new("expires_at", "invalid_value", detail));
    }
    if !errors.is_empty() {
        return Err(Problem::malformed(errors));
    }
    Ok(SwitchRow {
        scope,
        state,
        reason: asked.reason.clone(),
        expires_ms,
        set_ms: now_ms,
        set_by: operator.to_owned(),
    })
}

fn scope_of(asked: Option<&v1::SwitchScope>, errors: &mut Vec<FieldError>) -> SwitchScope {
    let asked = asked.cloned().unwrap_or_default();
    let all = asked.all;
    let scope = SwitchScope {
        tenant: asked.tenant,
        template: asked.template,
        channel: asked.channel,
        provider: asked.provider,
        region: asked.region,
    };
    match (all, scope.is_all()) {
        (Some(true), false) => {
            let detail = "`all` stands alone; leave it away to switch what fits the other fields.";
            errors.push(FieldError::new("scope.all", "ambiguous", detail));
        }
        (None | Some(false), true) => {
            let detail = "Name a tenant, template, channel, provider or region, or set `all` to true.";
            errors.push(FieldError::new("scope", "required", detail));
        }
        _ => {}
    }
    if scope.channel.as_deref().is_some_and(|name| channel_of_name(name).is_none()) {
        let detail = "The channels are in_app, email, push and webhook.";
        errors.push(FieldError::new("scope.channel", "invalid_value", detail));
    }
    scope
}

fn check_scope(deps: &Deps, policy: &Policy, scope: &SwitchScope) -> Result<(), Problem> {
    let SwitchScope { tenant, template, provider, region, .. } = scope;
    let mut errors = scopes::unknown(policy, "switch", tenant.as_deref(), template.as_deref(), provider.as_deref());
    let here = &deps.publisher.identity().region;
    if region.as_ref().is_some_and(|region| region != here) {
        let detail = format!("There is no such region here: the switch would do nothing. This is {here}.");
        errors.push(FieldError::new("scope.region", "unknown", detail));
    }
    if errors.is_empty() { Ok(()) } else { Err(scopes::matches_nothing("switch", errors)) }
}

/// What was accepted and has not ended of what a scope is about. Of a provider's scope every channel is counted, since
/// it is not known before the sending who delivers. A switch works with every store down; then nobody can say how much
/// it holds back, and nobody waits for that longer than `until`.
async fn queued(deps: &Deps, policy: &Policy, scope: &SwitchScope, until: Instant) -> v1::Queued {
    let tenants: Vec<&TenantId> = match scope.tenant.as_deref() {
        Some(tenant) => policy.tenant_id(tenant).into_iter().collect(),
        None => policy.tenant_ids().collect(),
    };
    let region = &deps.publisher.identity().region;
    let (mut instances, mut left, mut at_least) = (0, COUNTED_REQUESTS, false);
    for tenant in tenants {
        let page = deps.ledger.requests(tenant, &RequestScope::Since(0), None, left.max(1));
        let Ok(Ok(Ok(page))) = tokio::time::timeout_at(until, page).await else {
            at_least = true;
            break;
        };
        left = left.saturating_sub(page.items.len());
        instances += page.items.iter().map(|row| waiting(row, tenant, scope, region)).sum::<u64>();
        at_least |= page.next.is_some() || left == 0;
        if left == 0 {
            break;
        }
    }
    v1::Queued { instances: small(instances), at_least }
}

fn waiting(row: &RequestRow, tenant: &TenantId, scope: &SwitchScope, region: &str) -> u64 {
    let (Some(admitted), Some(totals)) = (&row.admitted, &row.totals) else { return 0 };
    let about = totals.by_channel().filter(|(channel, _)| {
        scope.takes(&Traffic {
            tenant: tenant.as_str(),
            template: &admitted.template_id,
            channel: Some(channel_name(*channel)),
            provider: scope.provider.as_deref(),
            region,
        })
    });
    about.map(|(_, totals)| totals.in_flight()).sum()
}

fn scope_message(scope: &SwitchScope) -> v1::SwitchScope {
    v1::SwitchScope {
        tenant: scope.tenant.clone(),
        template: scope.template.clone(),
        channel: scope.channel.clone(),
        provider: scope.provider.clone(),
        region: scope.region.clone(),
        all: scope.is_all().then_some(true),
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_switch_that_does_nothing_any_more_is_forgotten() {
        let row = |state, expires_ms| SwitchRow {
            scope: SwitchScope::default(),
            state,
            reason: String::new(),
            expires_ms,
            set_ms: 5,
            set_by: String::new(),
        };
        let day = FORGET_AFTER_MS;
        assert!(!is_spent(&row(SwitchState::Off, None), u64::MAX));
        assert!(
            !is_spent(&row(SwitchState::Off, Some(9)), 8 + day) && is_spent(&row(SwitchState::Off, Some(9)), 9 + day)
        );
        assert!(!is_spent(&row(SwitchState::On, None), 4 + day) && is_spent(&row(SwitchState::On, None), 5 + day));
    }
}
