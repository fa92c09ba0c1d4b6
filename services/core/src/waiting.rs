//! When those ask again who found too little in a budget. Pure, but for the jitter that it is given.

use std::{collections::HashMap, sync::Arc};

use crate::{bucket::Quota, clock::World, ids::TenantId, topic::Lane};

/// The longest wait before something asks again, in milliseconds: limits may be raised, and providers come back.
pub const LONGEST_WAIT_MS: u64 = 16_000;

/// Budgets that are waited for, and those who wait for one, are looked through for stale ones when there are so many.
const MAX_WAITING: usize = 1_024;

/// Of what there is too little.
#[derive(Debug, Clone)]
pub struct Short {
    /// The budget's name.
    pub budget: Arc<str>,
    /// The part of it that is this member's.
    pub share: Quota,
    /// When it is worth asking again, in milliseconds from now.
    pub retry_after_ms: u64,
}

/// Who waits for what.
///
/// Each tenant and lane that waits for a budget gets places one after the other, as far apart as its part of the budget
/// needs. So what waits is looked at about when it can go, and nobody waits behind somebody else's queue.
#[derive(Debug, Default)]
pub struct Waiting {
    /// By budget, the next free place of each, in milliseconds since the epoch.
    places: HashMap<Arc<str>, HashMap<(TenantId, Lane), u64>>,
}

impl Waiting {
    /// When `count` more messages of a tenant and lane ask again, in milliseconds since the epoch.
    pub fn place(&mut self, short: &Short, tenant: &TenantId, lane: Lane, count: u64, world: &World) -> u64 {
        let now_ms = world.now_ms();
        let earliest_ms = now_ms + short.retry_after_ms.clamp(1, LONGEST_WAIT_MS);
        // A place further away than anything waits is of a clock that was set back.
        let is_taken = |next_ms: &u64| (now_ms + 1..=now_ms + 2 * LONGEST_WAIT_MS).contains(next_ms);
        if self.places.len() >= MAX_WAITING {
            self.places.retain(|_, places| places.values().any(is_taken));
        }
        let places = self.places.entry(short.budget.clone()).or_default();
        if places.len() >= MAX_WAITING {
            places.retain(|_, next_ms| is_taken(next_ms));
        }
        let who = (tenant.clone(), lane);
        let others = places.iter().filter(|(other, next_ms)| **other != who && is_taken(next_ms)).count();
        let next_ms = places.entry(who).or_default();
        let due_ms = if is_taken(next_ms) { (*next_ms).max(earliest_ms) } else { earliest_ms };
        if due_ms > now_ms + LONGEST_WAIT_MS {
            // The queue is longer than anything should wait without asking.
            return now_ms + LONGEST_WAIT_MS / 2 + world.below(LONGEST_WAIT_MS / 2);
        }
        // No more than a full bucket can go when they ask.
        let can_go = count.min(short.share.capacity()).max(1);
        let share = short.share.shared_by(u32::try_from(others + 1).unwrap_or(u32::MAX));
        *next_ms = due_ms + share.ms_for(can_go).min(LONGEST_WAIT_MS);
        due_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Entropy};

    struct At(u64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0
        }
    }

    impl Entropy for At {
        fn next_u64(&self) -> u64 {
            u64::MAX / 2
        }
    }

    fn at(now_ms: u64) -> World {
        World::new(Arc::new(At(now_ms)), Arc::new(At(0)))
    }

    fn short(per_second: f64, burst: u64) -> Short {
        Short { budget: "b".into(), share: Quota::new(per_second, burst).unwrap(), retry_after_ms: 10 }
    }

    const A: (&str, Lane) = ("a", Lane::Bulk);
    const B: (&str, Lane) = ("b", Lane::Bulk);

    fn place(waiting: &mut Waiting, short: &Short, who: (&str, Lane), count: u64, now_ms: u64) -> u64 {
        waiting.place(short, &TenantId::trusted(who.0), who.1, count, &at(now_ms)) - now_ms
    }

    #[test]
    fn places_are_as_far_apart_as_the_budget_needs() {
        let (mut waiting, short) = (Waiting::default(), short(100.0, 100));
        let places: Vec<u64> = (0..4).map(|_| place(&mut waiting, &short, A, 50, 1_000)).collect();
        assert_eq!(places, [10, 510, 1_010, 1_510]);
        assert_eq!(place(&mut waiting, &short, A, 50, 9_000), 10, "nobody waits any more");
    }

    #[test]
    fn nobody_waits_behind_somebody_elses_queue() {
        let (mut waiting, short) = (Waiting::default(), short(100.0, 100));
        (0..20).for_each(|_| assert!(place(&mut waiting, &short, A, 100, 0) <= LONGEST_WAIT_MS));
        assert_eq!(place(&mut waiting, &short, B, 10, 0), 10);
        assert_eq!(place(&mut waiting, &short, B, 10, 0), 210, "half of the budget is theirs");
    }

    #[test]
    fn what_is_too_large_for_the_bucket_asks_when_the_bucket_is_full() {
        let (mut waiting, short) = (Waiting::default(), short(10.0, 10));
        let places: Vec<u64> = (0..3).map(|_| place(&mut waiting, &short, A, 256, 0)).collect();
        assert_eq!(places, [10, 1_010, 2_010]);
    }

    #[test]
    fn nothing_waits_for_long_without_asking() {
        let (mut waiting, never) = (Waiting::default(), Short { retry_after_ms: u64::MAX, ..short(0.0, 1) });
        for now_ms in [1_000_000, 5_000] {
            for _ in 0..3_000 {
                assert!(place(&mut waiting, &never, A, 1, now_ms) <= LONGEST_WAIT_MS);
            }
        }
        let slow = short(1.0, 1);
        let places: Vec<u64> = (0..100).map(|_| place(&mut waiting, &slow, B, 1, 0)).collect();
        assert!(places.iter().all(|place| *place <= LONGEST_WAIT_MS));
        assert!(places[20..].iter().all(|place| *place >= LONGEST_WAIT_MS / 2), "{places:?}");
    }
}
