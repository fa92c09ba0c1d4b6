//! The state and the books of requests, and what became of each instance.

use std::{collections::BTreeMap, time::Duration};

use herald_api::{
    auth::Authenticated,
    page::{List, foreign_token, page_size},
    time::{millis, some_timestamp, timestamp},
};
use herald_core::{
    auth::Scope,
    books::{ChannelTotals, Totals},
    ids::{InstanceId, NotificationId, TenantId, channel_name, channel_of_name},
    policy::Policy,
    ports::ledger::{AdmittedRow, Page, ReceiptRow, ReceiptScope, RequestRow, RequestScope},
    problem::Problem,
    record::{Channel, State},
    switches::{OnItsWay, SwitchState},
    topic::Group,
};
use herald_proto::v1;
use tokio::time::Instant;

use crate::service::Gateway;

const DAY_MS: u64 = 86_400_000;
/// Rows that one call on a filtered list looks at.
const MAX_SCANNED: usize = 2_000;
/// How long a call that waits for a reader sleeps between two looks.
pub(crate) const WAIT_STEP: Duration = Duration::from_millis(5);
const STATES: [&str; 7] = ["accepted", "scheduled", "running", "held", "complete", "cancelling", "cancelled"];

impl Gateway {
    /// The state and the books of a request.
    ///
    /// # Errors
    /// 404 for an id that the tenant has not; 503 where it cannot be known yet.
    pub async fn status(&self, who: &Authenticated, request_id: &str) -> Result<v1::RequestStatus, Problem> {
        let tenant = who.caller.require(Scope::Status)?;
        let id = parse_request_id("request_id", request_id)?;
        let row = self.request_row(tenant, &id).await?;
        Ok(request_status(id, &row, &self.steered(&who.policy), self.now_ms()))
    }

    /// What operators and callers did with what is under way.
    pub(crate) fn steered<'a>(&'a self, policy: &'a Policy) -> Steered<'a> {
        Steered { policy, region: &self.deps.log.identity().region }
    }

    /// The row of a request. An id that is not known is waited for until the reader of the requests topics has passed
    /// everything that was on them when the call came: so an accepted request is never unknown.
    pub(crate) async fn request_row(&self, tenant: &TenantId, id: &NotificationId) -> Result<RequestRow, Problem> {
        if let Some(row) = self.deps.ledger.request(tenant, id).await? {
            return Ok(row);
        }
        let deadline = Instant::now() + Duration::from_millis(self.config.status_wait_ms);
        let ends: BTreeMap<_, u64> =
            self.deps.log.progress(Group::LedgerRequests).await?.into_iter().map(|p| (p.at, p.end)).collect();
        loop {
            let progress = self.deps.log.progress(Group::LedgerRequests).await?;
            let passed = progress.iter().all(|p| ends.get(&p.at).is_none_or(|end| p.committed >= *end));
            if let Some(row) = self.deps.ledger.request(tenant, id).await? {
                return Ok(row);
            }
            if passed {
                return Err(Problem::not_found("request"));
            }
            if Instant::now() >= deadline {
                return Err(Problem::unavailable("The request may have been accepted; its state is not known yet."));
            }
            tokio::time::sleep(WAIT_STEP).await;
        }
    }

    /// The tenant's requests, newest first.
    ///
    /// # Errors
    /// 400 for filters that cannot be.
    pub async fn requests(
        &self,
        who: &Authenticated,
        asked: v1::ListRequestsRequest,
    ) -> Result<v1::ListRequestsResponse, Problem> {
        let tenant = who.caller.require(Scope::Status)?;
        if asked.state.as_deref().is_some_and(|state| !STATES.contains(&state)) {
            let detail = format!("The states are {}.", STATES.join(", "));
            return Err(Problem::field("state", "invalid_value", detail));
        }
        let since_ms = time_filter("since", asked.since.as_ref())?.unwrap_or(0);
        let (state, template) = (asked.state.unwrap_or_default(), asked.template_id.unwrap_or_default());
        let list = List::new("requests", &[tenant.as_str(), &state, &template, &since_ms.to_string()]);
        let limit = page_size(asked.page_size);
        let mut position = list.position(asked.page_token.as_deref())?;
        let scope = RequestScope::Since(since_ms);
        let (mut requests, mut scanned) = (Vec::new(), 0);
        let now_ms = self.now_ms();
        loop {
            let want = limit - requests.len();
            let page = self.deps.ledger.requests(tenant, &scope, position.as_deref(), want).await?;
            let Page { items, next } = page.map_err(|_| foreign_token())?;
            scanned += items.len().max(1);
            for row in items {
                let Some(admitted) = &row.admitted else { continue };
                let status = request_status(admitted.id, &row, &self.steered(&who.policy), now_ms);
                if (state.is_empty() || status.state == state)
                    && (template.is_empty() || status.template_id == template)
                {
                    requests.push(status);
                }
            }
            position = next;
            if position.is_none() || requests.len() >= limit || scanned >= MAX_SCANNED {
                break;
            }
        }
        Ok(v1::ListRequestsResponse { requests, next_page_token: list.token(position.as_deref()) })
    }

    /// What became of each instance of a request, or of a user's instances within a day.
    ///
    /// # Errors
    /// 400 for filters that cannot be; 404 for a request that the tenant has not.
    pub async fn receipts(
        &self,
        who: &Authenticated,
        asked: v1::ListReceiptsRequest,
    ) -> Result<v1::ListReceiptsResponse, Problem> {
        let tenant = who.caller.require(Scope::Status)?;
        let scope = self.receipt_scope(tenant, &asked).await?;
        let filter = ReceiptFilter::of(&asked)?;
        let limit = page_size(asked.page_size);
        // The span of "the last day" moves with the clock, so the token is bound to what the caller said.
        let said = |at: &Option<pbjson_types::Timestamp>| at.as_ref().map_or(String::new(), |at| format!("{at:?}"));
        let list = List::new(
            "receipts",
            &[
                tenant.as_str(),
                asked.request_id.as_deref().unwrap_or_default(),
                asked.user_id.as_deref().unwrap_or_default(),
                asked.channel.as_deref().unwrap_or_default(),
                asked.state.as_deref().unwrap_or_default(),
                &said(&asked.since),
                &said(&asked.until),
            ],
        );
        let mut position = list.position(asked.page_token.as_deref())?;
        let (mut receipts, mut scanned) = (Vec::new(), 0);
        loop {
            let want = limit - receipts.len();
            let page = self.deps.ledger.receipts(tenant, &scope, position.as_deref(), want).await?;
            let Page { items, next } = page.map_err(|_| foreign_token())?;
            scanned += items.len().max(1);
            receipts.extend(items.iter().filter(|row| filter.takes(row)).map(receipt));
            position = next;
            if position.is_none() || receipts.len() >= limit || scanned >= MAX_SCANNED {
                break;
            }
        }
        Ok(v1::ListReceiptsResponse { receipts, next_page_token: list.token(position.as_deref()) })
    }

    async fn receipt_scope(&self, tenant: &TenantId, asked: &v1::ListReceiptsRequest) -> Result<ReceiptScope, Problem> {
        let since_ms = time_filter("since", asked.since.as_ref())?;
        let until_ms = time_filter("until", asked.until.as_ref())?;
        match (&asked.request_id, &asked.user_id) {
            (Some(request_id), _) => {
                let id = parse_request_id("request_id", request_id)?;
                self.request_row(tenant, &id).await?;
                Ok(ReceiptScope::Request(id))
            }
            (None, Some(user_id)) => {
                let until_ms = until_ms.or(since_ms.map(|since| since + DAY_MS)).unwrap_or(self.now_ms() + 1);
                let since_ms = since_ms.unwrap_or(until_ms.saturating_sub(DAY_MS));
                if since_ms > until_ms || until_ms - since_ms > DAY_MS {
                    let detail = "`since` is before `until`, by 24 hours at most.";
                    return Err(Problem::field("since", "out_of_range", detail));
                }
                Ok(ReceiptScope::User { user_id: user_id.clone(), since_ms, until_ms })
            }
            (None, None) => Err(Problem::field("request_id", "required", "Give a request_id or a user_id.")),
        }
    }
}

/// What a caller wants to see of a list of receipts.
struct ReceiptFilter {
    channel: Option<i32>,
    state: Option<State>,
    user_id: Option<String>,
    since_ms: u64,
    until_ms: u64,
}

impl ReceiptFilter {
    fn of(asked: &v1::ListReceiptsRequest) -> Result<Self, Problem> {
        let channel = asked.channel.as_deref().map(|name| {
            channel_of_name(name).map(|channel| channel as i32).ok_or_else(|| {
                Problem::field("channel", "invalid_value", "The channels are in_app, email, push and webhook.")
            })
        });
        let state = asked.state.as_deref().map(|name| match name {
            "delivered" => Ok(State::Delivered),
            "suppressed" => Ok(State::Suppressed),
            "failed" => Ok(State::Failed),
            "dead" => Ok(State::Dead),
            _ => {
                let detail = "The states are delivered, suppressed, failed and dead.";
                Err(Problem::field("state", "invalid_value", detail))
            }
        });
        let by_request = asked.request_id.is_some();
        Ok(Self {
            channel: channel.transpose()?,
            state: state.transpose()?,
            user_id: asked.user_id.clone().filter(|_| by_request),
            since_ms: time_filter("since", asked.since.as_ref())?.filter(|_| by_request).unwrap_or(0),
            until_ms: time_filter("until", asked.until.as_ref())?.filter(|_| by_request).unwrap_or(u64::MAX),
        })
    }

    fn takes(&self, row: &ReceiptRow) -> bool {
        let shared = &row.shared;
        !shared.negative
            && self.channel.is_none_or(|channel| channel == shared.channel)
            && self.state.is_none_or(|state| state == shared.state())
            && self.user_id.as_ref().is_none_or(|user| *user == row.user_id)
            && (self.since_ms..self.until_ms).contains(&shared.ended_ms)
    }
}

/// A request id as callers write it.
pub fn parse_request_id(field: &str, text: &str) -> Result<NotificationId, Problem> {
    let detail = "Expected the id that a notify answered, a UUID such as 01a2153c-08ef-7aec-b41f-949c628679be.";
    text.parse().map_err(|_| Problem::field(field, "invalid_value", detail))
}

fn time_filter(field: &str, at: Option<&pbjson_types::Timestamp>) -> Result<Option<u64>, Problem> {
    at.map(|at| {
        millis(at).ok_or_else(|| Problem::field(field, "out_of_range", "The time is before 1970 or after 9999."))
    })
    .transpose()
}

/// What decides, beside the books, on the state of a request.
#[derive(Clone, Copy)]
pub struct Steered<'a> {
    /// Switches and cancels.
    pub policy: &'a Policy,
    /// Where we are.
    pub region: &'a str,
}

/// The state and the books of a row.
pub fn request_status(id: NotificationId, row: &RequestRow, steered: &Steered<'_>, now_ms: u64) -> v1::RequestStatus {
    let totals = row.totals.as_ref();
    let mut instances = v1::Instances::default();
    let mut by_channel = BTreeMap::new();
    for (channel, totals) in totals.iter().flat_map(|totals| totals.by_channel()) {
        let one = instances_of(totals);
        add(&mut instances, &one);
        by_channel.insert(channel_name(channel).to_owned(), one);
    }
    v1::RequestStatus {
        request_id: id.to_string(),
        state: state_of(id, row, steered, now_ms).to_owned(),
        recipients: Some(v1::Recipients {
            expanded: totals.map_or(0, |totals| small(totals.recipients)),
            complete: totals.is_some_and(|totals| totals.complete),
        }),
        instances: Some(instances),
        books_balanced: totals.is_none_or(|totals| totals.channels.values().all(ChannelTotals::balanced)),
        template_id: row.admitted.as_ref().map(|admitted| admitted.template_id.clone()).unwrap_or_default(),
        created_at: row.admitted.as_ref().map(|admitted| timestamp(admitted.accepted_ms)),
        by_channel,
    }
}

/// The state of a request.
pub(crate) fn state_of(id: NotificationId, row: &RequestRow, steered: &Steered<'_>, now_ms: u64) -> &'static str {
    let (admitted, totals) = (row.admitted.as_ref(), row.totals.as_ref());
    let tenant = admitted.map(|admitted| &admitted.tenant).or(totals.map(|totals| &totals.tenant));
    if totals.is_some_and(Totals::is_cancelled) {
        return "cancelled";
    }
    if tenant.is_some_and(|tenant| steered.policy.cancel(tenant.as_str(), &id).is_some()) {
        return "cancelling";
    }
    match totals {
        Some(totals) if totals.settled() => return "complete",
        Some(totals) if totals.cancel.is_some() => return "cancelling",
        _ => {}
    }
    if admitted.is_some_and(|admitted| is_held(admitted, totals, steered, now_ms)) {
        return "held";
    }
    match totals {
        Some(totals) if totals.complete || !totals.channels.is_empty() => "running",
        _ if admitted.is_some_and(|admitted| admitted.send_at_ms > now_ms) => "scheduled",
        _ => "accepted",
    }
}

/// Whether a switch holds everything that is left of a request.
fn is_held(admitted: &AdmittedRow, totals: Option<&Totals>, steered: &Steered<'_>, now_ms: u64) -> bool {
    let Steered { policy, region } = *steered;
    if policy.switches().is_empty() || admitted.send_at_ms > now_ms {
        return false;
    }
    let (tenant, template) = (admitted.tenant.as_str(), admitted.template_id.as_str());
    let way = OnItsWay { tenant, template, region, providers: policy.providers() };
    // While pages are to come, every channel has something left.
    let has_more = totals.is_none_or(|totals| !totals.complete);
    let left = totals.into_iter().flat_map(Totals::by_channel);
    let left = left.filter(|(_, totals)| has_more || totals.in_flight() > 0).map(|(channel, _)| channel);
    let channels: Vec<Channel> = left.collect();
    let states: Vec<SwitchState> = match channels.as_slice() {
        [] => vec![policy.switch_state(&way.as_a_whole(), now_ms)],
        channels => channels.iter().map(|channel| way.on(*channel, policy.switches(), now_ms)).collect(),
    };
    !states.iter().any(|state| state.sends()) && states.contains(&SwitchState::Hold)
}

fn instances_of(totals: &ChannelTotals) -> v1::Instances {
    v1::Instances {
        accepted: small(totals.created.count),
        delivered: small(totals.delivered),
        suppressed: totals.suppressed.iter().map(|(reason, count)| (reason.clone(), small(*count))).collect(),
        failed: small(totals.failed),
        dead: small(totals.dead),
        in_flight: small(totals.in_flight()),
    }
}

fn add(sum: &mut v1::Instances, one: &v1::Instances) {
    sum.accepted += one.accepted;
    sum.delivered += one.delivered;
    sum.failed += one.failed;
    sum.dead += one.dead;
    sum.in_flight += one.in_flight;
    for (reason, count) in &one.suppressed {
        *sum.suppressed.entry(reason.clone()).or_default() += count;
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A receipt as callers see it.
pub fn receipt(row: &ReceiptRow) -> v1::Receipt {
    let shared = &row.shared;
    let state = match shared.state() {
        State::Delivered => "delivered",
        State::Suppressed => "suppressed",
        State::Failed => "failed",
        State::Dead | State::Unspecified => "dead",
    };
    v1::Receipt {
        instance_id: InstanceId::of(&row.id, &row.user_id, shared.channel()).to_string(),
        request_id: row.id.to_string(),
        user_id: row.user_id.clone(),
        channel: channel_name(shared.channel()).to_owned(),
        state: state.to_owned(),
        reason: shared.reason.clone(),
        attempts: shared.attempts,
        provider: shared.provider.clone(),
        provider_id: row.provider_id.clone(),
        error_code: shared.error_code.clone(),
        latency_ms: small(shared.ended_ms.saturating_sub(shared.accepted_ms)),
        created_at: some_timestamp(shared.accepted_ms),
        delivered_at: some_timestamp(shared.ended_ms).filter(|_| shared.state() == State::Delivered),
        updated_at: some_timestamp(shared.ended_ms),
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{
        policy::{CancelRow, kind},
        ports::ledger::AdmittedRow,
        providers::Providers,
        record::{self, CancelAck, Control},
        switches::{SwitchRow, SwitchScope},
        topic::Layout,
    };

    use super::*;

    const ID: NotificationId = NotificationId([1; 16]);
    const NOW_MS: u64 = 2_000;

    fn row(totals: Option<Totals>, send_at_ms: u64) -> RequestRow {
        let admitted = AdmittedRow {
            id: ID,
            tenant: TenantId::trusted("t"),
            template_id: "x".into(),
            template_version: 1,
            accepted_ms: 1_000,
            send_at_ms,
            expires_ms: 9_000,
            dedupe_key: String::new(),
        };
        RequestRow { admitted: Some(admitted), totals }
    }

    fn status(policy: &Policy, totals: Option<Totals>, send_at_ms: u64) -> v1::RequestStatus {
        let providers = Providers::configured([(Channel::Email, "smtp".to_owned())]);
        let policy = &policy.clone().with_configured(providers);
        let steered = Steered { policy, region: "eu" };
        request_status(ID, &row(totals, send_at_ms), &steered, NOW_MS)
    }

    /// Two instances of in-app and two of mail, of which none has ended.
    fn running(last: bool) -> Totals {
        let mut totals = Totals::new(TenantId::trusted("t"));
        for channel in [1, 2] {
            let manifest =
                record::Manifest { channel, count: 2, hash_sum: 7, recipients: 2, last, ..Default::default() };
            totals.book_manifest(&manifest);
        }
        totals
    }

    fn end(totals: &mut Totals, channel: i32) {
        let receipts = record::Receipts { channel, state: 1, count: 2, hash_sum: 7, ..Default::default() };
        totals.book_receipts(&receipts);
    }

    fn put(policy: &mut Policy, kind: &str, key: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_vec(value).unwrap().into();
        policy.apply(&Control { kind: kind.into(), key: key.into(), version: 1, value, deleted: false }).unwrap();
    }

    fn switch(policy: &mut Policy, scope: SwitchScope, state: SwitchState) {
        let id = scope.switch_id();
        let row = SwitchRow { scope, state, reason: String::new(), expires_ms: None, set_ms: 0, set_by: String::new() };
        put(policy, kind::SWITCH, &id, &row);
    }

    #[test]
    fn the_state_follows_the_books() {
        let policy = Policy::default();
        let state = |totals, send_at_ms| status(&policy, totals, send_at_ms).state;
        assert_eq!(state(None, 0), "accepted");
        assert_eq!(state(None, NOW_MS), "accepted");
        assert_eq!(state(None, NOW_MS + 1), "scheduled");
        assert_eq!(state(Some(running(false)), 0), "running");
        let mut totals = running(true);
        assert_eq!(state(Some(totals.clone()), 0), "running");
        end(&mut totals, 1);
        end(&mut totals, 2);
        let status = status(&policy, Some(totals), 0);
        assert_eq!((status.state.as_str(), status.books_balanced), ("complete", true));
        let instances = status.instances.unwrap();
        assert_eq!((instances.accepted, instances.delivered, instances.in_flight), (4, 4, 0));
        assert_eq!(status.by_channel["in_app"].delivered, 2);
        assert!(status.recipients.unwrap().complete);
    }

    #[test]
    fn a_request_is_held_when_everything_that_is_left_of_it_is() {
        let mut policy = Policy::default();
        let provider = SwitchScope { provider: Some("smtp".into()), ..SwitchScope::default() };
        switch(&mut policy, provider, SwitchState::Hold);
        let mut totals = running(true);
        assert_eq!(status(&policy, Some(totals.clone()), 0).state, "running", "in-app goes on");
        end(&mut totals, 1);
        assert_eq!(status(&policy, Some(totals.clone()), 0).state, "held");
        let mut more_to_come = running(false);
        end(&mut more_to_come, 1);
        assert_eq!(status(&policy, Some(more_to_come), 0).state, "running");
        end(&mut totals, 2);
        assert_eq!(status(&policy, Some(totals), 0).state, "complete");

        let tenant = SwitchScope { tenant: Some("t".into()), ..SwitchScope::default() };
        switch(&mut policy, tenant.clone(), SwitchState::Hold);
        assert_eq!(status(&policy, None, 0).state, "held");
        assert_eq!(status(&policy, Some(running(false)), 0).state, "held");
        assert_eq!(status(&policy, None, NOW_MS + 1).state, "scheduled");
        switch(&mut policy, tenant, SwitchState::Off);
        assert_eq!(status(&policy, Some(running(false)), 0).state, "running", "it ends as killed");
    }

    #[test]
    fn a_cancelled_request_is_cancelling_until_everybody_has_let_go() {
        let mut policy = Policy::default();
        let cancel = CancelRow { tenant_id: "t".into(), cancelled_ms: 1, until_ms: 2 };
        put(&mut policy, kind::CANCEL, &ID.to_string(), &cancel);
        assert_eq!(status(&policy, None, NOW_MS + 1).state, "cancelling");
        let mut totals = running(true);
        end(&mut totals, 1);
        let layout = Layout { shards: 1, requests: 1, receipts: 1 };
        totals.book_cancel_ack(&CancelAck { shard: true, ..Default::default() }, &layout);
        assert_eq!(status(&policy, Some(totals.clone()), 0).state, "cancelling");
        assert_eq!(status(&Policy::default(), Some(totals.clone()), 0).state, "cancelling");
        totals.book_cancel_ack(&CancelAck::default(), &layout);
        let status = status(&Policy::default(), Some(totals), 0);
        let instances = status.instances.unwrap();
        assert_eq!((status.state.as_str(), instances.in_flight), ("cancelled", 0));
        assert_eq!((instances.accepted, instances.delivered, instances.suppressed["cancelled"]), (4, 2, 2));
    }
}
