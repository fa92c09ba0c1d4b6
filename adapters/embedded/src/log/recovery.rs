//! Opens the journal: finds out what is there, tells a torn tail from damage, and rebuilds the index.
//!
//! Everything up to the *durable mark* was acknowledged and must be whole. The mark is the greatest of what the mark
//! file says, what any whole frame says, even one behind a damaged place, and the start of the newest segment, which is
//! made only after all before it is synced. A place that cannot be read at or past the mark is a torn tail and is cut.
//! Before the mark it is damage: opening fails and changes nothing. Where one half of the mark file cannot be read, the
//! mark may have been later than it seems, and a torn tail is taken for damage. What then goes unnoticed is a journal that
//! lost its last frames exactly between two of them, or its newest segment, besides the half of the mark file that knew.

use std::{collections::BTreeSet, io, sync::Arc};

use bytes::Bytes;
use herald_core::{ports::log::Identity, topic::Layout};

use super::{
    LogOptions,
    flush::Writer,
    format::{self, Entry, Frame, HEADER_BYTES, Header, RecordEntry, UnknownEntry},
    mark::{self, MarkFile, Marked, NoMark},
    state::{self, Segment, State},
};
use crate::disk::{Disk, DiskFile};

/// Why a journal cannot be opened. Nothing on the disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk does not do what it is asked.
    #[error("could not {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Bytes that were acknowledged cannot be read.
    #[error(
        "{file} is damaged at byte {at} (journal position {position}, but everything up to {durable} was acknowledged): \
         {why}. Nothing was changed. Restore the data directory from a backup"
    )]
    Damaged {
        /// The file's name.
        file: String,
        /// The byte within the file.
        at: u64,
        /// The byte within the journal.
        position: u64,
        /// Everything before this position was acknowledged.
        durable: u64,
        /// What is wrong.
        why: String,
    },
    /// The end cannot be read, and neither can one half of what says up to where it was acknowledged.
    #[error(
        "journal.mark is damaged in one of its two halves, and {file} cannot be read from byte {at} on: what stood there \
         may have been acknowledged. Nothing was changed. Restore the data directory from a backup"
    )]
    UncertainEnd {
        /// The newest segment's name.
        file: String,
        /// The byte within the file.
        at: u64,
    },
    /// A file that must be there is not.
    #[error(
        "{file} is missing: {why}. Nothing was changed. Put the file back, or restore the data directory from a backup"
    )]
    Missing {
        /// The file's name.
        file: String,
        /// How this is known.
        why: String,
    },
    /// Something newer wrote the journal.
    #[error("{file} has format version {found}, and this version of Herald knows {known}. Use the newer Herald")]
    NewerFormat {
        /// The file's name.
        file: String,
        /// The version of the format.
        found: u32,
        /// The latest version known.
        known: u32,
    },
    /// The journal belongs to another log.
    #[error(
        "{file} was written for {found:?} in log epoch {found_epoch}, but the data directory says {wanted:?} and {wanted_epoch}"
    )]
    OtherLog {
        /// The file's name.
        file: String,
        /// The layout in the file.
        found: Layout,
        /// The epoch in the file.
        found_epoch: u32,
        /// The layout of the data directory.
        wanted: Layout,
        /// The epoch of the data directory.
        wanted_epoch: u32,
    },
    /// The stores are older than the journal.
    #[error(
        "the store lost synced data: the journal rests on its flush {noted}, and it knows {known} only. Nothing was \
         changed. Restore the data directory from a backup"
    )]
    StoreBehind {
        /// The flush that the journal noted.
        noted: u64,
        /// The last flush that the store knows.
        known: u64,
    },
}

impl OpenError {
    pub(super) fn io(what: &str, source: io::Error) -> Self {
        Self::Io { what: what.to_owned(), source }
    }
}

/// A segment that was read.
struct Scanned {
    start: u64,
    bytes: Bytes,
    /// Where in the file the whole frames end.
    whole: usize,
}

impl Scanned {
    fn read(disk: &dyn Disk, start: u64) -> Result<(Self, Arc<dyn DiskFile>), OpenError> {
        let name = format::segment_name(start);
        let reading = |source| OpenError::Io { what: format!("read {name}"), source };
        let file = disk.open(&name).map_err(reading)?;
        let mut bytes = vec![0; file.length().map_err(reading)? as usize];
        file.read_at(0, &mut bytes).map_err(reading)?;
        let mut scanned = Self { start, bytes: bytes.into(), whole: 0 };
        if scanned.header().is_some_and(|header| header.start == start) {
            scanned.whole = HEADER_BYTES;
            while let Some(frame) = Frame::decode(&scanned.bytes[scanned.whole..], scanned.end()) {
                scanned.whole += frame.bytes.len();
            }
        }
        Ok((scanned, file))
    }

    fn header(&self) -> Option<Header> {
        Header::decode(&self.bytes)
    }

    /// The position at which the whole frames end.
    fn end(&self) -> u64 {
        self.start + self.whole as u64
    }

    fn is_whole(&self) -> bool {
        self.whole == self.bytes.len()
    }

    fn has_checkpoint(&self) -> bool {
        self.whole > HEADER_BYTES
    }

    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        let mut at = HEADER_BYTES;
        std::iter::from_fn(move || {
            let frame = Frame::decode(self.bytes.get(at..self.whole)?, self.start + at as u64)?;
            at += frame.bytes.len();
            Some(frame)
        })
    }

    /// What the frames say was synced, those behind a damaged place too.
    fn proven(&self) -> u64 {
        let whole = self.frames().map(|frame| frame.durable).max().unwrap_or(0);
        let (mut at, mut behind) = (self.whole, 0);
        while let Some((found, frame)) = Frame::find(&self.bytes, at, self.start) {
            behind = behind.max(frame.durable);
            at = found + frame.bytes.len();
        }
        whole.max(behind)
    }

    fn damaged(&self, durable: u64, why: &str) -> OpenError {
        OpenError::Damaged {
            file: format::segment_name(self.start),
            at: self.whole as u64,
            position: self.end(),
            durable,
            why: why.to_owned(),
        }
    }

    /// Refuses what looks like a torn end where the mark does not say for certain that it was never acknowledged.
    fn check_end(&self, marked: Marked) -> Result<(), OpenError> {
        if marked.is_whole || (self.has_checkpoint() && self.is_whole()) {
            return Ok(());
        }
        Err(OpenError::UncertainEnd { file: format::segment_name(self.start), at: self.whole as u64 })
    }

    fn check_header(&self, identity: &Identity) -> Result<(), OpenError> {
        let Some(header) = self.header() else { return Ok(()) };
        let file = format::segment_name(self.start);
        if header.version > Header::VERSION {
            return Err(OpenError::NewerFormat { file, found: header.version, known: Header::VERSION });
        }
        if header.layout != identity.layout || header.epoch > identity.epoch {
            return Err(OpenError::OtherLog {
                file,
                found: header.layout,
                found_epoch: header.epoch,
                wanted: identity.layout,
                wanted_epoch: identity.epoch,
            });
        }
        Ok(())
    }
}

/// Opens the journal or begins one.
pub fn open(
    disk: &dyn Disk,
    identity: &Identity,
    options: &LogOptions,
    now_ms: u64,
) -> Result<(State, Writer), OpenError> {
    let names = disk.list().map_err(|e| OpenError::io("list the journal's directory", e))?;
    let mut starts: Vec<u64> = names.iter().filter_map(|name| format::segment_start(name)).collect();
    starts.sort_unstable();
    let mut state = State::new(identity.clone(), options.segment_bytes, options.cache_bytes);
    let has_mark = names.iter().any(|name| name == mark::NAME);
    let (mut mark, marked) = match has_mark {
        true => open_mark(disk)?,
        false => match starts.first() {
            None => {
                let mark = MarkFile::create(disk).map_err(|e| OpenError::io("create journal.mark", e))?;
                (mark, Marked { position: 0, is_whole: true })
            }
            Some(_) => {
                let why = "it is as old as the journal, which is there".to_owned();
                return Err(OpenError::Missing { file: mark::NAME.to_owned(), why });
            }
        },
    };
    let file = match starts.pop() {
        None => {
            check_no_segment(marked)?;
            None
        }
        Some(newest) => recover(disk, identity, options, &mut state, starts, newest, marked)?,
    };
    if file.is_none() {
        state.roll();
    }
    state.expire_all(now_ms);
    if !marked.is_whole {
        tracing::warn!(
            "journal.mark was damaged in one of its two halves; the journal is whole, and the half is written anew"
        );
    }
    mark.write(state.durable).map_err(|e| OpenError::io("write journal.mark", e))?;
    let writer = Writer { mark, file, mark_synced: None, mark_is_dirty: true, last_expiry_ms: now_ms, cleaning: None };
    Ok((state, writer))
}

fn open_mark(disk: &dyn Disk) -> Result<(MarkFile, Marked), OpenError> {
    MarkFile::open(disk).map_err(|no_mark| match no_mark {
        NoMark::Io(source) => OpenError::io("read journal.mark", source),
        NoMark::Damaged => OpenError::Damaged {
            file: mark::NAME.to_owned(),
            at: 0,
            position: 0,
            durable: 0,
            why: "neither of its slots has the right checksum".to_owned(),
        },
    })
}

/// A journal without a segment is one that was never written.
fn check_no_segment(marked: Marked) -> Result<(), OpenError> {
    let why = match marked {
        Marked { position: 0, is_whole: true } => return Ok(()),
        Marked { position: 0, is_whole: false } => "journal.mark is damaged in one of its two halves".to_owned(),
        Marked { position, .. } => format!("the journal was written up to position {position}"),
    };
    let why = format!("{why}, and no segment is there");
    Err(OpenError::Missing { file: "journal-*.seg".to_owned(), why })
}

type OpenSegment = (u64, Arc<dyn DiskFile>);

/// A journal that is as it must be, and what opening it would change.
struct Sound {
    last: Scanned,
    file: Arc<dyn DiskFile>,
    /// Segments that a power cut left behind without a checkpoint.
    torn: Vec<u64>,
}

/// Reads the journal into `state` and mends its end. Returns the segment to go on writing, or `None` if the journal has
/// to begin anew because a power cut took its very first bytes.
fn recover(
    disk: &dyn Disk,
    identity: &Identity,
    options: &LogOptions,
    state: &mut State,
    older: Vec<u64>,
    newest: u64,
    marked: Marked,
) -> Result<Option<OpenSegment>, OpenError> {
    let Some(sound) = examine(disk, identity, options.store_flush, state, older.clone(), newest, marked)? else {
        delete(disk, &[newest])?;
        return Ok(None);
    };
    let Sound { last, file, mut torn } = sound;
    let needed: BTreeSet<u64> = state.segments.keys().copied().collect();
    torn.extend(older.into_iter().filter(|start| !needed.contains(start)));
    delete(disk, &torn)?;
    let writing = |source| OpenError::Io { what: format!("cut {}", format::segment_name(last.start)), source };
    if !last.is_whole() {
        let (file_name, cut_bytes) = (format::segment_name(last.start), last.bytes.len() - last.whole);
        tracing::warn!(file_name, at = last.whole, cut_bytes, "cut a torn tail that was never acknowledged");
        file.truncate(last.whole as u64).map_err(writing)?;
    }
    // What is whole need not be durable yet: only the process may have ended.
    file.sync().map_err(writing)?;
    state.end = last.end();
    state.durable = last.end();
    state.roll_next = last.header().is_some_and(|header| header.epoch != identity.epoch);
    Ok(Some((last.start, file)))
}

/// Reads the journal into `state` and changes nothing. `None` if a power cut took its very first bytes.
fn examine(
    disk: &dyn Disk,
    identity: &Identity,
    store_flush: u64,
    state: &mut State,
    mut older: Vec<u64>,
    newest: u64,
    marked: Marked,
) -> Result<Option<Sound>, OpenError> {
    // The last segment with a checkpoint tells which others must be there.
    let (mut last, mut file) = Scanned::read(disk, newest)?;
    last.check_header(identity)?;
    let mut durable = marked.position.max(newest).max(last.proven());
    let mut torn = Vec::new();
    if !last.has_checkpoint() {
        if durable > last.start {
            return Err(last.damaged(durable, "its beginning cannot be read"));
        }
        last.check_end(marked)?;
        torn.push(last.start);
        let Some(before) = older.pop() else { return Ok(None) };
        (last, file) = Scanned::read(disk, before)?;
        last.check_header(identity)?;
        durable = durable.max(last.proven());
    }
    if last.end() < durable {
        return Err(last.damaged(durable, "a frame cannot be read, or the file is too short"));
    }
    last.check_end(marked)?;
    if torn.first().is_some_and(|next| *next != last.end()) {
        return Err(last.damaged(durable, "the next segment does not begin where this one ends"));
    }
    let (sealed, dropped) = segments_of(&last).map_err(|e| last.damaged(durable, &e.to_string()))?;
    for (start, length) in sealed.iter().filter(|(start, _)| !dropped.contains(start)) {
        if older.binary_search(start).is_err() {
            let why = format!("{} says that it is needed", format::segment_name(last.start));
            return Err(OpenError::Missing { file: format::segment_name(*start), why });
        }
        let (segment, _) = Scanned::read(disk, *start)?;
        segment.check_header(identity)?;
        if !segment.is_whole() || segment.bytes.len() as u64 != *length {
            return Err(segment.damaged(durable, "a frame cannot be read, or the file has another length"));
        }
        apply(state, &segment).map_err(|e| segment.damaged(durable, &e.to_string()))?;
    }
    apply(state, &last).map_err(|e| last.damaged(durable, &e.to_string()))?;
    if state.store_flush > store_flush {
        return Err(OpenError::StoreBehind { noted: state.store_flush, known: store_flush });
    }
    Ok(Some(Sound { last, file, torn }))
}

/// Reads the journal into a state as [`open`] does, and changes nothing. Also tells every place that cannot be read,
/// where opening would stop at the first.
pub(super) fn inspect(
    disk: &dyn Disk,
    identity: &Identity,
    store_flush: u64,
) -> (Result<State, OpenError>, Vec<String>) {
    let mut state = State::new(identity.clone(), u64::MAX, 0);
    let names = match disk.list() {
        Ok(names) => names,
        Err(error) => return (Err(OpenError::io("list the journal's directory", error)), Vec::new()),
    };
    let mut starts: Vec<u64> = names.iter().filter_map(|name| format::segment_start(name)).collect();
    starts.sort_unstable();
    let holes = starts.iter().flat_map(|start| holes(disk, *start)).collect();
    let marked = match open_mark(disk) {
        Ok((_, marked)) => marked,
        // A journal that never was.
        Err(_) if starts.is_empty() && !names.iter().any(|name| name == mark::NAME) => return (Ok(state), holes),
        Err(error) => return (Err(error), holes),
    };
    let Some(newest) = starts.pop() else {
        return (check_no_segment(marked).map(|()| state), holes);
    };
    let examined = examine(disk, identity, store_flush, &mut state, starts, newest, marked);
    (examined.map(|_| state), holes)
}

/// The places of a segment where something that is not a whole frame stands before a whole one.
fn holes(disk: &dyn Disk, start: u64) -> Vec<String> {
    let name = format::segment_name(start);
    let (scanned, _) = match Scanned::read(disk, start) {
        Ok(read) => read,
        Err(error) => return vec![error.to_string()],
    };
    let (mut at, mut holes) = (scanned.whole, Vec::new());
    while let Some((found, frame)) = Frame::find(&scanned.bytes, at, scanned.start) {
        if found > at {
            let position = scanned.start + at as u64;
            holes.push(format!("{name}: bytes {at} to {found} (journal position {position}) cannot be read"));
        }
        at = found + frame.bytes.len();
    }
    holes
}

fn delete(disk: &dyn Disk, starts: &[u64]) -> Result<(), OpenError> {
    for start in starts {
        let name = format::segment_name(*start);
        disk.delete(&name).map_err(|source| OpenError::Io { what: format!("delete {name}"), source })?;
    }
    match starts.is_empty() {
        true => Ok(()),
        false => disk.sync_directory().map_err(|e| OpenError::io("sync the journal's directory", e)),
    }
}

type Sealed = Vec<(u64, u64)>;

/// What a segment says about the older ones: those that were needed when it began, and those dropped since.
fn segments_of(last: &Scanned) -> Result<(Sealed, BTreeSet<u64>), UnknownEntry> {
    let (mut sealed, mut dropped) = (Vec::new(), BTreeSet::new());
    for frame in last.frames() {
        for entry in frame.entries() {
            match entry? {
                Entry::Sealed(start, length) => sealed.push((start, length)),
                Entry::Dropped(start) => {
                    dropped.insert(start);
                }
                Entry::Record(_) | Entry::Position(..) | Entry::NextOffset(..) => (),
            }
        }
    }
    Ok((sealed, dropped))
}

/// Replays a segment.
fn apply(state: &mut State, scanned: &Scanned) -> Result<(), UnknownEntry> {
    state.segments.insert(scanned.start, Segment { length: scanned.whole as u64, ..Segment::default() });
    for frame in scanned.frames() {
        for entry in frame.entries() {
            match entry? {
                Entry::Record(record) => apply_record(state, &record)?,
                Entry::Position(group, at, position) => {
                    let slot = state.slot(at).ok_or(UnknownEntry(frame.position))?;
                    state.set_position(group, slot, position);
                }
                Entry::NextOffset(at, next) => {
                    let slot = state.slot(at).ok_or(UnknownEntry(frame.position))?;
                    let partition = &mut state.partitions[slot];
                    partition.next = partition.next.max(next);
                }
                Entry::Sealed(..) | Entry::Dropped(_) => (),
            }
        }
        state.store_flush = state.store_flush.max(frame.store_flush);
    }
    Ok(())
}

fn apply_record(state: &mut State, record: &RecordEntry<'_>) -> Result<(), UnknownEntry> {
    let slot = state.slot(record.at).ok_or(UnknownEntry(record.position))?;
    let partition = &mut state.partitions[slot];
    partition.next = partition.next.max(record.offset + 1);
    let entry = state::Entry {
        position: record.position,
        length: record.bytes.len() as u32,
        timestamp_ms: record.timestamp_ms,
        cached: None,
    };
    state.insert(slot, record.offset, &Bytes::copy_from_slice(record.key), entry);
    state.expire(slot, 0);
    Ok(())
}
