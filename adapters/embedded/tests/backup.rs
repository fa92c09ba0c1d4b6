//! Backups are of one instant, whatever goes on meanwhile; what is broken off harms nothing and is known as such.

// The helpers of the tests are tests too.
#![allow(clippy::unwrap_used)]

mod log_support;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_core::{
    ports::log::{Commit, Log, Position},
    topic::{Group, Lane, Topic, TopicPartition},
};
use herald_embedded::{
    backup::{self, BackupError, RestoreError, Source, UnusableBackup},
    data_dir::{DataDir, DataDirError, Settings},
    disk::{Disk, MemoryDisk, RealDisk},
    kv::{Batch, FjallConfig, FjallKv, Kv},
    log::{EmbeddedLog, FlusherThread, LogOptions, inspect::JournalReader},
};
use log_support::{ALONE, TestClock, record};

const DELIVERIES: TopicPartition = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 0 };

/// A data directory that is open.
struct Open {
    directory: DataDir,
    kv: Arc<FjallKv>,
    log: EmbeddedLog,
    flusher: FlusherThread,
}

impl Open {
    fn at(path: &Path) -> Self {
        let settings = Settings { layout: Some(log_support::LAYOUT), region: "test".to_owned() };
        let directory = DataDir::open(path, &settings, 0).unwrap();
        let kv = Arc::new(FjallKv::open(&directory.store_path(), FjallConfig::default()).unwrap());
        let options = LogOptions { flush_interval_ms: 1, store_flush: kv.last_flush(), ..log_support::small() };
        let disk = Arc::new(directory.journal_disk().unwrap());
        let identity = directory.identity().clone();
        let log = EmbeddedLog::open(disk, identity, options, kv.clone(), Arc::new(TestClock::default())).unwrap();
        let flusher = log.spawn_flusher_thread().unwrap();
        Self { directory, kv, log, flusher }
    }

    fn back_up(&self, to: &dyn Disk, reserve_bytes: u64) -> Result<backup::Manifest, BackupError> {
        let source = Source { log: &self.log, stores: &self.kv, data: self.directory.description() };
        backup::take(&source, to, reserve_bytes, 1)
    }

    fn close(self) {
        self.log.close().unwrap();
        self.flusher.join();
    }

    /// A stage that stores a row and then commits a record that rests on it, again and again.
    async fn store_then_commit(&self, stop: &AtomicBool, acknowledged: &AtomicU64) -> u64 {
        let mut worker = self.log.subscribe(Group::Worker, ALONE).await.unwrap();
        worker.poll(1, Duration::ZERO).await.unwrap();
        let mut next = 0;
        while !stop.load(Relaxed) {
            // Not far ahead of the reader, so that there is a bounded amount to copy.
            let read = acknowledged.load(Relaxed);
            if next > read + 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            put(&self.kv, "stored", next);
            let outputs = vec![record(DELIVERIES, vec![7; 300])];
            // Passing most of them lets segments go while they are copied.
            let position = Position { offset: read.saturating_sub(50), ..Position::default() };
            worker.commit(Commit { positions: vec![(DELIVERIES, position)], outputs }).await.unwrap();
            next += 1;
            tokio::task::yield_now().await;
        }
        next
    }

    /// A stage that reads records and stores what they say once they are durable.
    async fn read_then_store(&self, stop: &AtomicBool, acknowledged: &AtomicU64) {
        let mut next = 0;
        while !stop.load(Relaxed) {
            let (records, after) = self.log.read(DELIVERIES, next, 16).await.unwrap();
            // An append is durable when it returns, and everything before it is too.
            self.log.append(vec![record(DELIVERIES_OF_OTHERS, "mark")]).await.unwrap();
            for record in records {
                put(&self.kv, "read", record.offset);
                acknowledged.store(record.offset, Relaxed);
            }
            next = after;
        }
    }
}

const DELIVERIES_OF_OTHERS: TopicPartition = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 1 };

fn put(kv: &FjallKv, what: &str, number: u64) {
    let mut batch = Batch::default();
    batch.put(format!("\u{1}{what} {number:020}").into_bytes(), vec![1; 20]);
    kv.write(batch).unwrap();
}

fn stored(kv: &FjallKv, what: &str) -> BTreeSet<u64> {
    let (begin, end) = (format!("\u{1}{what} "), format!("\u{1}{what}!"));
    let rows = kv.scan(begin.as_bytes()..end.as_bytes(), herald_embedded::kv::Direction::Forward, 1_000_000).unwrap();
    rows.iter().map(|(key, _)| std::str::from_utf8(&key[begin.len()..]).unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_restored_is_of_one_instant_whatever_went_on() {
    let directory = tempfile::tempdir().unwrap();
    let open = Arc::new(Open::at(&directory.path().join("data")));
    let stop = Arc::new(AtomicBool::new(false));
    let read = Arc::new(AtomicU64::new(0));
    let writer = tokio::spawn({
        let (open, stop, read) = (open.clone(), stop.clone(), read.clone());
        async move { open.store_then_commit(&stop, &read).await }
    });
    let reader = tokio::spawn({
        let (open, stop, read) = (open.clone(), stop.clone(), read.clone());
        async move { open.read_then_store(&stop, &read).await }
    });
    let mut acknowledged = 0;
    for round in 0..12 {
        while read.load(Relaxed) < acknowledged + 30 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What was stored because it was durable must be there, and what it rests on.
        acknowledged = read.load(Relaxed);
        let to = directory.path().join(format!("backup-{round}"));
        let taken = open.clone();
        let target = to.clone();
        tokio::task::spawn_blocking(move || taken.back_up(&RealDisk::open(target).unwrap(), 0).unwrap()).await.unwrap();
        let data = directory.path().join(format!("restored-{round}"));
        backup::restore(&to, &data, 5_000).unwrap();
        check_instant(&data, acknowledged);
    }
    stop.store(true, Relaxed);
    let written = writer.await.unwrap();
    reader.await.unwrap();
    assert!(written > 300, "there was traffic: {written}");
    Arc::into_inner(open).unwrap().close();
}

/// Whatever a commit of the journal rests on is stored, and nothing is stored that rests on a record behind its end.
fn check_instant(data: &Path, acknowledged: u64) {
    let directory = DataDir::open_existing(data).unwrap();
    let kv = FjallKv::open(&directory.store_path(), FjallConfig::default()).unwrap();
    let disk = Arc::new(directory.journal_disk().unwrap());
    let (journal, faults) = JournalReader::open(disk, directory.identity(), kv.last_flush());
    assert_eq!(faults, Vec::<String>::new());
    let journal = journal.unwrap();
    assert_eq!(journal.contradictions(), Vec::<String>::new());
    let last = journal.records(DELIVERIES).last().unwrap().unwrap().offset;
    assert!(last >= acknowledged, "{acknowledged} was durable before the backup, the journal ends at {last}");
    let (rested_on, read) = (stored(&kv, "stored"), stored(&kv, "read"));
    assert!((0..=last).all(|offset| rested_on.contains(&offset)), "a commit rests on rows that are not there");
    assert!(read.last().is_none_or(|read| *read <= last), "a row rests on record {:?}, of {last}", read.last());
    drop((journal, kv, directory));
    // It opens, and goes on behind what it had.
    let open = Open::at(data);
    assert!(open.directory.identity().epoch >= 5, "the epoch was raised");
    open.close();
}

#[tokio::test]
async fn a_disk_without_room_or_that_fails_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let open = Open::at(directory.path());
    open.log.append((0..400).map(|_| record(DELIVERIES, vec![1; 1_000])).collect()).await.unwrap();
    (0..1_000).for_each(|number| put(&open.kv, "stored", number));

    let small = MemoryDisk::new();
    small.set_capacity_bytes(100_000);
    let error = open.back_up(&small, 0).unwrap_err();
    assert!(matches!(error, BackupError::NoRoom { .. }), "{error}");
    assert_eq!(small.list().unwrap(), Vec::<String>::new(), "its room was given back");
    let large = MemoryDisk::new();
    large.set_capacity_bytes(10 << 20);
    let error = open.back_up(&large, 10 << 20).unwrap_err();
    assert!(error.to_string().contains("must stay free"), "{error}");
    let failing = MemoryDisk::new();
    failing.fail_writes(true);
    assert!(matches!(open.back_up(&failing, 0), Err(BackupError::Io { .. })));
    failing.fail_writes(false);
    failing.fail_syncs(true);
    assert!(matches!(open.back_up(&failing, 0), Err(BackupError::Io { .. })));

    // The log goes on, and the next backup is a good one.
    open.log.append(vec![record(DELIVERIES, "after")]).await.unwrap();
    let manifest = open.back_up(&large, 0).unwrap();
    assert!(manifest.rows > 1_000 && manifest.bytes() > 400_000, "{manifest:?}");
    assert!(matches!(open.back_up(&large, 0), Err(BackupError::Complete)));
    open.close();
}

#[tokio::test]
async fn what_was_broken_off_is_refused_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (data, to) = (directory.path().join("data"), directory.path().join("backup"));
    let open = Open::at(&data);
    open.log.append(vec![record(DELIVERIES, "one")]).await.unwrap();
    put(&open.kv, "stored", 1);
    fs::create_dir(&to).unwrap();
    assert!(
        matches!(backup::restore(&to, &directory.path().join("new"), 1), Err(unusable) if says(&unusable, "no backup"))
    );
    fs::write(to.join("notes.txt"), "mine").unwrap();
    let disk = RealDisk::open(&to).unwrap();
    let error = open.back_up(&disk, 0).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    fs::remove_file(to.join("notes.txt")).unwrap();

    // Killed on its way: the mark and some files are there.
    fs::write(to.join("backup.partial"), "").unwrap();
    fs::write(to.join("rows-00000000.rows"), "half").unwrap();
    let new = directory.path().join("new");
    let error = backup::restore(&to, &new, 1).unwrap_err();
    assert!(matches!(error, RestoreError::Backup(UnusableBackup::Partial(_))), "{error}");
    assert!(!new.exists(), "nothing was made");
    open.back_up(&disk, 0).unwrap();
    assert!(!to.join("backup.partial").exists());

    // A restore that was killed on its way is refused by a start and made good by another restore.
    fs::create_dir_all(new.join("journal")).unwrap();
    fs::write(new.join("restore.partial"), "").unwrap();
    fs::write(new.join("journal/journal-00000000000000000000.seg"), "half").unwrap();
    let settings = Settings { layout: None, region: "test".to_owned() };
    let error = DataDir::open(&new, &settings, 0).unwrap_err();
    assert!(matches!(error, DataDirError::HalfRestored(_)), "{error}");
    let first = backup::restore(&to, &new, 1_000_000).unwrap();
    let again = backup::restore(&to, &new, 1).unwrap_err();
    assert!(matches!(again, RestoreError::DataDir(DataDirError::HasData(_))), "{again}");
    let live = backup::restore(&to, &data, 1).unwrap_err();
    assert!(matches!(live, RestoreError::DataDir(DataDirError::HasData(_))), "{live}");
    // A later restore of the same backup begins yet another epoch.
    let second = backup::restore(&to, &directory.path().join("second"), 2_000_000).unwrap();
    assert!(open.directory.identity().epoch < first.log_epoch && first.log_epoch < second.log_epoch);
    open.close();
}

#[tokio::test]
async fn any_damage_is_found_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (data, to) = (directory.path().join("data"), directory.path().join("backup"));
    let open = Open::at(&data);
    open.log.append((0..20).map(|_| record(DELIVERIES, vec![1; 1_000])).collect()).await.unwrap();
    put(&open.kv, "stored", 1);
    let manifest = open.back_up(&RealDisk::open(&to).unwrap(), 0).unwrap();
    open.close();
    let new = directory.path().join("new");
    for file in &manifest.files {
        let path = to.join(&file.name);
        let sound = fs::read(&path).unwrap();
        let mut flipped = sound.clone();
        flipped[sound.len() / 2] ^= 1;
        for damaged in [Some(flipped), Some(sound[1..].to_vec()), None] {
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = backup::restore(&to, &new, 1).unwrap_err();
            assert!(says(&error, &file.name) && says(&error, "damaged"), "{error}");
            assert!(!new.exists());
        }
        fs::write(&path, sound).unwrap();
    }
    let text = fs::read_to_string(to.join("backup.json")).unwrap();
    for at in text.find("\"format_version\"").unwrap()..text.len() {
        let mut flipped = text.clone().into_bytes();
        flipped[at] ^= 1;
        fs::write(to.join("backup.json"), &flipped).unwrap();
        let error = backup::restore(&to, &new, 1).unwrap_err();
        assert!(
            says(&error, "backup.json") && says(&error, "damaged"),
            "{}: {error}",
            String::from_utf8_lossy(&flipped)
        );
        assert!(!new.exists());
    }
    // What the first backups were: a description without its own checksum.
    let unsealed: String = text.lines().filter(|line| !line.starts_with("  \"crc32c\"")).collect();
    fs::write(to.join("backup.json"), &unsealed).unwrap();
    backup::verify(&to).unwrap();
    // Rows that a newer version of Herald understands.
    let data = format!("\"format_version\": {}", herald_embedded::data_dir::FORMAT_VERSION);
    assert!(unsealed.contains(&data));
    fs::write(to.join("backup.json"), unsealed.replace(&data, "\"format_version\": 99")).unwrap();
    let error = backup::restore(&to, &new, 1).unwrap_err();
    assert!(says(&error, "99") && says(&error, "newer") && !new.exists(), "{error}");
    fs::write(to.join("backup.json"), text.replace("\"format_version\": 1", "\"format_version\": 9")).unwrap();
    assert!(says(&backup::restore(&to, &new, 1).unwrap_err(), "newer"));
    fs::write(to.join("backup.json"), text).unwrap();
    backup::restore(&to, &new, 1).unwrap();
}

fn says(error: &RestoreError, what: &str) -> bool {
    error.to_string().contains(what)
}

#[tokio::test]
async fn segments_stay_as_long_as_they_are_copied() {
    let directory = tempfile::tempdir().unwrap();
    let open = Open::at(directory.path());
    let mut worker = open.log.subscribe(Group::Worker, ALONE).await.unwrap();
    worker.poll(1, Duration::ZERO).await.unwrap();
    let (snapshot, ()) = open.log.snapshot(|| ()).unwrap();
    let held: Vec<String> = snapshot.files().map(|(name, _)| name).collect();
    for _ in 0..100 {
        open.log.append(vec![record(DELIVERIES, vec![1; 1_000])]).await.unwrap();
        let end = worker.ends(&[DELIVERIES]).await.unwrap()[0];
        let passed = (DELIVERIES, Position { offset: end, ..Position::default() });
        worker.commit(Commit { positions: vec![passed], outputs: Vec::new() }).await.unwrap();
    }
    let is_there = |name: &String| directory.path().join("journal").join(name).exists();
    assert!(!held.is_empty() && held.iter().all(is_there));
    drop(snapshot);
    assert!(!held.iter().any(is_there), "what nobody needs goes");
    open.close();
}
