//! What lasts, what goes, and what a restart finds.

#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use herald_core::{
    conformance::{admissions::admission, ledger},
    ids::TenantId,
    ports::{
        admissions::Admissions,
        directory::{Directory, PersonChange},
        ledger::{AdmittedRow, Flush, Ledger, ReceiptScope, RequestScope},
    },
};
use herald_embedded::{
    kv::{Batch, Direction, FjallConfig, FjallKv, Kv, MemoryKv},
    store::Stores,
};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const NOW_MS: u64 = 1_700_000_000_000;

fn tenant() -> TenantId {
    TenantId::trusted("acme")
}

fn open(path: &Path) -> FjallKv {
    FjallKv::open(path, FjallConfig::default()).unwrap()
}

fn put(kv: &dyn Kv, key: &'static str, value: &'static str) {
    let mut batch = Batch::default();
    batch.put(key.as_bytes(), value.as_bytes());
    kv.write(batch).unwrap();
}

/// A copy of a database as a power cut would leave it, had nothing unsynced reached the disk by itself: fjall keeps what
/// it did not hand to the operating system in its own memory.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn what_was_synced_is_there_after_a_crash_under_its_flush_number() {
    let directory = tempfile::tempdir().unwrap();
    let (live, crashed) = (directory.path().join("live"), directory.path().join("crashed"));
    let kv = open(&live);
    assert_eq!(kv.last_flush(), 0);
    assert_eq!(Kv::sync(&kv).unwrap(), 0, "there was nothing to sync");
    put(&kv, "a", "1");
    assert_eq!(Kv::sync(&kv).unwrap(), 1);
    assert_eq!(Kv::sync(&kv).unwrap(), 1);
    put(&kv, "b", "2");
    assert_eq!(Kv::sync(&kv).unwrap(), 2);
    put(&kv, "c", "never synced");
    copy(&live, &crashed);
    let found = open(&crashed);
    assert_eq!(found.last_flush(), 2);
    assert_eq!(found.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(found.get(b"b").unwrap().unwrap(), "2");
    drop(kv);
    let again = open(&live);
    put(&again, "d", "3");
    assert_eq!(Kv::sync(&again).unwrap(), 3, "numbers go on after a restart");
}

#[test]
fn rows_that_were_in_one_keyspace_are_parted_wherever_that_was_broken_off() {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<Vec<u8>> =
        (0..0x60_u8).flat_map(|table| (0..50_u8).map(move |n| vec![table, n])).filter(|key| key[0] != 0).collect();
    let raw = || fjall::Database::builder(directory.path()).open().unwrap();
    let keyspace = |database: &fjall::Database, name| database.keyspace(name, Default::default).unwrap();
    {
        let database = raw();
        let (rows, state) = (keyspace(&database, "rows"), keyspace(&database, "state"));
        rows.insert(b"\0flush", 7_u64.to_be_bytes()).unwrap();
        for (number, key) in keys.iter().enumerate() {
            // Some had been moved.
            let moved = number % 3 == 0 && !(0x20..0x40).contains(&key[0]);
            if moved { &state } else { &rows }.insert(key, key).unwrap();
        }
        database.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    let kv = open(directory.path());
    assert_eq!(kv.last_flush(), 7);
    let found: Vec<Vec<u8>> = kv.snapshot().rows().map(|row| row.unwrap().0.to_vec()).collect();
    assert_eq!(found[1..], keys);
    for key in &keys {
        assert_eq!(kv.get(key).unwrap().as_deref(), Some(&key[..]));
    }
    let scan = |from: u8, to: u8| kv.scan(&[from]..&[to], Direction::Forward, 9_999).map(|rows| rows.len());
    assert_eq!([scan(0x01, 0x20), scan(0x20, 0x40), scan(0x40, 0x60)].map(Result::unwrap), [31 * 50, 32 * 50, 32 * 50]);
    assert!(scan(0x1F, 0x21).is_err() && scan(0x3F, 0x41).is_err(), "half of the rows would pass for all");
    drop(kv);
    let database = raw();
    let tables = |name| -> Vec<u8> { keyspace(&database, name).iter().map(|row| row.key().unwrap()[0]).collect() };
    assert!(tables("rows").iter().all(|table| (0x20..0x40).contains(table)));
    assert!(!tables("state").iter().any(|table| (0x20..0x40).contains(table)));
}

#[test]
fn history_that_is_dropped_from_the_journal_is_missed_though_the_flush_number_is_in_a_table() {
    let directory = tempfile::tempdir().unwrap();
    let kv = open(directory.path());
    for _ in 0..3 {
        let mut batch = Batch::default();
        batch.put(vec![0x23, 1], vec![b'r'; 1_000]);
        batch.put(vec![0x01, 1], "a person");
        kv.write(batch).unwrap();
        Kv::sync(&kv).unwrap();
    }
    drop(kv);
    let database = fjall::Database::builder(directory.path()).open().unwrap();
    let state = database.keyspace("state", Default::default).unwrap();
    state.rotate_memtable_and_wait().unwrap();
    drop((state, database));
    assert_eq!(open(directory.path()).last_flush(), 3);
    let journals = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut damaged = 0;
    for journal in journals.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")) {
        let mut bytes = std::fs::read(&journal).unwrap();
        if let Some(at) = bytes.windows(9).rposition(|window| window == b"rrrrrrrrr") {
            // fjall takes it for a torn end.
            bytes.truncate(at);
            std::fs::write(&journal, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let error = FjallKv::open(directory.path(), FjallConfig::default()).err().unwrap();
    assert!(
        error.to_string().contains("3 batches of the ledger and the feeds were synced, and 2 are there"),
        "{error}"
    );
}

#[test]
fn a_finished_journal_file_that_is_damaged_is_refused_at_every_start() {
    let directory = tempfile::tempdir().unwrap();
    let config = FjallConfig { memtable_bytes: 4 << 20, ..FjallConfig::default() };
    let kv = FjallKv::open(directory.path(), config).unwrap();
    put(&kv, "b", "somebody");
    let finished = directory.path().join("0.jnl");
    let begun = directory.path().join("1.jnl");
    let mut seed = 1_u32;
    for number in 0..200_u8 {
        // It is compressed, so it must not repeat itself.
        let mut noise = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()
        };
        let value: Vec<u8> = (0..1 << 18).flat_map(|_| noise()).collect();
        let mut batch = Batch::default();
        batch.put(vec![0x23, number], value);
        kv.write(batch).unwrap();
        Kv::sync(&kv).unwrap();
        while kv.overloaded() {
            std::thread::yield_now();
        }
        if begun.exists() {
            break;
        }
    }
    assert!(begun.exists(), "no journal file was finished");
    drop(kv);
    let mut bytes = std::fs::read(&finished).unwrap();
    let at = bytes.windows(8).position(|window| window == b"somebody").unwrap();
    // Where its batch begins there is nothing that fjall knows.
    bytes[at.saturating_sub(40)..at].fill(0xEE);
    std::fs::write(&finished, bytes).unwrap();
    for _ in 0..2 {
        let error = FjallKv::open(directory.path(), config).err().unwrap();
        assert!(error.to_string().contains("0.jnl cannot be read from byte"), "{error}");
    }
}

#[test]
fn both_databases_scan_alike() {
    let directory = tempfile::tempdir().unwrap();
    let databases: [Box<dyn Kv>; 2] = [Box::new(MemoryKv::new()), Box::new(open(directory.path()))];
    for kv in databases {
        for key in ["a", "ab", "b", "ba", "c"] {
            put(&*kv, key, key);
        }
        let keys = |from: &str, to: &str, direction, limit| -> Vec<String> {
            let rows = kv.scan(from.as_bytes()..to.as_bytes(), direction, limit).unwrap();
            rows.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
        };
        assert_eq!(keys("ab", "c", Direction::Forward, 9), ["ab", "b", "ba"]);
        assert_eq!(keys("ab", "c", Direction::Backward, 2), ["ba", "b"]);
        assert_eq!(keys("c", "a", Direction::Forward, 9), [""; 0]);
        assert_eq!(keys("a", "c", Direction::Forward, 0), [""; 0]);
        let mut long = Batch::default();
        long.put(vec![7; 70_000], "too long");
        assert!(kv.write(long).is_err() || kv.get(&[7; 70_000]).unwrap().is_some());
    }
}

#[tokio::test]
async fn a_person_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let user = herald_core::conformance::directory::user("u");
    {
        let stores = Stores::open(Arc::new(open(directory.path())));
        let changes = vec![PersonChange::Profile { user: user.clone(), expect: None }];
        stores.directory.change(&tenant(), changes, 5).await.unwrap();
    }
    let stores = Stores::open(Arc::new(open(directory.path())));
    let people = stores.directory.people(&tenant(), &["u".to_owned()]).await.unwrap();
    assert_eq!(people[0].user.as_ref().unwrap().endpoints[0].address, user.endpoints[0].address);
    assert_eq!(stores.directory.list(&tenant(), None, 9).await.unwrap().0.len(), 1);
}

fn expire_all(stores: &Stores, now_ms: u64) {
    while stores.expire(now_ms, 30 * DAY_MS).unwrap() {}
}

#[tokio::test]
async fn an_idempotency_key_is_forgotten_after_two_days() {
    let kv = Arc::new(MemoryKv::new());
    let stores = Stores::open(kv.clone());
    for n in 0..2_500u64 {
        let key = format!("key-{n}");
        stores.admissions.begin(&tenant(), &key, admission(&tenant(), &key, 1, NOW_MS + n)).await.unwrap();
    }
    // Begun again after a day: its first use is that one now.
    stores.admissions.begin(&tenant(), "key-7", admission(&tenant(), "key-7", 2, NOW_MS + 30 * HOUR_MS)).await.unwrap();
    let rows = kv.len();
    expire_all(&stores, NOW_MS + 47 * HOUR_MS);
    assert_eq!(kv.len(), rows);
    assert!(stores.expire(NOW_MS + 50 * HOUR_MS, 30 * DAY_MS).unwrap(), "one call deletes a bounded number of rows");
    expire_all(&stores, NOW_MS + 50 * HOUR_MS);
    assert_eq!(kv.len(), 2, "one key is left, and its place by age");
    expire_all(&stores, NOW_MS + 80 * HOUR_MS);
    assert!(kv.is_empty());
}

#[tokio::test]
async fn the_ledger_forgets_what_is_old_and_nothing_that_still_changes() {
    let kv = Arc::new(MemoryKv::new());
    let stores = Stores::open(kv.clone());
    let ids = [1, 2].map(|n| ledger::notification(&tenant(), 1, n));
    let users: Vec<String> = (0..50).map(|n| format!("u{n}")).collect();
    let ends_ms = [NOW_MS, NOW_MS + 20 * DAY_MS];
    for (n, (id, ended_ms)) in
        [(ids[0], ends_ms[0]), (ids[1], ends_ms[0]), (ids[1], ends_ms[1])].into_iter().enumerate()
    {
        let admitted = AdmittedRow {
            id,
            tenant: tenant(),
            template_id: "t".into(),
            template_version: 1,
            accepted_ms: NOW_MS,
            send_at_ms: 0,
            expires_ms: NOW_MS + DAY_MS,
            dedupe_key: "k".into(),
        };
        let receipts = ledger::receipts(&tenant(), &id, &users, ended_ms);
        let mut totals = herald_core::books::Totals::new(tenant());
        totals.book_receipts(&receipts);
        totals.applied = n as u64 + 1;
        let flush = Flush {
            admitted: vec![admitted],
            totals: vec![(id, totals)],
            receipts: vec![(n as u64, vec![receipts])],
            ..Flush::default()
        };
        stores.ledger.apply(flush).await.unwrap();
    }
    let rows = kv.len();
    expire_all(&stores, NOW_MS + 29 * DAY_MS);
    assert_eq!(kv.len(), rows);
    expire_all(&stores, NOW_MS + 40 * DAY_MS);
    assert_eq!(stores.ledger.request(&tenant(), &ids[0]).await.unwrap(), None);
    let kept = stores.ledger.requests(&tenant(), &RequestScope::Since(0), None, 10).await.unwrap().unwrap();
    assert_eq!(kept.items.iter().map(|row| row.admitted.as_ref().unwrap().id).collect::<Vec<_>>(), [ids[1]]);
    let scope = ReceiptScope::Request(ids[1]);
    assert_eq!(ledger::read_all(&*stores.ledger, &tenant(), &scope, 1_000).await.len(), 100);
    expire_all(&stores, NOW_MS + 60 * DAY_MS);
    assert!(kv.is_empty(), "{} rows are left", kv.len());
}
