//! The ledger on the embedded log and store, through power cuts at any moment: the books hold all the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_core::{
    clock::{Clock, Entropy, World},
    ids::{InstanceId, NotificationId, TenantId},
    outputs::Outputs,
    packed,
    ports::{
        ledger::{Ledger, ReceiptScope},
        log::{Identity, Log, Member},
    },
    record::{Channel, Manifest, Receipts, State},
    topic::Layout,
};
use herald_embedded::{
    disk::MemoryDisk,
    kv::MemoryKv,
    log::{EmbeddedLog, LogOptions},
    store::Stores,
};
use herald_ledger::{Config, Deps, proof::prove, receipts, stats::LedgerStats};
use tokio_util::sync::CancellationToken;

const LAYOUT: Layout = Layout { shards: 1, requests: 1, receipts: 3 };
const NOTIFICATIONS: u64 = 60;
const USERS: u64 = 25;

struct Random(AtomicU64);

impl Entropy for Random {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

struct Now;

impl Clock for Now {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }
}

fn id(n: u64) -> NotificationId {
    NotificationId::at(1_700_000_000_000 + n, [n, n])
}

fn receipts(n: u64, users: &[String]) -> Receipts {
    let hash = |user: &String| InstanceId::of(&id(n), user, Channel::Email).book_hash();
    Receipts {
        notification_id: id(n).0.to_vec().into(),
        tenant: "t".into(),
        channel: Channel::Email as i32,
        state: State::Delivered as i32,
        count: users.len() as u32,
        hash_sum: users.iter().map(hash).fold(0, u64::wrapping_add),
        users: packed::pack(users.iter().map(String::as_str)),
        accepted_ms: 1_700_000_000_000,
        ended_ms: 1_700_000_000_500,
        ..Receipts::default()
    }
}

fn manifest(booked: &Receipts) -> Manifest {
    Manifest {
        notification_id: booked.notification_id.clone(),
        tenant: booked.tenant.clone(),
        channel: booked.channel,
        count: booked.count,
        hash_sum: booked.hash_sum,
        recipients: booked.count,
        last: true,
        ..Manifest::default()
    }
}

/// What a worker's commits would tell: manifests first, then receipts in small pieces, interleaved.
fn steps(random: &World) -> Vec<Outputs> {
    let users: Vec<String> = (0..USERS).map(|u| format!("u{u}")).collect();
    let outputs = || Outputs::new(LAYOUT, "r", 0);
    let mut steps = Vec::new();
    let mut pieces = Vec::new();
    for n in 0..NOTIFICATIONS {
        let mut created = outputs();
        created.manifest(manifest(&receipts(n, &users)));
        steps.push(created);
        pieces.extend(users.chunks(1 + random.below(7) as usize).map(|users| receipts(n, users)));
    }
    while !pieces.is_empty() {
        let mut commit = outputs();
        for _ in 0..=random.below(5).min(pieces.len() as u64 - 1) {
            commit.receipts(pieces.swap_remove(random.below(pieces.len() as u64) as usize));
        }
        steps.push(commit);
    }
    steps
}

struct Machine {
    disk: MemoryDisk,
    kv: Arc<MemoryKv>,
    log: EmbeddedLog,
    ledger: Arc<dyn Ledger>,
    flusher: tokio::task::JoinHandle<()>,
    role: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Machine {
    fn start(disk: MemoryDisk, kv: Arc<MemoryKv>, world: &World) -> Self {
        let identity = Identity { region: "r".into(), epoch: 1, layout: LAYOUT };
        let store_flush = kv.last_flush().unwrap();
        let options = LogOptions { segment_bytes: 16_384, low_water_bytes: 0, store_flush, ..LogOptions::default() };
        let log = EmbeddedLog::open(Arc::new(disk.clone()), identity, options, kv.clone(), Arc::new(Now)).unwrap();
        let flushed = log.clone();
        let flusher = tokio::spawn(async move { flushed.flush_task().await });
        let ledger: Arc<dyn Ledger> = Stores::open(kv.clone()).ledger;
        let deps = Deps {
            log: Arc::new(log.clone()),
            ledger: ledger.clone(),
            world: world.clone(),
            stats: Arc::new(LedgerStats::default()),
        };
        let config = Config { flush_interval_ms: 5, poll_max_records: 7, max_active: 20, ..Config::default() };
        let member = Member { ordinal: 0, count: 1 };
        let role = tokio::spawn(receipts::run(config, deps, member, CancellationToken::new()));
        Self { disk, kv, log, ledger, flusher, role }
    }

    async fn cut_power(self, world: &World) -> Self {
        self.role.abort();
        self.flusher.abort();
        let _ = tokio::join!(self.role, self.flusher);
        let disk = self.disk.crash(|| world.entropy.next_u64());
        self.kv.crash(world.below(4) as usize);
        Self::start(disk, self.kv, world)
    }
}

#[tokio::test(start_paused = true)]
async fn the_books_hold_through_power_cuts() {
    for seed in 0..24 {
        println!("seed {seed}");
        let random = Arc::new(Random(AtomicU64::new(seed)));
        let world = World::new(Arc::new(Now), random);
        let mut machine = Machine::start(MemoryDisk::new(), Arc::new(MemoryKv::new()), &world);
        for step in steps(&world) {
            machine.log.append(step.finish()).await.unwrap();
            if world.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(world.below(30))).await;
            }
            if world.below(20) == 0 {
                machine = machine.cut_power(&world).await;
            }
        }
        let ids: Vec<NotificationId> = (0..NOTIFICATIONS).map(id).collect();
        let mut proof = prove(&*machine.ledger, &ids).await.unwrap();
        for _ in 0..1_000 {
            if proof.holds() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!machine.role.is_finished(), "seed {seed}");
            proof = prove(&*machine.ledger, &ids).await.unwrap();
        }
        assert!(proof.holds(), "seed {seed}: {proof:?}");
        assert_eq!((proof.notifications, proof.delivered), (NOTIFICATIONS, NOTIFICATIONS * USERS), "seed {seed}");
        each_user_has_one_receipt(&*machine.ledger, seed).await;
        machine.role.abort();
        machine.flusher.abort();
    }
}

async fn each_user_has_one_receipt(ledger: &dyn Ledger, seed: u64) {
    for n in 0..NOTIFICATIONS {
        let (mut users, mut rows, mut token) = (BTreeSet::new(), 0, None::<Vec<u8>>);
        loop {
            let scope = ReceiptScope::Request(id(n));
            let page = ledger.receipts(&TenantId::trusted("t"), &scope, token.as_deref(), 100).await.unwrap().unwrap();
            rows += page.items.len();
            users.extend(page.items.into_iter().map(|row| row.user_id));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!((users.len(), rows), (USERS as usize, USERS as usize), "seed {seed}, notification {n}");
    }
}
