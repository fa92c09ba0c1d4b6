//! Messages in the hands of providers: the gate before each send, and the outcomes on their way back.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use hashbrown::HashMap;
use herald_core::{
    ids::TenantId,
    latency::Latency,
    ports::{
        channel::{Channel, Gate, Message, Outcome, Sink},
        log::{Log, Mark},
    },
    record::Channel as ChannelKind,
    topic::Topic,
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{order::OrderKey, section::Head, steering::Steering};

/// No send starts unless the shard's `user-changes` were read to their end this recently.
const MAX_CHANGES_AGE: Duration = Duration::from_millis(1_000);

/// No send starts unless a commit succeeded this recently; another owner would have fenced it.
const MAX_COMMIT_AGE: Duration = Duration::from_millis(3_000);

/// How long to wait before asking again how far the log is durable.
const DURABILITY_RETRY: Duration = Duration::from_millis(250);

/// Changed users that are remembered for the gates of batches under way.
const MAX_REMEMBERED_CHANGES: usize = 65_536;

/// What the gates of a worker look at. Ages are told by the monotonic clock: a wall clock that is set back by about as much
/// as a stamp is old would make it new again.
pub(crate) struct Freshness {
    /// Before all stamps.
    since: Instant,
    changes_read: Stamp,
    committed: Stamp,
    closed: AtomicBool,
    generation: AtomicU64,
    changes: Mutex<RecentChanges>,
}

/// A moment that may be unknown, in microseconds after another; 0 while it is not known. Every message looks at some, so
/// none is behind a lock.
#[derive(Default)]
struct Stamp(AtomicU64);

impl Stamp {
    fn set(&self, since: Instant, at: Option<Instant>) {
        let at_us = at.map_or(0, |at| 1 + at.saturating_duration_since(since).as_micros() as u64);
        // Who sees it sees what was done before.
        self.0.store(at_us, Release);
    }

    /// How long it is past.
    fn age(&self, since: Instant, now: Instant) -> Option<Duration> {
        let at_us = self.0.load(Acquire).checked_sub(1)?;
        Some(now.saturating_duration_since(since).saturating_sub(Duration::from_micros(at_us)))
    }
}

#[derive(Default)]
struct RecentChanges {
    by_user: HashMap<(TenantId, Arc<str>), u64>,
    /// Batches older than this cannot be told whether their users changed.
    floor: u64,
}

impl Freshness {
    pub(crate) fn new() -> Self {
        let freshness = Self {
            since: Instant::now(),
            changes_read: Stamp::default(),
            committed: Stamp::default(),
            closed: AtomicBool::new(false),
            generation: AtomicU64::new(1),
            changes: Mutex::default(),
        };
        freshness.committed();
        freshness
    }

    /// `user-changes` of every shard were read to the end that was asked for then; `None` if they are to be read first.
    pub(crate) fn changes_read(&self, asked: Option<Instant>) {
        self.changes_read.set(self.since, asked);
    }

    pub(crate) fn committed(&self) {
        self.committed.set(self.since, Some(Instant::now()));
    }

    pub(crate) fn changed(&self, tenant: &TenantId, user: &str) {
        let mut changes = self.changes.lock();
        let generation = self.generation.fetch_add(1, Relaxed) + 1;
        if changes.by_user.len() >= MAX_REMEMBERED_CHANGES {
            changes.by_user.clear();
            changes.floor = generation;
        }
        changes.by_user.insert((tenant.clone(), user.into()), generation);
    }

    /// Somebody changed, and it is not known who.
    pub(crate) fn anybody_changed(&self) {
        let mut changes = self.changes.lock();
        changes.floor = self.generation.fetch_add(1, Relaxed) + 1;
    }

    /// Starts nothing any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    fn may_start(&self, decided_at: u64, tenant: &TenantId, user: &Arc<str>, now: Instant) -> bool {
        let is_recent = |stamp: &Stamp, most| stamp.age(self.since, now).is_some_and(|age| age <= most);
        if self.closed.load(Relaxed)
            || !is_recent(&self.changes_read, MAX_CHANGES_AGE)
            || !is_recent(&self.committed, MAX_COMMIT_AGE)
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
    /// Index of its section in the batch.
    pub section: usize,
    /// Index of the instance in its record.
    pub index: u32,
    /// Index of the user in the section.
    pub in_section: u32,
    pub user: Arc<str>,
    /// What the books add up for it.
    pub book_hash: u64,
    pub answered: bool,
}

/// A section that messages of a batch belong to.
pub(crate) struct BatchSection {
    pub shard: u32,
    pub topic: Topic,
    pub offset: u64,
    pub head: Arc<Head>,
    /// Who waits for its messages to have started, if order is promised to anybody.
    pub order: Option<OrderKey>,
    /// What a provider last said of a message that it did not take.
    pub refusal: Option<String>,
}

/// A batch in a provider's hands: messages of one channel, of any sections, tenants and shards.
pub(crate) struct Batch {
    pub channel: ChannelKind,
    pub provider: Arc<str>,
    /// When it was handed over, in milliseconds since the epoch.
    pub begun_ms: u64,
    pub sections: Vec<BatchSection>,
    pub items: Vec<Item>,
    /// Messages without an answer that try whether the provider is up again.
    pub probes: u64,
}

impl Batch {
    /// Takes the messages of a shard out that have no outcome yet: they are another's. Returns how many.
    pub(crate) fn let_go(&mut self, shard: u32) -> u64 {
        let sections = &self.sections;
        let theirs = |item: &&mut Item| !item.answered && sections[item.section].shard == shard;
        self.items.iter_mut().filter(theirs).map(|item| item.answered = true).count() as u64
    }
}

/// What comes back.
pub(crate) enum Event {
    Outcome {
        batch: u64,
        index: usize,
        outcome: Outcome,
    },
    /// Every message of a section was begun.
    Started {
        batch: u64,
        section: usize,
    },
    /// The provider's task is over; what it did not answer is unanswered.
    Over {
        batch: u64,
    },
    /// The log is durable up to here.
    Durable(Mark),
}

/// Events for the worker's loop. Bounded by the in-doubt window, which bounds what can be reported.
///
/// Only the event that finds the queue empty wakes the loop; it takes all that have come by then.
#[derive(Default)]
pub(crate) struct Events {
    queue: Mutex<Vec<Event>>,
    notify: Notify,
}

impl Events {
    pub(crate) fn push(&self, event: Event) {
        let was_empty = {
            let mut queue = self.queue.lock();
            queue.push(event);
            queue.len() == 1
        };
        if was_empty {
            self.notify.notify_one();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// Returns once there are events.
    pub(crate) async fn some(&self) {
        while self.is_empty() {
            self.notify.notified().await;
        }
    }

    /// Takes all of them into an empty buffer, which becomes the queue: both keep the room that they have grown.
    pub(crate) fn take(&self, into: &mut Vec<Event>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.queue.lock(), into);
    }
}

/// When each message of a batch was begun.
struct Begun {
    since: Instant,
    at: Vec<Stamp>,
}

impl Begun {
    fn new(messages: usize) -> Self {
        Self { since: Instant::now(), at: std::iter::repeat_with(Stamp::default).take(messages).collect() }
    }

    fn note(&self, index: usize, now: Instant) {
        self.at[index].set(self.since, Some(now));
    }

    /// For how long a message is under way; `None` for one that was not begun.
    fn took(&self, index: usize) -> Option<Duration> {
        self.at.get(index)?.age(self.since, Instant::now())
    }
}

struct BatchSink {
    batch: u64,
    events: Arc<Events>,
    begun: Arc<Begun>,
    latency: Arc<Latency>,
}

impl Sink for BatchSink {
    fn report(&self, index: usize, outcome: Outcome) {
        if let Some(took) = self.begun.took(index) {
            self.latency.observe(took, 1);
        }
        self.events.push(Event::Outcome { batch: self.batch, index, outcome });
    }
}

/// What the gate knows of a section.
pub(crate) struct GateSection {
    pub head: Arc<Head>,
    /// Closed when the shard is another's.
    pub shard_is_ours: Arc<AtomicBool>,
    /// Messages that were not begun yet.
    pub not_begun: AtomicUsize,
    /// Whether somebody waits for all of them to be begun.
    pub is_awaited: bool,
}

/// When a batch was decided on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecidedAt {
    /// [`Freshness::generation`].
    pub generation: u64,
    /// [`herald_core::policy::Policy::steered`].
    pub steered: u64,
}

struct BatchGate {
    batch: u64,
    provider: Arc<str>,
    freshness: Arc<Freshness>,
    steering: Arc<Steering>,
    decided_at: DecidedAt,
    sections: Vec<GateSection>,
    /// The section and the user of each message.
    users: Vec<(usize, Arc<str>)>,
    events: Arc<Events>,
    begun: Arc<Begun>,
}

impl Gate for BatchGate {
    fn open(&self, index: usize) -> bool {
        let (at, user) = &self.users[index];
        let (section, now) = (&self.sections[*at], Instant::now());
        let open = section.shard_is_ours.load(Relaxed)
            && self.freshness.may_start(self.decided_at.generation, &section.head.tenant, user, now)
            && self.steering.may_start(&section.head, &self.provider, self.decided_at.steered);
        if open && section.is_awaited && section.not_begun.fetch_sub(1, AcqRel) == 1 {
            self.events.push(Event::Started { batch: self.batch, section: *at });
        }
        if open {
            self.begun.note(index, now);
        }
        open
    }
}

/// Says that a batch is over when it is dropped, so that a provider that panics is one that did not answer.
struct OverOnDrop {
    batch: u64,
    events: Arc<Events>,
}

impl Drop for OverOnDrop {
    fn drop(&mut self) {
        self.events.push(Event::Over { batch: self.batch });
    }
}

/// A batch on its way to its provider.
pub(crate) struct Dispatch {
    pub batch: u64,
    pub channel: Arc<dyn Channel>,
    pub provider: Arc<str>,
    pub log: Arc<dyn Log>,
    pub freshness: Arc<Freshness>,
    pub steering: Arc<Steering>,
    pub events: Arc<Events>,
    pub decided_at: DecidedAt,
    /// Covers the records that the messages rest on.
    pub rests_on: Mark,
    pub deadline: Duration,
    /// Where it is counted how long its provider takes.
    pub latency: Arc<Latency>,
    pub sections: Vec<GateSection>,
    /// The section of each message.
    pub section_of: Vec<usize>,
    pub messages: Vec<Message>,
}

impl Dispatch {
    /// Hands messages to their provider once what they rest on is durable.
    pub(crate) fn spawn(self) {
        tokio::spawn(async move {
            let Self { batch, channel, log, freshness, steering, events, decided_at, rests_on, deadline, .. } = self;
            let _over = OverOnDrop { batch, events: events.clone() };
            let (messages, provider) = (self.messages, self.provider);
            if log.durable(rests_on).await.is_ok() {
                let users = messages.iter().map(|message| message.user.clone());
                let users = self.section_of.into_iter().zip(users).collect();
                let (sections, to_gate) = (self.sections, events.clone());
                let (begun, latency) = (Arc::new(Begun::new(messages.len())), self.latency);
                let of_gate = begun.clone();
                let gate = BatchGate {
                    batch,
                    provider,
                    freshness,
                    steering,
                    decided_at,
                    sections,
                    users,
                    events: to_gate,
                    begun: of_gate,
                };
                let sink = Arc::new(BatchSink { batch, events, begun, latency });
                // Unanswered messages are told by the batch being over.
                let _elapsed = tokio::time::timeout(deadline, channel.deliver(messages, Arc::new(gate), sink)).await;
            } else {
                for index in 0..messages.len() {
                    let code = "log_unavailable".to_owned();
                    events.push(Event::Outcome { batch, index, outcome: Outcome::NotAttempted { code } });
                }
            }
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
        while let Err(error) = log.durable(mark).await {
            // A log that has failed for good fails the worker's next commit, and this task ends with its worker.
            tracing::warn!(%error, "how far the log is durable is not known");
            tokio::time::sleep(DURABILITY_RETRY).await;
            if wanted.has_changed().is_err() {
                return;
            }
        }
        events.push(Event::Durable(mark));
    }
}

#[cfg(test)]
mod tests {
    use herald_core::{ids::NotificationId, record::Section, topic::Lane};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_starts_on_stamps_that_are_old() {
        let freshness = Freshness::new();
        let (tenant, user) = (TenantId::trusted("t"), Arc::from("u"));
        let may_start = || freshness.may_start(freshness.generation(), &tenant, &user, Instant::now());
        assert!(!may_start(), "nothing was read");
        for _ in 0..3 {
            freshness.changes_read(Some(Instant::now()));
            assert!(may_start());
            tokio::time::sleep(MAX_CHANGES_AGE + Duration::from_millis(1)).await;
            assert!(!may_start(), "the changes are not known any more");
        }
        freshness.changes_read(Some(Instant::now()));
        assert!(!may_start(), "nothing was committed for three seconds");
        freshness.committed();
        assert!(may_start());
    }

    #[test]
    fn a_shard_that_is_let_go_takes_its_unanswered_messages_out_of_a_batch() {
        let section = |shard| BatchSection {
            shard,
            topic: Topic::Deliveries(Lane::Bulk),
            offset: 0,
            head: Arc::new(Head {
                id: NotificationId([1; 16]),
                tenant: TenantId::trusted("t"),
                channel: ChannelKind::Email,
                notification: Arc::default(),
                section: Section::default(),
                hash_sum: 0,
            }),
            order: None,
            refusal: None,
        };
        let item =
            |section, answered| Item { section, index: 0, in_section: 0, user: "u".into(), book_hash: 0, answered };
        let items = vec![item(0, false), item(1, true), item(1, false), item(1, false)];
        let sections = vec![section(3), section(5)];
        let mut batch =
            Batch { channel: ChannelKind::Email, provider: "null".into(), begun_ms: 0, sections, items, probes: 0 };
        assert_eq!((batch.let_go(5), batch.let_go(5), batch.let_go(3)), (2, 0, 1));
    }
}
