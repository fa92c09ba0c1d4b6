//! What a connection sends next.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt;
use herald_core::{
    ids::TenantId,
    ports::{StoreError, inbox::EventId, sessions::SessionGuard},
    problem::Kind,
};
use http::HeaderValue;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};

use super::{
    Live,
    queue::{Frame, Queue},
    slots::Slot,
};

/// Before everything: logs begin at epoch 1.
const START: EventId = EventId { epoch: 0, offset: 0, index: 0 };

/// The first wait after a read that failed; each further one is twice as long, up to the interval of checks.
const RETRY: Duration = Duration::from_millis(500);

/// The room that an emptied batch keeps.
const KEPT_FRAMES: usize = 16;

/// What the client presented, to be checked again while the connection lives.
pub(super) struct Grant {
    pub tenant: Option<HeaderValue>,
    pub authorization: Option<HeaderValue>,
    pub token: Option<String>,
}

/// Why [`Feed::fill`] returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// There is something to send.
    Items,
    /// The key or token is not good any more.
    Revoked,
}

/// What the inbox is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It is not read: the queue has all that is new.
    No,
    /// To compare. The queue has all that is new as far as is known.
    Check,
    /// The client resumes, or the queue was full: only the inbox has what comes next.
    Behind,
}

/// One connection's items, in order, each once.
pub(super) struct Feed {
    live: Arc<Live>,
    tenant: TenantId,
    queue: Arc<Queue>,
    grant: Grant,
    /// The last item that was given out.
    last: EventId,
    reading: Reading,
    failed_reads: u32,
    check: Interval,
    _session: Box<dyn SessionGuard>,
    _slot: Slot,
}

impl Feed {
    /// Registers the connection, then finds its place: after `resume`, or else after all that is there. A place ahead
    /// of the feed is none of its own, and nothing of the feed lies behind it: such a connection goes on after all that
    /// is there as a new one does, else it would hear nothing until the feed came so far, if ever.
    ///
    /// # Errors
    /// Where sessions or the inbox are away.
    pub(super) async fn open(
        live: Arc<Live>,
        slot: Slot,
        grant: Grant,
        tenant: TenantId,
        user: &str,
        resume: Option<EventId>,
    ) -> Result<Self, StoreError> {
        let config = &live.deps.config;
        let queue = Arc::new(Queue::new(user.to_owned(), config.queue, config.queue_bytes));
        let session = live.deps.sessions.register(&tenant, user, queue.clone()).await?;
        let newest = live.deps.inbox.since(&tenant, user, None, 1).await;
        let newest = newest.map(|items| items.last().map_or(START, |item| item.event_id));
        let (last, reading) = match (resume, newest) {
            (Some(resume), Ok(newest)) if resume < newest => (resume, Reading::Behind),
            // A browser would not come again after a refusal, and what follows its place is read as soon as it can be.
            (Some(resume), Err(_)) => (resume, Reading::Behind),
            (_, newest) => (newest?, Reading::No),
        };
        let check = spread(live.opened.fetch_add(1, Ordering::Relaxed), config.check_interval());
        let (failed_reads, _session, _slot) = (0, session, slot);
        Ok(Self { live, tenant, queue, grant, last, reading, failed_reads, check, _session, _slot })
    }

    /// The event id after which the feed goes on.
    pub(super) fn position(&self) -> EventId {
        self.last
    }

    /// Waits until there is something to send, and puts it into an empty `batch`. Poll it to its end: what was given
    /// out is not given out again.
    pub(super) async fn fill(&mut self, batch: &mut Vec<Frame>) -> Filled {
        batch.shrink_to(KEPT_FRAMES);
        loop {
            // Looked at before the queue, which may never be empty.
            if self.check.tick().now_or_never().is_some() && !self.check() {
                return Filled::Revoked;
            }
            if self.reading == Reading::No {
                if self.queue.take(batch) {
                    self.reading = Reading::Behind;
                }
                batch.retain(|frame| newer(&mut self.last, frame.id));
            } else {
                self.read(batch).await;
            }
            if !batch.is_empty() {
                return Filled::Items;
            }
            if self.reading == Reading::No {
                tokio::select! {
                    () = self.queue.filled() => {}
                    _ = self.check.tick() => if !self.check() {
                        return Filled::Revoked;
                    }
                }
            }
        }
    }

    /// Has the inbox compared. Returns whether the connection may go on.
    fn check(&mut self) -> bool {
        if self.reading == Reading::No {
            self.reading = Reading::Check;
        }
        match self.grant.check(&self.live.deps.authenticator, self.queue.user()) {
            Ok(tenant) => tenant == self.tenant,
            // Only a verdict ends a connection.
            Err(problem) => problem.kind() == Kind::Unavailable,
        }
    }

    /// Reads a page of the inbox. It is read until a page is empty, since a short one does not prove the end.
    async fn read(&mut self, batch: &mut Vec<Frame>) {
        let config = &self.live.deps.config;
        let page =
            self.live.deps.inbox.since(&self.tenant, self.queue.user(), Some(self.last), config.read_items.max(1));
        match page.await {
            Ok(items) => {
                self.failed_reads = 0;
                self.live.inbox_away.answered(self.live.running_ms());
                if items.is_empty() {
                    self.reading = Reading::No;
                }
                for item in &items {
                    if newer(&mut self.last, item.event_id) {
                        batch.extend(Frame::of(self.queue.user(), item));
                    }
                }
            }
            Err(error) => {
                self.live.inbox_away.failed(&error, 0, self.live.running_ms());
                if self.reading == Reading::Check {
                    self.reading = Reading::No;
                    return;
                }
                let wait = RETRY.saturating_mul(1 << self.failed_reads.min(16)).min(config.check_interval());
                self.failed_reads += 1;
                sleep(wait).await;
            }
        }
    }
}

/// Whether an item is to be sent; then it is the last one.
fn newer(last: &mut EventId, id: EventId) -> bool {
    let newer = id > *last;
    if newer {
        *last = id;
    }
    newer
}

/// Ticks whose first comes at a different time for each connection, so that those that came together do not check
/// together.
fn spread(number: u64, every: Duration) -> Interval {
    // The golden ratio spreads any number of points evenly.
    let place = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let first = every / 2 + every.mul_f64(place as f64 / f64::from(u32::MAX) / 2.0);
    let mut interval = interval_at(Instant::now() + first, every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
