//! The journal's bytes. This layout is for good: a change needs a new format version in the segment header.
//!
//! All numbers are little-endian. A *position* is a byte's place in the journal as a whole, through all segments that
//! ever were. The file `journal-<position of its first byte, 20 digits>.seg` is one segment: a header, then frames.
//!
//! ```text
//! header, 64 bytes
//!    0  8  "HRLDSEG\n"
//!    8  4  format version, 1
//!   12  4  log epoch
//!   16  4  shards
//!   20  4  requests partitions
//!   24  4  receipts partitions
//!   28  4  zero
//!   32  8  position of the header: all before it was synced when the segment was made
//!   40 20  zero
//!   60  4  crc32c of bytes 0 to 60
//!
//! frame, 36 bytes and entries; it is one commit, in whole or not at all
//!    0  4  0xF7 'H' 'J' 'F'
//!    4  4  crc32c of everything that follows
//!    8  4  length of everything that follows this field
//!   12  8  position of the frame
//!   20  8  durable: the position up to which the journal was known synced when the frame was written
//!   28  8  store flush: the number of the stores' last sync before the frame was written
//!   36     entries until the end
//!
//! entry
//!   0x01 record, 0x04 moved record (a copy of a live one whose segment goes; same place, same offset)
//!        1  4  length of everything after the crc
//!        5  4  crc32c of everything after the crc
//!        9  1  topic code        10  4  partition     14  8  offset          22  8  timestamp_ms
//!       30  4  key length        34  4  envelope length    38  key, envelope (protobuf), body
//!   0x02 position of a group
//!        1  1  group code         2  1  topic code     3  4  partition        7  8  offset
//!       15  4  starts            19  2  length of the done-map               21  done-map (ASCII)
//!   0x03 next offset of a partition
//!        1  1  topic code         2  4  partition      6  8  next offset
//!   0x05 sealed segment
//!        1  8  position           9  8  length in bytes
//!   0x06 dropped segment
//!        1  8  position
//! ```
//!
//! A segment's first frame is a checkpoint: the next offset of every partition, the positions of all groups, and the
//! sealed segments that are still needed. So an older segment can go as soon as it holds no live record. The last
//! frame of each flush has no entries; it tells the number of the stores' sync that preceded the write.

use bytes::{Buf, Bytes};
use herald_core::{
    done_map::DoneMap,
    ports::log::{Identity, NewRecord, Position, Record},
    record::Envelope,
    topic::{Group, Layout, Topic, TopicPartition},
};
use prost::Message;

/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a frame before its entries.
pub const FRAME_BYTES: usize = 36;
/// Bytes of a record entry before key, envelope and body.
pub const RECORD_BYTES: usize = 38;
/// The most bytes that a frame may have.
pub const MAX_FRAME_BYTES: usize = 256 << 20;

const HEADER_MAGIC: &[u8; 8] = b"HRLDSEG\n";
const FORMAT_VERSION: u32 = 1;
const FRAME_MAGIC: [u8; 4] = [0xF7, b'H', b'J', b'F'];
const CRC_AT: usize = 4;
const COVERED_FROM: usize = 8;
const POSITIONED_FROM: usize = 12;

/// The name of the segment that begins at a position.
pub fn segment_name(start: u64) -> String {
    format!("journal-{start:020}.seg")
}

/// Where the segment of a name begins; `None` for other files.
pub fn segment_start(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The header of a segment.
pub fn encode_header(start: u64, identity: &Identity) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(HEADER_MAGIC);
    let layout = &identity.layout;
    let numbers = [FORMAT_VERSION, identity.epoch, layout.shards, layout.requests, layout.receipts];
    for (i, number) in numbers.into_iter().enumerate() {
        header[8 + 4 * i..12 + 4 * i].copy_from_slice(&number.to_le_bytes());
    }
    header[32..40].copy_from_slice(&start.to_le_bytes());
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// A segment's header as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format's version; the rest means nothing if it is not [`Header::VERSION`].
    pub version: u32,
    /// The log epoch when the segment was made.
    pub epoch: u32,
    /// The partitions.
    pub layout: Layout,
    /// The position of its first byte.
    pub start: u64,
}

impl Header {
    /// The version that this code reads and writes.
    pub const VERSION: u32 = FORMAT_VERSION;

    /// Reads a header; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        let (mut covered, mut crc) = (&header[..60], &header[60..]);
        if &header[..8] != HEADER_MAGIC || crc32c::crc32c(covered) != crc.get_u32_le() {
            return None;
        }
        covered.advance(8);
        let (version, epoch) = (covered.get_u32_le(), covered.get_u32_le());
        let layout =
            Layout { shards: covered.get_u32_le(), requests: covered.get_u32_le(), receipts: covered.get_u32_le() };
        covered.advance(4);
        Some(Self { version, epoch, layout, start: covered.get_u64_le() })
    }
}

/// Bytes that will be written at one place of one segment. Checksums are left open until [`Chunk::seal`], so that they
/// are made by the flusher and not under the log's lock.
#[derive(Default)]
pub struct Chunk {
    /// The segment, by its start.
    pub segment: u64,
    /// Where in the segment's file the bytes go.
    pub at: u64,
    /// Whether the segment's file is to be made first.
    pub creates: bool,
    /// Header, frames.
    pub bytes: Vec<u8>,
    seals: Vec<Seal>,
}

struct Seal {
    crc_at: usize,
    from: usize,
    to: usize,
}

impl Chunk {
    /// Begins a frame at a position and returns its place in the chunk.
    pub fn begin_frame(&mut self, position: u64, durable: u64, store_flush: u64) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&FRAME_MAGIC);
        self.bytes.extend_from_slice(&[0; 8]);
        for number in [position, durable, store_flush] {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        at
    }

    /// Ends the frame that began at a place.
    pub fn end_frame(&mut self, at: usize) {
        let length = (self.bytes.len() - at - POSITIONED_FROM) as u32;
        self.bytes[at + COVERED_FROM..at + POSITIONED_FROM].copy_from_slice(&length.to_le_bytes());
        self.seals.push(Seal { crc_at: at + CRC_AT, from: at + COVERED_FROM, to: self.bytes.len() });
    }

    /// Changes the store flush of the frame at a place, before the seal.
    pub fn set_store_flush(&mut self, at: usize, store_flush: u64) {
        self.bytes[at + 28..at + 36].copy_from_slice(&store_flush.to_le_bytes());
    }

    /// Adds a record and returns the entry's length.
    pub fn put_record(&mut self, record: &NewRecord, offset: u64, envelope_bytes: usize) -> u32 {
        let at = self.begin_record(0x01, RECORD_BYTES - 9 + record.key.len() + envelope_bytes + record.body.len());
        let out = &mut self.bytes;
        out.push(record.at.topic.code());
        out.extend_from_slice(&record.at.partition.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&record.timestamp_ms.to_le_bytes());
        out.extend_from_slice(&(record.key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(envelope_bytes as u32).to_le_bytes());
        out.extend_from_slice(&record.key);
        record.envelope.encode_raw(out);
        out.extend_from_slice(&record.body);
        self.end_record(at)
    }

    /// Adds a copy of a record entry and returns its length.
    pub fn put_moved(&mut self, entry: &[u8]) -> u32 {
        let at = self.begin_record(0x04, entry.len() - 9);
        self.bytes.extend_from_slice(&entry[9..]);
        self.end_record(at)
    }

    fn begin_record(&mut self, tag: u8, length: usize) -> usize {
        let at = self.bytes.len();
        self.bytes.push(tag);
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        at
    }

    fn end_record(&mut self, at: usize) -> u32 {
        self.seals.push(Seal { crc_at: at + 5, from: at + 9, to: self.bytes.len() });
        (self.bytes.len() - at) as u32
    }

    /// Adds a group's position.
    pub fn put_position(&mut self, group: Group, at: TopicPartition, position: &Position, done: &str) {
        let out = &mut self.bytes;
        out.extend_from_slice(&[0x02, group.code(), at.topic.code()]);
        out.extend_from_slice(&at.partition.to_le_bytes());
        out.extend_from_slice(&position.offset.to_le_bytes());
        out.extend_from_slice(&position.starts.to_le_bytes());
        out.extend_from_slice(&(done.len() as u16).to_le_bytes());
        out.extend_from_slice(done.as_bytes());
    }

    /// Adds a partition's next offset.
    pub fn put_next_offset(&mut self, at: TopicPartition, next: u64) {
        self.bytes.extend_from_slice(&[0x03, at.topic.code()]);
        self.bytes.extend_from_slice(&at.partition.to_le_bytes());
        self.bytes.extend_from_slice(&next.to_le_bytes());
    }

    /// Adds a sealed segment that is still needed.
    pub fn put_sealed(&mut self, start: u64, length: u64) {
        self.bytes.push(0x05);
        self.bytes.extend_from_slice(&start.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }

    /// Adds a segment that is needed no longer.
    pub fn put_dropped(&mut self, start: u64) {
        self.bytes.push(0x06);
        self.bytes.extend_from_slice(&start.to_le_bytes());
    }

    /// Fills in the checksums.
    pub fn seal(&mut self) {
        for Seal { crc_at, from, to } in self.seals.drain(..) {
            let crc = crc32c::crc32c(&self.bytes[from..to]);
            self.bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// Empties the chunk and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.seals.clear();
    }
}

/// The bytes that a position's entry takes.
pub fn position_bytes(done: &str) -> usize {
    21 + done.len()
}

/// The bytes that a record's entry takes.
pub fn record_bytes(record: &NewRecord, envelope_bytes: usize) -> usize {
    RECORD_BYTES + record.key.len() + envelope_bytes + record.body.len()
}

/// A frame that is whole.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its place in the journal.
    pub position: u64,
    /// All of its bytes.
    pub bytes: &'a [u8],
    /// What was known synced when it was written.
    pub durable: u64,
    /// The stores' last sync before it was written.
    pub store_flush: u64,
}

impl<'a> Frame<'a> {
    /// Reads the frame that begins the bytes and must have this position; `None` if it is damaged or cut.
    pub fn decode(bytes: &'a [u8], position: u64) -> Option<Self> {
        let length = Self::length(bytes)?;
        let frame = bytes.get(..length)?;
        let mut numbers = &frame[CRC_AT..FRAME_BYTES];
        let crc = numbers.get_u32_le();
        numbers.advance(4);
        let (at, durable, store_flush) = (numbers.get_u64_le(), numbers.get_u64_le(), numbers.get_u64_le());
        if at != position || crc32c::crc32c(&frame[COVERED_FROM..]) != crc {
            return None;
        }
        Some(Self { position, bytes: frame, durable, store_flush })
    }

    /// The length that the frame which begins the bytes claims to have; `None` if no frame begins there.
    pub fn length(bytes: &[u8]) -> Option<usize> {
        if bytes.len() < FRAME_BYTES || bytes[..4] != FRAME_MAGIC {
            return None;
        }
        let length = (&bytes[COVERED_FROM..]).get_u32_le() as usize + POSITIONED_FROM;
        (FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length).then_some(length)
    }

    /// The next whole frame at or after a place in a segment's bytes.
    pub fn find(segment: &'a [u8], mut at: usize, start: u64) -> Option<(usize, Self)> {
        while let Some(found) = segment.get(at..)?.windows(4).position(|w| w == FRAME_MAGIC) {
            at += found;
            if let Some(frame) = Self::decode(&segment[at..], start + at as u64) {
                return Some((at, frame));
            }
            at += 1;
        }
        None
    }

    /// The frame's entries; an `Err` ends them.
    pub fn entries(&self) -> Entries<'a> {
        Entries { frame: *self, at: FRAME_BYTES }
    }
}

/// A frame whose checksum is right but whose entries make no sense to this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry at position {0} is of a kind that this version does not know")]
pub struct UnknownEntry(pub u64);

/// What a frame holds.
pub enum Entry<'a> {
    /// A record.
    Record(RecordEntry<'a>),
    /// How far a group came.
    Position(Group, TopicPartition, Position),
    /// The offset of a partition's next record.
    NextOffset(TopicPartition, u64),
    /// Start and length of an older segment that is still needed.
    Sealed(u64, u64),
    /// The start of a segment that is needed no longer.
    Dropped(u64),
}

/// A record's entry.
pub struct RecordEntry<'a> {
    /// Its place in the journal.
    pub position: u64,
    /// The whole entry.
    pub bytes: &'a [u8],
    /// Where the record is.
    pub at: TopicPartition,
    /// Its offset there.
    pub offset: u64,
    /// Milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// What it is compacted by.
    pub key: &'a [u8],
    /// Whether it has no body.
    pub is_empty: bool,
}

/// Iterates over a frame's entries.
pub struct Entries<'a> {
    frame: Frame<'a>,
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, UnknownEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.frame.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let position = self.frame.position + self.at as u64;
        match decode_entry(rest, position) {
            Some((entry, length)) => {
                self.at += length;
                Some(Ok(entry))
            }
            None => {
                self.at = self.frame.bytes.len();
                Some(Err(UnknownEntry(position)))
            }
        }
    }
}

fn decode_entry(bytes: &[u8], position: u64) -> Option<(Entry<'_>, usize)> {
    let mut rest = bytes;
    let entry = match rest.try_get_u8().ok()? {
        0x01 | 0x04 => {
            let length = rest.try_get_u32_le().ok()? as usize + 9;
            let (fields, envelope_at) = Fields::decode(bytes.get(..length)?)?;
            let Fields { at, offset, timestamp_ms, key, envelope_bytes } = fields;
            let is_empty = envelope_at + envelope_bytes == length;
            let record = RecordEntry { position, bytes: &bytes[..length], at, offset, timestamp_ms, key, is_empty };
            return Some((Entry::Record(record), length));
        }
        0x02 => {
            let group = Group::of_code(rest.try_get_u8().ok()?)?;
            let at = partition(&mut rest)?;
            let offset = rest.try_get_u64_le().ok()?;
            let starts = rest.try_get_u32_le().ok()?;
            let length = rest.try_get_u16_le().ok()? as usize;
            let done = DoneMap::decode(std::str::from_utf8(rest.get(..length)?).ok()?).ok()?;
            rest.advance(length);
            Entry::Position(group, at, Position { offset, done, starts })
        }
        0x03 => Entry::NextOffset(partition(&mut rest)?, rest.try_get_u64_le().ok()?),
        0x05 => Entry::Sealed(rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?),
        0x06 => Entry::Dropped(rest.try_get_u64_le().ok()?),
        _ => return None,
    };
    Some((entry, bytes.len() - rest.len()))
}

fn partition(bytes: &mut &[u8]) -> Option<TopicPartition> {
    let topic = Topic::of_code(bytes.try_get_u8().ok()?)?;
    Some(TopicPartition { topic, partition: bytes.try_get_u32_le().ok()? })
}

struct Fields<'a> {
    at: TopicPartition,
    offset: u64,
    timestamp_ms: u64,
    key: &'a [u8],
    envelope_bytes: usize,
}

impl<'a> Fields<'a> {
    /// The fields of a record's entry and where its envelope begins.
    fn decode(entry: &'a [u8]) -> Option<(Self, usize)> {
        let mut rest = entry.get(9..)?;
        let at = partition(&mut rest)?;
        let (offset, timestamp_ms) = (rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?);
        let (key_bytes, envelope_bytes) = (rest.try_get_u32_le().ok()? as usize, rest.try_get_u32_le().ok()? as usize);
        let key = rest.get(..key_bytes)?;
        rest.get(key_bytes..key_bytes.checked_add(envelope_bytes)?)?;
        Some((Self { at, offset, timestamp_ms, key, envelope_bytes }, RECORD_BYTES + key_bytes))
    }
}

/// Reads a record from its entry, which is checked; `None` if it is damaged. The body shares the bytes.
pub fn decode_record(entry: &Bytes) -> Option<Record> {
    let mut head = entry.get(1..9)?;
    let (length, crc) = (head.get_u32_le() as usize, head.get_u32_le());
    if length + 9 != entry.len() || crc32c::crc32c(&entry[9..]) != crc {
        return None;
    }
    let (fields, envelope_at) = Fields::decode(entry)?;
    let body_at = envelope_at + fields.envelope_bytes;
    Some(Record {
        at: fields.at,
        offset: fields.offset,
        key: entry.slice(RECORD_BYTES..envelope_at),
        timestamp_ms: fields.timestamp_ms,
        envelope: Envelope::decode(entry.slice(envelope_at..body_at)).ok()?,
        body: entry.slice(body_at..),
    })
}
