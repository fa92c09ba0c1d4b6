//! The loop: poll, decide, send, commit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herald_core::{
    ids::{InstanceId, TenantId, channel_name, claim_key},
    outputs::Outputs,
    people::Endpoint,
    policy::Policy,
    ports::{
        channel::{Channel, Message, Outcome},
        log::{Commit, Committed, LogError, Mark, Member, Polled, Position, Record, Subscription},
    },
    record::{self, DeadLetter, Notification, Place, Section, SectionSummary, State, UserChange},
    tokens::UnsubscribeToken,
    topic::{Group, Topic, TopicPartition},
};
use herald_templates::Rendered;
use prost::Message as _;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Deps,
    claiming::ShardClaims,
    decide::{Question, Verdict, may_send},
    delivery::{Batch, Dispatch, Event, Events, Freshness, Item, watch_durability},
    in_app::InAppItems,
    people::{Known, People},
    prepare::{Chunk, Head, NoRenderer, Renderer, content_of, decode_batch, inline_known},
    receipts::{End, Ended},
    retry::{Next, Why, after},
    shard::{Queued, Shard},
};

/// How long the loop sleeps when nothing happens: often enough to keep `user-changes` read and the shards committed.
const IDLE_WAIT: Duration = Duration::from_millis(250);

/// An empty commit proves ownership this often.
const PROOF_INTERVAL_MS: u64 = 1_000;

/// How long a stopping worker waits for answers.
const DRAIN: Duration = Duration::from_secs(2);

/// How long a section waits that cannot be decided now.
const UNDECIDED_DELAY_MS: u64 = 1_000;

/// Instances decided before the loop looks at events again.
const INSTANCES_PER_TURN: u64 = 4_096;

pub(crate) struct Worker {
    config: Config,
    deps: Deps,
    subscription: Box<dyn Subscription>,
    shards: BTreeMap<u32, Shard>,
    people: People,
    freshness: Arc<Freshness>,
    events: Arc<Events>,
    batches: BTreeMap<u64, Batch>,
    next_batch: u64,
    in_doubt: u64,
    /// Answered since the last commit.
    answered: u64,
    /// Answered and committed, and the mark from which on they are no longer in doubt.
    settling: Vec<(Mark, u64)>,
    durable: Mark,
    wanted: watch::Sender<Mark>,
    outputs: Outputs,
    dirty_since: Option<Instant>,
    committed_ms: u64,
    changes_asked_ms: u64,
}

impl Worker {
    pub(crate) async fn new(config: Config, deps: Deps, member: Member) -> anyhow::Result<Self> {
        let subscription = deps.log.subscribe(Group::Worker, member).await?;
        let events = Arc::new(Events::default());
        let (wanted, receiver) = watch::channel(Mark::default());
        tokio::spawn(watch_durability(deps.log.clone(), receiver, events.clone()));
        let now_ms = deps.world.now_ms();
        let outputs = Outputs::new(deps.log.identity().layout, &deps.log.identity().region, now_ms);
        Ok(Self {
            people: People::new(config.cached_people, config.cached_people_max_age_ms),
            freshness: Arc::new(Freshness::new(deps.world.clock.clone())),
            shards: BTreeMap::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            in_doubt: 0,
            answered: 0,
            settling: Vec::new(),
            durable: Mark::default(),
            dirty_since: None,
            committed_ms: now_ms,
            changes_asked_ms: 0,
            config,
            deps,
            subscription,
            events,
            wanted,
            outputs,
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            self.turn(&shutdown).await?;
        }
        self.drain().await
    }

    async fn turn(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let commit_at = self.dirty_since.map(|since| since + Duration::from_millis(self.config.commit_interval_ms));
        let busy = self.in_doubt < self.config.in_doubt_instances && self.shards.values().any(Shard::has_work);
        let wait = if busy { Duration::ZERO } else { IDLE_WAIT };
        let events = self.events.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            () = events.some() => {}
            polled = self.subscription.poll(self.config.poll_records, wait) => self.polled(polled).await?,
            () = tokio::time::sleep_until(commit_at.unwrap_or_else(Instant::now)), if commit_at.is_some() => {}
        }
        self.take_events();
        self.read_changes().await?;
        self.serve().await?;
        self.write_feeds().await;
        let now_ms = self.deps.world.now_ms();
        let due = self
            .dirty_since
            .is_some_and(|since| since.elapsed() >= Duration::from_millis(self.config.commit_interval_ms));
        if due || now_ms.saturating_sub(self.committed_ms) >= PROOF_INTERVAL_MS {
            self.commit().await?;
        }
        Ok(())
    }

    /// Starts nothing, waits for answers, commits.
    async fn drain(mut self) -> anyhow::Result<()> {
        self.freshness.close();
        let deadline = Instant::now() + DRAIN;
        while !self.batches.is_empty() && Instant::now() < deadline {
            let events = self.events.clone();
            let _elapsed = tokio::time::timeout_at(deadline, events.some()).await;
            self.take_events();
        }
        self.commit().await
    }

    // ---- polling ----

    async fn polled(&mut self, polled: Result<Polled, LogError>) -> anyhow::Result<()> {
        let polled = match polled {
            Ok(polled) => polled,
            Err(error @ LogError::Damaged(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "deliveries cannot be polled");
                tokio::time::sleep(IDLE_WAIT).await;
                return Ok(());
            }
        };
        let Polled { records, assigned, revoked, mark } = polled;
        for at in revoked {
            // The sharded topics are assigned together, so the first of them takes the shard with it.
            if self.shards.remove(&at.partition).is_some() {
                self.batches.retain(|_, batch| batch.shard != at.partition);
            }
        }
        for (at, position) in assigned {
            self.begin(at, position).await?;
        }
        for record in records {
            self.take_record(record, mark);
        }
        if mark > self.durable {
            self.want_durable(mark);
        }
        self.count_starts().await
    }

    async fn begin(&mut self, at: TopicPartition, position: Position) -> anyhow::Result<()> {
        if !self.shards.contains_key(&at.partition) {
            let now_ms = self.deps.world.now_ms();
            let claims =
                ShardClaims::take_over(at.partition, self.deps.claims.clone(), self.deps.log.as_ref(), now_ms).await?;
            self.shards.insert(at.partition, Shard::new(at.partition, claims));
        }
        if let Some(shard) = self.shards.get_mut(&at.partition) {
            shard.begin(at.topic, position);
        }
        // Until its changes are read, nothing of the new shard may be sent.
        self.freshness.changes_read(0);
        Ok(())
    }

    fn take_record(&mut self, record: Record, mark: Mark) {
        let Some(shard) = self.shards.get_mut(&record.at.partition) else { return };
        match record.at.topic {
            Topic::UserChanges => {
                shard.changes_read = record.offset + 1;
                shard.changes_dirty = true;
                self.dirty_since.get_or_insert_with(Instant::now);
                match UserChange::decode(record.body) {
                    Ok(change) => {
                        let tenant = TenantId::trusted(&change.tenant);
                        self.people.forget(&tenant, &change.user_id);
                        self.freshness.changed(&tenant, &change.user_id);
                    }
                    Err(error) => {
                        self.deps.stats.add(|s| &s.undecodable, 1);
                        tracing::error!(at = %record.at, offset = record.offset, %error, "a user's change cannot be read");
                    }
                }
            }
            Topic::Inbox => shard.feed.push(record, mark),
            _ => self.take_deliveries(record, mark),
        }
    }

    fn take_deliveries(&mut self, record: Record, mark: Mark) {
        let Some(shard) = self.shards.get_mut(&record.at.partition) else { return };
        let Some(track) = shard.tracks.get_mut(&record.at.topic) else { return };
        let count: u32 = record.envelope.sections.iter().map(|section| section.count).sum();
        let (in_window, done) = track.add(record.offset, count as usize);
        let heads = match decode_batch(record.body.clone()) {
            Ok(heads) if heads.last().map_or(0, |(first, head)| first + head.section.count) == count => heads,
            _ => return self.bury_undecodable(&record, &done),
        };
        let mut queued = Vec::with_capacity(heads.len());
        for (first, head) in heads {
            let end = first + head.section.count;
            let done = &done[first as usize..end as usize];
            if done.iter().all(|done| *done) {
                continue;
            }
            let (topic, offset, in_window) = (record.at.topic, record.offset, in_window + first);
            if track.is_poison(in_window) {
                let ended = bury_section(&mut self.outputs, &record, &head, done, &self.deps);
                self.deps.stats.add(|s| &s.ended, ended);
                track.finish(offset, (first..end).filter(|i| !done[(i - first) as usize]));
                self.dirty_since.get_or_insert_with(Instant::now);
                continue;
            }
            let chunk = Chunk { head, first, done: done.to_vec() };
            queued.push(Queued { topic, offset, in_window, mark, chunk });
        }
        queued.into_iter().for_each(|queued| shard.queue(queued));
    }

    /// A record that cannot be read is booked dead from its envelope, and kept.
    fn bury_undecodable(&mut self, record: &Record, done: &[bool]) {
        self.deps.stats.add(|s| &s.undecodable, 1);
        tracing::error!(at = %record.at, offset = record.offset, "deliveries cannot be read; they are dead letters");
        let now_ms = self.deps.world.now_ms();
        for summary in &record.envelope.sections {
            self.outputs.receipts(record::Receipts {
                notification_id: summary.notification_id.clone(),
                tenant: summary.tenant.clone(),
                channel: summary.channel,
                state: State::Dead as i32,
                reason: "undecodable".into(),
                count: summary.count,
                hash_sum: summary.hash_sum,
                ended_ms: now_ms,
                accepted_ms: now_ms,
                ..Default::default()
            });
        }
        self.outputs.dead(&record.envelope.tenant, dead_letter(record, "undecodable", now_ms, &self.deps));
        let track = self.shards.get_mut(&record.at.partition).and_then(|s| s.tracks.get_mut(&record.at.topic));
        if let Some(track) = track {
            track.finish(record.offset, (0..done.len() as u32).filter(|i| !done[*i as usize]));
        }
        self.dirty_since.get_or_insert_with(Instant::now);
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
        self.write(Commit { positions, outputs: Vec::new() }).await.map(|_| ())
    }

    /// Reads `user-changes` to the end it has now, so that what is decided next knows every change before.
    async fn read_changes(&mut self) -> anyhow::Result<()> {
        let now_ms = self.deps.world.now_ms();
        let mut behind = Vec::new();
        for number in self.shards.keys().copied().collect::<Vec<_>>() {
            let end = self.subscription.end(TopicPartition { topic: Topic::UserChanges, partition: number }).await?;
            behind.push((number, end));
        }
        let is_behind = |shards: &BTreeMap<u32, Shard>| {
            behind.iter().any(|(number, end)| shards.get(number).is_some_and(|shard| shard.changes_read < *end))
        };
        if is_behind(&self.shards) {
            self.pause_all(true);
            while is_behind(&self.shards) {
                let polled = self.subscription.poll(self.config.poll_records, Duration::ZERO).await;
                Box::pin(self.polled(polled)).await?;
            }
            self.pause_all(false);
        }
        self.changes_asked_ms = now_ms;
        self.freshness.changes_read(now_ms);
        Ok(())
    }

    /// Pauses everything but `user-changes`, or what has no room.
    fn pause_all(&mut self, pause: bool) {
        for (number, shard) in &self.shards {
            let full = shard.unfinished() >= self.config.window_instances;
            for topic in shard.tracks.keys() {
                self.subscription.pause(TopicPartition { topic: *topic, partition: *number }, pause || full);
            }
            self.subscription.pause(TopicPartition { topic: Topic::Inbox, partition: *number }, pause);
        }
    }

    // ---- sending ----

    /// Takes sections in turn while there is room in the in-doubt window.
    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut served = 0;
        let mut unfinished = 0;
        for number in self.shards.keys().copied().collect::<Vec<_>>() {
            while served < INSTANCES_PER_TURN && self.in_doubt < self.config.in_doubt_instances {
                let Some(queued) = self.shards.get_mut(&number).and_then(Shard::next) else { break };
                served += u64::from(queued.chunk.head.section.count);
                self.process(number, queued).await?;
            }
            unfinished += self.shards.get(&number).map_or(0, Shard::unfinished);
        }
        self.deps.stats.set(|s| &s.window_instances, unfinished);
        self.deps.stats.set(|s| &s.in_doubt, self.in_doubt);
        self.pause_all(false);
        Ok(())
    }

    async fn process(&mut self, number: u32, queued: Queued) -> anyhow::Result<()> {
        self.dirty_since.get_or_insert_with(Instant::now);
        let at = TopicPartition { topic: queued.topic, partition: number };
        let track = self.shards.get_mut(&number).and_then(|shard| shard.tracks.get_mut(&queued.topic));
        if let Some(track) = track
            && track.careful()
        {
            let position = track.note(queued.in_window);
            self.write(Commit { positions: vec![(at, position)], outputs: Vec::new() }).await?;
        }
        let policy: Arc<Policy> = self.deps.policy.borrow().clone();
        let head = queued.chunk.head.clone();
        let mut renderer = match Renderer::new(&head, &policy) {
            Ok(renderer) => renderer,
            Err(NoRenderer::Unknown) => {
                tracing::warn!(
                    template = head.notification.template_id,
                    "a template is not known yet; its messages wait"
                );
                self.put_off(number, &queued);
                return Ok(());
            }
            Err(NoRenderer::Refused(cause)) => {
                tracing::error!(template = head.notification.template_id, %cause, "messages cannot be rendered");
                self.end_all(number, &queued, State::Failed, "template_refused");
                return Ok(());
            }
        };
        let Some(people) = self.people_of(&head).await else {
            self.put_off(number, &queued);
            return Ok(());
        };
        let generation = self.freshness.generation();

        let plan = self.decide(&queued.chunk, &people, renderer.category());
        let Some(plan) = self.claim(number, &head, plan, renderer.dedupe_window_ms()).await else {
            self.put_off(number, &queued);
            return Ok(());
        };
        let ready = self.render(number, &queued, &people, plan, &mut renderer, &policy);
        if let Some((items, messages)) = ready {
            self.dispatch(number, &queued, items, messages, generation);
        }
        Ok(())
    }

    /// What is known of a section's users; `None` if the directory did not answer, which is not absence.
    async fn people_of(&mut self, head: &Head) -> Option<Vec<Arc<Known>>> {
        let now_ms = self.deps.world.now_ms();
        let users: Vec<&str> = head.users().collect();
        let mut people: Vec<Option<Arc<Known>>> =
            users.iter().map(|user| self.people.get(&head.tenant, user, now_ms)).collect();
        let missing: Vec<usize> = (0..users.len()).filter(|i| people[*i].is_none()).collect();
        if !missing.is_empty() {
            let ids: Vec<String> = missing.iter().map(|i| users[*i].to_owned()).collect();
            match self.deps.directory.people(&head.tenant, &ids).await {
                Ok(found) => {
                    self.deps.stats.add(|s| &s.people_filled, ids.len() as u64);
                    for (i, person) in missing.into_iter().zip(found) {
                        let known = Arc::new(Known::from(person));
                        self.people.insert(&head.tenant, users[i], now_ms, known.clone());
                        people[i] = Some(known);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "profiles cannot be read; the section waits");
                    return None;
                }
            }
        }
        let people: Option<Vec<Arc<Known>>> = people.into_iter().collect();
        if head.section.inline.is_empty() {
            return people;
        }
        people.map(|people| {
            let inline = |(i, known): (usize, Arc<Known>)| {
                head.inline(i).map_or(known.clone(), |inline| Arc::new(inline_known(inline, &known)))
            };
            people.into_iter().enumerate().map(inline).collect()
        })
    }

    fn decide(&self, chunk: &Chunk, people: &[Arc<Known>], category: &str) -> Vec<Planned> {
        let head = &chunk.head;
        let now_ms = self.deps.world.now_ms();
        let question = Question {
            notification: &head.notification,
            channel: head.channel,
            category,
            attempts: head.section.attempts,
            inline: !head.section.inline.is_empty(),
            now_ms,
        };
        let mut plan = Vec::with_capacity(people.len());
        for (in_section, known) in people.iter().enumerate() {
            if chunk.done.get(in_section).copied().unwrap_or(false) {
                continue;
            }
            let fate = match may_send(&question, known) {
                Verdict::Send(_) => Fate::Send,
                Verdict::Suppress(reason) => Fate::End(State::Suppressed, reason, String::new()),
                Verdict::Dead(reason) => Fate::End(State::Dead, reason, String::new()),
            };
            plan.push(Planned { in_section, fate });
        }
        plan
    }

    /// Takes claims for what may be sent; `None` if they cannot be taken now.
    async fn claim(
        &mut self,
        number: u32,
        head: &Head,
        mut plan: Vec<Planned>,
        window_ms: u64,
    ) -> Option<Vec<Planned>> {
        let notification = &head.notification;
        if notification.dedupe_key.is_empty() {
            return Some(plan);
        }
        let users: Vec<&str> = head.users().collect();
        let sending: Vec<usize> = (0..plan.len()).filter(|i| matches!(plan[*i].fate, Fate::Send)).collect();
        let keys: Vec<[u8; 16]> = sending.iter().filter_map(|i| claim_of(head, users[plan[*i].in_section])).collect();
        let now_ms = self.deps.world.now_ms();
        let log = self.deps.log.clone();
        let claims = &mut self.shards.get_mut(&number)?.claims;
        match claims.take(&keys, head.id, now_ms + window_ms, log.as_ref(), now_ms).await {
            Ok(holders) => {
                for (i, holder) in sending.into_iter().zip(holders) {
                    if holder != head.id {
                        plan[i].fate = Fate::End(State::Suppressed, "duplicate", format!("winner:{holder}"));
                    }
                }
                Some(plan)
            }
            Err(error) => {
                tracing::warn!(%error, shard = number, "claims cannot be taken; the section waits");
                None
            }
        }
    }

    /// Renders what is to be sent. In-app items are put out at once; messages for a provider are returned.
    fn render(
        &mut self,
        number: u32,
        queued: &Queued,
        people: &[Arc<Known>],
        plan: Vec<Planned>,
        renderer: &mut Renderer,
        policy: &Policy,
    ) -> Option<(Vec<Item>, Vec<Message>)> {
        let chunk = &queued.chunk;
        let head = &chunk.head;
        let users: Vec<&str> = head.users().collect();
        let now_ms = self.deps.world.now_ms();
        let has_provider = self.deps.channels.iter().any(|channel| channel.kind() == head.channel);
        let category = renderer.category().to_owned();
        let secret = policy.secret(herald_core::policy::SIGNING_SECRET);
        let mut ended = Ended::new(head.id, head.channel);
        let mut finished: Vec<u32> = Vec::with_capacity(plan.len());
        let mut in_app = InAppItems::new(head);
        let (mut items, mut messages) = (Vec::new(), Vec::new());
        let mut rendered = Rendered::new();
        for Planned { in_section, fate } in plan {
            let (user, known) = (users[in_section], &people[in_section]);
            let index = chunk.first + in_section as u32;
            if let Fate::End(state, reason, error_code) = fate {
                if reason != "duplicate" {
                    self.release(number, head, user);
                }
                let end = End { error_code, ..End::by_rule(state, reason, head.section.attempts) };
                ended.add(user, end, None);
                finished.push(index);
                continue;
            }
            let locale = known.locale.as_deref();
            if in_app.add_shared(user, locale) {
                finished.push(index);
                continue;
            }
            let url = || unsubscribe_url(&self.config.public_url, secret, head, user, &category);
            let fault = match renderer.render(user, known, url, &mut rendered) {
                Ok(url) => match (content_of(&rendered), endpoint_of(known, head), has_provider) {
                    (None, ..) => {
                        in_app.add(user, locale, renderer.is_constant(locale), &rendered);
                        finished.push(index);
                        continue;
                    }
                    (Some(content), Some(endpoint), true) => {
                        let user: Arc<str> = user.into();
                        messages.push(Message {
                            instance: InstanceId::of(&head.id, &user, head.channel),
                            notification: head.id,
                            tenant: head.tenant.clone(),
                            user: user.clone(),
                            endpoint,
                            content,
                            unsubscribe_url: url,
                            expires_ms: head.notification.expires_ms,
                        });
                        items.push(Item { index, in_section, user, answered: false });
                        continue;
                    }
                    _ => End::by_rule(State::Suppressed, "channel_not_configured", head.section.attempts),
                },
                Err(error) => {
                    let error_code = error.code().to_owned();
                    End { error_code, ..End::by_rule(State::Failed, "template_data", head.section.attempts) }
                }
            };
            self.release(number, head, user);
            ended.add(user, fault, None);
            finished.push(index);
        }
        in_app.put_out(number, &mut self.outputs);
        let count = ended.put_out(&head.notification, now_ms, &mut self.outputs);
        self.deps.stats.add(|s| &s.ended, count);
        self.finish(number, queued.topic, queued.offset, finished);
        (!messages.is_empty()).then_some((items, messages))
    }

    fn dispatch(&mut self, number: u32, queued: &Queued, items: Vec<Item>, messages: Vec<Message>, generation: u64) {
        let head = queued.chunk.head.clone();
        let Some(channel) = self.deps.channels.iter().find(|c| c.kind() == head.channel).cloned() else { return };
        let batch = self.next_batch;
        self.next_batch += 1;
        self.in_doubt += items.len() as u64;
        self.deps.stats.add(|s| &s.attempts, items.len() as u64);
        let users = items.iter().map(|item| item.user.clone()).collect();
        let dispatch = Dispatch {
            batch,
            log: self.deps.log.clone(),
            freshness: self.freshness.clone(),
            events: self.events.clone(),
            decided_at: generation,
            rests_on: queued.mark,
            deadline: Duration::from_millis(self.config.send_deadline_ms),
            channel: channel.clone(),
        };
        let provider = Channel::provider(channel.as_ref()).to_owned();
        dispatch.spawn(head.tenant.clone(), users, messages);
        let (topic, offset) = (queued.topic, queued.offset);
        self.batches.insert(batch, Batch { shard: number, topic, offset, head, provider, items });
    }

    // ---- outcomes ----

    fn take_events(&mut self) {
        let mut outcomes: BTreeMap<u64, Vec<(usize, Outcome)>> = BTreeMap::new();
        let mut over = Vec::new();
        for event in self.events.take() {
            match event {
                Event::Outcome { batch, index, outcome } => outcomes.entry(batch).or_default().push((index, outcome)),
                Event::Over { batch } => over.push(batch),
                Event::Durable(mark) => self.became_durable(mark),
            }
        }
        for (batch, outcomes) in outcomes {
            self.settle(batch, outcomes);
        }
        for batch in over {
            let unanswered: Vec<(usize, Outcome)> = self.batches.get(&batch).map_or_else(Vec::new, |batch| {
                let open = |(i, item): (usize, &Item)| {
                    (!item.answered).then(|| (i, Outcome::Unknown { code: "deadline".into() }))
                };
                batch.items.iter().enumerate().filter_map(open).collect()
            });
            self.settle(batch, unanswered);
            self.batches.remove(&batch);
        }
    }

    fn want_durable(&self, mark: Mark) {
        self.wanted.send_if_modified(|wanted| {
            let later = mark > *wanted;
            *wanted = (*wanted).max(mark);
            later
        });
    }

    fn became_durable(&mut self, mark: Mark) {
        self.durable = self.durable.max(mark);
        let in_doubt = &mut self.in_doubt;
        self.settling.retain(|(needs, count)| {
            let settled = *needs <= mark;
            *in_doubt -= if settled { *count } else { 0 };
            !settled
        });
    }

    fn settle(&mut self, id: u64, outcomes: Vec<(usize, Outcome)>) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        let now_ms = self.deps.world.now_ms();
        let head = batch.head.clone();
        let mut ended = Ended::new(head.id, head.channel);
        let mut again: BTreeMap<(u32, u64), Vec<usize>> = BTreeMap::new();
        let mut finished = Vec::with_capacity(outcomes.len());
        let mut releases = Vec::new();
        for (i, outcome) in outcomes {
            let Some(item) = batch.items.get_mut(i).filter(|item| !item.answered) else { continue };
            item.answered = true;
            finished.push(item.index);
            match after(outcome, head.section.attempts, &head.notification, &self.config, &self.deps.world, now_ms) {
                Next::End { state, reason, code, provider_id, attempts } => {
                    if state != State::Delivered {
                        releases.extend(claim_of(&head, &item.user));
                    }
                    let end = End { state, reason, attempts, provider: batch.provider.clone(), error_code: code };
                    ended.add(&item.user, end, provider_id);
                }
                Next::Again { delay_ms, attempts, why } => {
                    match why {
                        Why::Retry => self.deps.stats.add(|s| &s.retries, 1),
                        Why::Unanswered => self.deps.stats.add(|s| &s.unanswered, 1),
                        Why::NotAttempted => self.deps.stats.add(|s| &s.not_attempted, 1),
                        Why::AccountFault => self.deps.stats.add(|s| &s.account_faults, 1),
                    }
                    // Retries of a batch that fall into the same 100 ms share a record.
                    again.entry((attempts, now_ms + delay_ms.div_ceil(100) * 100)).or_default().push(item.in_section);
                }
            }
        }
        let (shard, topic, offset) = (batch.shard, batch.topic, batch.offset);
        for ((attempts, due_ms), users) in again {
            let (section, summary) = part_of(&head, &users, attempts);
            self.outputs.section(deliveries_home(topic, shard), Some(due_ms), section, summary);
        }
        let count = ended.put_out(&head.notification, now_ms, &mut self.outputs);
        self.deps.stats.add(|s| &s.ended, count);
        self.answered += finished.len() as u64;
        if let Some(shard) = self.shards.get_mut(&shard) {
            releases.into_iter().for_each(|key| shard.claims.release(key, head.id));
        }
        self.finish(shard, topic, offset, finished);
        self.dirty_since.get_or_insert_with(Instant::now);
    }

    /// A section that cannot be decided now comes again in a second; nothing of it was attempted.
    fn put_off(&mut self, number: u32, queued: &Queued) {
        let chunk = &queued.chunk;
        let users = undone(chunk);
        let due_ms = self.deps.world.now_ms() + UNDECIDED_DELAY_MS;
        let (section, summary) = part_of(&chunk.head, &users, chunk.head.section.attempts);
        self.outputs.section(deliveries_home(queued.topic, number), Some(due_ms), section, summary);
        self.finish(number, queued.topic, queued.offset, users.into_iter().map(|i| chunk.first + i as u32));
    }

    fn end_all(&mut self, number: u32, queued: &Queued, state: State, reason: &'static str) {
        let chunk = &queued.chunk;
        let users = undone(chunk);
        let mut ended = Ended::new(chunk.head.id, chunk.head.channel);
        for (i, user) in chunk.head.users().enumerate() {
            if users.binary_search(&i).is_ok() {
                self.release(number, &chunk.head, user);
                ended.add(user, End::by_rule(state, reason, chunk.head.section.attempts), None);
            }
        }
        let count = ended.put_out(&chunk.head.notification, self.deps.world.now_ms(), &mut self.outputs);
        self.deps.stats.add(|s| &s.ended, count);
        self.finish(number, queued.topic, queued.offset, users.into_iter().map(|i| chunk.first + i as u32));
    }

    /// An instance that ends undelivered gives its claim back, if it holds one.
    fn release(&mut self, number: u32, head: &Head, user: &str) {
        if let Some(key) = claim_of(head, user)
            && let Some(shard) = self.shards.get_mut(&number)
        {
            shard.claims.release(key, head.id);
        }
    }

    fn finish(&mut self, number: u32, topic: Topic, offset: u64, indexes: impl IntoIterator<Item = u32>) {
        if let Some(track) = self.shards.get_mut(&number).and_then(|shard| shard.tracks.get_mut(&topic)) {
            track.finish(offset, indexes);
        }
    }

    async fn write_feeds(&mut self) {
        for shard in self.shards.values_mut() {
            let ended = shard.feed.write(&self.deps, self.durable, &mut self.outputs).await;
            self.deps.stats.add(|s| &s.ended, ended);
            if shard.feed.dirty {
                self.dirty_since.get_or_insert_with(Instant::now);
            }
        }
    }

    // ---- committing ----

    /// Commits what was decided and answered since the last commit, empty if need be.
    async fn commit(&mut self) -> anyhow::Result<()> {
        let now_ms = self.deps.world.now_ms();
        let identity = self.deps.log.identity();
        let next = Outputs::new(identity.layout, &identity.region, now_ms);
        let mut outputs = std::mem::replace(&mut self.outputs, next);
        let mut positions = Vec::new();
        for shard in self.shards.values_mut() {
            positions.extend(shard.take_positions());
            if shard.claims.has_changed()
                && let Some(batch) = shard.claims.take_batch()
            {
                outputs.claims(shard.number, batch);
            }
        }
        self.dirty_since = None;
        let answered = std::mem::take(&mut self.answered);
        let mark = self.write(Commit { positions, outputs: outputs.finish() }).await?;
        if answered > 0 {
            self.settling.push((mark, answered));
            self.want_durable(mark);
        }
        self.deps.stats.add(|s| &s.commits, 1);
        Ok(())
    }

    async fn write(&mut self, commit: Commit) -> anyhow::Result<Mark> {
        match self.subscription.commit(commit).await {
            Ok(Committed::Done(mark)) => {
                self.committed_ms = self.deps.world.now_ms();
                self.freshness.committed(self.committed_ms);
                Ok(mark)
            }
            Ok(Committed::Fenced) => {
                self.freshness.close();
                anyhow::bail!("another worker owns these shards now")
            }
            // It is unknown whether the commit is in. Only a new subscription, which reads the positions, can tell.
            Err(error) => {
                self.freshness.close();
                Err(anyhow::Error::from(error).context("a commit's outcome is unknown"))
            }
        }
    }
}

/// What is to become of one instance.
struct Planned {
    in_section: usize,
    fate: Fate,
}

enum Fate {
    /// Send.
    Send,
    /// It ends here; with an error code.
    End(State, &'static str, String),
}

fn undone(chunk: &Chunk) -> Vec<usize> {
    (0..chunk.head.section.count as usize).filter(|i| !chunk.done.get(*i).copied().unwrap_or(false)).collect()
}

/// The claim that a user's instance holds; `None` for notifications without a dedupe key.
fn claim_of(head: &Head, user: &str) -> Option<[u8; 16]> {
    let Notification { template_id, dedupe_key, .. } = &head.notification;
    let guarded = !dedupe_key.is_empty();
    guarded.then(|| claim_key(head.tenant.as_str(), template_id, user, head.channel, dedupe_key))
}

fn endpoint_of(known: &Known, head: &Head) -> Option<Endpoint> {
    let channel = channel_name(head.channel);
    known.endpoints.iter().find(|endpoint| endpoint.channel == channel).cloned()
}

/// The one-click unsubscribe link of a user, channel and category.
fn unsubscribe_url(public_url: &str, secret: Option<&str>, head: &Head, user: &str, category: &str) -> Option<String> {
    let token = UnsubscribeToken {
        tenant: head.tenant.as_str().to_owned(),
        user: user.to_owned(),
        channel: channel_name(head.channel).to_owned(),
        category: category.to_owned(),
    };
    secret.map(|secret| token.url(public_url, secret))
}

/// Retries go to the lane they came from; overflow returns to deliveries.
fn deliveries_home(topic: Topic, partition: u32) -> TopicPartition {
    let topic = match topic {
        Topic::Overflow(lane) => Topic::Deliveries(lane),
        topic => topic,
    };
    TopicPartition { topic, partition }
}

/// A section of some of a section's users.
fn part_of(head: &Head, users: &[usize], attempts: u32) -> (Section, SectionSummary) {
    let mut column = herald_core::packed::PackedWriter::default();
    let mut tally = herald_core::books::Tally::default();
    let mut wanted = users.iter().copied().peekable();
    for (i, user) in head.users().enumerate() {
        if wanted.next_if_eq(&i).is_some() {
            column.push(user);
            tally.add(InstanceId::of(&head.id, user, head.channel).book_hash());
        }
    }
    let inline = users.iter().filter_map(|i| head.inline(*i).cloned()).collect();
    let section = Section { count: column.count(), users: column.finish(), inline, attempts, ..head.section.clone() };
    let summary = SectionSummary {
        tenant: head.notification.tenant.clone(),
        notification_id: head.notification.id.clone(),
        channel: head.channel as i32,
        count: section.count,
        hash_sum: tally.hash_sum,
    };
    (section, summary)
}

/// A section that kills its stage becomes a dead letter; the rest of the record goes on.
fn bury_section(outputs: &mut Outputs, record: &Record, head: &Head, done: &[bool], deps: &Deps) -> u64 {
    tracing::error!(at = %record.at, offset = record.offset, notification = %head.id, "a section kills its worker");
    let now_ms = deps.world.now_ms();
    let mut ended = Ended::new(head.id, head.channel);
    for (_, user) in head.users().enumerate().filter(|(i, _)| !done[*i]) {
        ended.add(user, End::by_rule(State::Dead, "poison", head.section.attempts), None);
    }
    outputs.dead(head.tenant.as_str(), dead_letter(record, "poison", now_ms, deps));
    ended.put_out(&head.notification, now_ms, outputs)
}

fn dead_letter(record: &Record, cause: &str, now_ms: u64, deps: &Deps) -> DeadLetter {
    DeadLetter {
        stage: "worker".into(),
        cause: cause.to_owned(),
        attempts: 0,
        dead_ms: now_ms,
        place: Some(Place {
            topic: record.at.topic.code().into(),
            partition: record.at.partition,
            offset: record.offset,
            log_epoch: deps.log.identity().epoch,
        }),
        envelope: record.envelope.encode_to_vec().into(),
        body: record.body.clone(),
    }
}
