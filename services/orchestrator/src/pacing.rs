//! How fast audiences are expanded: limits that do not say how a message travels shrink the page, and what is left of the
//! audience waits as one continuation.

use std::sync::Arc;

use herald_core::{
    clock::World,
    ids::TenantId,
    leases::{Budget, Leases},
    limits::Limits,
    outage::Outage,
    outputs::Wait,
    ports::budgets::Budgets,
    record::{Notification, Request, WaitCause, audience::Kind},
    topic::Lane,
    waiting::{Short, Waiting},
};

/// What a request or a continuation may expand now.
#[derive(Debug)]
pub(crate) enum Allowance {
    /// A whole page.
    Page,
    /// A page of at most so many recipients.
    Few(Few),
    /// Nothing yet.
    Later(Wait),
}

/// A small page and what was taken for it.
#[derive(Debug)]
pub(crate) struct Few {
    /// The most recipients.
    pub recipients: usize,
    /// How long what is left of the audience waits; `None` for not at all.
    pub rest: Option<Wait>,
    taken: u64,
    budgets: Vec<Budget>,
}

/// Leased tokens, and who waits for more.
pub(crate) struct Pacing {
    leases: Leases,
    /// What `waiting` was made with: places follow from rates.
    limits: Arc<Limits>,
    waiting: Waiting,
}

impl Pacing {
    /// `members` orchestrators share the budgets, and those of this process the outage.
    pub(crate) fn new(budgets: Arc<dyn Budgets>, members: u32, outage: Arc<Outage>) -> Self {
        Self { leases: Leases::new(budgets, members, outage), limits: Arc::default(), waiting: Waiting::default() }
    }

    /// Takes up the limits in force. Where they changed, everybody who waits gets a new place.
    pub(crate) fn take_up(&mut self, limits: &Arc<Limits>) {
        if !Arc::ptr_eq(&self.limits, limits) {
            self.limits = limits.clone();
            self.waiting = Waiting::default();
        }
    }

    /// Takes what a page of at most `page_recipients` needs.
    pub(crate) async fn allow(
        &mut self,
        request: &Request,
        notification: &Notification,
        page_recipients: usize,
        world: &World,
    ) -> Allowance {
        let tenant = TenantId::trusted(&notification.tenant);
        let budgets = self.limits.for_expansion(&tenant, &notification.template_id);
        if budgets.is_empty() {
            return Allowance::Page;
        }
        let channels = request.channels.len().max(1) as u64;
        let recipients = page_recipients.min(listed(request).unwrap_or(page_recipients)).max(1) as u64;
        let lane = if notification.transactional { Lane::Transactional } else { Lane::Bulk };
        let wanted = recipients * channels;
        let taken = self.leases.take(&budgets, wanted, lane == Lane::Transactional, world.steady_ms()).await;
        let rest = taken.short.map(|(budget, quota)| {
            let short = Short { budget, share: self.leases.share(quota), retry_after_ms: taken.retry_after_ms };
            let due_ms = self.waiting.place(&short, &tenant, lane, wanted - taken.tokens, world);
            Wait { due_ms, cause: WaitCause::Limit }.at_most(notification.expires_ms)
        });
        match (taken.tokens, rest) {
            (0, Some(rest)) => Allowance::Later(rest),
            // Every instance is held against the limit again when it is sent, so a recipient more does no harm.
            (tokens, rest) => {
                let recipients = tokens.div_ceil(channels).max(1) as usize;
                Allowance::Few(Few { recipients, rest, taken: tokens, budgets })
            }
        }
    }

    /// Gives back what was taken for a page and did not become instances.
    pub(crate) fn put_back(&mut self, few: &Few, instances: u64) {
        self.leases.put_back(&few.budgets, few.taken.saturating_sub(instances));
    }
}

/// How many recipients a request lists, if it lists them.
fn listed(request: &Request) -> Option<usize> {
    match request.audience.as_ref()?.kind.as_ref()? {
        Kind::Users(list) => Some(list.count as usize),
        Kind::Inline(list) => Some(list.recipients.len()),
        _ => None,
    }
}
