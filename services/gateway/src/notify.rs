//! Admission: from a call to a durable record.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream};
use herald_api::auth::Authenticated;
use herald_core::{
    auth::{Caller, Scope},
    ids::{NotificationId, TenantId},
    policy::Policy,
    ports::{admissions::Admission, log::LogError},
    problem::{FieldError, Kind, Problem},
};
use herald_proto::v1;

use crate::{
    admit::{Admitted, Draft},
    idempotency::{Repeated, in_flight, key_reused, repeated},
    service::Gateway,
    trace::CallTrace,
};

/// Idempotency keys of one call that are looked up at once.
const KEYS_AT_ONCE: usize = 64;

/// A notification is on the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: NotificationId,
    /// Whether an earlier call under the same idempotency key put it there.
    pub deduplicated: bool,
}

/// The answers to the notifications of one call, in order.
pub type Answers = Vec<Result<Accepted, Problem>>;

/// How a notification is taken on.
enum Plan {
    /// It gets a place on the log.
    Append { id: NotificationId, admitted: Box<Admitted>, key: Option<Key> },
    /// It needs none.
    Answer(Result<Accepted, Problem>),
    /// It is the same as an earlier one of the call.
    SameAs(usize),
}

struct Key {
    text: String,
    /// Whether this call was the first with the key, so that it may forget it again.
    begun: bool,
}

impl Gateway {
    /// Accepts one notification; it is durable when this returns.
    ///
    /// # Errors
    /// Every refusal that api.md names for `POST /v1/notify`.
    pub async fn notify(
        &self,
        who: &Authenticated,
        request: v1::NotifyRequest,
        trace: Option<&str>,
    ) -> Result<Accepted, Problem> {
        let tenant = who.caller.require(Scope::Notify)?;
        let _slot = self.admission_slot()?;
        self.take_quota(&who.policy, tenant, 1)?;
        let draft = self.draft(&who.caller, request)?;
        if draft.idempotency_key.is_some() {
            let answers = self.accept_to_the_end(tenant, &who.policy, vec![Ok(draft)], trace).await?;
            return answers.into_iter().next().unwrap_or_else(|| Err(lost_task()));
        }
        let admitted = self.admit(draft, tenant, &who.policy)?;
        let id = self.deps.world.notification_id();
        let trace = self.begin_trace(trace);
        let record = admitted.record(id, trace.trace_parent(), self.deps.log.identity());
        let appended = self.deps.log.append(vec![record]).await.inspect_err(log_failure);
        trace.end(tenant, 1, appended.as_ref().err().map(LogError::code), &self.deps.world);
        appended?;
        Ok(Accepted { id, deduplicated: false })
    }

    /// Accepts many notifications with one append; one that could not be read is answered with its problem.
    ///
    /// # Errors
    /// As [`Gateway::notify`] for each; for the whole where there are too many, or where the log did not take them.
    pub async fn notify_batch(
        &self,
        who: &Authenticated,
        requests: Vec<Result<v1::NotifyRequest, Problem>>,
        trace: Option<&str>,
    ) -> Result<Answers, Problem> {
        let tenant = who.caller.require(Scope::Notify)?;
        let max = self.config.max_batch;
        if requests.is_empty() || requests.len() > max {
            let (code, detail) = if requests.is_empty() {
                ("required", "There is no notification.".to_owned())
            } else {
                ("too_many", format!("{} notifications are given; at most {max} are allowed.", requests.len()))
            };
            return Err(Problem::field("notifications", code, detail));
        }
        let _slot = self.admission_slot()?;
        self.take_quota(&who.policy, tenant, requests.len())?;
        let drafts: Vec<_> = requests.into_iter().map(|request| self.draft(&who.caller, request?)).collect();
        if drafts.iter().flatten().any(|draft| draft.idempotency_key.is_some()) {
            self.accept_to_the_end(tenant, &who.policy, drafts, trace).await
        } else {
            self.accept(tenant, &who.policy, drafts, trace).await
        }
    }

    fn begin_trace(&self, given: Option<&str>) -> CallTrace {
        CallTrace::begin(given, self.config.traces_per_million, &self.deps.world)
    }

    fn draft(&self, caller: &Caller, request: v1::NotifyRequest) -> Result<Draft, Problem> {
        let draft = Draft::check(request, &self.config.notification)?;
        if draft.overrides_preflight() && !caller.has(Scope::NotifyOverride) {
            let detail = "override_preflight needs the scope `notify:override`.";
            let errors = vec![FieldError::new("override_preflight", "forbidden", detail)];
            return Err(Problem::forbidden(detail).with_errors(errors));
        }
        Ok(draft)
    }

    fn admit(&self, draft: Draft, tenant: &TenantId, policy: &Policy) -> Result<Admitted, Problem> {
        let now_ms = self.now_ms();
        let admitted = draft.admit(policy, tenant, &self.config.notification, now_ms)?;
        let region = &self.deps.log.identity().region;
        admitted.check_switches(policy, region, now_ms)?;
        Ok(admitted)
    }

    /// As [`Gateway::accept`], but it goes on when the caller hangs up: else the key would look like one in use.
    async fn accept_to_the_end(
        &self,
        tenant: &TenantId,
        policy: &Arc<Policy>,
        drafts: Vec<Result<Draft, Problem>>,
        trace: Option<&str>,
    ) -> Result<Answers, Problem> {
        let (gateway, tenant, policy) = (self.clone(), tenant.clone(), policy.clone());
        let trace = trace.map(str::to_owned);
        tokio::spawn(async move { gateway.accept(&tenant, &policy, drafts, trace.as_deref()).await })
            .await
            .unwrap_or_else(|_| Err(lost_task()))
    }

    async fn accept(
        &self,
        tenant: &TenantId,
        policy: &Policy,
        drafts: Vec<Result<Draft, Problem>>,
        trace: Option<&str>,
    ) -> Result<Answers, Problem> {
        let plans = self.plan_all(tenant, policy, drafts).await;
        let trace = self.begin_trace(trace);
        let mut records = Vec::with_capacity(plans.len());
        let mut keys = Vec::new();
        let answers: Vec<Result<Result<Accepted, Problem>, usize>> = plans
            .into_iter()
            .map(|plan| match plan {
                Plan::Append { id, admitted, key } => {
                    records.push(admitted.record(id, trace.trace_parent(), self.deps.log.identity()));
                    keys.extend(key.map(|key| (key, id)));
                    Ok(Ok(Accepted { id, deduplicated: false }))
                }
                Plan::Answer(answer) => Ok(answer),
                Plan::SameAs(index) => Err(index),
            })
            .collect();
        let count = records.len();
        let appended = match records.is_empty() {
            true => Ok(Vec::new()),
            false => self.deps.log.append(records).await.inspect_err(log_failure),
        };
        trace.end(tenant, count, appended.as_ref().err().map(LogError::code), &self.deps.world);
        if let Err(error) = appended {
            if let LogError::Full(_) = error {
                self.withdraw(tenant, keys).await;
            }
            return Err(error.into());
        }
        self.mark_answered(tenant, keys).await;
        let same = |index: &usize| match answers.get(*index) {
            Some(Ok(Ok(first))) => Ok(Accepted { deduplicated: true, ..*first }),
            Some(Ok(Err(problem))) => Err(problem.clone()),
            _ => Err(in_flight()),
        };
        Ok(answers.iter().map(|answer| answer.clone().unwrap_or_else(|index| same(&index))).collect())
    }

    async fn plan_all(&self, tenant: &TenantId, policy: &Policy, drafts: Vec<Result<Draft, Problem>>) -> Vec<Plan> {
        let mut firsts: HashMap<String, (usize, [u8; 16])> = HashMap::new();
        let mut looked_at = Vec::with_capacity(drafts.len());
        for (index, draft) in drafts.into_iter().enumerate() {
            let first = draft.as_ref().ok().and_then(|draft| {
                let key = draft.idempotency_key.as_ref()?;
                let hash = draft.body_hash();
                let (first, first_hash) = *firsts.entry(key.clone()).or_insert((index, hash));
                (first != index).then_some((first, first_hash == hash))
            });
            looked_at.push((draft, first));
        }
        let plans = looked_at.into_iter().map(|(draft, first)| async move {
            match (draft, first) {
                (Err(problem), _) => Plan::Answer(Err(problem)),
                (Ok(_), Some((index, true))) => Plan::SameAs(index),
                (Ok(_), Some((_, false))) => Plan::Answer(Err(key_reused())),
                (Ok(draft), None) => self.plan(tenant, policy, draft).await.unwrap_or_else(|p| Plan::Answer(Err(p))),
            }
        });
        stream::iter(plans).buffered(KEYS_AT_ONCE).collect().await
    }

    async fn plan(&self, tenant: &TenantId, policy: &Policy, draft: Draft) -> Result<Plan, Problem> {
        let Some(key) = draft.idempotency_key.clone() else {
            let admitted = Box::new(self.admit(draft, tenant, policy)?);
            return Ok(Plan::Append { id: self.deps.world.notification_id(), admitted, key: None });
        };
        let body_hash = draft.body_hash();
        // A repeated call is answered as the first was, whatever has become of its template since.
        let admitted = self.admit(draft, tenant, policy);
        let now_ms = self.now_ms();
        let id = NotificationId::of_idempotency_key(tenant, &key, now_ms);
        let admission = Admission {
            id,
            body_hash,
            first_use_ms: now_ms,
            running_since_ms: now_ms,
            answered: false,
            first_place: None,
        };
        let Some(existing) = self.deps.admissions.begin(tenant, &key, admission).await? else {
            return match admitted {
                Ok(admitted) => {
                    Ok(Plan::Append { id, admitted: Box::new(admitted), key: Some(Key { text: key, begun: true }) })
                }
                Err(problem) => {
                    self.withdraw(tenant, vec![(Key { text: key, begun: true }, id)]).await;
                    Err(problem)
                }
            };
        };
        match repeated(&existing, &body_hash, now_ms, self.started_ms, self.config.idempotency_stale_ms) {
            Repeated::Refuse(problem) => Err(problem),
            Repeated::Replay => Ok(Plan::Answer(Ok(Accepted { id: existing.id, deduplicated: true }))),
            Repeated::Again => {
                let admitted = Box::new(admitted?);
                if !self.deps.admissions.restart(tenant, &key, existing.running_since_ms, now_ms).await? {
                    return Err(in_flight());
                }
                Ok(Plan::Append { id: existing.id, admitted, key: Some(Key { text: key, begun: false }) })
            }
        }
    }

    async fn withdraw(&self, tenant: &TenantId, keys: Vec<(Key, NotificationId)>) {
        for (key, id) in keys.into_iter().filter(|(key, _)| key.begun) {
            if let Err(error) = self.deps.admissions.withdraw(tenant, &key.text, &id).await {
                tracing::warn!(%error, "an idempotency key stays in use until it is stale");
            }
        }
    }

    async fn mark_answered(&self, tenant: &TenantId, keys: Vec<(Key, NotificationId)>) {
        let marks = keys.into_iter().map(|(key, id)| async move {
            if let Err(error) = self.deps.admissions.answered(tenant, &key.text, &id).await {
                // The record is on the log: a later repetition appends it again, and the second is dropped.
                tracing::warn!(%error, "an idempotency key is not marked as answered");
            }
        });
        stream::iter(marks).buffer_unordered(KEYS_AT_ONCE).collect::<()>().await;
    }
}

fn log_failure(error: &LogError) {
    tracing::warn!(%error, "the log did not take an admission");
}

fn lost_task() -> Problem {
    Problem::new(Kind::Unavailable, "unavailable", "The call was cut off. Repeat it.").with_retry_after(1)
}
