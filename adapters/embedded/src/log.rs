//! The log on one machine: one journal in segments of our own that carries all topics.
//!
//! A commit becomes one frame of the journal ([`format`]). It is visible to later stages at once and durable when the
//! flusher has synced it; whoever lets something out of the process waits for its [`Mark`], which is a position in the
//! journal. One sync serves all who wait. The flusher first syncs the stores ([`SyncFirst`]), so that a commit is never
//! durable before the rows it rests on.
//!
//! A write or sync that failed is the end of the log in this process: what the disk holds is then unknown, so every
//! later append, commit and wait says [`LogError::Unavailable`], and [`EmbeddedLog::failed`] lets the process stop in
//! order. Opening the journal again finds out what is true.

mod cache;
mod clean;
mod flush;
pub mod format;
pub mod inspect;
mod mark;
mod reading;
mod recovery;
mod snapshot;
mod state;
mod subscription;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use herald_core::{
    clock::Clock,
    ports::log::{Identity, Log, LogError, Mark, Member, NewRecord, Progress, Record, Subscription},
    topic::{Group, TopicPartition},
};
use parking_lot::{Condvar, Mutex};
use tokio::{sync::Notify, time::Instant};

pub use flush::FlusherThread;
pub(crate) use mark::create_mark;
pub use recovery::OpenError;
pub use snapshot::JournalSnapshot;

use self::{flush::Writer, snapshot::Held, state::State, subscription::EmbeddedSubscription};
use crate::{SyncFirst, disk::Disk};

/// How often the free space is looked up.
const FREE_SPACE_CHECK_MS: u64 = 100;

/// How the log uses disk and memory.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// At most one sync in this time under load; at once when idle.
    pub flush_interval_ms: u64,
    /// A segment is sealed before it grows beyond this, unless one commit alone is larger.
    pub segment_bytes: u64,
    /// Recent records that are kept in memory.
    pub cache_bytes: u64,
    /// What may wait for a sync; beyond it appends and commits wait.
    pub pending_bytes: u64,
    /// Below this much free disk appends are refused.
    pub low_water_bytes: u64,
    /// A poll or read brings no further record beyond this.
    pub poll_bytes: u64,
    /// The last flush that the stores know; opening is refused if the journal noted a later one.
    pub store_flush: u64,
    /// Whether to sync. Without it a power cut loses what was acknowledged: for tests and measurements only.
    pub sync: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            flush_interval_ms: 5,
            segment_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            pending_bytes: 64 << 20,
            low_water_bytes: 256 << 20,
            poll_bytes: 8 << 20,
            store_flush: 0,
            sync: true,
        }
    }
}

/// The log on a disk. Clones are the same log. Somebody has to flush it: [`EmbeddedLog::spawn_flusher_thread`] or
/// [`EmbeddedLog::flush_task`].
#[derive(Clone)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
}

/// How far the log is synced, or why it stopped.
#[derive(Debug, Clone, Default)]
struct Durability {
    position: u64,
    failed: Option<Arc<str>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    stores: Arc<dyn SyncFirst>,
    clock: Arc<dyn Clock>,
    identity: Identity,
    state: Mutex<State>,
    durability: Mutex<Durability>,
    /// Tells that `durability` changed. Wakes in the order of waiting, so that a simulation can be repeated.
    durability_changed: Notify,
    /// Wakes the flusher thread; goes with `state`.
    work: Condvar,
    /// Wakes the flusher task.
    work_task: Notify,
    writer: Mutex<Writer>,
    /// Segments that snapshots keep on the disk.
    held: Mutex<Held>,
    free_space: Mutex<Option<(Instant, u64)>>,
}

impl EmbeddedLog {
    /// Opens the journal on a disk, or begins one. Bytes that were never acknowledged are cut from its end; anything
    /// else that is wrong is an error, and then nothing was changed.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: Identity,
        options: LogOptions,
        stores: Arc<dyn SyncFirst>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let (state, writer) = recovery::open(&*disk, &identity, &options, clock.now_ms())?;
        let position = state.durable;
        let shared = Shared {
            disk,
            options,
            stores,
            clock,
            identity,
            state: Mutex::new(state),
            durability: Mutex::new(Durability { position, failed: None }),
            durability_changed: Notify::new(),
            work: Condvar::new(),
            work_task: Notify::new(),
            writer: Mutex::new(writer),
            held: Mutex::new(Held::default()),
            free_space: Mutex::new(None),
        };
        let log = Self { shared: Arc::new(shared) };
        log.flush_once().map_err(|e| OpenError::io("write the journal", std::io::Error::other(e.to_string())))?;
        Ok(log)
    }

    /// Waits until the log has failed, and tells why.
    pub async fn failed(&self) -> String {
        self.shared.durability_when(|d| d.failed.is_some()).await.failed.as_deref().unwrap_or_default().to_owned()
    }

    /// The journal's bytes on disk, and those of them that hold records which are still needed.
    pub fn usage_bytes(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        state.segments.values().fold((0, 0), |(all, live), s| (all + s.length, live + s.live_bytes))
    }
}

impl Shared {
    /// Waits until the journal is synced up to a position.
    async fn synced(&self, position: u64) -> Result<(), LogError> {
        let durability = self.durability_when(|d| d.position >= position || d.failed.is_some()).await;
        if durability.position >= position {
            return Ok(());
        }
        Err(unavailable(durability.failed.as_deref().unwrap_or_default()))
    }

    /// Waits for a state of durability.
    async fn durability_when(&self, is_wanted: impl Fn(&Durability) -> bool) -> Durability {
        loop {
            let changed = self.durability_changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Registered before the look, so that no change falls between the two.
            changed.as_mut().enable();
            let durability = self.durability.lock().clone();
            if is_wanted(&durability) {
                return durability;
            }
            changed.await;
        }
    }

    fn set_durability(&self, change: impl FnOnce(&mut Durability)) {
        change(&mut self.durability.lock());
        self.durability_changed.notify_waiters();
    }

    /// Waits until less than the allowed amount waits for a sync.
    async fn room(&self) -> Result<(), LogError> {
        loop {
            let excess_end = {
                let state = self.state.lock();
                state.usable()?;
                (state.end - state.durable >= self.options.pending_bytes)
                    .then(|| state.end - self.options.pending_bytes / 2)
            };
            match excess_end {
                None => return Ok(()),
                Some(position) => self.synced(position).await?,
            }
        }
    }

    fn wake_flusher(&self) {
        self.work.notify_one();
        self.work_task.notify_one();
    }

    /// Ends the log.
    fn fail(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        tracing::error!(%cause, "the log stops");
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| cause.clone());
        self.set_durability(|d| d.failed = Some(cause));
        drop(state);
        self.wake_flusher();
        self.wake_readers();
    }

    /// Lets everybody who waits for records look again.
    fn wake_readers(&self) {
        for partition in &self.state.lock().partitions {
            partition.appended.notify_waiters();
            for owner in partition.readers.iter().filter_map(|reader| reader.owner.as_ref()) {
                owner.wake.notify_one();
            }
        }
    }

    /// Refuses while the disk is nearly full.
    fn check_free_space(&self) -> Result<(), LogError> {
        let mut known = self.free_space.lock();
        let fresh = known.filter(|(at, _)| at.elapsed() < Duration::from_millis(FREE_SPACE_CHECK_MS));
        let free = match fresh {
            Some((_, free)) => free,
            None => {
                let free = self.disk.free_bytes().map_err(|e| unavailable(&format!("free space is unknown: {e}")))?;
                *known = Some((Instant::now(), free));
                free
            }
        };
        match free < self.options.low_water_bytes {
            true => Err(LogError::Full(format!(
                "{free} bytes are free on the disk; appends need {}",
                self.options.low_water_bytes
            ))),
            false => Ok(()),
        }
    }
}

impl State {
    /// Refuses after a failure or the end.
    fn usable(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(cause) => Err(unavailable(cause)),
            None if self.closing => Err(unavailable("the log is closed")),
            None => Ok(()),
        }
    }

    /// Finds the records' partitions and refuses what no frame can hold.
    fn place(&self, records: Vec<NewRecord>) -> Result<Vec<(usize, NewRecord)>, LogError> {
        let bytes: usize = records.iter().map(|r| r.body.len() + r.key.len() + 4_096).sum();
        if bytes > format::MAX_FRAME_BYTES / 2 {
            return Err(unavailable(&format!("{bytes} bytes are too much for one commit")));
        }
        records.into_iter().map(|record| Ok((self.existing_slot(record.at)?, record))).collect()
    }

    fn existing_slot(&self, at: TopicPartition) -> Result<usize, LogError> {
        self.slot(at).ok_or_else(|| LogError::Damaged(format!("there is no partition {at}")))
    }
}

fn unavailable(cause: &str) -> LogError {
    LogError::Unavailable(cause.to_owned())
}

#[async_trait]
impl Log for EmbeddedLog {
    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<u64>, LogError> {
        self.shared.check_free_space()?;
        self.shared.room().await?;
        let (offsets, end) = {
            let mut state = self.shared.state.lock();
            state.usable()?;
            let records = state.place(records)?;
            if records.is_empty() {
                return Ok(Vec::new());
            }
            state.put(Vec::new(), records)
        };
        self.shared.wake_flusher();
        self.shared.synced(end).await?;
        Ok(offsets)
    }

    async fn subscribe(&self, group: Group, member: Member) -> Result<Box<dyn Subscription>, LogError> {
        Ok(Box::new(EmbeddedSubscription::join(self.shared.clone(), group, member)?))
    }

    fn is_assigned(&self, group: Group, ordinal: u32) -> bool {
        self.shared.state.lock().sessions.get(&(group, ordinal)).is_some_and(|last| last.is_told)
    }

    async fn read(&self, at: TopicPartition, from: u64, max: usize) -> Result<(Vec<Record>, u64), LogError> {
        let (plan, next) = {
            let mut state = self.shared.state.lock();
            let slot = state.existing_slot(at)?;
            let mut plan = reading::Plan::new(self.shared.options.poll_bytes);
            let next = plan.add(&mut state, &*self.shared.disk, slot, from, max)?;
            (plan, next)
        };
        Ok((plan.fetch(&*self.shared.disk).await?, next))
    }

    async fn durable(&self, mark: Mark) -> Result<(), LogError> {
        self.shared.synced(mark.0).await
    }

    async fn progress(&self, group: Group) -> Result<Vec<Progress>, LogError> {
        let state = self.shared.state.lock();
        let all = state.partitions.iter().filter_map(|partition| {
            let reader = partition.at.topic.readers().iter().position(|reader| *reader == group)?;
            let committed = partition.readers[reader].position.as_ref().map_or(0, |position| position.offset);
            Some(Progress { at: partition.at, committed, end: partition.next })
        });
        Ok(all.collect())
    }

    async fn reached(&self, at: TopicPartition, offset: u64) -> Result<(), LogError> {
        let (slot, appended) = {
            let state = self.shared.state.lock();
            let slot = state.existing_slot(at)?;
            (slot, state.partitions[slot].appended.clone())
        };
        loop {
            let notified = appended.notified();
            {
                let state = self.shared.state.lock();
                if state.partitions[slot].next > offset {
                    return Ok(());
                }
                state.usable()?;
            }
            notified.await;
        }
    }
}
