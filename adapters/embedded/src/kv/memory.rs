//! Rows in memory, for simulation: nothing but what was written decides what is read.

use std::{collections::BTreeMap, io, ops::Range};

use bytes::Bytes;
use herald_core::ports::StoreError;
use parking_lot::Mutex;

use super::{Batch, Direction, FLUSH_KEY, Kv, Row, bounds, number, within_a_keyspace};
use crate::SyncFirst;

/// Rows in a sorted map, which loses what was not synced when it [crashes](MemoryKv::crash).
#[derive(Debug, Default)]
pub struct MemoryKv {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<Bytes, Bytes>,
    /// What each batch since the last sync replaced, newest last.
    undo: Vec<Vec<(Bytes, Option<Bytes>)>>,
}

impl State {
    fn write(&mut self, batch: Batch) {
        let mut undo = Vec::with_capacity(batch.len());
        for (key, value) in batch.changes {
            let before = match value {
                Some(value) => self.rows.insert(key.clone(), value),
                None => self.rows.remove(&key),
            };
            undo.push((key, before));
        }
        self.undo.push(undo);
    }
}

impl MemoryKv {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what a power cut would lose: of the batches since the last sync only the first `kept` remain.
    pub fn crash(&self, kept: usize) {
        let state = &mut *self.state.lock();
        while state.undo.len() > kept {
            let undo = state.undo.pop().unwrap_or_default();
            for (key, before) in undo.into_iter().rev() {
                match before {
                    Some(value) => state.rows.insert(key, value),
                    None => state.rows.remove(&key),
                };
            }
        }
        // What the disk kept by chance is on the disk now.
        state.undo.clear();
    }

    /// How many batches a crash may lose.
    pub fn unsynced(&self) -> usize {
        self.state.lock().undo.len()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.state.lock().rows.len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flush number of the last sync; 0 before the first.
    pub fn last_flush(&self) -> Result<u64, StoreError> {
        number(self.state.lock().rows.get(FLUSH_KEY).map(|v| &**v))
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state.lock().rows.get(key).cloned())
    }

    fn scan(&self, range: Range<&[u8]>, direction: Direction, limit: usize) -> Result<Vec<Row>, StoreError> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        within_a_keyspace(&range)?;
        let state = self.state.lock();
        let rows = state.rows.range::<[u8], _>(bounds(&range)).map(|(k, v)| (k.clone(), v.clone()));
        Ok(match direction {
            Direction::Forward => rows.take(limit).collect(),
            Direction::Backward => rows.rev().take(limit).collect(),
        })
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if !batch.is_empty() {
            self.state.lock().write(batch);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        let last = number(state.rows.get(FLUSH_KEY).map(|v| &**v)).map_err(io::Error::other)?;
        if state.undo.is_empty() {
            return Ok(last);
        }
        state.rows.insert(Bytes::from_static(FLUSH_KEY), Bytes::copy_from_slice(&(last + 1).to_be_bytes()));
        state.undo.clear();
        Ok(last + 1)
    }
}

impl SyncFirst for MemoryKv {
    fn sync(&self) -> io::Result<u64> {
        Kv::sync(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[(&'static str, Option<&'static str>)]) -> Batch {
        let mut batch = Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(key.as_bytes(), value.as_bytes()),
                None => batch.delete(key.as_bytes()),
            }
        }
        batch
    }

    #[test]
    fn a_crash_keeps_a_prefix_of_the_batches_since_the_sync() {
        let kv = MemoryKv::new();
        kv.write(batch(&[("a", Some("1"))])).unwrap();
        assert_eq!(Kv::sync(&kv).unwrap(), 1);
        assert_eq!(Kv::sync(&kv).unwrap(), 1, "nothing was written since");
        kv.write(batch(&[("a", Some("2")), ("b", Some("2"))])).unwrap();
        kv.write(batch(&[("a", None), ("b", Some("3")), ("b", Some("4"))])).unwrap();
        kv.crash(1);
        assert_eq!(kv.get(b"a").unwrap().unwrap(), "2");
        assert_eq!(kv.get(b"b").unwrap().unwrap(), "2");
        kv.write(batch(&[("b", None)])).unwrap();
        kv.crash(0);
        assert_eq!(kv.get(b"b").unwrap().unwrap(), "2", "what survived a crash survives the next");
        assert_eq!(kv.last_flush().unwrap(), 1);
    }
}
