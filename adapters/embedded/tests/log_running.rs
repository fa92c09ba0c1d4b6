//! What the log does while it runs: it stays small, refuses in order, and stops when the disk fails.

// The helpers of the tests are tests too.
#![allow(clippy::unwrap_used)]

mod log_support;

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use herald_core::{
    ports::log::{Commit, Committed, Log, LogError, Member, NewRecord, Position, Subscription, partition},
    topic::{Group, Lane, Topic, TopicPartition, tier_delay_ms},
};
use herald_embedded::{
    SyncFirst,
    disk::{MemoryDisk, RealDisk},
    log::{EmbeddedLog, LogOptions},
};
use log_support::{ALONE, Random, Stores, TestClock, identity, open, open_on, record, small};

const DELIVERIES: TopicPartition = TopicPartition { topic: Topic::Deliveries(Lane::Bulk), partition: 0 };
const LONGEST_DELAY: TopicPartition = TopicPartition { topic: Topic::Delayed(9), partition: 0 };

async fn join(log: &EmbeddedLog, group: Group) -> Box<dyn Subscription> {
    let mut subscription = log.subscribe(group, ALONE).await.unwrap();
    subscription.poll(1, Duration::ZERO).await.unwrap();
    subscription
}

fn outputs(outputs: Vec<NewRecord>) -> Commit {
    Commit { positions: Vec::new(), outputs }
}

fn passed(at: TopicPartition, offset: u64) -> Commit {
    Commit { positions: vec![(at, Position { offset, ..Position::default() })], outputs: Vec::new() }
}

/// Appends and consumes a number of deliveries.
async fn traffic(log: &EmbeddedLog, worker: &mut Box<dyn Subscription>, records: u64) {
    for _ in 0..records {
        worker.commit(outputs(vec![record(DELIVERIES, vec![7; 400])])).await.unwrap();
        let end = worker.ends(&[DELIVERIES]).await.unwrap()[0];
        worker.commit(passed(DELIVERIES, end)).await.unwrap();
        log.flush_once().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_record_does_not_keep_what_was_consumed_around_it() {
    let disk = MemoryDisk::new();
    let log = open(&disk, small()).unwrap();
    let mut worker = join(&log, Group::Worker).await;
    worker.commit(outputs(vec![record(LONGEST_DELAY, "waits")])).await.unwrap();
    for _ in 0..10 {
        traffic(&log, &mut worker, 50).await;
        assert!(disk.used_bytes() < 16 * 4_096, "{} bytes are on the disk", disk.used_bytes());
        let (records, _) = log.read(LONGEST_DELAY, 0, 10).await.unwrap();
        assert_eq!((records.len(), records[0].offset, &records[0].body[..]), (1, 0, &b"waits"[..]));
    }
    log.close().unwrap();
    let log = open(&disk.crash(|| 1), small()).unwrap();
    assert_eq!(log.read(LONGEST_DELAY, 0, 10).await.unwrap().0[0].body, "waits");
}

#[tokio::test(start_paused = true)]
async fn disk_use_stays_bounded_over_a_day() {
    const MINUTE_MS: u64 = 60_000;
    let (disk, clock) = (MemoryDisk::new(), Arc::new(TestClock::default()));
    let options =
        LogOptions { segment_bytes: 32_768, cache_bytes: 65_536, low_water_bytes: 0, ..LogOptions::default() };
    let stores = Arc::new(Stores::default());
    let log = EmbeddedLog::open(Arc::new(disk.clone()), identity(), options, stores, clock.clone()).unwrap();
    let (mut worker, mut router) = (join(&log, Group::Worker).await, join(&log, Group::Router).await);
    let delay = tier_delay_ms(9) / MINUTE_MS;
    for minute in 0..30 * 60 {
        clock.0.store(minute * MINUTE_MS, Ordering::Relaxed);
        // One waits for 18 hours, one is a policy, and the rest is consumed at once.
        let policy = NewRecord {
            key: Bytes::from(format!("policy {}", minute % 20)),
            ..record(partition(Topic::Control, 0), vec![1; 300])
        };
        let waits = record(LONGEST_DELAY, minute.to_string().repeat(20));
        worker.commit(outputs(vec![policy, waits])).await.unwrap();
        traffic(&log, &mut worker, 12).await;
        if minute >= delay {
            router.commit(passed(LONGEST_DELAY, minute - delay)).await.unwrap();
        }
        let (_, live) = log.usage_bytes();
        let bound = 4 * live + 8 * 32_768;
        assert!(disk.used_bytes() < bound, "minute {minute}: {} bytes for {live} live", disk.used_bytes());
    }
    log.close().unwrap();
    let log = open(&disk, small()).unwrap();
    let (waiting, _) = log.read(LONGEST_DELAY, 0, 10_000).await.unwrap();
    let offsets: Vec<u64> = waiting.iter().map(|r| r.offset).collect();
    assert_eq!(offsets, (30 * 60 - 1 - delay..30 * 60).collect::<Vec<_>>());
    assert!(waiting.iter().all(|r| r.body == r.offset.to_string().repeat(20)));
    assert_eq!(log.read(partition(Topic::Control, 0), 0, 1_000).await.unwrap().0.len(), 20);
}

/// The bodies on `control`, by key.
async fn policies(log: &EmbeddedLog) -> Vec<(Bytes, Bytes)> {
    let (records, _) = log.read(partition(Topic::Control, 0), 0, 1_000).await.unwrap();
    records.into_iter().map(|record| (record.key, record.body)).collect()
}

fn policy(key: &'static str, body: impl Into<Vec<u8>>) -> NewRecord {
    NewRecord { key: Bytes::from_static(key.as_bytes()), ..record(partition(Topic::Control, 0), body) }
}

/// Appends deliveries that nobody consumes, so that segments come behind those that may be cleaned.
async fn backlog(log: &EmbeddedLog, worker: &mut Box<dyn Subscription>) {
    for _ in 0..60 {
        worker.commit(outputs(vec![record(DELIVERIES, vec![7; 400])])).await.unwrap();
        log.flush_once().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_says_that_a_key_is_gone_goes_a_day_later_and_nothing_older_comes_back() {
    const DAY_MS: u64 = 86_400_000;
    let (disk, clock) = (MemoryDisk::new(), Arc::new(TestClock::default()));
    let open = || {
        let (disk, stores) = (Arc::new(disk.clone()), Arc::new(Stores::default()));
        EmbeddedLog::open(disk, identity(), small(), stores, clock.clone()).unwrap()
    };
    let body = |key: &'static str, body: &'static str| (Bytes::from(key), Bytes::from(body));
    let mut log = open();
    let (mut worker, mut router) = (join(&log, Group::Worker).await, join(&log, Group::Router).await);
    // What waits fills most of its segment, which therefore stays, and in it the first record of "old".
    worker.commit(outputs(vec![policy("old", "off"), record(LONGEST_DELAY, vec![1; 3_500])])).await.unwrap();
    traffic(&log, &mut worker, 20).await;
    worker.commit(outputs(vec![policy("kept", "on"), policy("old", ""), policy("young", "off")])).await.unwrap();
    worker.commit(outputs(vec![policy("young", "")])).await.unwrap();
    for (now_ms, waits, left) in [
        (DAY_MS - 1, true, vec![body("kept", "on"), body("old", ""), body("young", "")]),
        // Its older record is still there, and would be the last after a restart.
        (DAY_MS, true, vec![body("kept", "on"), body("old", ""), body("young", "")]),
        (DAY_MS, false, vec![body("kept", "on")]),
    ] {
        clock.0.store(now_ms, Ordering::Relaxed);
        if !waits {
            router.commit(passed(LONGEST_DELAY, 1)).await.unwrap();
        }
        for _ in 0..3 {
            backlog(&log, &mut worker).await;
            traffic(&log, &mut worker, 1).await;
        }
        assert_eq!(policies(&log).await, left, "at {now_ms}, {waits}");
        log.close().unwrap();
        log = open();
        assert_eq!(policies(&log).await, left, "opened at {now_ms}, {waits}");
        (worker, router) = (join(&log, Group::Worker).await, join(&log, Group::Router).await);
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_after_their_time() {
    let (disk, clock) = (MemoryDisk::new(), Arc::new(TestClock::default()));
    let stores = Arc::new(Stores::default());
    let log = EmbeddedLog::open(Arc::new(disk), identity(), small(), stores, clock.clone()).unwrap();
    let mut worker = join(&log, Group::Worker).await;
    let dead = partition(Topic::Dead, 0);
    worker.commit(outputs(vec![record(dead, "old")])).await.unwrap();
    let new = NewRecord { timestamp_ms: 86_400_000, ..record(dead, "new") };
    worker.commit(outputs(vec![new])).await.unwrap();
    clock.0.store(30 * 86_400_000 - 1, Ordering::Relaxed);
    log.flush_once().unwrap();
    assert_eq!(log.read(dead, 0, 10).await.unwrap().0.len(), 2);
    clock.0.store(30 * 86_400_000 + 1_000, Ordering::Relaxed);
    log.flush_once().unwrap();
    let (left, next) = log.read(dead, 0, 10).await.unwrap();
    assert_eq!((left.len(), left[0].offset, next), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_appends_and_drains() {
    let disk = MemoryDisk::new();
    disk.set_capacity_bytes(96 * 1_024);
    let options = LogOptions { low_water_bytes: 48 * 1_024, ..small() };
    let log = open(&disk, options).unwrap();
    let flusher = log.clone();
    tokio::spawn(async move { flusher.flush_task().await });
    let mut accepted = 0;
    let refusal = loop {
        tokio::time::sleep(Duration::from_millis(150)).await;
        match log.append(vec![record(DELIVERIES, vec![1; 1_000])]).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1_000, "never refused");
    };
    assert!(matches!(refusal, LogError::Full(_)), "{refusal}");
    let mut worker = join(&log, Group::Worker).await;
    let mut drained = 0;
    while drained < accepted {
        let polled = worker.poll(5, Duration::from_secs(1)).await.unwrap();
        drained += polled.records.len();
        let next = polled.records.last().unwrap().offset + 1;
        let receipts = Commit { outputs: vec![record(partition(Topic::Receipts, 0), "r")], ..passed(DELIVERIES, next) };
        let Committed::Done(mark) = worker.commit(receipts).await.unwrap() else { panic!("fenced") };
        log.durable(mark).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    log.append(vec![record(DELIVERIES, "again")]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_log_for_good() {
    for fail in [MemoryDisk::fail_syncs as fn(&MemoryDisk, bool), MemoryDisk::fail_writes] {
        let disk = MemoryDisk::new();
        let log = open(&disk, small()).unwrap();
        let flusher = log.clone();
        let flushing = tokio::spawn(async move { flusher.flush_task().await });
        let mut worker = join(&log, Group::Worker).await;
        let Committed::Done(before) = worker.commit(outputs(vec![record(DELIVERIES, "a")])).await.unwrap() else {
            panic!("fenced")
        };
        log.durable(before).await.unwrap();
        fail(&disk, true);
        let waiting = log.clone();
        let reached = tokio::spawn(async move { waiting.reached(DELIVERIES, 100).await });
        let error = log.append(vec![record(DELIVERIES, "b")]).await.unwrap_err();
        assert!(matches!(&error, LogError::Unavailable(cause) if cause.contains("the disk does not")), "{error}");
        fail(&disk, false);
        flushing.await.unwrap();
        assert!(log.failed().await.contains("the disk does not"));
        assert!(log.append(vec![record(DELIVERIES, "c")]).await.is_err());
        assert!(worker.commit(Commit::default()).await.is_err());
        assert!(worker.poll(1, Duration::from_secs(60)).await.is_err());
        assert!(reached.await.unwrap().is_err());
        assert!(log.flush_once().is_err());
        log.durable(before).await.unwrap();
    }
}

/// Stores that fail, or look at what the journal's disk holds when they are synced.
struct WatchingStores {
    disk: MemoryDisk,
    written: AtomicU64,
    fail: bool,
}

impl SyncFirst for WatchingStores {
    fn sync(&self) -> io::Result<u64> {
        self.written.store(self.disk.used_bytes(), Ordering::Relaxed);
        if self.fail { Err(io::Error::other("the store does not sync")) } else { Ok(0) }
    }
}

#[tokio::test(start_paused = true)]
async fn the_stores_are_synced_before_the_journal_is_written() {
    for fail in [false, true] {
        let disk = MemoryDisk::new();
        open(&disk, small()).unwrap().close().unwrap();
        let stores = Arc::new(WatchingStores { disk: disk.clone(), written: AtomicU64::new(0), fail });
        let clock = Arc::new(TestClock::default());
        let log = EmbeddedLog::open(Arc::new(disk.clone()), identity(), small(), stores.clone(), clock).unwrap();
        let before = disk.used_bytes();
        let mut worker = join(&log, Group::Worker).await;
        worker.commit(outputs(vec![record(DELIVERIES, "a")])).await.unwrap();
        assert_eq!(log.flush_once().is_err(), fail);
        assert_eq!(stores.written.load(Ordering::Relaxed), before, "written before the stores were synced");
        assert_eq!(disk.used_bytes() > before, !fail);
    }
}

#[tokio::test(start_paused = true)]
async fn one_sync_serves_all_who_wait() {
    let disk = MemoryDisk::new();
    let log = open(&disk, LogOptions::default()).unwrap();
    let flusher = log.clone();
    tokio::spawn(async move { flusher.flush_task().await });
    let (syncs, writes) = (disk.syncs(), disk.writes());
    let appends: Vec<_> = (0..500)
        .map(|i| {
            let log = log.clone();
            tokio::spawn(async move { log.append(vec![record(DELIVERIES, i.to_string())]).await.unwrap() })
        })
        .collect();
    let mut offsets = BTreeSet::new();
    for append in appends {
        offsets.extend(append.await.unwrap());
    }
    assert_eq!(offsets, (0..500).collect());
    assert!(disk.syncs() - syncs <= 4, "{} syncs", disk.syncs() - syncs);
    assert!(disk.writes() - writes <= 4, "{} writes", disk.writes() - writes);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_sync_is_bounded() {
    let disk = MemoryDisk::new();
    let log = open(&disk, LogOptions { pending_bytes: 10_000, ..LogOptions::default() }).unwrap();
    let mut worker = join(&log, Group::Worker).await;
    let mut committed = 0;
    loop {
        let commit = worker.commit(outputs(vec![record(DELIVERIES, vec![0; 1_000])]));
        match tokio::time::timeout(Duration::from_millis(1), commit).await {
            Ok(done) => drop(done.unwrap()),
            Err(_) => break,
        }
        committed += 1;
        assert!(committed < 100, "commits never wait");
    }
    log.flush_once().unwrap();
    worker.commit(outputs(vec![record(DELIVERIES, "on")])).await.unwrap();
    assert_eq!(
        worker.ends(&[DELIVERIES]).await.unwrap()[0],
        committed + 1,
        "a commit that waited in vain left something"
    );
}

#[tokio::test(start_paused = true)]
async fn a_position_beyond_the_end_is_an_error_and_changes_nothing() {
    let log = open(&MemoryDisk::new(), small()).unwrap();
    let mut worker = join(&log, Group::Worker).await;
    let commit = Commit { outputs: vec![record(DELIVERIES, "x")], ..passed(DELIVERIES, 1) };
    assert!(matches!(worker.commit(commit).await, Err(LogError::Damaged(_))));
    assert_eq!(worker.ends(&[DELIVERIES]).await.unwrap()[0], 0);
    assert!(log.append(vec![record(partition(Topic::Dead, 9), "x")]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_member_of_another_count_takes_its_partitions_over() {
    let log = open(&MemoryDisk::new(), small()).unwrap();
    let mut all = join(&log, Group::Worker).await;
    let mut second = log.subscribe(Group::Worker, Member { ordinal: 1, count: 2 }).await.unwrap();
    let odd = partition(Topic::Deliveries(Lane::Bulk), 1);
    let revoked = all.poll(10, Duration::ZERO).await.unwrap().revoked;
    assert!(revoked.contains(&odd) && revoked.iter().all(|at| at.partition % 2 == 1));
    assert_eq!(all.commit(passed(odd, 0)).await.unwrap(), Committed::Fenced);
    assert!(matches!(all.commit(passed(DELIVERIES, 0)).await.unwrap(), Committed::Done(_)));
    assert!(matches!(second.commit(passed(odd, 0)).await.unwrap(), Committed::Done(_)));
}

/// Everything at once on a real directory: callers, two stages, the flusher thread, segments that come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_under_load_on_a_directory() {
    const CALLERS: u64 = 8;
    const EACH: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 64 << 10, flush_interval_ms: 1, ..small() };
    let log = open_on(Arc::new(RealDisk::open(directory.path()).unwrap()), options.clone()).unwrap();
    let flusher = log.spawn_flusher_thread().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let log = log.clone();
        tasks.spawn(async move {
            let mut random = Random(caller);
            for i in 0..EACH {
                let at = partition(Topic::Deliveries(Lane::Bulk), random.below(4) as u32);
                let body =
                    format!("{caller}.{i}.").into_bytes().into_iter().chain(vec![b'x'; 2_000]).collect::<Vec<_>>();
                log.append(vec![record(at, body)]).await.unwrap();
            }
        });
    }
    let stage = log.clone();
    tasks.spawn(async move {
        let mut worker = join(&stage, Group::Worker).await;
        let mut moved = 0;
        while moved < CALLERS * EACH {
            // A poll that is dropped half way must lose nothing.
            let poll =
                tokio::time::timeout(Duration::from_micros(moved % 7 * 20), worker.poll(20, Duration::from_secs(9)));
            let Ok(polled) = poll.await else { continue };
            let records = polled.unwrap().records;
            moved += records.len() as u64;
            let positions = records.iter().map(|r| (r.at, Position { offset: r.offset + 1, ..Position::default() }));
            let outputs = records.iter().map(|r| record(partition(Topic::Receipts, 0), r.body.to_vec()));
            let commit = Commit { positions: positions.collect(), outputs: outputs.collect() };
            assert!(matches!(worker.commit(commit).await.unwrap(), Committed::Done(_)));
        }
    });
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    log.close().unwrap();
    flusher.join();
    let log = open_on(Arc::new(RealDisk::open(directory.path()).unwrap()), options).unwrap();
    let receipts = partition(Topic::Receipts, 0);
    let (mut from, mut seen) = (0, BTreeSet::new());
    loop {
        let (records, next) = log.read(receipts, from, 50).await.unwrap();
        if records.is_empty() {
            break;
        }
        from = next;
        assert!(records.into_iter().all(|r| seen.insert(r.body)), "a record was moved twice");
    }
    assert_eq!(seen.len() as u64, CALLERS * EACH);
    let progress = log.progress(Group::Worker).await.unwrap();
    assert!(progress.iter().all(|p| p.committed == p.end), "{progress:?}");
    let (all, live) = log.usage_bytes();
    assert!(all < 3 * live, "{all} bytes for {live} live");
}
