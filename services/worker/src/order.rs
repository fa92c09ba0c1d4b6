//! Order up to the first attempt: of one actor's notifications in one lane, the later one waits until the messages of
//! the earlier one have been begun. In-app needs none of this, since its sending is a commit. Pure.

use std::collections::{BTreeMap, VecDeque};

use herald_core::{
    ids::{NotificationId, shard_of},
    record::Channel,
};

use crate::{section::Head, shard::Queued};

/// Tenant, actor, channel and lane, hashed: two that collide wait for each other in vain, which does no harm.
pub(crate) type OrderKey = u64;

#[derive(Default)]
struct InHand {
    notification: Option<NotificationId>,
    /// Batches in a provider's hands whose messages were not all begun.
    batches: u32,
    waiting: VecDeque<Queued>,
}

impl InHand {
    fn may_go(&self, id: NotificationId) -> bool {
        self.batches == 0 || self.notification == Some(id)
    }
}

/// One shard's sections that wait for earlier ones.
#[derive(Default)]
pub(crate) struct Order {
    in_hand: BTreeMap<OrderKey, InHand>,
    /// Keys whose first waiting section may be able to go.
    ready: VecDeque<OrderKey>,
    /// Instances that wait.
    waiting: u64,
}

/// The key by which a section's first attempts are ordered; `None` without an actor, and for what was attempted.
pub(crate) fn order_key(head: &Head) -> Option<OrderKey> {
    let actor = head.notification.actor_id.as_str();
    let ordered = !actor.is_empty() && head.section.attempts == 0 && head.channel != Channel::InApp;
    let hash = || u64::from(shard_of(head.tenant.as_str(), actor, u32::MAX));
    ordered.then(|| hash() << 8 | (head.channel as u64) << 1 | u64::from(head.notification.transactional))
}

impl Order {
    /// Gives a section back if it may go now, and keeps it otherwise.
    pub(crate) fn admit(&mut self, key: OrderKey, queued: Queued) -> Option<Queued> {
        let Some(in_hand) = self.in_hand.get_mut(&key) else { return Some(queued) };
        if in_hand.waiting.is_empty() && in_hand.may_go(queued.chunk.head.id) {
            return Some(queued);
        }
        self.waiting += queued.cost();
        in_hand.waiting.push_back(queued);
        None
    }

    /// A section that waited and may go now, if there is room for it.
    pub(crate) fn next(&mut self, has_room: impl Fn(&Queued) -> bool) -> Option<Queued> {
        for _ in 0..self.ready.len() {
            let key = self.ready.pop_front()?;
            let Some(in_hand) = self.in_hand.get_mut(&key) else { continue };
            let Some(first) = in_hand.waiting.front().filter(|first| in_hand.may_go(first.chunk.head.id)) else {
                continue;
            };
            if !has_room(first) {
                self.ready.push_back(key);
                continue;
            }
            let next = in_hand.waiting.pop_front();
            if !in_hand.waiting.is_empty() {
                self.ready.push_front(key);
            } else if in_hand.batches == 0 {
                self.in_hand.remove(&key);
            }
            self.waiting -= next.as_ref().map_or(0, Queued::cost);
            return next;
        }
        None
    }

    /// Whether a section that waited may go now and there is room for it.
    pub(crate) fn any(&self, has_room: impl Fn(&Queued) -> bool) -> bool {
        let first = |key| {
            let in_hand = self.in_hand.get(key)?;
            in_hand.waiting.front().filter(|first| in_hand.may_go(first.chunk.head.id))
        };
        self.ready.iter().filter_map(first).any(has_room)
    }

    /// Notes that a batch is in a provider's hands.
    pub(crate) fn handed_over(&mut self, key: OrderKey, id: NotificationId) {
        let in_hand = self.in_hand.entry(key).or_default();
        in_hand.notification = Some(id);
        in_hand.batches += 1;
    }

    /// Notes that the messages of a batch were all begun, or are over.
    pub(crate) fn begun(&mut self, key: OrderKey) {
        let Some(in_hand) = self.in_hand.get_mut(&key) else { return };
        in_hand.batches = in_hand.batches.saturating_sub(1);
        if !in_hand.waiting.is_empty() {
            self.ready.push_back(key);
        } else if in_hand.batches == 0 {
            self.in_hand.remove(&key);
        }
    }

    /// Instances that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Takes the newest section of the longest wait out of its turn.
    pub(crate) fn pop_newest(&mut self) -> Option<Queued> {
        let longest = self.in_hand.values_mut().max_by_key(|in_hand| in_hand.waiting.len())?;
        let newest = longest.waiting.pop_back()?;
        self.waiting -= newest.cost();
        Some(newest)
    }
}
