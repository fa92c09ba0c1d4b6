//! Everything a worker holds of one shard.

use std::collections::BTreeMap;

use herald_core::{
    fair::DeficitRoundRobin,
    ids::TenantId,
    ports::log::{Mark, Position},
    record::Channel,
    topic::{Lane, Topic, TopicPartition},
};

use crate::{claiming::ShardClaims, live::Feed, prepare::Chunk, window::Track};

/// What a tenant and channel may send before the next one's turn, in instances.
const QUANTUM: u64 = 256;

/// A section that waits for its turn.
pub(crate) struct Queued {
    pub topic: Topic,
    pub offset: u64,
    /// Index of its first instance, counted from the topic's position.
    pub in_window: u32,
    pub mark: Mark,
    pub chunk: Chunk,
}

/// One shard.
pub(crate) struct Shard {
    pub number: u32,
    pub tracks: BTreeMap<Topic, Track>,
    /// Transactional and bulk.
    pub queues: [DeficitRoundRobin<(TenantId, Channel), Queued>; 2],
    pub feed: Feed,
    pub claims: ShardClaims,
    /// The offset after the last change that was read, and whether it is to be committed.
    pub changes_read: u64,
    pub changes_dirty: bool,
}

impl Shard {
    pub(crate) fn new(number: u32, claims: ShardClaims) -> Self {
        Self {
            number,
            tracks: BTreeMap::new(),
            queues: [DeficitRoundRobin::new(QUANTUM), DeficitRoundRobin::new(QUANTUM)],
            feed: Feed::new(number, 0),
            claims,
            changes_read: 0,
            changes_dirty: false,
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
        let lane = match queued.topic {
            Topic::Deliveries(Lane::Transactional) | Topic::Overflow(Lane::Transactional) => 0,
            _ => 1,
        };
        let head = &queued.chunk.head;
        let key = (head.tenant.clone(), head.channel);
        self.queues[lane].push(key, head.section.count.into(), queued);
    }

    /// The section whose turn it is, transactional ones first.
    pub(crate) fn next(&mut self) -> Option<Queued> {
        self.queues.iter_mut().find_map(DeficitRoundRobin::pop)
    }

    /// Whether sections wait for their turn.
    pub(crate) fn has_work(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }

    pub(crate) fn unfinished(&self) -> u64 {
        self.tracks.values().map(Track::unfinished).sum()
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
