//! Cancels: nothing of a request is sent any more.
//!
//! A cancel is written to `control` and nowhere else, so that one by request id works with every store down. The requests
//! under a dedupe key are found in the ledger, once it knows everything that was admitted before the call.

use std::{collections::BTreeMap, time::Duration};

use herald_api::auth::Authenticated;
use herald_core::{
    auth::Scope,
    control::control_record,
    ids::{self, NotificationId, TenantId},
    policy::{CancelRow, MAX_CANCELS, Policy, kind},
    ports::ledger::{Page, RequestRow, RequestScope},
    problem::{FieldError, Kind, Problem},
    record::Control,
    topic::Group,
};
use herald_proto::v1;
use tokio::time::Instant;

use crate::{
    admit::MAX_KEY_BYTES,
    service::Gateway,
    status::{WAIT_STEP, parse_request_id, state_of},
};

/// Requests that one call cancels, and that its answer names, at most.
const MAX_REQUESTS: usize = 1_000;
/// Requests under one dedupe key that a call looks at.
const MAX_SCANNED: usize = 100_000;
const SCAN: usize = 500;
/// A cancel is remembered for longer than something can be sent: a dead letter can be brought back for 30 days.
const GRACE_MS: u64 = 31 * 86_400_000;
/// How long the answer waits until this process knows of the cancel, so that a status after it says so.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// What a call found.
#[derive(Default)]
struct Found {
    /// To be cancelled now, and until when that must be remembered.
    fresh: Vec<(NotificationId, u64)>,
    /// Already cancelled, being cancelled, or over.
    settled: Vec<v1::CancelledRequest>,
    /// There may be more.
    more: bool,
}

impl Gateway {
    /// Cancels a request, or every request under a dedupe key that was admitted before the call.
    ///
    /// # Errors
    /// 400 for a call that names neither or both; 404 for a request that the tenant has not; 429 where too many cancels
    /// are under way; 503 where it cannot be known yet, or the log did not take it.
    pub async fn cancel(&self, who: &Authenticated, asked: v1::CancelRequest) -> Result<v1::CancelResponse, Problem> {
        let tenant = who.caller.require(Scope::Notify)?;
        check(&asked)?;
        // The newest: what was cancelled a moment ago is not cancelled again.
        let policy = self.authenticator.policy();
        let found = match (&asked.request_id, &asked.dedupe_key) {
            (Some(request_id), _) => self.of_request(tenant, request_id, &policy).await?,
            (None, key) => {
                let template = asked.template_id.as_deref();
                self.under_key(tenant, key.as_deref().unwrap_or_default(), template, &policy).await?
            }
        };
        if policy.cancels().len() + found.fresh.len() > MAX_CANCELS {
            let detail = "Too many cancelled requests are not over yet. Nothing was cancelled; try again later.";
            return Err(Problem::new(Kind::TooMany, "too_many_cancels", detail).with_retry_after(60));
        }
        self.write_cancels(tenant, &found.fresh).await?;
        let cancelling = |(id, _): (NotificationId, u64)| v1::CancelledRequest {
            request_id: id.to_string(),
            state: "cancelling".to_owned(),
        };
        let requests = found.fresh.into_iter().map(cancelling).chain(found.settled).take(MAX_REQUESTS).collect();
        Ok(v1::CancelResponse { requests, more: found.more })
    }

    async fn of_request(&self, tenant: &TenantId, request_id: &str, policy: &Policy) -> Result<Found, Problem> {
        let id = parse_request_id("request_id", request_id)?;
        let mut found = Found::default();
        match self.request_row(tenant, &id).await {
            Ok(row) => self.add(&mut found, id, &row, policy),
            // It may be there; if it is not, or another tenant's, the cancel does nothing.
            Err(problem) if problem.kind() == Kind::Unavailable => found.fresh.push((id, self.remembered_until(None))),
            Err(problem) => return Err(problem),
        }
        Ok(found)
    }

    async fn under_key(
        &self,
        tenant: &TenantId,
        key: &str,
        template: Option<&str>,
        policy: &Policy,
    ) -> Result<Found, Problem> {
        self.all_admitted_are_known().await?;
        let scope = RequestScope::DedupeKey(key.to_owned());
        let (mut found, mut token, mut scanned) = (Found::default(), None::<Vec<u8>>, 0);
        loop {
            let page = self.deps.ledger.requests(tenant, &scope, token.as_deref(), SCAN).await?;
            let Page { items, next } = page.map_err(|_| lost_place())?;
            scanned += SCAN;
            for row in &items {
                let Some(admitted) = &row.admitted else { continue };
                if template.is_none_or(|template| admitted.template_id == template) {
                    self.add(&mut found, admitted.id, row, policy);
                }
            }
            token = next;
            if token.is_none() || found.fresh.len() >= MAX_REQUESTS || scanned >= MAX_SCANNED {
                break;
            }
        }
        found.more = token.is_some() || found.fresh.len() > MAX_REQUESTS;
        found.fresh.truncate(MAX_REQUESTS);
        Ok(found)
    }

    fn add(&self, found: &mut Found, id: NotificationId, row: &RequestRow, policy: &Policy) {
        let state = state_of(id, row, &self.steered(policy), self.now_ms());
        match state {
            "cancelling" | "cancelled" | "complete" if found.settled.len() < MAX_REQUESTS => {
                found.settled.push(v1::CancelledRequest { request_id: id.to_string(), state: state.to_owned() });
            }
            "cancelling" | "cancelled" | "complete" => {}
            _ => found.fresh.push((id, self.remembered_until(Some(row)))),
        }
    }

    /// Until when something of a request may come up that would be sent, and a day more.
    fn remembered_until(&self, row: Option<&RequestRow>) -> u64 {
        let limits = &self.config.notification;
        let latest_ms = || self.now_ms() + (limits.max_send_ahead_s + limits.max_ttl_s) * 1_000;
        let admitted = row.and_then(|row| row.admitted.as_ref());
        admitted.map_or_else(latest_ms, |admitted| admitted.expires_ms).saturating_add(GRACE_MS)
    }

    /// Returns once the ledger knows of everything that was on the requests topics when the call came.
    async fn all_admitted_are_known(&self) -> Result<(), Problem> {
        let deadline = Instant::now() + Duration::from_millis(self.config.status_wait_ms);
        let progress = self.deps.log.progress(Group::LedgerRequests).await?;
        let ends: BTreeMap<_, u64> = progress.into_iter().map(|p| (p.at, p.end)).collect();
        loop {
            let progress = self.deps.log.progress(Group::LedgerRequests).await?;
            if progress.iter().all(|p| ends.get(&p.at).is_none_or(|end| p.committed >= *end)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let detail =
                    "Which requests are under this key is not known yet. Nothing was cancelled; repeat the call.";
                return Err(Problem::unavailable(detail));
            }
            tokio::time::sleep(WAIT_STEP).await;
        }
    }

    async fn write_cancels(&self, tenant: &TenantId, fresh: &[(NotificationId, u64)]) -> Result<(), Problem> {
        if fresh.is_empty() {
            return Ok(());
        }
        let now_ms = self.now_ms();
        let record = |(id, until_ms): &(NotificationId, u64)| {
            let row = CancelRow { tenant_id: tenant.as_str().to_owned(), cancelled_ms: now_ms, until_ms: *until_ms };
            let value = serde_json::to_vec(&row)
                .map_err(|_| Problem::new(Kind::Internal, "internal", "The cancel cannot be written."))?;
            let key = id.to_string();
            let control =
                Control { kind: kind::CANCEL.to_owned(), key, version: now_ms, value: value.into(), deleted: false };
            Ok(control_record(self.deps.log.identity(), &control, now_ms))
        };
        let records = fresh.iter().map(record).collect::<Result<Vec<_>, Problem>>()?;
        let offsets = self.deps.log.append(records).await?;
        let last = offsets.last().copied().unwrap_or(0);
        let mut policy = self.deps.policy.clone();
        let _known = tokio::time::timeout(KNOWN_WITHIN, policy.wait_for(|policy| policy.version > last)).await;
        Ok(())
    }
}

fn lost_place() -> Problem {
    Problem::new(Kind::Internal, "internal", "The list of requests lost its place.")
}

fn check(asked: &v1::CancelRequest) -> Result<(), Problem> {
    let mut errors = Vec::new();
    match (&asked.request_id, &asked.dedupe_key) {
        (None, None) => errors.push(FieldError::new("request_id", "required", "Give a request_id or a dedupe_key.")),
        (Some(_), Some(_)) => {
            errors.push(FieldError::new("dedupe_key", "ambiguous", "Give a request_id or a dedupe_key, not both."));
        }
        (Some(_), None) if asked.template_id.is_some() => {
            let detail = "A template_id narrows a dedupe_key; a request_id needs none.";
            errors.push(FieldError::new("template_id", "not_allowed", detail));
        }
        _ => {}
    }
    if asked.dedupe_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_KEY_BYTES) {
        let detail = format!("A dedupe key has 1 to {MAX_KEY_BYTES} bytes.");
        errors.push(FieldError::new("dedupe_key", "invalid_value", detail));
    }
    if let Some(Err(error)) = asked.template_id.as_deref().map(|id| ids::check_id("template_id", id)) {
        errors.push(FieldError::new("template_id", "invalid_value", error.0));
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::malformed(errors)) }
}
