//! Everything a worker holds of one shard.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use herald_core::{
    fair::{DeficitRoundRobin, Next},
    ids::TenantId,
    outputs::Outputs,
    ports::log::{Mark, Position, Subscription},
    record::Channel,
    topic::{Lane, Topic, TopicPartition},
    window::Track,
};

use crate::{
    claiming::ShardClaims,
    in_doubt::{Answered, InDoubt, Share},
    live::Feed,
    order::Order,
    receipts::Endings,
    section::Chunk,
    steering::CancelAcks,
};

/// What a tenant may send on a channel before the next one's turn, in instances, and a newcomer before its first one. Shards
/// take turns section by section, so who has had its first turn waits for as many of each of the others in every shard: with
/// sections of two or three, 8 shards and 256, for 2,048 of a spike. What is served together is gathered over tenants, so a
/// small one costs next to nothing.
const QUANTUM: u64 = 32;

/// Sections that wait in one lane.
#[derive(Default)]
struct LaneQueues {
    /// By channel, each served fairly by tenant: whether there is room depends on the channel.
    by_channel: BTreeMap<Channel, DeficitRoundRobin<TenantId, Queued>>,
    /// The channel that was served last.
    served: Option<Channel>,
}

impl LaneQueues {
    fn push(&mut self, queued: Queued, fair: bool) {
        let head = &queued.chunk.head;
        let queue = self.by_channel.entry(head.channel).or_insert_with(|| DeficitRoundRobin::new(QUANTUM));
        let tenant = if fair { head.tenant.clone() } else { TenantId::trusted("") };
        queue.push(tenant, queued.cost(), queued);
    }

    /// The section whose turn it is, channel by channel.
    fn pop(&mut self, lane: Lane, in_doubt: &InDoubt) -> Option<Queued> {
        let served = self.served;
        // Those behind the one that was served last, then those up to it.
        for is_behind in [true, false] {
            let turns = self.by_channel.iter_mut().filter(|(channel, _)| (Some(**channel) > served) == is_behind);
            for (channel, queue) in turns {
                if let Some(queued) = queue.pop_if(|next| has_room_for(next, lane, *channel, in_doubt)) {
                    self.served = Some(*channel);
                    return Some(queued);
                }
            }
        }
        None
    }

    fn has_work(&self, lane: Lane, in_doubt: &InDoubt) -> bool {
        let next = |(channel, queue): (&Channel, &DeficitRoundRobin<_, _>)| {
            queue.peek().is_some_and(|next| has_room_for(next, lane, *channel, in_doubt))
        };
        self.by_channel.iter().any(next)
    }

    /// The channel and tenant that have most, and how much.
    fn heaviest(&self) -> Option<(u64, Channel, TenantId)> {
        let of = |(channel, queue): (&Channel, &DeficitRoundRobin<TenantId, Queued>)| {
            queue.heaviest().map(|(tenant, cost)| (cost, *channel, tenant.clone()))
        };
        self.by_channel.iter().filter_map(of).max_by_key(|(cost, ..)| *cost)
    }

    fn pop_newest(&mut self, channel: Channel, tenant: &TenantId) -> Option<Queued> {
        self.by_channel.get_mut(&channel)?.pop_newest(tenant)
    }
}

/// How much of the windows a section may fill.
fn share_of(lane: Lane, is_newcomers: bool) -> Share {
    match lane {
        Lane::Transactional => Share::Transactional,
        Lane::Bulk if is_newcomers => Share::Newcomers,
        Lane::Bulk => Share::Bulk,
    }
}

fn has_room_for(next: Next, lane: Lane, channel: Channel, in_doubt: &InDoubt) -> bool {
    in_doubt.has_room(share_of(lane, next.is_newcomers), channel, next.cost)
}

/// Whether there is room for a section that has waited for its turn.
fn has_room_in_turn(queued: &Queued, in_doubt: &InDoubt) -> bool {
    in_doubt.has_room(share_of(queued.lane(), false), queued.chunk.head.channel, queued.cost())
}

/// A section, or a part of one, that waits for its turn.
pub(crate) struct Queued {
    pub topic: Topic,
    pub offset: u64,
    /// Its first instance, as its track counts.
    pub unit: u64,
    pub mark: Mark,
    pub chunk: Chunk,
}

impl Queued {
    pub(crate) fn lane(&self) -> Lane {
        match self.topic {
            Topic::Deliveries(lane) | Topic::Overflow(lane) => lane,
            _ => Lane::Bulk,
        }
    }

    /// In instances.
    pub(crate) fn cost(&self) -> u64 {
        self.chunk.users.len() as u64
    }
}

/// One shard.
pub(crate) struct Shard {
    pub number: u32,
    /// The log's, for the places of its records.
    pub log_epoch: u32,
    pub tracks: BTreeMap<Topic, Track>,
    /// Transactional and bulk.
    queues: [LaneQueues; 2],
    /// Whether tenants are served in turn.
    fair: bool,
    pub order: Order,
    pub feed: Feed,
    pub claims: ShardClaims,
    pub cancels: CancelAcks,
    /// What the next commit puts out.
    pub outputs: Outputs,
    /// What ended since the last commit.
    pub endings: Endings,
    /// Answered since the last commit.
    pub answered: Answered,
    /// Closed when the shard is another's; gates look at it.
    pub is_ours: Arc<AtomicBool>,
    /// The offset after the last change that was read, and whether it is to be committed.
    pub changes_read: u64,
    pub changes_dirty: bool,
    /// Whether a done-map is so long that nothing more must be started.
    cramped: bool,
    paused: BTreeMap<Topic, bool>,
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.is_ours.store(false, Relaxed);
    }
}

impl Shard {
    pub(crate) fn new(
        number: u32,
        log_epoch: u32,
        claims: ShardClaims,
        cancels: CancelAcks,
        outputs: Outputs,
        fair: bool,
    ) -> Self {
        Self {
            number,
            log_epoch,
            tracks: BTreeMap::new(),
            queues: Default::default(),
            fair,
            order: Order::default(),
            feed: Feed::new(number, 0),
            claims,
            cancels,
            outputs,
            endings: Endings::default(),
            answered: Answered::default(),
            is_ours: Arc::new(AtomicBool::new(true)),
            changes_read: 0,
            changes_dirty: false,
            cramped: false,
            paused: BTreeMap::new(),
        }
    }

    /// Begins a topic at the group's position.
    pub(crate) fn begin(&mut self, topic: Topic, position: Position) {
        match topic {
            Topic::UserChanges => self.changes_read = position.offset,
            Topic::Inbox => self.feed = Feed::new(self.number, position.offset),
            topic => {
                self.tracks.insert(topic, Track::new(position));
            }
        }
    }

    pub(crate) fn queue(&mut self, queued: Queued) {
        self.queues[usize::from(queued.lane() == Lane::Bulk)].push(queued, self.fair);
    }

    /// The section whose turn it is among those there is room for, and whether it waited for an earlier one: those go
    /// first, then transactional ones.
    pub(crate) fn next(&mut self, in_doubt: &InDoubt) -> Option<(Queued, bool)> {
        let has_room = |queued: &Queued| has_room_in_turn(queued, in_doubt);
        if let Some(waited) = self.order.next(has_room) {
            return Some((waited, true));
        }
        let mut lanes = Lane::ALL.into_iter().zip(&mut self.queues);
        lanes.find_map(|(lane, queues)| queues.pop(lane, in_doubt)).map(|queued| (queued, false))
    }

    /// Whether sections wait for their turn that there is room for.
    pub(crate) fn has_work(&self, in_doubt: &InDoubt) -> bool {
        let has_room = |queued: &Queued| has_room_in_turn(queued, in_doubt);
        let mut lanes = Lane::ALL.into_iter().zip(&self.queues);
        self.order.any(has_room) || lanes.any(|(lane, queues)| queues.has_work(lane, in_doubt))
    }

    /// The newest section of the tenant and channel that have most of what is not started.
    pub(crate) fn newest_of_heaviest(&mut self) -> Option<Queued> {
        let lanes = [self.queues[0].heaviest(), self.queues[1].heaviest()];
        let cost = |lane: &Option<(u64, Channel, TenantId)>| lane.as_ref().map(|(cost, ..)| *cost);
        let at = usize::from(cost(&lanes[1]) > cost(&lanes[0]));
        match &lanes[at] {
            Some((cost, channel, tenant)) if *cost >= self.order.waiting() => {
                self.queues[at].pop_newest(*channel, tenant)
            }
            _ => self.order.pop_newest(),
        }
    }

    pub(crate) fn unfinished(&self) -> u64 {
        self.tracks.values().map(Track::unfinished).sum()
    }

    /// Pauses what has no room; with `changes_only`, everything but `user-changes`. Overflow is read again only when
    /// half of the window is free, so that what was moved there is not moved back and forth.
    pub(crate) fn pause(&mut self, changes_only: bool, window: u64, subscription: &mut dyn Subscription) {
        let unfinished = self.unfinished();
        let wanted = self
            .tracks
            .keys()
            .map(|topic| match topic {
                Topic::Overflow(_) => (*topic, self.cramped || unfinished >= window / 2),
                topic => (*topic, self.cramped || unfinished >= window),
            })
            .chain([(Topic::Inbox, self.feed.is_full())]);
        for (topic, full) in wanted {
            let pause = changes_only || full;
            if self.paused.insert(topic, pause).unwrap_or(false) != pause {
                subscription.pause(TopicPartition { topic, partition: self.number }, pause);
            }
        }
    }

    /// Moves what is not started to overflow where a done-map has become longer than this, and reads no more until only
    /// what is in doubt is a hole in it. Returns how many instances moved.
    pub(crate) fn shorten_done_maps(&mut self, most_chars: usize) -> u64 {
        // Holes need unfinished instances, so a short window is not looked at.
        let long = |track: &Track| track.unfinished() as usize > most_chars / 8 && track.done_map_chars() > most_chars;
        self.cramped = self.tracks.values().any(long);
        if self.cramped { self.evacuate(0) } else { 0 }
    }

    /// Positions that moved since the last commit.
    pub(crate) fn take_positions(&mut self) -> Vec<(TopicPartition, Position)> {
        let at = |topic| TopicPartition { topic, partition: self.number };
        let mut positions: Vec<_> = self
            .tracks
            .iter_mut()
            .filter_map(|(topic, track)| track.take_position().map(|position| (at(*topic), position)))
            .collect();
        if std::mem::take(&mut self.feed.dirty) {
            positions.push((at(Topic::Inbox), Position { offset: self.feed.position, ..Position::default() }));
        }
        if std::mem::take(&mut self.changes_dirty) {
            positions.push((at(Topic::UserChanges), Position { offset: self.changes_read, ..Position::default() }));
        }
        positions
    }
}
