use std::{collections::BTreeMap, io::Read, ops::Range, sync::atomic::AtomicI64};

use flate2::read::GzDecoder;
use herald_core::{
    books::Totals,
    ids::{NotificationId, TenantId},
    packed::pack,
    ports::{
        StoreError,
        ledger::{Flush, Ledger, ReceiptScope},
    },
    record::{Channel, Receipts, State},
};
use herald_embedded::kv::{Batch, Direction, Kv, MemoryKv, Row};

use super::*;

const DAY_MS: u64 = 86_400_000;
/// The first simulated day.
const BEGIN: u64 = 20_000;
const RETENTION_DAYS: u64 = 30;
const USERS: u64 = 40;

fn tenant() -> TenantId {
    TenantId::trusted("acme")
}

fn id_of(day: u64, number: u64) -> NotificationId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&day.to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    NotificationId(id)
}

/// What ended on a day: two notifications, in several records.
async fn end_a_day(stores: &Stores, day: u64) {
    let ended_ms = day * DAY_MS + 3_600_000;
    for number in 0..2 {
        let id = id_of(day, number);
        let receipts = (0..USERS / 10).map(|part| Receipts {
            notification_id: id.0.to_vec().into(),
            tenant: "acme".into(),
            channel: Channel::Email as i32,
            state: State::Delivered as i32,
            count: 10,
            users: pack(
                (0..10).map(|user| format!("u{}", part * 10 + user)).collect::<Vec<_>>().iter().map(String::as_str),
            ),
            provider: "smtp".into(),
            accepted_ms: ended_ms - 1_000,
            ended_ms,
            ..Default::default()
        });
        let mut totals = Totals::new(tenant());
        totals.updated_ms = ended_ms;
        let receipts = vec![(day * 10 + number, receipts.collect())];
        let flush = Flush { partition: 0, totals: vec![(id, totals)], receipts, ..Flush::default() };
        stores.ledger.apply(flush).await.unwrap();
    }
}

async fn stored(stores: &Stores, day: u64) -> usize {
    let mut count = 0;
    for number in 0..2 {
        let scope = ReceiptScope::Request(id_of(day, number));
        count += stores.ledger.receipts(&tenant(), &scope, None, 1_000).await.unwrap().unwrap().items.len();
    }
    count
}

/// How often each receipt is in the files, by request and user.
fn exported(directory: &Path) -> BTreeMap<(String, String), u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("receipts-20") && name.ends_with(".jsonl.gz"), "{name} is left");
        let mut text = String::new();
        GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        for line in text.lines() {
            let receipt: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| receipt[name].as_str().unwrap().to_owned();
            assert_eq!(
                (text("tenant_id"), text("state"), text("provider")),
                ("acme".into(), "delivered".into(), "smtp".into())
            );
            *found.entry((text("request_id"), text("user_id"))).or_insert(0) += 1;
        }
    }
    found
}

fn run(expiry: &Expiry, day: u64) {
    while expiry.step(day * DAY_MS + DAY_MS / 2).unwrap() {}
}

/// Without the row that counts flushes.
fn rows(kv: &dyn Kv) -> usize {
    let scan = |from: u8, to: u8| kv.scan(&[from]..&[to], Direction::Forward, usize::MAX).unwrap().len();
    scan(0x01, 0x20) + scan(0x20, 0x40) + scan(0x40, 0xFF)
}

#[tokio::test]
async fn over_forty_days_receipts_go_after_thirty_and_the_files_have_each_once() {
    let (kv, directory) = (Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap());
    let stores = Stores::open(kv.clone());
    let expiry = Expiry::new(&stores, RETENTION_DAYS, Some(directory.path()));
    let mut most_rows = 0;
    for day in BEGIN..BEGIN + 40 {
        end_a_day(&stores, day).await;
        run(&expiry, day);
        assert_eq!(
            stored(&stores, (day - RETENTION_DAYS).max(BEGIN)).await as u64,
            USERS * 2,
            "on day {}",
            day - BEGIN
        );
        if day == BEGIN + RETENTION_DAYS {
            most_rows = rows(&*kv);
        }
        assert!(day <= BEGIN + RETENTION_DAYS || rows(&*kv) <= most_rows, "what is stored does not grow any more");
    }
    let gone = 40 - 1 - RETENTION_DAYS;
    let found = exported(directory.path());
    assert_eq!(found.len() as u64, gone * USERS * 2);
    assert!(found.values().all(|count| *count == 1));
    assert_eq!(expiry.stats.receipts.load(Relaxed), gone * USERS * 2);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count() as u64, gone, "a file for each day");
    for day in BEGIN..BEGIN + gone {
        assert_eq!(stored(&stores, day).await, 0);
    }
}

/// Takes so many writes and no more, as if the process were killed then.
struct Killed {
    inner: Arc<MemoryKv>,
    left: AtomicI64,
}

impl Kv for Killed {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.inner.get(key)
    }

    fn scan(&self, range: Range<&[u8]>, direction: Direction, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(range, direction, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        match self.left.fetch_sub(1, Relaxed) > 0 {
            true => self.inner.write(batch),
            false => Err(StoreError::Unavailable("killed".into())),
        }
    }

    fn sync(&self) -> io::Result<u64> {
        Kv::sync(&*self.inner)
    }
}

#[tokio::test]
async fn wherever_it_is_killed_each_receipt_is_exported_once_before_it_goes() {
    let mut complete = false;
    for writes in 0.. {
        let (kv, directory) = (Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap());
        let stores = Stores::open(kv.clone());
        end_a_day(&stores, BEGIN).await;
        end_a_day(&stores, BEGIN + 1).await;
        let all = rows(&*kv);
        let killed = Stores::open(Arc::new(Killed { inner: kv.clone(), left: AtomicI64::new(writes) }));
        let expiry = Expiry::new(&killed, RETENTION_DAYS, Some(directory.path()));
        let now_ms = (BEGIN + 40) * DAY_MS;
        while let Ok(more) = expiry.step(now_ms) {
            complete = !more;
            if complete {
                break;
            }
        }
        assert!(rows(&*kv) >= all || !exported_safely(directory.path()).is_empty(), "deleted before a file was there");
        // What was half written when it was killed.
        fs::write(directory.path().join(file_name(BEGIN as u32 + 1, 1)).with_extension("partial"), "half").unwrap();
        run(&Expiry::new(&stores, RETENTION_DAYS, Some(directory.path())), BEGIN + 40);
        let _written_anew =
            fs::remove_file(directory.path().join(file_name(BEGIN as u32 + 1, 1)).with_extension("partial"));
        let found = exported(directory.path());
        assert_eq!(found.len() as u64, USERS * 4, "killed after {writes} writes");
        assert!(found.values().all(|count| *count == 1), "killed after {writes} writes: one is there twice");
        assert_eq!((stored(&stores, BEGIN).await, stored(&stores, BEGIN + 1).await), (0, 0));
        if complete {
            assert!(writes > 5, "each step was cut off");
            return;
        }
    }
}

fn exported_safely(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "gz")).collect()
}

#[tokio::test]
async fn while_nothing_can_be_written_nothing_is_deleted_and_it_is_told() {
    let (kv, directory) = (Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap());
    let stores = Stores::open(kv);
    end_a_day(&stores, BEGIN).await;
    let away = directory.path().join("not mounted");
    let expiry = Expiry::new(&stores, RETENTION_DAYS, Some(&away));
    let now_ms = (BEGIN + 40) * DAY_MS;
    for again in 0..3 {
        let told = format!("{:#}", expiry.step(now_ms + again).unwrap_err());
        assert!(told.contains("cannot be exported to") && told.contains("none of them is deleted"), "{told}");
        assert_eq!(expiry.stats.failing_since_ms.load(Relaxed), now_ms, "since the first failure");
    }
    assert_eq!(stored(&stores, BEGIN).await as u64, USERS * 2);
    fs::create_dir(&away).unwrap();
    run(&expiry, BEGIN + 40);
    assert_eq!(expiry.stats.failing_since_ms.load(Relaxed), 0);
    assert_eq!((exported(&away).len() as u64, stored(&stores, BEGIN).await), (USERS * 2, 0));
}
