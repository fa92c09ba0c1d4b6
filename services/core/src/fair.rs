//! Deficit round-robin (M. Shreedhar and G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", 1996): every
//! key with work gets the same share of cost, whatever the size of its items or the length of its queue.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

struct Queue<T> {
    items: VecDeque<(u64, T)>,
    deficit: u64,
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
        let queue = self.queues.entry(key.clone()).or_insert_with(|| Queue { items: VecDeque::new(), deficit: 0 });
        if queue.items.is_empty() {
            self.ring.push_back(key);
        }
        queue.items.push_back((cost.max(1), item));
        self.len += 1;
    }

    /// The item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let key = self.ring.front()?;
            let queue = self.queues.get_mut(key)?;
            if !self.front_credited {
                queue.deficit += self.quantum;
                self.front_credited = true;
            }
            let cost = queue.items.front()?.0;
            if cost <= queue.deficit {
                queue.deficit -= cost;
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
            self.ring.rotate_left(1);
            self.front_credited = false;
        }
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
