//! The loop: poll, expand, commit.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use herald_core::{
    dead_letters,
    fair::DeficitRoundRobin,
    ids::NotificationId,
    outputs::Outputs,
    ports::log::{Commit, Committed, Halted, LogError, Mark, Member, Polled, Position, Record, Subscription},
    record::{DeadLetter, Envelope, Place, Schema},
    topic::{Group, Lane, Topic, TopicPartition},
    trace::{Span, SpanKind, names},
    under_way::{Ended, UnderWay},
    window::Track,
};
use prost::Message;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    expand::last_manifest,
    pacing::Pacing,
    requests::{Expanded, Unit},
    steering::Steering,
};

/// What a tenant may expand before the next one's turn, in instances.
const QUANTUM: u64 = 2_048;

/// How long an idle stage sleeps at most: often enough to take up new policies soon.
const IDLE_WAIT: Duration = Duration::from_millis(250);

/// How long a stage with work sleeps that does not know yet which cancels there are.
const UNINFORMED_WAIT: Duration = Duration::from_millis(10);

/// Units expanded at once; what they become is looked at before more are taken.
const UNITS_AT_ONCE: usize = 64;

pub(crate) struct Stage {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    member: Member,
    subscription: Box<dyn Subscription>,
    pub(crate) steering: Steering,
    /// One unit a record.
    tracks: BTreeMap<TopicPartition, Track>,
    /// Pending records, transactional and bulk, served fairly by tenant.
    lanes: [DeficitRoundRobin<String, Unit>; 2],
    /// Covers every record that was polled.
    pub(crate) polled_mark: Mark,
    pub(crate) pacing: Pacing,
    /// What the next commit puts out.
    gathered: Gathered,
    /// With what is told once it is in.
    under_way: UnderWay<Vec<Span>>,
    /// Covers what was committed.
    committed_mark: Mark,
    /// When there may be another commit.
    commit_at: Instant,
}

/// What records have become since the last commit began.
struct Gathered {
    outputs: Outputs,
    instances: u64,
    spans: Vec<Span>,
    /// Whether it waits for its time.
    is_waiting: bool,
}

impl Stage {
    pub(crate) async fn new(config: Config, deps: Deps, member: Member) -> anyhow::Result<Self> {
        let subscription = deps.log.subscribe(Group::Orchestrator, member).await?;
        Ok(Self {
            gathered: Gathered::none(&deps),
            under_way: UnderWay::none(),
            committed_mark: Mark::default(),
            commit_at: Instant::now(),
            pacing: Pacing::new(deps.budgets.clone(), member.count, deps.outages.budgets.clone()),
            config,
            steering: Steering::new(deps.policy.clone(), deps.control.clone()),
            deps,
            member,
            subscription,
            tracks: BTreeMap::new(),
            lanes: [DeficitRoundRobin::new(QUANTUM), DeficitRoundRobin::new(QUANTUM)],
            polled_mark: Mark::default(),
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            self.turn(&shutdown).await?;
        }
        self.commit().await.map(|_| ())
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let pending: usize = self.lanes.iter().map(DeficitRoundRobin::len).sum();
        let is_informed = self.steering.is_informed();
        let wait = match (pending, is_informed) {
            (0, _) => IDLE_WAIT,
            (_, false) => UNINFORMED_WAIT,
            (_, true) => Duration::ZERO,
        };
        self.pause_overflow(pending);
        let room = self.config.window_records.saturating_sub(pending).max(1);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            ended = self.under_way.end() => self.committed(ended)?,
            () = sleep_until(self.commit_at), if is_informed && self.gathered.is_waiting && !self.under_way.is_some() => {}
            polled = self.subscription.poll(room.min(self.config.poll_records), wait) => match polled {
                Ok(polled) => if self.take_polled(polled).await? {
                    return self.commit().await.map(|_| ());
                },
                Err(error) => self.wait_out(error).await?,
            },
        }
        self.make_room().await?;
        let version = self.steering.take_up();
        self.deps.versions.runs("orchestrator", self.member, version);
        if self.steering.is_informed() {
            self.step().await?;
        }
        Ok(())
    }

    /// Takes what was polled; returns whether the partitions are wanted back, when nothing more is begun.
    async fn take_polled(&mut self, polled: Polled) -> anyhow::Result<bool> {
        self.deps.outages.log.answered(self.deps.world.now_ms());
        let polled = polled.or_halt()?;
        if !polled.revoked.is_empty() && !self.gathered.outputs.is_empty() {
            // Some of what was gathered is another's to put out now, and it cannot be told which.
            return Err(Halted::Fenced.into());
        }
        self.polled_mark = self.polled_mark.max(polled.mark);
        self.reassign(polled.assigned, polled.revoked);
        polled.records.into_iter().for_each(|record| self.enqueue(record));
        self.note_starts().await?;
        Ok(polled.wanted_back)
    }

    /// Waits a moment after a passing error of the log; any other ends the role.
    async fn wait_out(&self, error: LogError) -> anyhow::Result<()> {
        if !error.is_passing() {
            return Err(error.into());
        }
        self.deps.outages.log.failed(&error, 0, self.deps.world.now_ms());
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    fn reassign(&mut self, assigned: Vec<(TopicPartition, Position)>, revoked: Vec<TopicPartition>) {
        for at in revoked.into_iter().chain(assigned.iter().map(|(at, _)| *at)) {
            self.tracks.remove(&at);
            self.steering.revoked(at.partition);
            self.lanes.iter_mut().for_each(|lane| lane.retain(|unit| unit.record.at != at));
        }
        for (at, position) in assigned {
            // The topics of a number are assigned together.
            self.steering.assigned(at.partition);
            self.tracks.insert(at, Track::new(position));
        }
    }

    fn enqueue(&mut self, record: Record) {
        let Some(track) = self.tracks.get_mut(&record.at) else { return };
        let (number, done) = track.add(record.offset, 1);
        if done[0] {
            return;
        }
        let poison = track.is_poison(number);
        let cost = cost_of(&record);
        self.lanes[usize::from(lane_of(record.at) == Lane::Bulk)].push(
            if self.config.fair { record.envelope.tenant.clone() } else { String::new() },
            cost,
            Unit { record, number, poison },
        );
    }

    /// Counts a start at each partition that has work, before the work.
    async fn note_starts(&mut self) -> anyhow::Result<()> {
        let counted = |(at, track): (&TopicPartition, &mut Track)| track.count_start().map(|position| (*at, position));
        let positions: Vec<_> = self.tracks.iter_mut().filter_map(counted).collect();
        if positions.is_empty() {
            return Ok(());
        }
        self.end_commit().await?;
        let mark = Committed::or_halt(self.subscription.commit(Commit { positions, outputs: Vec::new() }).await)?;
        self.made_durable(mark).await
    }

    /// Overflow is read again only when half of the window is free, so that nothing moves back and forth.
    fn pause_overflow(&mut self, pending: usize) {
        let full = pending >= self.config.window_records / 2;
        for at in self.tracks.keys().filter(|at| matches!(at.topic, Topic::RequestsOverflow(_))) {
            self.subscription.pause(*at, full);
        }
    }

    /// Moves the newest requests of the tenant that fills the window to overflow, so that others are read behind them.
    async fn make_room(&mut self) -> anyhow::Result<()> {
        let pending: usize = self.lanes.iter().map(DeficitRoundRobin::len).sum();
        if pending < self.config.window_records {
            return Ok(());
        }
        self.stamp();
        let mut leaving = Vec::new();
        while pending - leaving.len() > self.config.window_records * 3 / 4 {
            let heaviest =
                |lane: &DeficitRoundRobin<String, Unit>| lane.heaviest().map(|(key, cost)| (cost, key.clone()));
            let [first, second] = [heaviest(&self.lanes[0]), heaviest(&self.lanes[1])];
            let (lane, most) = if second > first { (1, second) } else { (0, first) };
            let Some(unit) = most.and_then(|(_, tenant)| self.lanes[lane].pop_newest(&tenant)) else { break };
            leaving.push(unit);
        }
        for unit in leaving.into_iter().rev() {
            let Record { at, offset, body, .. } = &unit.record;
            let home = TopicPartition { topic: Topic::RequestsOverflow(lane_of(*at)), ..*at };
            let envelope = moved(&unit.record, self.first_place(&unit.record));
            self.gathered.outputs.record(home, envelope, body.clone());
            self.finish(*at, *offset);
            self.count(&self.deps.stats.overflowed, 1);
        }
        self.commit().await.map(|_| ())
    }

    /// Has what is gathered from now on stamped with the time as it is: the last commit may be long ago.
    fn stamp(&mut self) {
        if self.gathered.outputs.is_empty() {
            self.gathered.outputs = outputs(&self.deps);
        }
    }

    /// Expands units in turn until a commit is full or nothing is left, and begins to commit them, with the
    /// acknowledgement of the cancels that they were decided with. While another commit is under way they wait for it, and
    /// for what follows them, unless the commit is full.
    async fn step(&mut self) -> anyhow::Result<()> {
        self.stamp();
        while self.gathered.instances < self.config.commit_instances {
            let (units, careful) = self.take_units();
            if let [unit] = units.as_slice()
                && careful
            {
                // With all that was finished before, whose outputs must not be parted from its position.
                if let Some(track) = self.tracks.get_mut(&unit.record.at) {
                    track.note(unit.number);
                }
                let mark = self.commit().await?;
                self.made_durable(mark).await?;
            }
            if units.is_empty() {
                break;
            }
            let now_ms = self.deps.world.now_ms();
            let expanded = self.expand_all(&units, now_ms).await;
            for (unit, expanded) in units.iter().zip(expanded) {
                if let Expanded::Page { page, .. } = &expanded {
                    self.gathered.instances += page.instances;
                }
                let span = self.span_of(&unit.record, &expanded, now_ms);
                self.gathered.spans.extend(span);
                self.put_out(unit, expanded, now_ms);
                self.finish(unit.record.at, unit.record.offset);
            }
        }
        self.steering.acknowledge(&mut self.gathered.outputs);
        let is_full = self.gathered.instances >= self.config.commit_instances;
        let is_time = !self.under_way.is_some() && Instant::now() >= self.commit_at;
        self.gathered.is_waiting = !(is_full || is_time);
        if self.gathered.is_waiting { Ok(()) } else { self.begin_commit().await }
    }

    /// What is told of a record's expansion once it is committed, if its notification is traced.
    fn span_of(&self, record: &Record, expanded: &Expanded, now_ms: u64) -> Option<Span> {
        let parent = self.deps.world.traced(&record.envelope.trace_parent)?;
        let (own, topic) = (parent.child(&*self.deps.world.entropy), record.at.topic.to_string());
        let (instances, error) = match expanded {
            Expanded::Page { page, .. } => (page.instances, None),
            Expanded::Dead { cause, .. } => (0, Some((*cause).to_owned())),
            Expanded::Later { .. } | Expanded::Stopped { .. } | Expanded::SecondAdmission => (0, None),
        };
        let span = Span::new(own, Some(parent), format!("process {topic}"), SpanKind::Consumer, now_ms, now_ms)
            .with(names::OPERATION_NAME, "process")
            .with(names::OPERATION_TYPE, "process")
            .with(names::DESTINATION, topic)
            .with(names::PARTITION, u64::from(record.at.partition))
            .with(names::OFFSET, record.offset)
            .with(names::GROUP, Group::Orchestrator.name())
            .with(names::TENANT, &*record.envelope.tenant)
            .with(names::INSTANCES, instances);
        Some(Span { error, ..span })
    }

    /// Takes units in turn; one alone that is to be noted first, if the second answer is `true`.
    fn take_units(&mut self) -> (Vec<Unit>, bool) {
        let tracks = &self.tracks;
        let is_careful = |unit: &Unit| tracks.get(&unit.record.at).is_some_and(|track| track.is_careful(unit.number));
        let alone = tracks.values().any(|track| track.is_careful(0));
        let mut units: Vec<Unit> = Vec::new();
        for lane in &mut self.lanes {
            while units.len() < UNITS_AT_ONCE
                && let Some(unit) = lane.pop()
            {
                let careful = is_careful(&unit);
                units.push(unit);
                if alone {
                    return (units, careful);
                }
            }
        }
        (units, false)
    }

    fn put_out(&mut self, unit: &Unit, expanded: Expanded, now_ms: u64) {
        let record = &unit.record;
        let place = self.first_place(record);
        let Self { gathered: Gathered { outputs, .. }, deps, .. } = self;
        match expanded {
            Expanded::Page { transactional, page, next, next_wait } => {
                deps.stats.pages.fetch_add(1, Relaxed);
                deps.stats.instances.fetch_add(page.instances, Relaxed);
                let lane = if transactional { Lane::Transactional } else { Lane::Bulk };
                for (shard, sections) in page.sections {
                    let home = TopicPartition { topic: Topic::Deliveries(lane), partition: shard };
                    for (section, summary) in sections {
                        outputs.section(home, None, section, summary);
                    }
                }
                page.manifests.into_iter().for_each(|manifest| outputs.manifest(manifest));
                if let Some(next) = next {
                    let mut envelope = record.envelope.clone();
                    envelope.schema = Schema::Continuation as i32;
                    envelope.waiting = None;
                    let (home, body) = (requests_home(record.at), next.encode_to_vec().into());
                    match next_wait.filter(|wait| wait.due_ms > now_ms) {
                        Some(wait) => outputs.delayed(home, wait, envelope, body),
                        None => outputs.record(home, envelope, body),
                    }
                }
            }
            Expanded::Later(wait) => {
                let envelope = moved(record, place);
                outputs.delayed(requests_home(record.at), wait, envelope, record.body.clone());
            }
            Expanded::Stopped { notification } => {
                deps.stats.stopped.fetch_add(1, Relaxed);
                outputs.manifest(last_manifest(&notification));
            }
            Expanded::SecondAdmission => {
                deps.stats.second_admissions.fetch_add(1, Relaxed);
                tracing::info!(at = %record.at, offset = record.offset, "a second admission was dropped");
            }
            Expanded::Dead { cause, detail } => {
                deps.stats.dead.fetch_add(1, Relaxed);
                tracing::error!(at = %record.at, offset = record.offset, cause, detail, "a request is dead");
                let summary = record.envelope.sections.first();
                if let Some(id) = summary.and_then(|s| NotificationId::from_slice(&s.notification_id)) {
                    let books = dead_letters::dead_request_books(&record.envelope.tenant, &id, now_ms, cause, false);
                    books.manifests.into_iter().for_each(|manifest| outputs.manifest(manifest));
                    books.receipts.into_iter().for_each(|receipts| outputs.receipts(receipts));
                }
                let letter = dead_letters::letter(record, place, "orchestrator", cause, now_ms);
                outputs.dead(&record.envelope.tenant, DeadLetter { detail, ..letter });
            }
        }
    }

    pub(crate) fn count(&self, counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Relaxed);
    }

    fn finish(&mut self, at: TopicPartition, offset: u64) {
        if let Some(track) = self.tracks.get_mut(&at) {
            track.finish(offset, [0]);
        }
    }

    /// Positions of the partitions that moved.
    fn positions(&mut self) -> Vec<(TopicPartition, Position)> {
        let moved = |(at, track): (&TopicPartition, &mut Track)| track.take_position().map(|position| (*at, position));
        self.tracks.iter_mut().filter_map(moved).collect()
    }

    /// Returns once what was noted is durable: a request that kills the process must not take the note of it along.
    async fn made_durable(&self, mark: Mark) -> anyhow::Result<()> {
        self.deps.log.durable(mark).await.context("what is tried cannot be noted")
    }

    /// Commits what was gathered; returns what covers it.
    async fn commit(&mut self) -> anyhow::Result<Mark> {
        self.begin_commit().await?;
        self.end_commit().await?;
        Ok(self.committed_mark)
    }

    /// Begins to commit what was gathered, after what is under way, and does not wait for the end unless it comes at once.
    async fn begin_commit(&mut self) -> anyhow::Result<()> {
        self.end_commit().await?;
        let none = Gathered::none(&self.deps);
        let Gathered { outputs, spans, .. } = std::mem::replace(&mut self.gathered, none);
        let positions = self.positions();
        if positions.is_empty() && outputs.is_empty() {
            return Ok(());
        }
        let committing = self.subscription.commit(Commit { positions, outputs: outputs.finish() });
        match self.under_way.begin(committing, spans) {
            Some(ended) => self.committed(ended),
            None => Ok(()),
        }
    }

    /// Waits for what is under way.
    async fn end_commit(&mut self) -> anyhow::Result<()> {
        if self.under_way.is_some() {
            let ended = self.under_way.end().await;
            self.committed(ended)?;
        }
        Ok(())
    }

    /// What was begun has ended.
    fn committed(&mut self, (committed, spans): Ended<Vec<Span>>) -> anyhow::Result<()> {
        self.committed_mark = Committed::or_halt(committed)?;
        self.commit_at = Instant::now() + Duration::from_millis(self.config.commit_interval_ms);
        let end_ms = self.deps.world.now_ms();
        spans.into_iter().for_each(|span| self.deps.world.spans.record(Span { end_ms, ..span }));
        Ok(())
    }
}

impl Gathered {
    fn none(deps: &Deps) -> Self {
        Self { outputs: outputs(deps), instances: 0, spans: Vec::new(), is_waiting: false }
    }
}

fn outputs(deps: &Deps) -> Outputs {
    let identity = deps.log.identity();
    Outputs::new(identity.layout, &identity.region, deps.world.now_ms())
}

/// The envelope of a record that moves: a request says where it was first.
fn moved(record: &Record, first_place: Place) -> Envelope {
    let mut envelope = record.envelope.clone();
    if envelope.schema == Schema::Request as i32 {
        envelope.first_place = Some(first_place);
    }
    envelope
}

fn lane_of(at: TopicPartition) -> Lane {
    match at.topic {
        Topic::Requests(lane) | Topic::RequestsOverflow(lane) => lane,
        _ => Lane::Bulk,
    }
}

/// What a record will expand to is not known yet: a continuation is likely to be a whole page, and the size of a
/// request stands for its list of users.
fn cost_of(record: &Record) -> u64 {
    match record.envelope.schema() {
        Schema::Continuation => QUANTUM,
        _ => (record.body.len() as u64 / 16).clamp(8, QUANTUM),
    }
}

fn requests_home(at: TopicPartition) -> TopicPartition {
    let topic = match at.topic {
        Topic::RequestsOverflow(lane) => Topic::Requests(lane),
        topic => topic,
    };
    TopicPartition { topic, ..at }
}
