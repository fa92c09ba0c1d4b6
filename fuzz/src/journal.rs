//! A journal that was damaged: it opens with all that was acknowledged, or is refused with a reason and left as it is.
//!
//! One loss goes unnoticed, and is allowed for: the end cut off between two frames, and the mark that knew of it damaged.
//!
//! An input is edits of six bytes: what to do, in which file, where (three bytes), and a value. The first byte of all says
//! whether checksums are made right afterwards: then it is a journal that nobody would write, and any answer will do that
//! comes at all.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use herald_core::{
    clock::Clock,
    done_map::DoneMap,
    ports::log::{Commit, Identity, Log, Member, NewRecord, Position, partition},
    record::Envelope,
    topic::{Group, Lane, Topic},
};
use herald_embedded::{
    SyncFirst,
    disk::{Disk, MemoryDisk},
    log::{
        EmbeddedLog, LogOptions, OpenError,
        format::{FRAME_BYTES, Frame},
        inspect::JournalReader,
    },
};

use crate::node::LAYOUT;

const RECORDS: u64 = 30;
const MARK: &str = "journal.mark";

struct Nothing;

impl SyncFirst for Nothing {
    fn sync(&self) -> std::io::Result<u64> {
        Ok(0)
    }
}

impl Clock for Nothing {
    fn now_ms(&self) -> u64 {
        0
    }
}

fn identity() -> Identity {
    Identity { region: "fuzz".into(), epoch: 1, layout: LAYOUT }
}

fn open(disk: &MemoryDisk) -> Result<EmbeddedLog, OpenError> {
    let options = LogOptions { segment_bytes: 4_096, cache_bytes: 2_048, low_water_bytes: 0, ..LogOptions::default() };
    EmbeddedLog::open(Arc::new(disk.clone()), identity(), options, Arc::new(Nothing), Arc::new(Nothing))
}

/// Damages the journal, looks at it and opens it.
pub fn run(input: &[u8]) {
    let Some((reseals, edits)) = input.split_first() else { return };
    let mut files = journal().clone();
    for edit in edits.as_chunks::<6>().0.iter().take(40) {
        apply(edit, &mut files);
    }
    let reseals = reseals % 2 == 1;
    if reseals {
        files.iter_mut().filter(|(name, _)| name != MARK).for_each(|(_, content)| reseal(content));
    }
    let disk = MemoryDisk::new();
    files.iter().for_each(|(name, content)| disk.set_content(name, Some(content.clone())));
    let (_, faults) = JournalReader::open(Arc::new(disk.clone()), &identity(), 0);
    let opened = open(&disk);
    assert!(opened.is_err() || faults.is_empty() || reseals, "it opens, and inspection says {faults:?}");
    match opened {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            for (name, content) in &files {
                assert_eq!(disk.content(name).as_ref(), Some(content), "a refused open changed {name}: {error}");
            }
        }
        Ok(log) => {
            let bodies = runtime().block_on(read_all(&log, reseals));
            let all: Vec<Bytes> = (0..RECORDS).map(body).collect();
            let expected = if lost_its_end(&files) { &all[..bodies.len().min(all.len())] } else { &all[..] };
            assert!(reseals || bodies == expected, "{} of {RECORDS} records are there", bodies.len());
        }
    }
}

/// Whether the mark was damaged, and the newest segment ends where one of its frames did, or is gone.
fn lost_its_end(files: &[(String, Vec<u8>)]) -> bool {
    let now = |name: &String| files.iter().find(|(n, _)| n == name).map(|(_, content)| content);
    let (mark, segments): (Vec<_>, Vec<_>) = journal().iter().partition(|(name, _)| name == MARK);
    let is_damaged = mark.into_iter().any(|(name, content)| now(name) != Some(content));
    is_damaged
        && segments.last().is_some_and(|(name, content)| {
            let left = now(name).map_or(0, Vec::len);
            left < content.len() && (left == 0 || frame_ends(content).contains(&left))
        })
}

fn frame_ends(segment: &[u8]) -> Vec<usize> {
    let mut ends = vec![herald_embedded::log::format::HEADER_BYTES];
    while let Some(length) = segment.get(ends[ends.len() - 1]..).and_then(Frame::length) {
        ends.push(ends[ends.len() - 1] + length);
    }
    ends
}

/// Cuts, overwrites, repeats or drops.
fn apply(edit: &[u8; 6], files: &mut Vec<(String, Vec<u8>)>) {
    let [what, file, low, mid, high, value] = *edit;
    if files.is_empty() {
        return;
    }
    let file = usize::from(file) % files.len();
    let content = &mut files[file].1;
    let at = u32::from_le_bytes([low, mid, high, 0]) as usize % content.len().max(1);
    match what % 6 {
        0 | 1 if at < content.len() => content[at] = value,
        2 => content.truncate(at),
        3 => content.extend_from_within(at..content.len().min(at + usize::from(value))),
        4 if at < content.len() => content[at] ^= 1 << (value % 8),
        5 if value == 0x5a => drop(files.remove(file)),
        _ => {}
    }
}

/// Makes the checksums of frames right where their lengths still lead to them.
fn reseal(content: &mut [u8]) {
    let mut at = herald_embedded::log::format::HEADER_BYTES;
    while let Some(length) = content.get(at..).and_then(Frame::length) {
        let end = (at + length).min(content.len());
        reseal_records(&mut content[at..end]);
        let crc = crc32c::crc32c(&content[at + 8..end]);
        content[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

/// The same for the first entries, as long as they are records.
fn reseal_records(frame: &mut [u8]) {
    let mut at = FRAME_BYTES;
    while let Some([0x01 | 0x04, length @ ..]) = frame.get(at..at + 5) {
        let end = at + 9 + u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if end > frame.len() {
            return;
        }
        let crc = crc32c::crc32c(&frame[at + 9..end]);
        frame[at + 5..at + 9].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

/// Everything that is there can be read. Returns the bodies of the records.
async fn read_all(log: &EmbeddedLog, resealed: bool) -> Vec<Bytes> {
    for topic in Topic::all() {
        for number in 0..LAYOUT.partitions(topic) {
            let read = log.read(partition(topic, number), 0, 1_000).await;
            assert!(resealed || read.is_ok(), "{topic} {number}: {read:?}");
        }
    }
    let member = Member { ordinal: 0, count: 1 };
    let mut worker = log.subscribe(Group::Worker, member).await.unwrap();
    let _ = worker.poll(100, std::time::Duration::ZERO).await;
    let letters = log.read(partition(Topic::Dead, 0), 0, 1_000).await;
    letters.map(|(records, _)| records.into_iter().map(|record| record.body).collect()).unwrap_or_default()
}

fn body(number: u64) -> Bytes {
    format!("{number} ").repeat(60).into()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// A journal of several segments with records of different fates and positions, by the names of its files.
fn journal() -> &'static Vec<(String, Vec<u8>)> {
    static JOURNAL: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    JOURNAL.get_or_init(|| {
        let disk = MemoryDisk::new();
        runtime().block_on(write(&disk));
        let mut names = disk.list().unwrap();
        names.sort();
        assert!(names.len() > 2, "{names:?}");
        names.into_iter().map(|name| (name.clone(), disk.content(&name).unwrap())).collect()
    })
}

async fn write(disk: &MemoryDisk) {
    let log = open(disk).unwrap();
    let member = Member { ordinal: 0, count: 1 };
    let mut worker = log.subscribe(Group::Worker, member).await.unwrap();
    let delivered = partition(Topic::Deliveries(Lane::Bulk), 0);
    worker.poll(1, std::time::Duration::ZERO).await.unwrap();
    for number in 0..RECORDS {
        let record = |at, key: &'static str, body| NewRecord {
            at,
            key: Bytes::from_static(key.as_bytes()),
            timestamp_ms: 0,
            envelope: Envelope { region: "fuzz".into(), ..Envelope::default() },
            body,
        };
        let outputs = vec![
            record(partition(Topic::Dead, 0), "", body(number)),
            record(delivered, "", body(number)),
            record(partition(Topic::Control, 0), "key", body(number)),
        ];
        let done = DoneMap::from_runs([(false, 1), (true, number as u32)]);
        let position = Position { offset: number / 2, starts: 1, done };
        worker.commit(Commit { positions: vec![(delivered, position)], outputs }).await.unwrap();
        log.flush_once().unwrap();
    }
    log.close().unwrap();
}

/// One edit of each kind, in the newest and the oldest file; and both the mark and a frame before the last.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0], b"\x7aU\xed\x10\0\0\x2a\x25\xe5\x03\xec\x25\xe5\x01\x72".to_vec()];
    for reseals in [0, 1] {
        for what in 0..6 {
            for file in [0, 1, 2] {
                seeds.push(vec![reseals, what, file, 70 + 36 * reseals, 1, 0, 0x5a]);
            }
        }
    }
    seeds
}
