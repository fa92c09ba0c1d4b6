//! Deficit round-robin (M. Shreedhar and G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", 1996): every
//! key with work gets the same share of cost, whatever the size of its items or the length of its queue. A key that comes
//! new goes first with as much as one turn gives (RFC 8290, section 4.1), so that who sends little does not wait for those
//! who send much.

use std::{collections::VecDeque, hash::Hash};

use hashbrown::HashMap;

struct Queue<T> {
    items: VecDeque<(u64, T)>,
    deficit: u64,
    cost: u64,
}

/// An item that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// What it costs.
    pub cost: u64,
    /// Whether its key came new and has not had its first turn yet.
    pub is_newcomers: bool,
}

/// Queues by key, served fairly. The order of service depends on the order of pushes alone.
pub struct DeficitRoundRobin<K, T> {
    /// Keys that came new, until they have had a turn's worth or have no items.
    newcomers: VecDeque<K>,
    /// The others; the front one is being served. A newcomer that has no items left stays here until its turn, so that
    /// it cannot come new again before the others were served.
    ring: VecDeque<K>,
    queues: HashMap<K, Queue<T>>,
    quantum: u64,
    /// Whether the front key of the ring has had its quantum in this round.
    front_credited: bool,
    len: usize,
}

impl<K: Clone + Eq + Hash, T> DeficitRoundRobin<K, T> {
    /// Empty queues; each key is served `quantum` of cost a round.
    pub fn new(quantum: u64) -> Self {
        Self {
            newcomers: VecDeque::new(),
            ring: VecDeque::new(),
            queues: HashMap::new(),
            quantum: quantum.max(1),
            front_credited: false,
            len: 0,
        }
    }

    /// Appends an item to its key's queue. A cost of 0 counts as 1.
    pub fn push(&mut self, key: K, cost: u64, item: T) {
        let queue = self.queues.entry(key).or_insert_with_key(|key| {
            self.newcomers.push_back(key.clone());
            Queue { items: VecDeque::new(), deficit: self.quantum, cost: 0 }
        });
        queue.items.push_back((cost.max(1), item));
        queue.cost += cost.max(1);
        self.len += 1;
    }

    /// The item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_if(|_| true)
    }

    /// The item whose turn it is, if it may go; else it stays first.
    pub fn pop_if(&mut self, may_go: impl Fn(Next) -> bool) -> Option<T> {
        while let Some(key) = self.newcomers.front() {
            let queue = self.queues.get_mut(key)?;
            let first = queue.items.front().map(|(cost, _)| *cost);
            if let Some(cost) = first.filter(|cost| *cost <= queue.deficit) {
                return may_go(Next { cost, is_newcomers: true }).then(|| queue.pop(&mut self.len)).flatten();
            }
            self.ring.extend(self.newcomers.pop_front());
        }
        loop {
            let queue = self.queues.get_mut(self.ring.front()?)?;
            let Some((cost, _)) = queue.items.front() else {
                // A key without work keeps no credit; its queue is dropped so that idle tenants cost nothing.
                self.queues.remove(&self.ring.pop_front()?);
                self.front_credited = false;
                continue;
            };
            if !self.front_credited {
                queue.deficit += self.quantum;
                self.front_credited = true;
            }
            if *cost > queue.deficit {
                self.ring.rotate_left(1);
                self.front_credited = false;
                continue;
            }
            return may_go(Next { cost: *cost, is_newcomers: false }).then(|| queue.pop(&mut self.len)).flatten();
        }
    }

    /// The item that is next, or nearly so; `None` if there is none.
    pub fn peek(&self) -> Option<Next> {
        let first = |key| Some(self.queues.get(key)?.items.front()?.0);
        let newcomers = self.newcomers.iter().filter_map(first).map(|cost| Next { cost, is_newcomers: true });
        let others = self.ring.iter().filter_map(first).map(|cost| Next { cost, is_newcomers: false });
        newcomers.chain(others).next()
    }

    /// The key whose items cost most, and their cost.
    pub fn heaviest(&self) -> Option<(&K, u64)> {
        let cost = |key: &K| self.queues.get(key).map_or(0, |queue| queue.cost);
        let costs = self.newcomers.iter().chain(&self.ring).map(|key| (key, cost(key)));
        costs.filter(|(_, cost)| *cost > 0).max_by_key(|(_, cost)| *cost)
    }

    /// Takes the newest item of a key out of turn.
    pub fn pop_newest(&mut self, key: &K) -> Option<T> {
        let queue = self.queues.get_mut(key)?;
        let (cost, item) = queue.items.pop_back()?;
        queue.cost -= cost;
        self.len -= 1;
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
        for queue in self.queues.values_mut() {
            queue.items.retain(|(_, item)| keep(item));
            queue.cost = queue.items.iter().map(|(cost, _)| cost).sum();
        }
        self.len = self.queues.values().map(|queue| queue.items.len()).sum();
    }
}

impl<T> Queue<T> {
    /// Takes its first item, which its deficit covers.
    fn pop(&mut self, len: &mut usize) -> Option<T> {
        let (cost, item) = self.items.pop_front()?;
        self.deficit -= cost;
        self.cost -= cost;
        *len -= 1;
        Some(item)
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
        assert_eq!(drr.peek(), Some(Next { cost: 60, is_newcomers: true }));
        assert_eq!((drr.pop_if(|next| next.cost <= 50), drr.len()), (None, 2));
        assert_eq!(drr.pop_if(|next| next.cost <= 60), Some(("large", 0)));
        assert_eq!((drr.pop_if(|next| next.cost <= 10), drr.peek()), (Some(("small", 0)), None));
    }

    #[test]
    fn who_comes_new_goes_first_with_one_turns_worth() {
        let mut drr = DeficitRoundRobin::new(100);
        (0..9).for_each(|i| drr.push("spike", 50, ("spike", i)));
        // Its own first turn is over then.
        assert_eq!([drr.pop(), drr.pop(), drr.pop()].map(Option::unwrap).map(|(_, i)| i), [0, 1, 2]);
        (0..3).for_each(|i| drr.push("small", 50, ("small", i)));
        assert_eq!(drr.peek(), Some(Next { cost: 50, is_newcomers: true }));
        let next: Vec<_> = std::iter::from_fn(|| drr.pop()).take(4).collect();
        assert_eq!(next, [("small", 0), ("small", 1), ("spike", 3), ("small", 2)]);
    }

    #[test]
    fn who_comes_again_and_again_holds_up_nobody() {
        let mut drr = DeficitRoundRobin::new(100);
        let keys = std::iter::repeat_n("spike", 100).chain(["first", "second"]);
        keys.for_each(|key| drr.push(key, 100, key));
        // Each comes again when the one after it was served, so that it has had nothing for a while.
        let (mut gone, mut spike) = (None, 0);
        for _ in 0..90 {
            let served = drr.pop().unwrap();
            gone.take().into_iter().for_each(|key| drr.push(key, 100, key));
            spike += u32::from(served == "spike");
            gone = Some(served).filter(|key| *key != "spike");
        }
        assert!(spike >= 20, "two thirds of a third at least: {spike}");
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
