//! The loop: poll, decide, send, commit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use herald_core::{
    done_map::MAX_ENCODED_CHARS,
    ids::TenantId,
    outputs::Outputs,
    ports::log::{Commit, Committed, LogError, Mark, Member, Polled, Position, Record, Subscription},
    providers::Providers,
    record::UserChange,
    tokens::UnsubscribeLinks,
    topic::{Group, Topic, TopicPartition},
    under_way::{Ended, UnderWay},
};
use prost::Message as _;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    claiming::ShardClaims,
    delivery::{Batch, Event, Events, Freshness, watch_durability},
    in_doubt::{Answered, InDoubt},
    outages::wait_out,
    pacing::Pacing,
    people::People,
    prepare::Renderers,
    providers::{Ways, kinds_of},
    receipts::Endings,
    section::{Chunk, Head, Notifications, decode_batch},
    shard::{Queued, Shard},
    steering::{CancelAcks, Steering},
};

/// How long the loop sleeps when nothing happens: often enough to keep `user-changes` read and the shards committed.
const IDLE_WAIT: Duration = Duration::from_millis(250);

/// How long the loop sleeps with work in hand while it does not know yet which cancels there are.
const UNINFORMED_WAIT: Duration = Duration::from_millis(10);

/// `user-changes` are read to their ends this often, and whenever there is something new to decide.
const CHANGES_INTERVAL: Duration = Duration::from_millis(250);

/// An empty commit proves ownership this often.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// How long a worker that stops or hands its shards over waits for answers.
const DRAIN: Duration = Duration::from_secs(2);

/// From this length of an encoded done-map on, what is not started leaves the window.
const LONG_DONE_MAP_CHARS: usize = MAX_ENCODED_CHARS * 3 / 4;

/// A poll of full windows still brings this many records.
const MIN_POLL_RECORDS: usize = 8;

pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    member: Member,
    pub(crate) subscription: Box<dyn Subscription>,
    pub(crate) steering: Arc<Steering>,
    /// Who delivers, and the ways to them.
    pub(crate) providers: Arc<Providers>,
    pub(crate) ways: Ways,
    /// The version of the policies that was reported last.
    pub(crate) runs_version: Option<u64>,
    pub(crate) shards: BTreeMap<u32, Shard>,
    /// The shard that was served last.
    pub(crate) next_shard: usize,
    pub(crate) people: People,
    pub(crate) notifications: Notifications,
    pub(crate) renderers: Renderers,
    /// Unsubscribe links and the secret that signs them.
    pub(crate) links: Option<(String, Arc<UnsubscribeLinks>)>,
    pub(crate) freshness: Arc<Freshness>,
    pub(crate) events: Arc<Events>,
    /// A buffer for those that are being looked at.
    pub(crate) taken_events: Vec<Event>,
    pub(crate) batches: BTreeMap<u64, Batch>,
    pub(crate) next_batch: u64,
    pub(crate) in_doubt: InDoubt,
    pub(crate) pacing: Pacing,
    pub(crate) durable: Mark,
    wanted: watch::Sender<Mark>,
    dirty_since: Option<Instant>,
    /// What was begun to be committed last.
    under_way: UnderWay<CommitParts>,
    /// Covers what was committed.
    committed_mark: Mark,
    committed: Instant,
    changes_asked: Option<Instant>,
    /// Whether something was polled since `user-changes` were read to their ends.
    ask_changes: bool,
    /// Counts assignments.
    assignments: u64,
    /// Of the last poll that brought deliveries.
    instances_per_record: u64,
}

/// What is settled once a commit is in.
struct CommitParts {
    answered: Answered,
    dead_letters: u64,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // However the loop ended, nobody reads `user-changes` any more.
        self.freshness.close();
    }
}

impl Worker {
    pub(crate) async fn new(config: Config, deps: Deps, member: Member) -> anyhow::Result<Self> {
        let subscription = deps.log.subscribe(Group::Worker, member).await?;
        let events = Arc::new(Events::default());
        let (wanted, receiver) = watch::channel(Mark::default());
        tokio::spawn(watch_durability(deps.log.clone(), receiver, events.clone()));
        let providers = deps.policy.borrow().providers().clone();
        let ways = deps.providers.take_up(&providers);
        Ok(Self {
            member,
            steering: Arc::new(Steering::new(&deps)),
            runs_version: None,
            people: People::new(config.cached_people, config.cached_people_max_age_ms),
            notifications: Notifications::new(),
            renderers: Renderers::new(),
            links: None,
            freshness: Arc::new(Freshness::new()),
            in_doubt: InDoubt::new(config.in_doubt_instances, config.unanswered_instances, kinds_of(&ways)),
            providers,
            ways,
            pacing: Pacing::new(deps.budgets.clone(), member.count, deps.outages.budgets.clone()),
            shards: BTreeMap::new(),
            next_shard: 0,
            batches: BTreeMap::new(),
            next_batch: 0,
            durable: Mark::default(),
            dirty_since: None,
            under_way: UnderWay::none(),
            committed_mark: Mark::default(),
            committed: Instant::now(),
            changes_asked: None,
            ask_changes: true,
            assignments: 0,
            instances_per_record: 256,
            config,
            deps,
            subscription,
            events,
            taken_events: Vec::new(),
            wanted,
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            self.turn(&shutdown).await?;
        }
        self.drain().await
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let interval = Duration::from_millis(self.config.commit_interval_ms);
        let due = |since| since + interval;
        let commit_at = self.dirty_since.filter(|_| !self.under_way.is_some()).map(due);
        let busy = !self.events.is_empty() || self.shards.values().any(|shard| shard.has_work(&self.in_doubt));
        let wait = match (busy, self.is_informed()) {
            (false, _) => IDLE_WAIT,
            (true, false) => UNINFORMED_WAIT,
            (true, true) => Duration::ZERO,
        };
        let (events, max) = (self.events.clone(), self.poll_records());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            ended = self.under_way.end() => self.committed(ended).await?,
            polled = self.subscription.poll(max, wait) => match polled {
                Ok(polled) => self.take_polled(polled).await?,
                Err(error) => wait_out(&self.deps.outages.log, error, &self.deps.world).await?,
            },
            () = events.some() => {}
            () = tokio::time::sleep_until(commit_at.unwrap_or_else(Instant::now)), if commit_at.is_some() => {}
        }
        self.take_events();
        self.take_up_policies(self.member);
        if self.read_changes().await? && self.is_informed() {
            self.serve().await?;
        }
        self.write_feeds().await;
        self.pause_full(false);
        let is_due = self.dirty_since.is_some_and(|since| due(since) <= Instant::now());
        if !self.under_way.is_some() && (is_due || self.committed.elapsed() >= PROOF_INTERVAL) {
            self.begin_commit().await?;
        }
        Ok(())
    }

    async fn drain(mut self) -> anyhow::Result<()> {
        self.freshness.close();
        self.settle_all().await
    }

    /// Waits for the answers of what was started, and commits.
    async fn settle_all(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN;
        while !self.batches.is_empty() && Instant::now() < deadline {
            let events = self.events.clone();
            let _elapsed = tokio::time::timeout_at(deadline, events.some()).await;
            self.take_events();
        }
        self.commit().await.map(|_| ())
    }

    /// Notes that there is something to commit.
    pub(crate) fn touch(&mut self) {
        self.dirty_since.get_or_insert_with(Instant::now);
    }

    // ---- polling ----

    /// How many records to poll, so that about as many instances come as there is room for.
    fn poll_records(&self) -> usize {
        let window = self.config.window_instances;
        let room =
            self.shards.values().filter_map(|shard| window.checked_sub(shard.unfinished())).filter(|r| *r > 0).min();
        let records = room.unwrap_or(window) / self.instances_per_record.max(1);
        (records as usize).max(MIN_POLL_RECORDS).min(self.config.poll_records)
    }

    async fn take_polled(&mut self, polled: Polled) -> anyhow::Result<()> {
        let Polled { records, assigned, revoked, wanted_back, mark, .. } = polled.or_halt()?;
        if wanted_back {
            // Whatever started from now on would be sent again by who comes next.
            self.freshness.changes_read(None);
            self.settle_all().await?;
            self.ask_changes = true;
        }
        revoked.into_iter().for_each(|at| self.let_go(at.partition));
        for (at, position) in assigned {
            self.begin(at, position);
        }
        let (mut batches, mut instances, mut new) = (0, 0, false);
        for record in records {
            if matches!(record.at.topic, Topic::Deliveries(_) | Topic::Overflow(_)) {
                batches += 1;
                new |= matches!(record.at.topic, Topic::Deliveries(_));
                instances += record.envelope.sections.iter().map(|section| u64::from(section.count)).sum::<u64>();
            }
            self.take_record(record, mark);
        }
        if batches > 0 {
            self.instances_per_record = instances.div_ceil(batches).max(1);
        }
        // What comes back from overflow is served before it can be moved again.
        if new {
            self.make_room();
        }
        if mark > self.durable {
            self.want_durable(mark);
        }
        self.count_starts().await
    }

    /// The shard is another's: what was not committed of it is dropped with it, and nothing more of it starts.
    fn let_go(&mut self, number: u32) {
        // The sharded topics are assigned together, so the first of them takes the shard with it.
        let Some(shard) = self.shards.remove(&number) else { return };
        shard.answered.forget(&mut self.in_doubt);
        for batch in self.batches.values_mut() {
            self.in_doubt.drop(batch.channel, batch.let_go(number));
        }
    }

    fn begin(&mut self, at: TopicPartition, position: Position) {
        if !self.shards.contains_key(&at.partition) {
            let claims = ShardClaims::new(at.partition, self.deps.claims.clone());
            let (outputs, log_epoch) = (self.empty_outputs(), self.deps.log.identity().epoch);
            let cancels = CancelAcks::new(&self.deps.control);
            let shard = Shard::new(at.partition, log_epoch, claims, cancels, outputs, self.config.fair);
            self.shards.insert(at.partition, shard);
            // Changes that another owner has read are never told to this one.
            self.people.clear();
        }
        if let Some(shard) = self.shards.get_mut(&at.partition) {
            shard.begin(at.topic, position);
        }
        // Until its changes are read, nothing of the new shard may be sent.
        self.freshness.changes_read(None);
        self.ask_changes = true;
        self.assignments += 1;
    }

    fn empty_outputs(&self) -> Outputs {
        let identity = self.deps.log.identity();
        Outputs::new(identity.layout, &identity.region, self.deps.world.now_ms())
    }

    fn take_record(&mut self, record: Record, mark: Mark) {
        let Some(shard) = self.shards.get_mut(&record.at.partition) else { return };
        match record.at.topic {
            Topic::UserChanges => {
                shard.changes_read = record.offset + 1;
                shard.changes_dirty = true;
                self.take_change(record);
                self.touch();
            }
            Topic::Inbox => shard.feed.push(record, mark),
            _ => self.take_deliveries(record, mark),
        }
    }

    fn take_change(&mut self, record: Record) {
        match UserChange::decode(record.body) {
            Ok(change) => {
                let tenant = TenantId::trusted(&change.tenant);
                self.people.forget(&tenant, &change.user_id);
                self.freshness.changed(&tenant, &change.user_id);
            }
            Err(error) => {
                self.deps.stats.add(|s| &s.undecodable, 1);
                tracing::error!(at = %record.at, offset = record.offset, %error, "a user's change cannot be read");
                // It may have been anybody's opt-out.
                self.people.clear();
                self.freshness.anybody_changed();
            }
        }
    }

    fn take_deliveries(&mut self, record: Record, mark: Mark) {
        self.ask_changes = true;
        let Some(shard) = self.shards.get_mut(&record.at.partition) else { return };
        let Some(track) = shard.tracks.get_mut(&record.at.topic) else { return };
        let count: u32 = record.envelope.sections.iter().map(|section| section.count).sum();
        let (first_unit, done) = track.add(record.offset, count as usize);
        let undone: Vec<u32> = (0..count).filter(|i| !done[*i as usize]).collect();
        if undone.is_empty() && count > 0 {
            self.touch();
            return;
        }
        let Ok(heads) = decode_batch(record.body.clone(), &record.envelope.sections, &mut self.notifications) else {
            shard.bury_undecodable(&record, undone, &self.deps);
            return self.touch();
        };
        let mut buried = false;
        for (first, head) in heads {
            let end = first + head.section.count;
            let users: Vec<u32> = (first..end).filter(|i| !done[*i as usize]).map(|i| i - first).collect();
            for users in users.chunks(self.in_doubt.largest_batch()) {
                let queued = part(&record, mark, first_unit, first, &head, users.to_vec());
                let poison = shard.tracks.get(&record.at.topic).is_some_and(|track| track.is_poison(queued.unit));
                match poison {
                    true => shard.bury_poison(&record, &queued, &self.deps),
                    false => shard.queue(queued),
                }
                buried |= poison;
            }
        }
        if buried || count == 0 {
            self.touch();
        }
    }

    /// Moves what fills a shard's window to overflow, so that others are read behind it.
    fn make_room(&mut self) {
        let window = self.config.window_instances;
        let mut moved = 0;
        for shard in self.shards.values_mut().filter(|shard| shard.unfinished() >= window) {
            moved += shard.evacuate(window - window / 16);
        }
        if moved > 0 {
            self.deps.stats.add(|s| &s.overflowed, moved);
            self.touch();
        }
    }

    /// Counts a start at each position that has work, before the work.
    async fn count_starts(&mut self) -> anyhow::Result<()> {
        let mut positions = Vec::new();
        for (number, shard) in &mut self.shards {
            for (topic, track) in &mut shard.tracks {
                if let Some(position) = track.count_start() {
                    positions.push((TopicPartition { topic: *topic, partition: *number }, position));
                }
            }
        }
        if positions.is_empty() {
            return Ok(());
        }
        let mark = self.write(Commit { positions, outputs: Vec::new() }).await?;
        self.made_durable(mark).await
    }

    /// Returns once what was noted is durable: a section that kills the process must not take the note of it along.
    pub(crate) async fn made_durable(&self, mark: Mark) -> anyhow::Result<()> {
        self.deps.log.durable(mark).await.context("what is tried cannot be noted")
    }

    /// Reads `user-changes` to the ends they have now, so that what is decided next knows every change before. `false`
    /// if they are not known, when nothing may be decided.
    async fn read_changes(&mut self) -> anyhow::Result<bool> {
        if !self.ask_changes && self.changes_asked.is_some_and(|asked| asked.elapsed() < CHANGES_INTERVAL) {
            return Ok(true);
        }
        let asked = Instant::now();
        loop {
            let assignments = self.assignments;
            if let Err(error) = self.read_changes_to_ends().await? {
                self.pause_full(false);
                wait_out(&self.deps.outages.log, error, &self.deps.world).await?;
                return Ok(false);
            }
            // A shard that came meanwhile has changes of its own.
            if self.assignments == assignments {
                break;
            }
        }
        self.deps.outages.log.answered(self.deps.world.now_ms());
        self.pause_full(false);
        self.ask_changes = false;
        self.changes_asked = Some(asked);
        self.freshness.changes_read(Some(asked));
        Ok(true)
    }

    async fn read_changes_to_ends(&mut self) -> anyhow::Result<Result<(), LogError>> {
        let changes = |number: &u32| TopicPartition { topic: Topic::UserChanges, partition: *number };
        let at: Vec<TopicPartition> = self.shards.keys().map(changes).collect();
        let ends = match self.subscription.ends(&at).await {
            Ok(ends) => ends,
            Err(error) => return Ok(Err(error)),
        };
        let is_behind = |shards: &BTreeMap<u32, Shard>| {
            at.iter()
                .zip(&ends)
                .any(|(at, end)| shards.get(&at.partition).is_some_and(|shard| shard.changes_read < *end))
        };
        while is_behind(&self.shards) {
            self.pause_full(true);
            match self.subscription.poll(self.config.poll_records, Duration::ZERO).await {
                Ok(polled) => self.take_polled(polled).await?,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    fn pause_full(&mut self, changes_only: bool) {
        for shard in self.shards.values_mut() {
            shard.pause(changes_only, self.config.window_instances, self.subscription.as_mut());
        }
    }

    // ---- committing ----

    pub(crate) fn want_durable(&self, mark: Mark) {
        self.wanted.send_if_modified(|wanted| {
            let later = mark > *wanted;
            *wanted = (*wanted).max(mark);
            later
        });
    }

    async fn write_feeds(&mut self) {
        let mut dirty = false;
        for shard in self.shards.values_mut() {
            shard.feed.write(&self.deps, self.durable, &mut shard.outputs, &mut shard.endings).await;
            dirty |= shard.feed.dirty;
        }
        if dirty {
            self.touch();
        }
    }

    /// Commits what was decided and answered since the last commit, empty if need be; returns what covers it.
    pub(crate) async fn commit(&mut self) -> anyhow::Result<Mark> {
        self.begin_commit().await?;
        self.end_commit().await?;
        Ok(self.committed_mark)
    }

    /// Begins to commit, after what is under way, and does not wait for the end unless it comes at once.
    async fn begin_commit(&mut self) -> anyhow::Result<()> {
        self.end_commit().await?;
        let (mut outputs, mut answered) = (self.empty_outputs(), Answered::default());
        let mut endings = Endings::default();
        let mut positions = Vec::new();
        for shard in self.shards.values_mut() {
            let moved = shard.shorten_done_maps(LONG_DONE_MAP_CHARS);
            self.deps.stats.add(|s| &s.overflowed, moved);
            positions.extend(shard.take_positions());
            if shard.claims.has_changed()
                && let Some(batch) = shard.claims.take_batch()
            {
                outputs.claims(shard.number, batch);
            }
            answered.absorb(std::mem::take(&mut shard.answered));
            endings.absorb(std::mem::take(&mut shard.endings));
        }
        for number in self.shards.keys().copied().collect::<Vec<_>>() {
            let empty = self.empty_outputs();
            if let Some(shard) = self.shards.get_mut(&number) {
                outputs.absorb(std::mem::replace(&mut shard.outputs, empty));
            }
        }
        self.deps.stats.add(|s| &s.ended, endings.put_out(&mut outputs));
        // Last, so that the ledger has booked everything before.
        self.acknowledge_cancels(&mut outputs);
        self.dirty_since = None;
        let dead_letters = outputs.dead_letters();
        let committing = self.subscription.commit(Commit { positions, outputs: outputs.finish() });
        match self.under_way.begin(committing, CommitParts { answered, dead_letters }) {
            Some(ended) => self.committed(ended).await,
            None => Ok(()),
        }
    }

    /// Waits for what is under way.
    async fn end_commit(&mut self) -> anyhow::Result<()> {
        if self.under_way.is_some() {
            let ended = self.under_way.end().await;
            self.committed(ended).await?;
        }
        Ok(())
    }

    /// What was begun has ended.
    async fn committed(&mut self, (committed, parts): Ended<CommitParts>) -> anyhow::Result<()> {
        let mark = self.is_in(committed)?;
        self.committed_mark = mark;
        // The interval begins again, or commits would follow each other without a pause where they take longer than it.
        self.dirty_since = self.dirty_since.map(|_| Instant::now());
        self.deps.stats.add(|s| &s.dead_letters, parts.dead_letters);
        self.in_doubt.committed(parts.answered, mark);
        self.want_durable(mark);
        self.deps.stats.add(|s| &s.commits, 1);
        self.ask_inbox_ends().await;
        Ok(())
    }

    async fn write(&mut self, commit: Commit) -> anyhow::Result<Mark> {
        self.end_commit().await?;
        let committed = self.subscription.commit(commit).await;
        self.is_in(committed)
    }

    /// What covers a commit. One that is not in, or may not be, ends everything.
    fn is_in(&mut self, committed: Result<Committed, LogError>) -> anyhow::Result<Mark> {
        let mark = Committed::or_halt(committed).inspect_err(|_| self.freshness.close())?;
        self.committed = Instant::now();
        self.freshness.committed();
        Ok(mark)
    }
}

/// Some users of a record's section as they wait for their turn.
fn part(record: &Record, mark: Mark, first_unit: u64, first: u32, head: &Arc<Head>, users: Vec<u32>) -> Queued {
    Queued {
        topic: record.at.topic,
        offset: record.offset,
        unit: first_unit + u64::from(first + users.first().copied().unwrap_or(0)),
        mark,
        chunk: Chunk { head: head.clone(), first, users },
    }
}
