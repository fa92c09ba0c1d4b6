//! Deficit round-robin (M. Shreedhar and G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", 1996): every
//! key with work gets the same share of cost, whatever the size of its items or the length of its queue.

use std::{collections::VecDeque, hash::Hash};

use hashbrown::HashMap;

struct Queue<T> {
    items: VecDeque<(u64, T)>,
    deficit: u64,
    cost: u64,
}

/// Queues by key, served fairly. The order of service depends on the order of pushes alone.
pub struct DeficitRoundRobin<K, T> {
    /// Keys that have items; the front one is being served.
    ring: VecDeque<K>,
    queues: HashMap<K, Queue<T>>,
    quantum: u64,
    /// Whether the front key has had its quantum in this round.
    front_credited: bool,
    len: usize,
}

impl<K: Clone + Eq + Hash, T> DeficitRoundRobin<K, T> {
    /// Empty queues; each key is served `quantum` of cost a round.
    pub fn new(quantum: u64) -> Self {
        Self { ring: VecDeque::new(), queues: HashMap::new(), quantum: quantum.max(1), front_credited: false, len: 0 }
    }

    /// Appends an item to its key's queue. A cost of 0 counts as 1.
    pub fn push(&mut self, key: K, cost: u64, item: T) {
        let queue =
            self.queues.entry(key.clone()).or_insert_with(|| Queue { items: VecDeque::new(), deficit: 0, cost: 0 });
        if queue.items.is_empty() {
            self.ring.push_back(key);
        }
        queue.items.push_back((cost.max(1), item));
        queue.cost += cost.max(1);
        self.len += 1;
    }

    /// The item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_if(|_| true)
    }

    /// The item whose turn it is, if one of its cost may go; else it stays first.
    pub fn pop_if(&mut self, may_go: impl Fn(u64) -> bool) -> Option<T> {
        loop {
            let key = self.ring.front()?;
            let queue = self.queues.get_mut(key)?;
            let cost = queue.items.front()?.0;
            if !self.front_credited {
                queue.deficit += self.quantum;
                self.front_credited = true;
            }
            if cost > queue.deficit {
                self.ring.rotate_left(1);
                self.front_credited = false;
                continue;
            }
            if !may_go(cost) {
                return None;
            }
            queue.deficit -= cost;
            queue.cost -= cost;
            let item = queue.items.pop_front();
            self.len -= 1;
            if queue.items.is_empty() {
                // A key without work keeps no credit; its queue is dropped so that idle tenants cost nothing.
                self.queues.remove(key);
                self.ring.pop_front();
                self.front_credited = false;
            }
            return item.map(|(_, item)| item);
        }
    }

    /// The cost of an item that is next, or nearly so; `None` if there is none.
    pub fn next_cost(&self) -> Option<u64> {
        Some(self.queues.get(self.ring.front()?)?.items.front()?.0)
    }

    /// The key whose items cost most, and their cost.
    pub fn heaviest(&self) -> Option<(&K, u64)> {
        let cost = |key: &K| self.queues.get(key).map_or(0, |queue| queue.cost);
        self.ring.iter().map(|key| (key, cost(key))).max_by_key(|(_, cost)| *cost)
    }

    /// Takes the newest item of a key out of turn.
    pub fn pop_newest(&mut self, key: &K) -> Option<T> {
        let queue = self.queues.get_mut(key)?;
        let (cost, item) = queue.items.pop_back()?;
        queue.cost -= cost;
        self.len -= 1;
        if queue.items.is_empty() {
            self.front_credited &= self.ring.front() != Some(key);
            self.queues.remove(key);
            self.ring.retain(|other| other != key);
        }
        Some(item)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Keeps the items for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let front = self.ring.front().cloned();
        let queues = &mut self.queues;
        self.ring.retain(|key| {
            let Some(queue) = queues.get_mut(key) else { return false };
            queue.items.retain(|(_, item)| keep(item));
            queue.cost = queue.items.iter().map(|(cost, _)| cost).sum();
            if queue.items.is_empty() {
                queues.remove(key);
                return false;
            }
            true
        });
        self.front_credited &= self.ring.front() == front.as_ref();
        self.len = self.queues.values().map(|queue| queue.items.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_queue_of_large_items_does_not_hold_up_a_short_one() {
        let mut drr = DeficitRoundRobin::new(100);
        (0..50).for_each(|i| drr.push("spike", 250, ("spike", i)));
        (0..5).for_each(|i| drr.push("small", 10, ("small", i)));
        let first: Vec<_> = std::iter::from_fn(|| drr.pop()).take(8).map(|(key, _)| key).collect();
        assert_eq!(first.iter().filter(|key| **key == "small").count(), 5, "{first:?}");
    }

    #[test]
    fn what_may_not_go_stays_first() {
        let mut drr = DeficitRoundRobin::new(100);
        drr.push("large", 60, ("large", 0));
        drr.push("small", 10, ("small", 0));
        assert_eq!((drr.next_cost(), drr.pop_if(|cost| cost <= 50), drr.len()), (Some(60), None, 2));
        assert_eq!(drr.pop_if(|cost| cost <= 60), Some(("large", 0)));
        assert_eq!((drr.pop_if(|cost| cost <= 10), drr.next_cost()), (Some(("small", 0)), None));
    }

    #[test]
    fn the_newest_items_of_the_heaviest_key_can_be_taken_away() {
        let mut drr = DeficitRoundRobin::new(100);
        (0..3).for_each(|i| drr.push("spike", 30, ("spike", i)));
        drr.push("small", 50, ("small", 0));
        assert_eq!(drr.heaviest(), Some((&"spike", 90)));
        assert_eq!(drr.pop_newest(&"spike"), Some(("spike", 2)));
        assert_eq!(drr.pop(), Some(("spike", 0)));
        assert_eq!(drr.pop_newest(&"spike"), Some(("spike", 1)));
        assert_eq!((drr.pop_newest(&"spike"), drr.pop(), drr.pop(), drr.len()), (None, Some(("small", 0)), None, 0));
    }

    proptest! {
        #[test]
        fn shares_are_even_while_all_have_work(costs in proptest::collection::vec((0..4usize, 1..300u64), 200..400)) {
            let mut drr = DeficitRoundRobin::new(256);
            let mut work = [0u64; 4];
            for (key, cost) in &costs {
                drr.push(*key, *cost, (*key, *cost));
                work[*key] += cost;
            }
            let mut served = [0u64; 4];
            while served.iter().zip(&work).all(|(served, work)| served < work) {
                let (key, cost) = drr.pop().unwrap();
                served[key] += cost;
            }
            let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            prop_assert!(most - least <= 256 + 300, "{served:?}");
        }

        #[test]
        fn everything_comes_out_once_and_in_order_within_a_key(keys in proptest::collection::vec(0..5u8, 0..200)) {
            let mut drr = DeficitRoundRobin::new(10);
            keys.iter().enumerate().for_each(|(i, key)| drr.push(*key, u64::from(*key) * 7, (*key, i)));
            prop_assert_eq!(drr.len(), keys.len());
            let mut last = [None; 5];
            let mut popped = 0;
            while let Some((key, i)) = drr.pop() {
                prop_assert!(last[usize::from(key)] < Some(i));
                last[usize::from(key)] = Some(i);
                popped += 1;
            }
            prop_assert_eq!(popped, keys.len());
        }
    }
}
