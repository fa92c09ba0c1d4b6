//! Messages in the hands of providers: the gate before each send, and the outcomes on their way back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hashbrown::HashMap;
use herald_core::{
    clock::Clock,
    ids::TenantId,
    ports::{
        channel::{Channel, Gate, Message, Outcome, Sink},
        log::{Log, Mark},
    },
    topic::Topic,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::prepare::Head;

/// No send starts unless the shard's `user-changes` were read to their end this recently.
const MAX_CHANGES_AGE_MS: u64 = 1_000;

/// No send starts unless a commit succeeded this recently; another owner would have fenced it.
const MAX_COMMIT_AGE_MS: u64 = 3_000;

/// Changed users that are remembered for the gates of batches under way.
const MAX_REMEMBERED_CHANGES: usize = 65_536;

/// What the gates of a worker look at.
pub(crate) struct Freshness {
    clock: Arc<dyn Clock>,
    changes_read_ms: AtomicU64,
    committed_ms: AtomicU64,
    closed: std::sync::atomic::AtomicBool,
    generation: AtomicU64,
    changes: Mutex<RecentChanges>,
}

#[derive(Default)]
struct RecentChanges {
    by_user: HashMap<(TenantId, Arc<str>), u64>,
    /// Batches older than this cannot be told whether their users changed.
    floor: u64,
}

impl Freshness {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.now_ms();
        Self {
            clock,
            changes_read_ms: AtomicU64::new(0),
            committed_ms: AtomicU64::new(now_ms),
            closed: std::sync::atomic::AtomicBool::new(false),
            generation: AtomicU64::new(1),
            changes: Mutex::default(),
        }
    }

    /// `user-changes` of every shard were read to the end that was asked for at `asked_ms`.
    pub(crate) fn changes_read(&self, asked_ms: u64) {
        self.changes_read_ms.store(asked_ms, Relaxed);
    }

    pub(crate) fn committed(&self, now_ms: u64) {
        self.committed_ms.store(now_ms, Relaxed);
    }

    pub(crate) fn changed(&self, tenant: &TenantId, user: &str) {
        let generation = self.generation.fetch_add(1, Relaxed) + 1;
        let mut changes = self.changes.lock();
        if changes.by_user.len() >= MAX_REMEMBERED_CHANGES {
            changes.by_user.clear();
            changes.floor = generation;
        }
        changes.by_user.insert((tenant.clone(), user.into()), generation);
    }

    /// Starts nothing any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    fn may_start(&self, decided_at: u64, tenant: &TenantId, user: &Arc<str>) -> bool {
        let now_ms = self.clock.now_ms();
        let recent = |stamp: &AtomicU64, age_ms| now_ms.saturating_sub(stamp.load(Relaxed)) <= age_ms;
        if self.closed.load(Relaxed)
            || !recent(&self.changes_read_ms, MAX_CHANGES_AGE_MS)
            || !recent(&self.committed_ms, MAX_COMMIT_AGE_MS)
        {
            return false;
        }
        if self.generation() == decided_at {
            return true;
        }
        let changes = self.changes.lock();
        decided_at >= changes.floor
            && changes.by_user.get(&(tenant.clone(), user.clone())).is_none_or(|at| *at <= decided_at)
    }
}

/// One message in a provider's hands.
pub(crate) struct Item {
    /// Index of the instance in its record.
    pub index: u32,
    /// Index of the user in the section.
    pub in_section: usize,
    pub user: Arc<str>,
    pub answered: bool,
}

/// A batch in a provider's hands.
pub(crate) struct Batch {
    pub shard: u32,
    pub topic: Topic,
    pub offset: u64,
    pub head: Arc<Head>,
    pub provider: String,
    pub items: Vec<Item>,
}

/// What comes back.
pub(crate) enum Event {
    Outcome {
        batch: u64,
        index: usize,
        outcome: Outcome,
    },
    /// The provider's task is over; what it did not answer is unanswered.
    Over {
        batch: u64,
    },
    /// The log is durable up to here.
    Durable(Mark),
}

/// Events for the worker's loop. Bounded by the in-doubt window, which bounds what can be reported.
#[derive(Default)]
pub(crate) struct Events {
    queue: Mutex<Vec<Event>>,
    notify: Notify,
}

impl Events {
    pub(crate) fn push(&self, event: Event) {
        self.queue.lock().push(event);
        self.notify.notify_one();
    }

    pub(crate) async fn some(&self) {
        if self.queue.lock().is_empty() {
            self.notify.notified().await;
        }
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.queue.lock())
    }
}

struct BatchSink {
    batch: u64,
    events: Arc<Events>,
}

impl Sink for BatchSink {
    fn report(&self, index: usize, outcome: Outcome) {
        self.events.push(Event::Outcome { batch: self.batch, index, outcome });
    }
}

struct BatchGate {
    freshness: Arc<Freshness>,
    decided_at: u64,
    tenant: TenantId,
    users: Vec<Arc<str>>,
}

impl Gate for BatchGate {
    fn open(&self, index: usize) -> bool {
        self.freshness.may_start(self.decided_at, &self.tenant, &self.users[index])
    }
}

/// What a dispatch needs besides the messages.
pub(crate) struct Dispatch {
    pub batch: u64,
    pub channel: Arc<dyn Channel>,
    pub log: Arc<dyn Log>,
    pub freshness: Arc<Freshness>,
    pub events: Arc<Events>,
    pub decided_at: u64,
    /// Covers the records that the messages rest on.
    pub rests_on: Mark,
    pub deadline: Duration,
}

impl Dispatch {
    /// Hands messages to their provider once what they rest on is durable.
    pub(crate) fn spawn(self, tenant: TenantId, users: Vec<Arc<str>>, messages: Vec<Message>) {
        tokio::spawn(async move {
            let Self { batch, channel, log, freshness, events, decided_at, rests_on, deadline } = self;
            if log.durable(rests_on).await.is_ok() {
                let gate = Arc::new(BatchGate { freshness, decided_at, tenant, users });
                let sink = Arc::new(BatchSink { batch, events: events.clone() });
                // Unanswered messages are told by the batch being over.
                let _elapsed = tokio::time::timeout(deadline, channel.deliver(messages, gate, sink)).await;
            } else {
                for index in 0..messages.len() {
                    let code = "log_unavailable".to_owned();
                    events.push(Event::Outcome { batch, index, outcome: Outcome::NotAttempted { code } });
                }
            }
            events.push(Event::Over { batch });
        });
    }
}

/// Tells the worker how far the log is durable, latest wish first.
pub(crate) async fn watch_durability(
    log: Arc<dyn Log>,
    mut wanted: tokio::sync::watch::Receiver<Mark>,
    events: Arc<Events>,
) {
    while wanted.changed().await.is_ok() {
        let mark = *wanted.borrow_and_update();
        if log.durable(mark).await.is_err() {
            // The log has failed; the worker learns it from its next commit.
            return;
        }
        events.push(Event::Durable(mark));
    }
}
