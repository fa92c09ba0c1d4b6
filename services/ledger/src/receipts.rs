//! The receipts reader: adds up manifests and receipts and writes totals, receipts and positions.
//!
//! A flush waits until what it rests on is durable, writes each partition's books in one batch, and commits the
//! positions last. After a crash in between the same records are read again; the stored totals know which of them they
//! contain, so nothing is counted twice.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use herald_core::{
    dead_letters,
    ids::NotificationId,
    outputs::Outputs,
    ports::{
        StoreError,
        log::{
            Commit, Committed, Halted, Identity, LogError, Mark, Member, NewRecord, Polled, Position, Record,
            Subscription,
        },
    },
    record::{DeadLetter, LedgerBatch, Schema},
    topic::{Group, TopicPartition},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    backoff::{Backoff, ended, wait_out},
    locate::{Located, locate, oldest_unfinished},
    partition::{PartitionBooks, decode},
    reconcile::{Finding, Stuck, reconcile},
    stats::Check,
    traced::Traced,
};

const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Notifications that are looked for on the log in one check.
const MOST_SUSPECTED: usize = 1_000;
/// What one check lists and reports.
const MOST_LISTED: usize = 20;

/// Runs one member of the reader until shutdown, then writes what is pending, once.
///
/// # Errors
/// A [`Halted`] where it must join its group anew: what was not committed is read again. Otherwise the log has failed.
pub async fn run(config: Config, deps: Deps, member: Member, shutdown: CancellationToken) -> anyhow::Result<()> {
    let subscription = deps.log.subscribe(Group::LedgerReceipts, member).await?;
    let reader = Reader {
        reconcile_at: Instant::now() + Duration::from_millis(config.reconcile_interval_ms),
        config,
        deps,
        member,
        subscription,
        shutdown: shutdown.clone(),
        owned: BTreeMap::new(),
        mark: Mark::default(),
        flush_at: None,
        reported: HashSet::new(),
        traced: Traced::default(),
    };
    ended(reader.read().await, &shutdown)
}

struct Reader {
    config: Config,
    deps: Deps,
    member: Member,
    subscription: Box<dyn Subscription>,
    shutdown: CancellationToken,
    owned: BTreeMap<TopicPartition, Owned>,
    /// Covers everything booked.
    mark: Mark,
    /// When what is pending must be written; `None` while nothing is.
    flush_at: Option<Instant>,
    reconcile_at: Instant,
    /// What was reported as stuck, so that it is said once.
    reported: HashSet<NotificationId>,
    /// Of what is pending, the notifications that are traced.
    traced: Traced,
}

struct Owned {
    books: PartitionBooks,
    /// Records that could not be read; they leave with the position that passes them.
    dead: Vec<NewRecord>,
}

impl Reader {
    async fn read(mut self) -> anyhow::Result<()> {
        loop {
            match self.poll().await {
                None => return self.flush().await,
                Some(Ok(polled)) => self.take(polled.or_halt()?).await?,
                Some(Err(error)) => wait_out("receipts.poll", error, &self.deps.stats, &self.shutdown).await?,
            }
            if self.flush_is_due() {
                self.flush().await?;
            }
            if Instant::now() >= self.reconcile_at {
                self.reconcile().await;
            }
        }
    }

    /// The next records; `None` when the process stops.
    async fn poll(&mut self) -> Option<Result<Polled, LogError>> {
        let wait = self.flush_at.map_or(IDLE_WAIT, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            polled = self.subscription.poll(self.config.poll_max_records, wait) => Some(polled),
        }
    }

    fn flush_is_due(&self) -> bool {
        let full = || {
            let books = || self.owned.values().map(|owned| &owned.books);
            books().map(PartitionBooks::weight).sum::<u64>() >= self.config.flush_max_instances
                || books().map(PartitionBooks::active).sum::<usize>() > self.config.max_active
        };
        self.flush_at.is_some_and(|at| Instant::now() >= at || full())
    }

    /// Books what a poll brought.
    async fn take(&mut self, polled: Polled) -> anyhow::Result<()> {
        // Books of a partition that went away are dropped unwritten: whoever has it now begins at the committed position.
        polled.revoked.iter().for_each(|at| drop(self.owned.remove(at)));
        for (at, position) in polled.assigned {
            let books = PartitionBooks::new(at.partition, self.deps.log.identity().layout, position.offset);
            self.owned.insert(at, Owned { books, dead: Vec::new() });
        }
        if polled.records.is_empty() {
            return Ok(());
        }
        self.mark = self.mark.max(polled.mark);
        self.flush_at.get_or_insert_with(|| Instant::now() + self.config.flush_interval());
        let now_ms = self.deps.world.now_ms();
        let decoded: Vec<_> = polled.records.into_iter().filter_map(|record| self.decode(record, now_ms)).collect();
        self.load_missing(&decoded, now_ms).await?;
        for (record, batch) in decoded {
            self.traced.add(&batch, &self.deps.world);
            if let Some(owned) = self.owned.get_mut(&record.at) {
                owned.books.book(record.offset, record.body, batch, now_ms, &self.deps.stats);
            }
        }
        Ok(())
    }

    /// Reads a record's body, or makes it a dead letter.
    fn decode(&mut self, record: Record, now_ms: u64) -> Option<(Record, LedgerBatch)> {
        let cause = if record.envelope.schema() != Schema::LedgerBatch {
            format!("schema {} where a ledger batch is expected", record.envelope.schema)
        } else {
            match decode(record.body.clone()) {
                Ok((batch, 0)) => return Some((record, batch)),
                Ok((batch, left_out)) => {
                    tracing::error!(at = %record.at, offset = record.offset, left_out, "sections name no notification");
                    self.deps.stats.unreadable.fetch_add(left_out as u64, Relaxed);
                    return Some((record, batch));
                }
                Err(error) => error.to_string(),
            }
        };
        tracing::error!(at = %record.at, offset = record.offset, cause, "a ledger record cannot be read");
        self.deps.stats.unreadable.fetch_add(1, Relaxed);
        self.deps.stats.dead_letters.fetch_add(1, Relaxed);
        if let Some(owned) = self.owned.get_mut(&record.at) {
            owned.books.seen(record.offset);
            owned.dead.extend(dead_letter(&record, cause, self.deps.log.identity(), now_ms));
        }
        None
    }

    /// Loads the stored totals of notifications that are not in memory, in one read.
    async fn load_missing(&mut self, decoded: &[(Record, LedgerBatch)], now_ms: u64) -> Result<(), StoreError> {
        let mut missing: BTreeMap<TopicPartition, HashSet<NotificationId>> = BTreeMap::new();
        for (record, batch) in decoded {
            if let Some(owned) = self.owned.get(&record.at) {
                owned.books.missing(batch, missing.entry(record.at).or_default());
            }
        }
        let wanted: Vec<(TopicPartition, NotificationId)> =
            missing.into_iter().flat_map(|(at, ids)| ids.into_iter().map(move |id| (at, id))).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let ids: Vec<NotificationId> = wanted.iter().map(|(_, id)| *id).collect();
        let mut backoff = Backoff::new();
        let loaded = loop {
            match self.deps.ledger.totals(&ids).await {
                Ok(loaded) => break loaded,
                Err(error) => backoff.after("receipts.load", error, &self.deps.stats, &self.shutdown).await?,
            }
        };
        for ((at, id), totals) in wanted.into_iter().zip(loaded) {
            if let (Some(owned), Some(totals)) = (self.owned.get_mut(&at), totals) {
                owned.books.load(id, totals, now_ms);
            }
        }
        Ok(())
    }

    /// Writes everything that is pending and commits the positions.
    async fn flush(&mut self) -> anyhow::Result<()> {
        self.flush_at = None;
        let moved: Vec<(TopicPartition, u64)> =
            self.owned.iter().filter_map(|(at, owned)| Some((*at, owned.books.moved_to()?))).collect();
        if moved.is_empty() {
            return Ok(());
        }
        self.deps.log.durable(self.mark).await?;
        for (at, _) in &moved {
            self.write(*at).await?;
        }
        self.commit(&moved).await?;
        self.traced.flushed(&self.deps.world);
        let max_active = (self.config.max_active / self.owned.len().max(1)).max(1);
        for (at, _) in &moved {
            if let Some(owned) = self.owned.get_mut(at) {
                owned.books.flushed(max_active);
                owned.dead.clear();
            }
        }
        Ok(())
    }

    async fn write(&mut self, at: TopicPartition) -> Result<(), StoreError> {
        let mut backoff = Backoff::new();
        while let Some(flush) = self.owned.get_mut(&at).and_then(|owned| owned.books.flush()) {
            match self.deps.ledger.apply(flush).await {
                Ok(()) => {
                    self.deps.stats.flushes.fetch_add(1, Relaxed);
                    break;
                }
                Err(error) => backoff.after("receipts.store", error, &self.deps.stats, &self.shutdown).await?,
            }
        }
        Ok(())
    }

    async fn commit(&mut self, moved: &[(TopicPartition, u64)]) -> Result<(), Halted> {
        let position = |offset: &u64| Position { offset: *offset, ..Position::default() };
        let commit = Commit {
            positions: moved.iter().map(|(at, offset)| (*at, position(offset))).collect(),
            outputs: self.owned.values().flat_map(|owned| owned.dead.iter().cloned()).collect(),
        };
        Committed::or_halt(self.subscription.commit(commit).await)?;
        Ok(())
    }

    /// Checks the books, notes what was found and reports what is stuck.
    async fn reconcile(&mut self) {
        self.reconcile_at = Instant::now() + Duration::from_millis(self.config.reconcile_interval_ms);
        let now_ms = self.deps.world.now_ms();
        if let Err(error) = self.load_what_rests(now_ms).await {
            tracing::warn!(error, "books that nothing moves are not looked for");
        }
        let unsettled = || self.owned.values().flat_map(|owned| owned.books.unsettled());
        let suspected = reconcile(unsettled(), now_ms, self.config.stall_after_ms);
        let ids: HashSet<NotificationId> = suspected.iter().map(|stuck| stuck.id).take(MOST_SUSPECTED).collect();
        let (located, all) = match locate(&*self.deps.log, &ids).await {
            Ok((located, all)) => (located, all),
            Err(error) => {
                tracing::warn!(%error, "where instances are that do not end cannot be read");
                (Located::new(), false)
            }
        };
        let where_is = |stuck: &Stuck| located.get(&(stuck.id, stuck.channel as i32)).copied().unwrap_or_default();
        let stuck: Vec<Stuck> = suspected
            .into_iter()
            .filter_map(|stuck| {
                let found = where_is(&stuck);
                let all = all && ids.contains(&stuck.id);
                stuck.beyond(found, all)
            })
            .collect();
        let of = |finding| stuck.iter().filter(move |stuck| stuck.finding == finding);
        let check = Check {
            unsettled: unsettled().count() as u64,
            overbooked: of(Finding::Overbooked).count() as u64,
            stalled: of(Finding::Stalled).count() as u64,
            longest_idle_ms: of(Finding::Stalled).map(|stuck| stuck.idle_ms).max().unwrap_or(0),
            stuck: stuck.iter().take(MOST_LISTED).cloned().collect(),
        };
        self.deps.stats.checked(self.member.ordinal, check);
        for item in stuck.iter().filter(|item| !self.reported.contains(&item.id)).take(MOST_LISTED) {
            report(item);
        }
        self.reported = stuck.into_iter().map(|item| item.id).collect();
    }

    /// Loads the books of what rests longest on the log: after a restart only receipts would bring them to memory.
    async fn load_what_rests(&mut self, now_ms: u64) -> Result<(), String> {
        let before_ms = now_ms.saturating_sub(self.config.stall_after_ms);
        let log = self.deps.log.clone();
        let resting = oldest_unfinished(&*log, before_ms).await.map_err(|error| error.to_string())?;
        let layout = log.identity().layout;
        let unknown =
            |id: &NotificationId| self.owned.get(&layout.receipts_of(id)).is_some_and(|owned| !owned.books.knows(id));
        let ids: Vec<NotificationId> = resting.into_iter().filter(unknown).collect();
        let loaded = self.deps.ledger.totals(&ids).await.map_err(|error| error.to_string())?;
        for (id, totals) in ids.into_iter().zip(loaded) {
            if let (Some(owned), Some(totals)) = (self.owned.get_mut(&layout.receipts_of(&id)), totals) {
                owned.books.load(id, totals, now_ms);
            }
        }
        Ok(())
    }
}

fn report(stuck: &Stuck) {
    let (id, tenant, channel) = (stuck.id, stuck.tenant.as_str(), herald_core::ids::channel_name(stuck.channel));
    let (created, ended, stage) = (stuck.created.count, stuck.ended.count, stuck.stage);
    match stuck.finding {
        Finding::Overbooked => tracing::error!(%id, tenant, channel, created, ended, "the books contradict themselves"),
        Finding::Stalled => tracing::warn!(%id, tenant, channel, stage, created, ended, "instances do not end"),
    }
}

fn dead_letter(record: &Record, cause: String, log: &Identity, now_ms: u64) -> Vec<NewRecord> {
    let place = dead_letters::place_of(record, log);
    let letter = dead_letters::letter(record, place, "ledger", "undecodable", now_ms);
    let letter = DeadLetter { attempts: 1, detail: cause, ..letter };
    let mut outputs = Outputs::new(log.layout, &log.region, now_ms);
    outputs.dead(&record.envelope.tenant, letter);
    outputs.finish()
}
