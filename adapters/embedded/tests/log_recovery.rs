//! What a power cut, damage and loss do to the journal.

// The helpers of the tests are tests too.
#![allow(clippy::unwrap_used)]

mod log_support;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use herald_core::{
    done_map::DoneMap,
    ports::log::{Commit, Committed, Identity, Log, Mark, NewRecord, Position, Subscription, partition},
    topic::{Group, Lane, Layout, Retention, Topic, TopicPartition},
};
use herald_embedded::{
    disk::MemoryDisk,
    log::{EmbeddedLog, LogOptions, OpenError},
};
use log_support::{ALONE, LAYOUT, Random, Stores, TestClock, identity, open, record, small};

/// Each group's commits note their number here, as `starts`; so the greatest tells how many are in.
const COUNTERS: [(Group, TopicPartition); 3] = [
    (Group::Worker, TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 0 }),
    (Group::Router, TopicPartition { topic: Topic::Delayed(9), partition: 0 }),
    (Group::LedgerReceipts, TopicPartition { topic: Topic::Receipts, partition: 0 }),
];

/// What the log must hold after a sequence of commits.
#[derive(Default)]
struct Model {
    records: BTreeMap<TopicPartition, BTreeMap<u64, (Bytes, Bytes)>>,
    next: BTreeMap<TopicPartition, u64>,
    positions: BTreeMap<(u8, TopicPartition), Position>,
    count: u32,
}

type Step = (Group, Commit);

impl Model {
    fn of(steps: &[Step]) -> Self {
        let mut model = Self::default();
        steps.iter().for_each(|step| model.apply(step));
        model
    }

    fn apply(&mut self, (group, commit): &Step) {
        self.count += 1;
        for new in &commit.outputs {
            let next = self.next.entry(new.at).or_default();
            let records = self.records.entry(new.at).or_default();
            if new.at.topic.retention() == Retention::Compacted {
                records.retain(|_, (key, _)| *key != new.key);
            }
            records.insert(*next, (new.key.clone(), new.body.clone()));
            *next += 1;
        }
        for (at, position) in &commit.positions {
            self.positions.insert((group.code(), *at), position.clone());
            let passed = at.topic.readers().iter().map(|g| self.position(*g, *at).offset).min().unwrap();
            if let Some(records) = self.records.get_mut(at) {
                *records = records.split_off(&passed);
            }
        }
    }

    fn position(&self, group: Group, at: TopicPartition) -> Position {
        self.positions.get(&(group.code(), at)).cloned().unwrap_or_default()
    }

    fn next(&self, at: TopicPartition) -> u64 {
        self.next.get(&at).copied().unwrap_or(0)
    }
}

fn all_partitions() -> impl Iterator<Item = TopicPartition> {
    Topic::all().flat_map(|topic| (0..LAYOUT.partitions(topic)).map(move |p| partition(topic, p)))
}

async fn assignment(log: &EmbeddedLog, group: Group) -> (Box<dyn Subscription>, BTreeMap<TopicPartition, Position>) {
    let mut subscription = log.subscribe(group, ALONE).await.unwrap();
    let assigned = subscription.poll(1, Duration::ZERO).await.unwrap().assigned;
    (subscription, assigned.into_iter().collect())
}

/// Compares everything that can be read with the model of the commits that are in, and returns how many these are.
async fn check(log: &EmbeddedLog, steps: &[Step], acknowledged: usize) -> Result<usize, String> {
    let mut count = 0;
    for (group, at) in COUNTERS {
        count = count.max(assignment(log, group).await.1[&at].starts as usize);
    }
    if count < acknowledged || count > steps.len() {
        return Err(format!("{count} commits are in, {acknowledged} were acknowledged, {} made", steps.len()));
    }
    let model = Model::of(&steps[..count]);
    for group in Group::ALL {
        for (at, position) in assignment(log, group).await.1 {
            if position != model.position(group, at) {
                return Err(format!("{group:?} is at {position:?} of {at}"));
            }
        }
        for progress in log.progress(group).await.unwrap() {
            if progress.end != model.next(progress.at) {
                return Err(format!("{} ends at {}", progress.at, progress.end));
            }
        }
    }
    for at in all_partitions() {
        let (read, _) = log.read(at, 0, 100_000).await.map_err(|e| e.to_string())?;
        let read: BTreeMap<u64, (Bytes, Bytes)> = read.into_iter().map(|r| (r.offset, (r.key, r.body))).collect();
        let mut there = model.records.get(&at).cloned().unwrap_or_default();
        // What says that its key is gone may be gone itself, and leaves nothing of that key.
        let may_be_gone = at.topic.retention() == Retention::Compacted;
        there.retain(|offset, (_, body)| !(may_be_gone && body.is_empty()) || read.contains_key(offset));
        if read != there {
            return Err(format!("{at} holds {:?}", read.keys()));
        }
    }
    Ok(count)
}

fn random_outputs(random: &mut Random, step: u32) -> Vec<NewRecord> {
    let topics = [Topic::Receipts, Topic::Control, Topic::Dead, Topic::Delayed(9), Topic::Deliveries(Lane::Bulk)];
    (0..random.below(4))
        .map(|i| {
            let topic = topics[random.below(5) as usize];
            let at = partition(topic, random.below(u64::from(LAYOUT.partitions(topic))) as u32);
            let key = match topic {
                Topic::Control => Bytes::from(format!("key {}", random.below(5))),
                _ => Bytes::new(),
            };
            let is_gone = topic == Topic::Control && random.below(3) == 0;
            let body = format!("{step}.{i}.").repeat(if is_gone { 0 } else { random.below(60) as usize });
            NewRecord { key, ..record(at, body) }
        })
        .collect()
}

/// A commit of a random group, which counts itself.
fn random_step(random: &mut Random, model: &Model) -> Step {
    let (group, counter) = COUNTERS[random.below(3) as usize];
    let mut positions: Vec<(TopicPartition, Position)> = Vec::new();
    for at in all_partitions().filter(|at| at.topic.readers() == [group]) {
        let (committed, next) = (model.position(group, at).offset, model.next(at));
        if at == counter || (next > committed && random.below(4) == 0) {
            let done = DoneMap::from_flags((0..random.below(50)).map(|_| random.below(2) == 0));
            let offset = next - random.below(3).min(next - committed);
            positions.push((at, Position { offset, done, starts: model.count + 1 }));
        }
    }
    (group, Commit { positions, outputs: random_outputs(random, model.count) })
}

/// A subscription of each group, in the order of [`COUNTERS`].
async fn members(log: &EmbeddedLog) -> Vec<Box<dyn Subscription>> {
    let mut members = Vec::new();
    for (group, _) in COUNTERS {
        members.push(assignment(log, group).await.0);
    }
    members
}

async fn commit(members: &mut [Box<dyn Subscription>], (group, commit): &Step) -> Mark {
    let member = COUNTERS.iter().position(|(counted, _)| counted == group).unwrap();
    match members[member].commit(commit.clone()).await.unwrap() {
        Committed::Done(mark) => mark,
        Committed::Fenced => panic!("fenced"),
    }
}

/// Several lives of a log, each ended by a power cut at some moment.
async fn live_and_crash(seed: u64, sync: bool) -> Result<(), String> {
    let mut random = Random(seed);
    let mut disk = MemoryDisk::new();
    let (mut steps, mut acknowledged) = (Vec::<Step>::new(), 0);
    for life in 0..6 {
        // Two days after everything was written.
        let (clock, stores) = (Arc::new(TestClock(AtomicU64::new(2 * 86_400_000))), Arc::new(Stores::default()));
        let log = EmbeddedLog::open(Arc::new(disk.clone()), identity(), LogOptions { sync, ..small() }, stores, clock)
            .map_err(|e| format!("life {life}: {e}"))?;
        let count = check(&log, &steps, acknowledged).await.map_err(|e| format!("life {life}: {e}"))?;
        steps.truncate(count);
        acknowledged = count;
        let (mut members, mut model) = (members(&log).await, Model::of(&steps));
        let mut marks = Vec::new();
        for _ in 0..random.below(150) {
            let step = random_step(&mut random, &model);
            let mark = commit(&mut members, &step).await;
            model.apply(&step);
            steps.push(step);
            marks.push((mark, steps.len()));
            if random.below(3) == 0 {
                log.flush_once().unwrap();
            }
        }
        for (mark, count) in marks {
            if is_durable(&log, mark).await {
                acknowledged = count;
            }
        }
        match random.below(4) {
            0 => log.close().map(|()| acknowledged = steps.len()).unwrap(),
            1 => (),
            // Written, but the power goes before the sync is through.
            _ => {
                disk.fail_syncs(true);
                let _cut = log.flush_once();
            }
        }
        disk = disk.crash(|| random.next());
    }
    Ok(())
}

async fn is_durable(log: &EmbeddedLog, mark: Mark) -> bool {
    tokio::time::timeout(Duration::ZERO, log.durable(mark)).await.is_ok_and(|durable| durable.is_ok())
}

#[tokio::test(start_paused = true)]
async fn whatever_was_acknowledged_is_there_after_a_power_cut_and_commits_are_whole() {
    for seed in 0..200 {
        live_and_crash(seed, true).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_crash_test_notices_when_nothing_is_synced() {
    let mut losses = 0;
    for seed in 0..20 {
        losses += usize::from(live_and_crash(seed, false).await.is_err());
    }
    assert!(losses >= 10, "only {losses} of 20 runs without syncing lost something");
}

/// A journal of some segments, some of them cleaned away, cleanly closed.
async fn journal(steps: usize) -> (MemoryDisk, Vec<Step>) {
    let disk = MemoryDisk::new();
    let log = open(&disk, small()).unwrap();
    let (mut members, mut model) = (members(&log).await, Model::default());
    let (mut random, mut all) = (Random(7), Vec::new());
    for _ in 0..steps {
        let step = random_step(&mut random, &model);
        commit(&mut members, &step).await;
        log.flush_once().unwrap();
        model.apply(&step);
        all.push(step);
    }
    log.close().unwrap();
    (disk, all)
}

fn segments(disk: &MemoryDisk) -> Vec<String> {
    use herald_embedded::disk::Disk;
    let mut names: Vec<String> = disk.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect();
    names.sort();
    names
}

fn all_content(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    segments(disk).into_iter().map(|name| (name.clone(), disk.content(&name).unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn any_flipped_byte_is_found_when_the_log_is_opened() {
    let (disk, _) = journal(40).await;
    let content = all_content(&disk);
    assert!(content.len() > 2, "{} segments", content.len());
    let mut random = Random(1);
    let mut flips: Vec<(usize, usize)> =
        (0..content.len()).flat_map(|file| (0..120).map(move |at| (file, at))).collect();
    flips.extend((0..4_000).map(|_| {
        let file = random.below(content.len() as u64) as usize;
        (file, random.below(content[file].1.len() as u64) as usize)
    }));
    for (file, at) in flips {
        let (name, bytes) = &content[file];
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << random.below(8);
        disk.set_content(name, Some(flipped.clone()));
        let error = open(&disk, small()).err().unwrap_or_else(|| panic!("{name} opened with byte {at} flipped"));
        let text = error.to_string();
        let OpenError::Damaged { file, at: found, .. } = error else { panic!("byte {at} of {name}: {text}") };
        assert_eq!(&file, name, "byte {at}");
        assert!(found <= at as u64, "byte {at} of {name}, found at {found}");
        assert!(text.contains(name) && text.contains(&format!("byte {found}")) && text.contains("backup"), "{text}");
        assert_eq!(disk.content(name).unwrap(), flipped, "a refused open changed the disk");
        disk.set_content(name, Some(bytes.clone()));
    }
    open(&disk, small()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_or_missing_segment_is_refused() {
    let (disk, _) = journal(40).await;
    let content = all_content(&disk);
    let mut random = Random(2);
    for (name, bytes) in &content {
        for _ in 0..20 {
            let length = random.below(bytes.len() as u64) as usize;
            disk.set_content(name, Some(bytes[..length].to_vec()));
            let error = open(&disk, small()).err().unwrap_or_else(|| panic!("{name} opened with {length} bytes"));
            assert!(error.to_string().contains(name), "{error}");
        }
        disk.set_content(name, None);
        assert!(open(&disk, small()).is_err(), "opened without {name}");
        disk.set_content(name, Some(bytes.clone()));
    }
    for (name, _) in &content {
        disk.set_content(name, None);
    }
    let error = open(&disk, small()).err().unwrap();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_mark_file_must_be_there_and_one_slot_is_enough() {
    let (disk, steps) = journal(10).await;
    let name = "journal.mark";
    let mark = disk.content(name).unwrap();
    for slot in [0, 4_096] {
        let mut damaged = mark.clone();
        damaged[slot + 17] ^= 1;
        disk.set_content(name, Some(damaged.clone()));
        let log = open(&disk, small()).unwrap();
        assert_eq!(check(&log, &steps, steps.len()).await, Ok(steps.len()));
        damaged[4_096 - slot + 17] ^= 1;
        disk.set_content(name, Some(damaged));
        assert!(matches!(open(&disk, small()).err(), Some(OpenError::Damaged { .. })));
        disk.set_content(name, Some(mark.clone()));
    }
    disk.set_content(name, None);
    assert!(matches!(open(&disk, small()).err(), Some(OpenError::Missing { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_torn_end_is_damage_when_half_of_the_mark_file_is() {
    let (disk, _) = journal(10).await;
    let (mark, newest) = (disk.content("journal.mark").unwrap(), segments(&disk).pop().unwrap());
    let bytes = disk.content(&newest).unwrap();
    let later = [0_usize, 4_096].into_iter().max_by_key(|slot| mark[slot + 8]).unwrap();
    for (slot, cut, opens) in [(later, 0, true), (later, 1, false), (4_096 - later, 1, false)] {
        let mut damaged = mark.clone();
        damaged[slot + 17] ^= 1;
        disk.set_content("journal.mark", Some(damaged));
        disk.set_content(&newest, Some(bytes[..bytes.len() - cut].to_vec()));
        let opened = open(&disk, small());
        assert_eq!(opened.is_ok(), opens, "slot at {slot}, {cut} bytes cut: {:?}", opened.err());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_current_mark_file_later_frames_prove_what_was_synced() {
    let disk = MemoryDisk::new();
    let log = open(&disk, LogOptions::default()).unwrap();
    let old_mark = disk.content("journal.mark").unwrap();
    let (mut worker, _) = assignment(&log, Group::Worker).await;
    let mut ends = Vec::new();
    for _ in 0..3 {
        let outputs = vec![record(partition(Topic::Dead, 0), vec![b'x'; 500])];
        worker.commit(Commit { positions: Vec::new(), outputs }).await.unwrap();
        log.flush_once().unwrap();
        ends.push(log.usage_bytes().0 as usize);
    }
    let name = &segments(&disk)[0];
    let bytes = disk.content(name).unwrap();
    disk.set_content("journal.mark", Some(old_mark));
    // The second flush was synced before the third was written; the third may be a torn tail.
    for (at, opens) in [(ends[0] + 100, false), (ends[1] + 100, true)] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        disk.set_content(name, Some(flipped));
        assert_eq!(
            open(&disk, LogOptions::default()).is_ok(),
            opens,
            "byte {at} of {}, flushes end at {ends:?}",
            bytes.len()
        );
    }
    assert_eq!(disk.content(name).unwrap().len(), ends[1], "the torn tail is cut");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forgot_a_flush_is_refused() {
    let disk = MemoryDisk::new();
    let opened = |known: u64, flush: u64| {
        let stores = Arc::new(Stores(AtomicU64::new(flush)));
        let options = LogOptions { store_flush: known, ..LogOptions::default() };
        EmbeddedLog::open(Arc::new(disk.clone()), identity(), options, stores, Arc::new(TestClock::default()))
    };
    let log = opened(0, 7).unwrap();
    let (mut worker, _) = assignment(&log, Group::Worker).await;
    let outputs = vec![record(partition(Topic::Dead, 0), "x")];
    worker.commit(Commit { positions: Vec::new(), outputs }).await.unwrap();
    log.close().unwrap();
    let error = opened(6, 7).err().unwrap();
    assert!(matches!(error, OpenError::StoreBehind { noted: 7, known: 6 }), "{error}");
    opened(7, 7).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_another_log_is_refused_and_a_later_epoch_goes_on() {
    let (disk, steps) = journal(10).await;
    let opened = |identity: Identity| {
        let stores = Arc::new(Stores::default());
        EmbeddedLog::open(Arc::new(disk.clone()), identity, small(), stores, Arc::new(TestClock::default()))
    };
    let other = Identity { layout: Layout { shards: 8, ..LAYOUT }, ..identity() };
    assert!(matches!(opened(other).err(), Some(OpenError::OtherLog { .. })));
    let restored = opened(Identity { epoch: 2, ..identity() }).unwrap();
    check(&restored, &steps, steps.len()).await.unwrap();
    let step = random_step(&mut Random(3), &Model::of(&steps));
    commit(&mut members(&restored).await, &step).await;
    restored.close().unwrap();
    assert!(matches!(opened(identity()).err(), Some(OpenError::OtherLog { .. })));
}
