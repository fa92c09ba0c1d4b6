//! How much may be sent now: limits, the provider's health and its pace, all of them by steady time. What may not waits in a
//! delay tier.

use std::{collections::BTreeMap, sync::Arc};

use herald_core::{
    clock::World,
    leases::{Budget, Leases},
    limits::Limits,
    outage::Outage,
    outputs::Wait,
    ports::{budgets::Budgets, channel::Outcome},
    record::WaitCause,
    topic::Lane,
    waiting::{Short, Waiting},
};

use crate::{
    breaker::{Breaker, Health, Passage},
    retry::hint_ms,
    retry_budget::RetryBudget,
    section::Head,
    slowing::{Slow, Slowing, is_slowed, measured_budget, slowed_limits},
    throttle::Throttle,
};

/// Waits for a provider that is down are spread over this time, so that not all ask at once.
const SPREAD_MS: u64 = 4_000;

/// What may be sent of a section.
#[derive(Debug)]
pub(crate) struct Pass {
    /// So many messages.
    pub count: u64,
    /// When the rest asks again.
    pub rest: Wait,
    /// What they were taken of.
    pub budgets: Vec<Budget>,
}

/// One provider.
struct Provider {
    breaker: Breaker,
    /// Probes that are admitted in this turn and not handed over yet.
    planned: u64,
    throttle: Throttle,
    retries: RetryBudget,
}

impl Provider {
    fn new(now_ms: u64) -> Self {
        let (breaker, throttle) = (Breaker::default(), Throttle::default());
        Self { breaker, planned: 0, throttle, retries: RetryBudget::new(now_ms) }
    }
}

/// A worker's view of limits and providers.
pub(crate) struct Pacing {
    leases: Leases,
    /// What `waiting` was made with: places follow from rates.
    limits: Arc<Limits>,
    /// By name, from the first message on.
    providers: BTreeMap<Arc<str>, Provider>,
    waiting: Waiting,
    pub slowing: Slowing,
    /// The name of who sends in-app.
    nobody: Arc<str>,
}

impl Pacing {
    /// `members` workers share the budgets, and those of this process the outage.
    pub(crate) fn new(budgets: Arc<dyn Budgets>, members: u32, outage: Arc<Outage>) -> Self {
        Self {
            leases: Leases::new(budgets, members, outage),
            limits: Arc::default(),
            providers: BTreeMap::new(),
            waiting: Waiting::default(),
            slowing: Slowing::default(),
            nobody: "".into(),
        }
    }

    /// Takes up the limits in force. Where they changed, everybody who waits gets a new place.
    pub(crate) fn take_up(&mut self, limits: &Arc<Limits>) {
        if !Arc::ptr_eq(&self.limits, limits) {
            self.limits = limits.clone();
            self.waiting = Waiting::default();
        }
    }

    /// Forgets providers but those that are the same as before.
    pub(crate) fn keep_providers(&mut self, same: impl Fn(&str) -> bool) {
        self.providers.retain(|name, _| same(name));
    }

    /// Whether messages that could go to others should go to a provider: it is up, or it is time to try.
    pub(crate) fn is_up(&self, name: &str, now_ms: u64) -> bool {
        self.providers.get(name).is_none_or(|provider| !provider.breaker.is_waiting(now_ms))
    }

    /// Whether there is nothing to ask before a first attempt is sent.
    pub(crate) fn is_free(&self, provider: Option<&str>, attempts: u32) -> bool {
        let well = |provider: &Provider| provider.breaker.is_closed() && provider.throttle.quota().is_none();
        let provider = provider.and_then(|name| self.providers.get(name));
        self.limits.is_empty() && attempts == 0 && provider.is_none_or(well)
    }

    /// Takes what so many messages of a section need of every budget. Those that get nothing ask again when it is worth
    /// it, and no later than their ttl; the tenants that wait for one budget do so in turn.
    pub(crate) async fn admit(
        &mut self,
        head: &Head,
        lane: Lane,
        provider: Option<&Arc<str>>,
        slowed_by: &[Slow],
        wanted: u64,
        world: &World,
    ) -> Pass {
        let now_ms = world.steady_ms();
        let provider = provider.unwrap_or(&self.nobody);
        let at = self.providers.entry(provider.clone()).or_insert_with(|| Provider::new(now_ms));
        let mut count = wanted;
        let mut short = None;
        let mut budgets = self.limits.for_sending(&head.tenant, &head.notification.template_id, head.channel, provider);
        match at.breaker.passage(now_ms) {
            Passage::All => {}
            Passage::Some(few) => count = count.min(few.saturating_sub(at.planned)),
            Passage::Not { until_ms } => {
                let due_ms = world.now_ms() + until_ms.saturating_sub(now_ms) + world.below(SPREAD_MS);
                let rest = Wait { due_ms, cause: WaitCause::Provider }.at_most(head.notification.expires_ms);
                return Pass { count: 0, rest, budgets: Vec::new() };
            }
        }
        let (room, retry_after_ms) = at.throttle.room(count, now_ms);
        if let Some(share) = at.throttle.quota().filter(|_| room < count) {
            short = Some(Short { budget: format!("pace/{provider}").into(), share, retry_after_ms });
        }
        count = room;
        if head.section.attempts > 0 {
            let room = at.retries.room(now_ms);
            if room < count {
                let share = RetryBudget::free_quota();
                short =
                    Some(Short { budget: format!("retry/{provider}").into(), share, retry_after_ms: share.ms_for(1) });
            }
            count = count.min(room);
        }
        let limits = budgets.len();
        for switch in slowed_by {
            budgets.extend(slowed_limits(&switch.0, &budgets[..limits]));
            if let Some((room, share, retry_after_ms)) = self.slowing.room(switch, count, limits > 0, now_ms)
                && room < count
            {
                short = Some(Short { budget: measured_budget(switch).into(), share, retry_after_ms });
                count = room;
            }
        }
        if count > 0 && !budgets.is_empty() {
            let taken = self.leases.take(&budgets, count, lane == Lane::Transactional, now_ms).await;
            if let Some((budget, quota)) = taken.short {
                let share = self.leases.share(quota);
                short = Some(Short { budget, share, retry_after_ms: taken.retry_after_ms });
            }
            count = taken.tokens;
        }
        at.planned += count;
        at.throttle.take(count);
        if head.section.attempts > 0 {
            at.retries.spend(count);
        }
        slowed_by.iter().for_each(|switch| self.slowing.take(switch, count));
        let cause = short.as_ref().map_or(WaitCause::Provider, |short| cause_of(&short.budget));
        let due_ms = match short {
            _ if count == wanted => 0,
            Some(short) => self.waiting.place(&short, &head.tenant, lane, wanted - count, world),
            // The provider is being probed.
            None => world.now_ms() + world.below(SPREAD_MS),
        };
        Pass { count, rest: Wait { due_ms, cause }.at_most(head.notification.expires_ms), budgets }
    }

    /// Gives back what was taken just now for messages that ended without being sent.
    pub(crate) fn put_back(&mut self, pass: &Pass, count: u64) {
        self.leases.put_back(&pass.budgets, count);
    }

    /// Notes messages that are handed to a provider, of which so many are first attempts. Returns how many of them are
    /// probes.
    pub(crate) fn handed_over(&mut self, provider: &Arc<str>, count: u64, first_attempts: u64, now_ms: u64) -> u64 {
        let provider = self.providers.entry(provider.clone()).or_insert_with(|| Provider::new(now_ms));
        provider.retries.earn(first_attempts);
        if provider.breaker.handed_over(count) { count } else { 0 }
    }

    /// All that was admitted is handed over, or will not be.
    pub(crate) fn turn_is_over(&mut self) {
        self.providers.values_mut().for_each(|provider| provider.planned = 0);
    }

    /// Notes that so many probes will have no answer any more.
    pub(crate) fn forget(&mut self, provider: &str, probes: u64) {
        if let Some(provider) = self.providers.get_mut(provider) {
            provider.breaker.forget(probes);
        }
    }

    /// Notes what a provider answered, and whether to a retry; `probes` of what it was given are probes.
    pub(crate) fn answered<'a>(
        &mut self,
        provider: &str,
        outcomes: impl Iterator<Item = (bool, &'a Outcome)>,
        probes: &mut u64,
        world: &World,
    ) {
        let now_ms = world.steady_ms();
        let Some(provider) = self.providers.get_mut(provider) else { return };
        for (is_retry, outcome) in outcomes {
            let probe = *probes > 0;
            *probes -= u64::from(probe);
            let health = health_of(outcome);
            if health != Health::Unknown {
                let refused = matches!(outcome, Outcome::RetryAfter { after: Some(_), .. });
                provider.throttle.answered(refused, now_ms);
            }
            if is_retry && !matches!(health, Health::Down { .. }) {
                provider.retries.give_back(1);
            }
            provider.breaker.answered(health, probe, now_ms, world);
        }
    }
}

/// What must be lifted before there is more of a budget. Each provider has a pace, and a budget of retries, that nobody set.
fn cause_of(budget: &str) -> WaitCause {
    match budget {
        budget if is_slowed(budget) => WaitCause::Switch,
        budget if budget.starts_with("pace/") || budget.starts_with("retry/") => WaitCause::Provider,
        _ => WaitCause::Limit,
    }
}

/// What an outcome says of the provider.
fn health_of(outcome: &Outcome) -> Health {
    match outcome {
        // Whatever became of the message, somebody answered properly.
        Outcome::Accepted { .. }
        | Outcome::EndpointGone { .. }
        | Outcome::AddressBad { .. }
        | Outcome::Rejected { .. } => Health::Up,
        Outcome::RetryAfter { after, .. } => Health::Down { retry_after_ms: after.map_or(0, hint_ms) },
        Outcome::NotAttempted { code } if held_back(code) => Health::Unknown,
        Outcome::NotAttempted { .. } | Outcome::AccountFault { .. } | Outcome::Unknown { .. } => {
            Health::Down { retry_after_ms: 0 }
        }
    }
}

/// Whether a message was not attempted for a reason of ours: its gate was closed, or the log was away.
fn held_back(code: &str) -> bool {
    matches!(code, "gate" | "log_unavailable") || code.ends_with(".gate")
}
