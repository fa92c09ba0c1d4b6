//! Rendered messages on their way to their providers, gathered into batches in which no user occurs twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use hashbrown::HashSet;
use herald_core::{
    ids::shard_of,
    ports::{channel::Message, log::Mark},
};

use crate::{
    delivery::{Batch, BatchSection, DecidedAt, Dispatch, GateSection, Item},
    sending::Job,
    shard::Shard,
    slowing::DIVISOR,
    stage::Worker,
};

/// The most messages of a batch.
const MESSAGES_PER_BATCH: usize = 256;

/// The most messages of a batch that a switch slows.
const SLOWED_MESSAGES_PER_BATCH: usize = MESSAGES_PER_BATCH / DIVISOR as usize;

/// Batches of each provider.
pub(crate) struct Outgoing {
    /// How many messages are expected in all.
    expected: usize,
    /// Those that a switch slows are apart.
    by_provider: BTreeMap<(Arc<str>, bool), Batches>,
}

/// Batches of one provider, of which the last is filled.
pub(crate) struct Batches {
    most: usize,
    /// How many messages a batch has room for from the start.
    room: usize,
    gathered: Vec<Gathering>,
}

/// A batch that is being gathered.
struct Gathering {
    sections: Vec<BatchSection>,
    gate: Vec<GateSection>,
    items: Vec<Item>,
    messages: Vec<Message>,
    /// Hashes of its users. Two that collide are kept apart, which does no harm.
    users: HashSet<u64>,
    rests_on: Mark,
}

impl Outgoing {
    pub(crate) fn new(expected: u64) -> Self {
        Self { expected: expected as usize, by_provider: BTreeMap::new() }
    }

    /// The batches of a provider, slowed ones or others.
    pub(crate) fn of(&mut self, provider: &Arc<str>, slowed: bool) -> &mut Batches {
        let most = if slowed { SLOWED_MESSAGES_PER_BATCH } else { MESSAGES_PER_BATCH };
        let none = || Batches { most, room: most.min(self.expected), gathered: Vec::new() };
        self.by_provider.entry((provider.clone(), slowed)).or_insert_with(none)
    }
}

impl Batches {
    /// Adds the message of a job's instance, by its place in the chunk.
    pub(crate) fn push(&mut self, job: &Job, shard: &mut Shard, at: usize, message: Message) {
        let user = user_of(&message);
        let has_room = |last: &Gathering| last.messages.len() < self.most && !last.users.contains(&user);
        if !self.gathered.last().is_some_and(has_room) {
            self.gathered.push(Gathering::with_room(self.room));
        }
        if let Some(last) = self.gathered.last_mut() {
            last.users.insert(user);
            last.push(job, shard, at, message);
        }
    }
}

fn user_of(message: &Message) -> u64 {
    u64::from(shard_of(message.tenant.as_str(), &message.user, u32::MAX))
}

impl Gathering {
    fn with_room(messages: usize) -> Self {
        Self {
            sections: Vec::new(),
            gate: Vec::new(),
            items: Vec::with_capacity(messages),
            messages: Vec::with_capacity(messages),
            users: HashSet::with_capacity(messages),
            rests_on: Mark::default(),
        }
    }

    fn push(&mut self, job: &Job, shard: &mut Shard, at: usize, message: Message) {
        let section = self.section_of(job, shard);
        *self.gate[section].not_begun.get_mut() += 1;
        let in_section = job.queued.chunk.users[at];
        self.items.push(Item {
            section,
            index: job.queued.chunk.first + in_section,
            in_section,
            user: message.user.clone(),
            book_hash: message.instance.book_hash(),
            answered: false,
        });
        self.messages.push(message);
    }

    /// The job's section; jobs come one after the other.
    fn section_of(&mut self, job: &Job, shard: &mut Shard) -> usize {
        let queued = &job.queued;
        let same = |last: &BatchSection| {
            (last.shard, last.topic, last.offset) == (job.shard, queued.topic, queued.offset)
                && Arc::ptr_eq(&last.head, &queued.chunk.head)
        };
        if !self.sections.last().is_some_and(same) {
            let head = queued.chunk.head.clone();
            self.gate.push(GateSection {
                head: head.clone(),
                shard_is_ours: shard.is_ours.clone(),
                not_begun: AtomicUsize::new(0),
                is_awaited: job.order.is_some(),
            });
            let (topic, offset, order) = (queued.topic, queued.offset, job.order);
            if let Some(key) = order {
                shard.order.handed_over(key, head.id);
            }
            self.sections.push(BatchSection { shard: job.shard, topic, offset, head, order, refusal: None });
            self.rests_on = self.rests_on.max(queued.mark);
        }
        self.sections.len() - 1
    }
}

impl Worker {
    /// Hands gathered messages to their providers.
    pub(crate) fn hand_over(&mut self, outgoing: Outgoing, decided_at: DecidedAt) {
        let batches = outgoing.by_provider.into_iter();
        let batches = batches.flat_map(|((name, _), of)| of.gathered.into_iter().map(move |one| (name.clone(), one)));
        for (name, gathering) in batches {
            let Some(channel) = gathering.sections.first().map(|section| section.head.channel) else { continue };
            let Some(provider) = self.ways.get(&name).cloned() else { continue };
            let Gathering { sections, gate, items, messages, rests_on, .. } = gathering;
            let id = self.next_batch;
            self.next_batch += 1;
            self.deps.stats.add(|s| &s.attempts, items.len() as u64);
            let dispatch = Dispatch {
                batch: id,
                channel: provider,
                provider: name.clone(),
                log: self.deps.log.clone(),
                freshness: self.freshness.clone(),
                steering: self.steering.clone(),
                events: self.events.clone(),
                decided_at,
                rests_on,
                deadline: Duration::from_millis(self.config.send_deadline_ms),
                latency: self.deps.stats.sends_of(channel, &name),
                sections: gate,
                section_of: items.iter().map(|item| item.section).collect(),
                messages,
            };
            dispatch.spawn();
            let is_first = |item: &&Item| sections[item.section].head.section.attempts == 0;
            let first_attempts = items.iter().filter(is_first).count() as u64;
            let begun_ms = self.deps.world.now_ms();
            let probes =
                self.pacing.handed_over(&name, items.len() as u64, first_attempts, self.deps.world.steady_ms());
            self.batches.insert(id, Batch { channel, provider: name, begun_ms, sections, items, probes });
        }
    }
}
