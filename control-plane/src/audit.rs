//! The audit log, as operators read it.

use herald_api::{
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
