//! What the tests of the log share.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use herald_core::{
    clock::Clock,
    ports::log::{Identity, Member, NewRecord},
    record::Envelope,
    topic::{Layout, TopicPartition},
};
use herald_embedded::{
    SyncFirst,
    disk::{Disk, MemoryDisk},
    log::{EmbeddedLog, LogOptions, OpenError},
};

pub const ALONE: Member = Member { ordinal: 0, count: 1 };
pub const LAYOUT: Layout = Layout { shards: 4, requests: 2, receipts: 2 };

/// Stores that have nothing to sync; they know a number.
#[derive(Default)]
pub struct Stores(pub AtomicU64);

impl SyncFirst for Stores {
    fn sync(&self) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }
}

/// A clock that stands where it is put.
#[derive(Default)]
pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub fn identity() -> Identity {
    Identity { region: "test".to_owned(), epoch: 1, layout: LAYOUT }
}

/// Small segments and no cache to speak of, so that everything happens soon.
pub fn small() -> LogOptions {
    LogOptions { segment_bytes: 4_096, cache_bytes: 2_048, low_water_bytes: 0, ..LogOptions::default() }
}

pub fn open(disk: &MemoryDisk, options: LogOptions) -> Result<EmbeddedLog, OpenError> {
    open_on(Arc::new(disk.clone()), options)
}

pub fn open_on(disk: Arc<dyn Disk>, options: LogOptions) -> Result<EmbeddedLog, OpenError> {
    EmbeddedLog::open(disk, identity(), options, Arc::new(Stores::default()), Arc::new(TestClock::default()))
}

pub fn record(at: TopicPartition, body: impl Into<Vec<u8>>) -> NewRecord {
    let envelope = Envelope { region: "test".to_owned(), tenant: "t".to_owned(), ..Envelope::default() };
    NewRecord { at, key: Bytes::new(), timestamp_ms: 0, envelope, body: body.into().into() }
}

/// A small generator of numbers (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
