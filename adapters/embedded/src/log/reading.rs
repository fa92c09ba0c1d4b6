//! Reading records: from memory while they are recent, else from their segment.
//!
//! What to read is planned under the log's lock; the reading happens outside. Reads of a real disk go to the blocking
//! pool, one task a poll, since they may wait for hardware; those of a disk in memory happen at once, which keeps
//! simulations deterministic.

use std::{io, sync::Arc};

use bytes::Bytes;
use herald_core::ports::log::{LogError, Record};

use super::{format, state::State};
use crate::disk::{Disk, DiskFile};

/// Segments that may be open for reading.
const MAX_OPEN_SEGMENTS: usize = 128;
/// Neighbours in a segment are read together while what lies between is smaller than this.
const MAX_GAP_BYTES: u64 = 16 << 10;
/// And while all is smaller than this.
const MAX_READ_BYTES: u64 = 1 << 20;

/// Records to be read, in order.
pub struct Plan {
    items: Vec<Item>,
    left_bytes: u64,
    stored: bool,
    /// A position that covers every record.
    pub covers: u64,
}

enum Item {
    Cached(Arc<Record>),
    Stored(Stored),
}

struct Stored {
    file: Arc<dyn DiskFile>,
    segment: u64,
    at: u64,
    length: u64,
}

impl Plan {
    /// A plan that takes no further record once it has this many bytes.
    pub fn new(limit_bytes: u64) -> Self {
        Self { items: Vec::new(), left_bytes: limit_bytes, stored: false, covers: 0 }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it takes no further record.
    pub fn is_full(&self) -> bool {
        self.left_bytes == 0
    }

    /// Adds at most `max` records of a partition from an offset on; returns the offset to go on from.
    pub fn add(
        &mut self,
        state: &mut State,
        disk: &dyn Disk,
        slot: usize,
        from: u64,
        max: usize,
    ) -> Result<u64, LogError> {
        let partition = &state.partitions[slot];
        let (mut next, mut missing) = (from, None);
        let mut taken = 0;
        for (offset, entry) in partition.entries.range(from..) {
            if taken == max || self.is_full() {
                return Ok(next);
            }
            let item = match &entry.cached {
                Some(record) => Item::Cached(record.clone()),
                None => {
                    let Some((segment, found)) = state.segments.range(..=entry.position).next_back() else {
                        return Err(damaged(*offset, "its segment is not there"));
                    };
                    let Some(file) = found.file.clone() else {
                        missing = Some(*segment);
                        break;
                    };
                    self.stored = true;
                    let (at, length) = (entry.position - segment, u64::from(entry.length));
                    Item::Stored(Stored { file, segment: *segment, at, length })
                }
            };
            self.items.push(item);
            self.left_bytes = self.left_bytes.saturating_sub(u64::from(entry.length));
            self.covers = self.covers.max(entry.position + u64::from(entry.length));
            next = offset + 1;
            taken += 1;
        }
        match missing {
            Some(segment) => {
                open_segment(state, disk, segment)?;
                self.add(state, disk, slot, next, max - taken)
            }
            None => Ok(next.max(partition.next)),
        }
    }

    /// Reads the records.
    pub async fn fetch(self, disk: &dyn Disk) -> Result<Vec<Record>, LogError> {
        if !self.stored || !disk.reads_block() {
            return fetch(self.items);
        }
        match tokio::task::spawn_blocking(move || fetch(self.items)).await {
            Ok(records) => records,
            Err(error) => Err(LogError::Unavailable(format!("a read was broken off: {error}"))),
        }
    }
}

/// Opens a segment for reading; the segments that are open already may be closed. This holds the lock for one `open`.
fn open_segment(state: &mut State, disk: &dyn Disk, start: u64) -> Result<(), LogError> {
    let name = format::segment_name(start);
    let file = disk.open(&name).map_err(|e| LogError::Unavailable(format!("{name} cannot be opened: {e}")))?;
    if state.segments.values().filter(|segment| segment.file.is_some()).count() >= MAX_OPEN_SEGMENTS {
        for segment in state.segments.values_mut() {
            segment.file = None;
        }
    }
    if let Some(segment) = state.segments.get_mut(&start) {
        segment.file = Some(file);
    }
    Ok(())
}

fn fetch(items: Vec<Item>) -> Result<Vec<Record>, LogError> {
    let mut records = Vec::with_capacity(items.len());
    let mut items = items.into_iter().peekable();
    while let Some(item) = items.next() {
        match item {
            Item::Cached(record) => records.push(Arc::unwrap_or_clone(record)),
            Item::Stored(first) => {
                let mut run = vec![first];
                while let Some(Item::Stored(next)) = items.next_if(|item| follows(&run, item)) {
                    run.push(next);
                }
                fetch_run(&run, &mut records)?;
            }
        }
    }
    Ok(records)
}

fn follows(run: &[Stored], item: &Item) -> bool {
    let (Item::Stored(next), Some(first), Some(last)) = (item, run.first(), run.last()) else { return false };
    let end = last.at + last.length;
    next.segment == first.segment
        && next.at >= end
        && next.at - end <= MAX_GAP_BYTES
        && next.at + next.length - first.at <= MAX_READ_BYTES
}

fn fetch_run(run: &[Stored], records: &mut Vec<Record>) -> Result<(), LogError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
    let mut buffer = vec![0; (last.at + last.length - first.at) as usize];
    first.file.read_at(first.at, &mut buffer).map_err(|error| read_error(first, &error))?;
    let buffer = Bytes::from(buffer);
    for stored in run {
        let from = (stored.at - first.at) as usize;
        // A record of its own memory: a slice would keep the whole read alive.
        let entry = match run.len() {
            1 => buffer.clone(),
            _ => Bytes::copy_from_slice(&buffer[from..from + stored.length as usize]),
        };
        let record = format::decode_record(&entry)
            .ok_or_else(|| damaged(stored.segment + stored.at, "its checksum is wrong"))?;
        records.push(record);
    }
    Ok(())
}

fn read_error(stored: &Stored, error: &io::Error) -> LogError {
    let name = format::segment_name(stored.segment);
    LogError::Unavailable(format!("{name} cannot be read at byte {}: {error}", stored.at))
}

fn damaged(position: u64, why: &str) -> LogError {
    LogError::Damaged(format!("the record at journal position {position} cannot be read: {why}"))
}
