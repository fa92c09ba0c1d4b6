//! What was used last, bounded.

use std::{borrow::Borrow, hash::Hash};

use hashbrown::HashMap;

/// A cache of two generations: what was not used while the younger one filled up is dropped.
pub(crate) struct Recent<K, V> {
    young: HashMap<K, (usize, V)>,
    old: HashMap<K, (usize, V)>,
    young_weight: usize,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// A cache of values that weigh at most `capacity` together.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_weight: 0, capacity: capacity.max(2) }
    }

    /// A value that is remembered.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if let Some((_, value)) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, (weight, value)) = self.old.remove_entry(key)?;
        self.insert(key, weight, value.clone());
        Some(value)
    }

    /// Remembers a value.
    pub(crate) fn insert(&mut self, key: K, weight: usize, value: V) {
        if self.young_weight + weight > self.capacity / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_weight = 0;
        }
        self.young_weight += weight;
        if let Some((before, _)) = self.young.insert(key, (weight, value)) {
            self.young_weight -= before;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut recent = Recent::new(20);
        recent.insert("used", 5, 1);
        for i in 0..100 {
            recent.insert("other", 5, i);
            recent.insert("more", 5, i);
            assert_eq!(recent.get("used"), Some(1));
        }
        recent.insert("heavy", 50, 2);
        recent.insert("next", 5, 3);
        assert_eq!((recent.get("heavy"), recent.get("next")), (Some(2), Some(3)));
        recent.clear();
        assert_eq!(recent.get("used"), None);
    }
}
