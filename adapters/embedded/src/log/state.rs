//! The log in memory: what is where, who has read how far, and what is still to be written.
//!
//! Everything here happens under one short lock: it copies bytes into the pending chunk and moves numbers; checksums,
//! writes and reads happen outside.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use herald_core::{
    ports::log::{Identity, NewRecord, Position, Record},
    topic::{Group, Layout, Retention, Topic, TopicPartition},
};
use prost::Message;
use tokio::sync::Notify;

use super::{
    cache::{Cache, Cached},
    format::{self, Chunk, FRAME_BYTES, HEADER_BYTES, RecordEntry},
};
use crate::disk::DiskFile;

/// For how long a compacted topic tells that a key is gone: longer than any reader lags behind.
const GONE_FOR_MS: u64 = 86_400_000;

/// Where a record is.
pub struct Entry {
    /// Its entry's place in the journal.
    pub position: u64,
    /// Its entry's length in bytes.
    pub length: u32,
    /// Milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// The record, while it is recent.
    pub cached: Option<Arc<Record>>,
}

/// Who reads a partition for a group.
#[derive(Clone)]
pub struct Owner {
    /// The subscription's number.
    pub session: u64,
    /// Wakes its poll.
    pub wake: Arc<Notify>,
}

/// A group's view of a partition.
#[derive(Default)]
pub struct Reader {
    /// How far it came; `None` until it commits.
    pub position: Option<Position>,
    /// Whose partition it is.
    pub owner: Option<Owner>,
}

/// One partition of one topic.
pub struct Partition {
    /// Which.
    pub at: TopicPartition,
    /// The offset of the next record.
    pub next: u64,
    /// The records that are not gone.
    pub entries: BTreeMap<u64, Entry>,
    /// Of a compacted topic: the offset of each key's last record.
    keys: HashMap<Bytes, u64>,
    /// In the order of [`Topic::readers`].
    pub readers: Vec<Reader>,
    /// Wakes who waits for an offset.
    pub appended: Arc<Notify>,
}

/// One segment of the journal.
#[derive(Default)]
pub struct Segment {
    /// Its length as far as it is decided, header included.
    pub length: u64,
    /// Bytes of records that are not gone.
    pub live_bytes: u64,
    /// The records that are not gone.
    pub live: u64,
    /// Copies that are being written into it and not counted yet.
    pub arriving: u64,
    /// Absent until it is written, or while it is closed.
    pub file: Option<Arc<dyn DiskFile>>,
}

/// A copy of a record that is being written. The index points to the original until the copy can be read.
pub struct Move {
    slot: usize,
    offset: u64,
    from: u64,
    to: u64,
}

/// All segments, by their start. The last is the one that is written.
pub type Segments = BTreeMap<u64, Segment>;

/// The log in memory.
pub struct State {
    pub(super) identity: Identity,
    segment_bytes: u64,
    base: [Option<usize>; 256],
    /// All partitions; a *slot* is a place in here.
    pub(super) partitions: Vec<Partition>,
    pub(super) segments: Segments,
    pub(super) cache: Cache,
    /// What is to be written, in order.
    pub(super) pending: Vec<Chunk>,
    /// Empty chunks that keep their memory: one is filled while others are written.
    pub(super) spare: Vec<Chunk>,
    /// Copies within the pending bytes.
    pub(super) moves: Vec<Move>,
    /// The position of the next byte.
    pub(super) end: u64,
    /// What is known synced.
    pub(super) durable: u64,
    pub(super) store_flush: u64,
    /// Who is which member of which group.
    pub(super) sessions: HashMap<(Group, u32), Session>,
    pub(super) last_session: u64,
    /// Why nothing goes on.
    pub(super) failed: Option<Arc<str>>,
    pub(super) closing: bool,
    /// The next frame begins a new segment.
    pub(super) roll_next: bool,
}

/// A member's last subscription.
#[derive(Debug)]
pub struct Session {
    pub(super) number: u64,
    /// Whether it was told its partitions.
    pub(super) is_told: bool,
}

impl State {
    /// An empty log. Nothing is pending; without a segment the first frame makes one.
    pub fn new(identity: Identity, segment_bytes: u64, cache_bytes: u64) -> Self {
        let mut base = [None; 256];
        let mut partitions = Vec::new();
        for topic in Topic::all() {
            base[usize::from(topic.code())] = Some(partitions.len());
            for partition in 0..identity.layout.partitions(topic) {
                partitions.push(Partition {
                    at: TopicPartition { topic, partition },
                    next: 0,
                    entries: BTreeMap::new(),
                    keys: HashMap::new(),
                    readers: topic.readers().iter().map(|_| Reader::default()).collect(),
                    appended: Arc::new(Notify::new()),
                });
            }
        }
        Self {
            identity,
            segment_bytes,
            base,
            partitions,
            segments: Segments::new(),
            cache: Cache::new(cache_bytes),
            pending: Vec::new(),
            spare: Vec::new(),
            moves: Vec::new(),
            end: 0,
            durable: 0,
            store_flush: 0,
            sessions: HashMap::new(),
            last_session: 0,
            failed: None,
            closing: false,
            roll_next: false,
        }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.identity.layout
    }

    /// The slot of a partition, if there is such a partition.
    pub fn slot(&self, at: TopicPartition) -> Option<usize> {
        let base = self.base[usize::from(at.topic.code())]?;
        (at.partition < self.layout().partitions(at.topic)).then(|| base + at.partition as usize)
    }

    /// Writes one frame of positions and records and shows them to readers. Returns the records' offsets and the
    /// position that covers the frame.
    pub fn put(
        &mut self,
        positions: Vec<(Group, usize, Position)>,
        records: Vec<(usize, NewRecord)>,
    ) -> (Vec<u64>, u64) {
        let maps: Vec<String> = positions.iter().map(|(_, _, position)| position.done.encode()).collect();
        let envelopes: Vec<usize> = records.iter().map(|(_, record)| record.envelope.encoded_len()).collect();
        let bytes = FRAME_BYTES
            + maps.iter().map(|map| format::position_bytes(map)).sum::<usize>()
            + records.iter().zip(&envelopes).map(|((_, r), e)| format::record_bytes(r, *e)).sum::<usize>();
        let (frame, mut placed) = (self.begin_frame(bytes), Vec::with_capacity(records.len()));
        let Some(chunk) = self.pending.last_mut() else { return (Vec::new(), self.end) };
        let start = chunk.segment + chunk.at;
        for ((group, slot, position), map) in positions.iter().zip(&maps) {
            chunk.put_position(*group, self.partitions[*slot].at, position, map);
        }
        let mut offsets = Vec::with_capacity(records.len());
        for ((slot, record), envelope_bytes) in records.iter().zip(&envelopes) {
            let partition = &mut self.partitions[*slot];
            offsets.push(partition.next);
            let position = start + chunk.bytes.len() as u64;
            placed.push((position, chunk.put_record(record, partition.next, *envelope_bytes)));
            partition.next += 1;
        }
        self.end_frame(frame);
        for (((slot, record), offset), (position, length)) in records.into_iter().zip(&offsets).zip(placed) {
            let NewRecord { at, key, timestamp_ms, envelope, body } = record;
            let record = Arc::new(Record { at, offset: *offset, key: key.clone(), timestamp_ms, envelope, body });
            let entry = Entry { position, length, timestamp_ms, cached: Some(record) };
            self.insert(slot, *offset, &key, entry);
            self.show(slot);
        }
        for (group, slot, position) in positions {
            self.set_position(group, slot, position);
        }
        (offsets, self.end)
    }

    /// Wakes whoever waits for a partition's records.
    fn show(&self, slot: usize) {
        let partition = &self.partitions[slot];
        for owner in partition.readers.iter().filter_map(|reader| reader.owner.as_ref()) {
            owner.wake.notify_one();
        }
        partition.appended.notify_waiters();
    }

    /// Begins a frame that will take `bytes`, in a new segment where it does not fit into this one.
    fn begin_frame(&mut self, bytes: usize) -> usize {
        let fits = self
            .segments
            .last_key_value()
            .is_some_and(|(_, segment)| segment.length + bytes as u64 <= self.segment_bytes);
        if !fits || std::mem::take(&mut self.roll_next) {
            self.roll();
        }
        self.open_chunk();
        let (durable, flush, end) = (self.durable, self.store_flush, self.end);
        match self.pending.last_mut() {
            Some(chunk) => {
                chunk.bytes.reserve(bytes);
                chunk.begin_frame(end, durable, flush)
            }
            // `open_chunk` leaves one.
            None => 0,
        }
    }

    /// Sees to it that the last pending chunk is one for the segment that is written.
    fn open_chunk(&mut self) {
        let Some((start, segment)) = self.segments.last_key_value() else { return };
        if self.pending.last().is_none_or(|chunk| chunk.segment != *start) {
            let mut chunk = self.spare.pop().unwrap_or_default();
            chunk.clear();
            (chunk.segment, chunk.at, chunk.creates) = (*start, segment.length, false);
            self.pending.push(chunk);
        }
    }

    fn end_frame(&mut self, frame: usize) {
        if let (Some(chunk), Some(mut segment)) = (self.pending.last_mut(), self.segments.last_entry()) {
            chunk.end_frame(frame);
            segment.get_mut().length = chunk.at + chunk.bytes.len() as u64;
            self.end = chunk.segment + segment.get().length;
        }
    }

    /// Begins a new segment with its header and checkpoint.
    pub fn roll(&mut self) {
        let start = self.end;
        self.segments.insert(start, Segment::default());
        self.open_chunk();
        let (durable, flush) = (self.durable, self.store_flush);
        let Some(chunk) = self.pending.last_mut() else { return };
        chunk.creates = true;
        chunk.bytes.extend_from_slice(&format::encode_header(start, &self.identity));
        let frame = chunk.begin_frame(start + HEADER_BYTES as u64, durable, flush);
        for partition in self.partitions.iter().filter(|partition| partition.next > 0) {
            chunk.put_next_offset(partition.at, partition.next);
        }
        for partition in &self.partitions {
            for (group, reader) in partition.at.topic.readers().iter().zip(&partition.readers) {
                if let Some(position) = &reader.position {
                    chunk.put_position(*group, partition.at, position, &position.done.encode());
                }
            }
        }
        for (sealed, segment) in self.segments.range(..start) {
            chunk.put_sealed(*sealed, segment.length);
        }
        self.end_frame(frame);
    }

    /// Notes that segments are needed no longer.
    pub fn put_dropped(&mut self, dropped: &[u64]) {
        let frame = self.begin_frame(FRAME_BYTES + 9 * dropped.len());
        if let Some(chunk) = self.pending.last_mut() {
            for start in dropped {
                chunk.put_dropped(*start);
            }
        }
        self.end_frame(frame);
    }

    /// Lets go, of a segment's records, those which say that their key is gone and are older than a day.
    ///
    /// Older records of a key are in front of its last one in the journal. After a restart one of them would be the last, were
    /// it still there. So this is done in the first segment alone, with which all that is in front goes too.
    pub fn forget_gone(&mut self, segment: u64, records: &[RecordEntry<'_>], now_ms: u64) {
        if self.segments.first_key_value().is_none_or(|(first, _)| *first != segment) {
            return;
        }
        let is_over =
            |record: &&RecordEntry<'_>| record.is_empty && record.timestamp_ms.saturating_add(GONE_FOR_MS) <= now_ms;
        for record in records.iter().filter(is_over) {
            let Some(slot) = self.slot(record.at) else { continue };
            let partition = &mut self.partitions[slot];
            let is_here = partition.entries.get(&record.offset).is_some_and(|entry| entry.position == record.position);
            if is_here && partition.at.topic.retention() == Retention::Compacted {
                partition.keys.remove(record.key);
                self.remove(slot, record.offset);
            }
        }
    }

    /// Writes copies of records that are still where they were, given by slot, offset, place and entry.
    pub fn put_moved(&mut self, records: &[RecordEntry<'_>]) {
        let live: Vec<(usize, &RecordEntry<'_>)> = records
            .iter()
            .filter_map(|record| self.slot(record.at).map(|slot| (slot, record)))
            .filter(|(slot, record)| {
                let entry = self.partitions[*slot].entries.get(&record.offset);
                entry.is_some_and(|entry| entry.position == record.position)
            })
            .collect();
        if live.is_empty() {
            return;
        }
        let bytes = FRAME_BYTES + live.iter().map(|(_, record)| record.bytes.len()).sum::<usize>();
        let frame = self.begin_frame(bytes);
        if let (Some(chunk), Some(mut segment)) = (self.pending.last_mut(), self.segments.last_entry()) {
            let start = chunk.segment + chunk.at;
            segment.get_mut().arriving += live.len() as u64;
            for (slot, record) in live {
                let to = start + chunk.bytes.len() as u64;
                self.moves.push(Move { slot, offset: record.offset, from: record.position, to });
                chunk.put_moved(record.bytes);
            }
        }
        self.end_frame(frame);
    }

    /// Points the index to copies that are written now.
    pub fn apply_moves(&mut self, moves: &[Move]) {
        for Move { slot, offset, from, to } in moves {
            if let Some((_, segment)) = self.segments.range_mut(..=*to).next_back() {
                segment.arriving -= 1;
            }
            if let Some(entry) = self.partitions[*slot].entries.get_mut(offset)
                && entry.position == *from
            {
                uncount(&mut self.segments, entry);
                entry.position = *to;
                count(&mut self.segments, entry);
            }
        }
    }

    /// Ends what is pending with an empty frame for the number of the stores' next sync, and gives it away with the
    /// frame's place in the last chunk.
    pub fn take_pending(&mut self) -> (Vec<Chunk>, usize) {
        self.open_chunk();
        let (durable, flush, end) = (self.durable, self.store_flush, self.end);
        let frame = self.pending.last_mut().map_or(0, |chunk| chunk.begin_frame(end, durable, flush));
        self.end_frame(frame);
        (std::mem::take(&mut self.pending), frame)
    }

    /// Adds a record to the index.
    pub fn insert(&mut self, slot: usize, offset: u64, key: &Bytes, entry: Entry) {
        let partition = &mut self.partitions[slot];
        if partition.at.topic.retention() == Retention::Compacted {
            match partition.keys.get_mut(key) {
                Some(last) if *last > offset => return,
                Some(last) => {
                    let before = std::mem::replace(last, offset);
                    self.remove(slot, before);
                }
                None => {
                    partition.keys.insert(Bytes::copy_from_slice(key), offset);
                }
            }
        }
        count(&mut self.segments, &entry);
        if entry.cached.is_some() {
            self.cache.put(Cached { slot, offset, position: entry.position }, entry.length);
        }
        if let Some(before) = self.partitions[slot].entries.insert(offset, entry) {
            release(&mut self.segments, &mut self.cache, &before);
        }
    }

    fn remove(&mut self, slot: usize, offset: u64) {
        if let Some(entry) = self.partitions[slot].entries.remove(&offset) {
            release(&mut self.segments, &mut self.cache, &entry);
        }
    }

    /// Moves a group and lets go what every group has passed.
    pub fn set_position(&mut self, group: Group, slot: usize, position: Position) {
        let partition = &mut self.partitions[slot];
        let Some(reader) = partition.at.topic.readers().iter().position(|reader| *reader == group) else { return };
        partition.readers[reader].position = Some(position);
        self.expire(slot, 0);
    }

    /// Lets go what a partition's retention does not hold at a time.
    pub fn expire(&mut self, slot: usize, now_ms: u64) {
        let partition = &mut self.partitions[slot];
        let retention = partition.at.topic.retention();
        let passed = match retention {
            Retention::Compacted => return,
            Retention::Consumed => {
                partition.readers.iter().map(|r| r.position.as_ref().map_or(0, |p| p.offset)).min().unwrap_or(0)
            }
            Retention::For(_) => u64::MAX,
        };
        while let Some(first) = partition.entries.first_entry() {
            let gone = match retention {
                Retention::For(ms) => first.get().timestamp_ms.saturating_add(ms) <= now_ms,
                _ => *first.key() < passed,
            };
            if !gone {
                break;
            }
            release(&mut self.segments, &mut self.cache, &first.remove());
        }
    }

    /// Lets go what only time lets go.
    pub fn expire_all(&mut self, now_ms: u64) {
        for slot in 0..self.partitions.len() {
            if matches!(self.partitions[slot].at.topic.retention(), Retention::For(_)) {
                self.expire(slot, now_ms);
            }
        }
    }

    /// Takes records out of the cache until it is within its limit.
    pub fn shrink_cache(&mut self) {
        let Self { cache, partitions, durable, .. } = self;
        while let Some(oldest) = cache.oldest_over_limit(*durable) {
            if let Some(entry) = partitions[oldest.slot].entries.get_mut(&oldest.offset)
                && entry.position < *durable
                && entry.cached.take().is_some()
            {
                cache.forget(entry.length);
            }
        }
        cache.tidy(|cached| {
            partitions[cached.slot].entries.get(&cached.offset).is_some_and(|entry| entry.cached.is_some())
        });
    }
}

fn count(segments: &mut Segments, entry: &Entry) {
    if let Some((_, segment)) = segments.range_mut(..=entry.position).next_back() {
        segment.live += 1;
        segment.live_bytes += u64::from(entry.length);
    }
}

fn uncount(segments: &mut Segments, entry: &Entry) {
    if let Some((_, segment)) = segments.range_mut(..=entry.position).next_back() {
        segment.live -= 1;
        segment.live_bytes -= u64::from(entry.length);
    }
}

fn release(segments: &mut Segments, cache: &mut Cache, entry: &Entry) {
    uncount(segments, entry);
    if entry.cached.is_some() {
        cache.forget(entry.length);
    }
}
