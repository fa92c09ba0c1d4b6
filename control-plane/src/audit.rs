//! The audit log, as operators read it.

use herald_api::{
    audit::AuditNote,
    page::{List, foreign_token, page_size},
    time::{millis, timestamp},
};
use herald_core::{
    ports::{
        audit::{AuditFilter, AuditRow},
        ledger::Page,
    },
    problem::Problem,
};
use herald_proto::v1;

use crate::service::Deps;

/// What operators did, newest first.
///
/// # Errors
/// 400 for filters that cannot be.
pub async fn list(deps: &Deps, asked: v1::ListAuditRequest) -> Result<v1::ListAuditResponse, Problem> {
    let out_of_range = || Problem::field("since", "out_of_range", "The time is before 1970 or after 9999.");
    let since_ms = asked.since.as_ref().map(|at| millis(at).ok_or_else(out_of_range)).transpose()?.unwrap_or(0);
    let filter = AuditFilter { since_ms, actor: asked.actor, tenant: asked.tenant };
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    let list = List::new("audit", &[&said(&filter.tenant), &said(&filter.actor), &since_ms.to_string()]);
    let position = list.position(asked.page_token.as_deref())?;
    let page = deps.audit.list(&filter, position.as_deref(), page_size(asked.page_size)).await?;
    let Page { items, next } = page.map_err(|_| foreign_token())?;
    let entries = items.into_iter().map(entry).collect();
    Ok(v1::ListAuditResponse { entries, next_page_token: list.token(next.as_deref()) })
}

/// What the audit log says of a limit that was set.
pub(crate) fn limit_note(limit: &v1::Limit) -> AuditNote {
    let scope = limit.scope.clone().unwrap_or_default();
    let fields = [
        ("tenant", &scope.tenant),
        ("template", &scope.template),
        ("channel", &scope.channel),
        ("provider", &scope.provider),
    ];
    let mut words: Vec<String> =
        fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect();
    words.push(format!("per_second={} burst={}", limit.per_second, limit.burst));
    AuditNote { tenant: scope.tenant, detail: words.join(" ") }
}

/// What the audit log says of a tenant that was put.
pub(crate) fn tenant_note(tenant: &v1::Tenant) -> AuditNote {
    let quota = tenant.quota.as_ref().map_or_else(
        || "no quota".to_owned(),
        |quota| format!("quota per_second={} burst={}", quota.per_second, quota.burst.unwrap_or_default()),
    );
    AuditNote { tenant: Some(tenant.tenant_id.clone()), detail: format!("name={} {quota}", tenant.name) }
}

/// What the audit log says of a key that was made.
pub(crate) fn key_note(key_id: &str, tenant_id: Option<String>, scopes: &[String]) -> AuditNote {
    AuditNote { tenant: tenant_id, detail: format!("key_id={key_id} scopes={}", scopes.join(",")) }
}

fn entry(row: AuditRow) -> v1::AuditEntry {
    v1::AuditEntry {
        at: Some(timestamp(row.at_ms)),
        actor: row.actor,
        action: row.action,
        tenant: row.tenant,
        result: row.result,
        status: row.status.into(),
        request_id: row.request_id,
        detail: row.detail,
    }
}
