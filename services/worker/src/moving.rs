//! Sections that move: to a delay tier, or to overflow.

use herald_core::{
    ids::InstanceId,
    outputs::Wait,
    record::{Section, SectionSummary, State},
    topic::{Topic, TopicPartition},
};

use crate::{
    burying::bury_users,
    receipts::End,
    section::Head,
    shard::{Queued, Shard},
};

impl Shard {
    /// Moves what is not started to overflow, the newest of the tenant and channel that have most of it first, until no
    /// more than `most` instances are unfinished. Returns how many moved.
    pub(crate) fn evacuate(&mut self, most: u64) -> u64 {
        let mut moved = 0;
        let mut leaving: Vec<Queued> = Vec::new();
        while self.unfinished() > most + moved
            && let Some(queued) = self.newest_of_heaviest()
        {
            moved += queued.cost();
            leaving.push(queued);
        }
        for queued in leaving.into_iter().rev() {
            let home = TopicPartition { topic: Topic::Overflow(queued.lane()), partition: self.number };
            self.send_on(&queued, home, None);
        }
        moved
    }

    /// Sends a section on to a topic as it is, at once or after a wait.
    pub(crate) fn send_on(&mut self, queued: &Queued, home: TopicPartition, wait: Option<Wait>) {
        let chunk = &queued.chunk;
        let (section, summary) = part_of(&chunk.head, &chunk.users, chunk.head.section.attempts);
        self.outputs.section(home, wait, section, summary);
        self.finish(queued.topic, queued.offset, chunk.users.iter().map(|i| chunk.first + i));
    }

    /// Marks instances of a record as finished: they have ended or moved in the outputs of the next commit.
    pub(crate) fn finish(&mut self, topic: Topic, offset: u64, indexes: impl IntoIterator<Item = u32>) {
        if let Some(track) = self.tracks.get_mut(&topic) {
            track.finish(offset, indexes);
        }
    }

    /// Ends all of a section the same way; what ends as dead is kept.
    pub(crate) fn end_all(&mut self, queued: &Queued, end: &End, now_ms: u64) {
        let chunk = &queued.chunk;
        if end.state == State::Dead {
            let place = self.place(queued.topic, queued.offset);
            bury_users(&chunk.head, &chunk.users, end, place, now_ms, &mut self.outputs);
        }
        for user in chunk.users() {
            self.release(&chunk.head, user);
            self.endings.of(&chunk.head, now_ms).add(user, end);
        }
        self.finish(queued.topic, queued.offset, chunk.users.iter().map(|i| chunk.first + i));
    }

    /// An instance that ends undelivered gives its claim back, if it holds one.
    pub(crate) fn release(&mut self, head: &Head, user: &str) {
        if let Some(mut keys) = head.claim_keys() {
            self.claims.release(keys.of(user), head.id);
        }
    }
}

/// Retries go to the lane they came from; overflow returns to deliveries.
pub(crate) fn deliveries_home(topic: Topic, partition: u32) -> TopicPartition {
    let topic = match topic {
        Topic::Overflow(lane) => Topic::Deliveries(lane),
        topic => topic,
    };
    TopicPartition { topic, partition }
}

/// A section of some of a section's users, in their order.
pub(crate) fn part_of(head: &Head, users: &[u32], attempts: u32) -> (Section, SectionSummary) {
    let summary = |count, hash_sum| SectionSummary {
        tenant: head.notification.tenant.clone(),
        notification_id: head.notification.id.clone(),
        channel: head.channel as i32,
        count,
        hash_sum,
    };
    if users.len() == head.section.count as usize {
        return (Section { attempts, ..head.section.clone() }, summary(head.section.count, head.hash_sum));
    }
    debug_assert!(users.is_sorted(), "a section keeps its order");
    let mut column = herald_core::packed::PackedWriter::default();
    let mut tally = herald_core::books::Tally::default();
    let mut wanted = users.iter().copied().peekable();
    for (i, user) in head.users().enumerate() {
        if wanted.next_if_eq(&(i as u32)).is_some() {
            column.push(user);
            tally.add(InstanceId::of(&head.id, user, head.channel).book_hash());
        }
    }
    let inline = users.iter().filter_map(|i| head.inline(*i as usize).cloned()).collect();
    let section = Section { count: column.count(), users: column.finish(), inline, attempts, ..head.section.clone() };
    let summary = summary(section.count, tally.hash_sum);
    (section, summary)
}
