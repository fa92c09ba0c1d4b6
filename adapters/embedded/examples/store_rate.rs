//! What the stores cost: CPU time of the calling thread for each person read, member paged, item put and receipt
//! applied, on a database in a temporary directory that another thread syncs every 5 ms.
//!
//! `cargo run --release -p herald-embedded --example store_rate`

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use herald_core::{
    ids::{NotificationId, TenantId},
    packed::pack,
    people::{ChannelPreference, Endpoint, Preferences, User},
    ports::{
        directory::{AudienceKey, Directory, Membership, PersonChange},
        inbox::Inbox,
        ledger::{Flush, Ledger, ReceiptScope},
    },
    record::{Channel, Cursor, InboxBatch, InboxSection, Receipts, State},
};
use herald_embedded::{
    kv::{FjallConfig, FjallKv, Kv},
    store::Stores,
};
use rustix::time::{ClockId, clock_gettime};

// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PEOPLE: u32 = 100_000;
const FAN_OUT: usize = 300;
const NOW_MS: u64 = 1_700_000_000_000;

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs something that does `count` units and prints what each costs.
async fn measure(what: &str, run: impl AsyncFnOnce() -> usize) {
    let (cpu, wall) = (thread_cpu(), Instant::now());
    let count = run().await as f64;
    let (cpu, wall) = ((thread_cpu() - cpu).as_secs_f64(), wall.elapsed().as_secs_f64());
    println!("{what:<44} {:>8.3} us CPU, {:>8.3} us wall, {count:>9} units", cpu / count * 1e6, wall / count * 1e6);
}

fn name(number: u32) -> String {
    format!("user-{number:07}")
}

fn person(number: u32) -> Vec<PersonChange> {
    let endpoint = |channel: &str, address: String| Endpoint { channel: channel.into(), address, ..Default::default() };
    let user = User {
        user_id: name(number),
        locale: Some("de".into()),
        time_zone: Some("Europe/Berlin".into()),
        endpoints: vec![
            endpoint("email", format!("{}@example.com", name(number))),
            endpoint("push", format!("token-{number:064}")),
        ],
        attributes: serde_json::Map::from_iter([("plan".to_owned(), "pro".into()), ("name".to_owned(), "Ada".into())]),
        ..User::default()
    };
    let mut changes = vec![PersonChange::Profile { user, expect: None }];
    if number.is_multiple_of(4) {
        let out = ChannelPreference { enabled: Some(false), ..Default::default() };
        let preferences = Preferences { channels: [("push".to_owned(), out)].into(), ..Default::default() };
        changes.push(PersonChange::Preferences { user_id: name(number), preferences });
    }
    changes
}

async fn people(stores: &Stores, tenant: &TenantId) {
    measure("person stored, 1,000 a call", async || {
        for begin in (0..PEOPLE).step_by(1_000) {
            let changes = (begin..begin + 1_000).flat_map(person).collect();
            stores.directory.change(tenant, changes, NOW_MS).await.unwrap();
        }
        PEOPLE as usize
    })
    .await;
    for round in ["first", "second"] {
        measure(&format!("person read, 256 a call, {round} time"), async || {
            let mut read = 0;
            for begin in (0..PEOPLE).step_by(256) {
                // Strided, as a page of an audience is: neighbours in the audience are not neighbours in the table.
                let ids: Vec<String> =
                    (begin..begin + 256).map(|n| name((u64::from(n) * 7919 % u64::from(PEOPLE)) as u32)).collect();
                read +=
                    stores.directory.people(tenant, &ids).await.unwrap().iter().filter(|p| p.user.is_some()).count();
            }
            read
        })
        .await;
    }
}

async fn audiences(stores: &Stores, tenant: &TenantId) {
    let star = AudienceKey::FollowersOf("star".into());
    measure("follower added, 10,000 a call", async || {
        for begin in (0..PEOPLE).step_by(10_000) {
            let edges = (begin..begin + 10_000).map(|n| Membership { audience: star.clone(), user: name(n) });
            stores.directory.set_members(tenant, edges.collect(), true).await.unwrap();
        }
        PEOPLE as usize
    })
    .await;
    for limit in [256, 4_096] {
        measure(&format!("member paged, {limit} a page"), async || {
            let (mut after, mut count) = (None::<Cursor>, 0);
            loop {
                let page = stores.directory.audience(tenant, &star, after, limit).await.unwrap();
                count += page.users.len();
                match page.next {
                    Some(next) => after = Some(next),
                    None => return count,
                }
            }
        })
        .await;
    }
}

fn audience_of(batch: usize) -> Vec<String> {
    (0..FAN_OUT).map(|n| name(((batch * FAN_OUT + n) as u64 * 7919 % u64::from(PEOPLE)) as u32)).collect()
}

async fn inbox(stores: &Stores, tenant: &TenantId) {
    let batches: Vec<InboxBatch> = (0..2_000)
        .map(|batch| {
            let section = InboxSection {
                notification_id: bytes::Bytes::copy_from_slice(&NotificationId::at(batch, [batch, 1]).0),
                tenant: tenant.as_str().into(),
                users: pack(audience_of(batch as usize).iter().map(String::as_str)),
                count: FAN_OUT as u32,
                titles: vec!["Somebody commented".into()],
                bodies: vec!["A comment of some length on what you wrote the other day".into()],
                data: bytes::Bytes::from_static(b"{\"post\":12345}"),
                accepted_ms: NOW_MS,
                attempts: 0,
            };
            InboxBatch { sections: vec![section] }
        })
        .collect();
    measure("item put, 300 a record, 4 records a call", async || {
        let count = batches.len() * FAN_OUT;
        let mut offset = 0;
        for four in batches.chunks(4) {
            let records = four.iter().map(|batch| {
                offset += 1;
                (offset, batch.clone())
            });
            stores.inbox.put(0, 1, records.collect()).await.unwrap();
        }
        count
    })
    .await;
    measure("counts read", async || {
        for n in 0..20_000 {
            stores.inbox.counts(tenant, &name(n)).await.unwrap();
        }
        20_000
    })
    .await;
}

async fn ledger(stores: &Stores, tenant: &TenantId) {
    for records_a_flush in [1, 10] {
        let flushes: Vec<Flush> = (0..2_000 / records_a_flush)
            .map(|flush| {
                let receipts = (0..records_a_flush).map(|n| {
                    let batch = flush * records_a_flush + n;
                    let receipts = Receipts {
                        notification_id: bytes::Bytes::copy_from_slice(&NotificationId::at(1, [batch as u64, 2]).0),
                        tenant: tenant.as_str().into(),
                        channel: Channel::InApp as i32,
                        state: State::Delivered as i32,
                        attempts: 1,
                        count: FAN_OUT as u32,
                        users: pack(audience_of(batch).iter().map(String::as_str)),
                        accepted_ms: NOW_MS,
                        ended_ms: NOW_MS + batch as u64,
                        ..Receipts::default()
                    };
                    (batch as u64, vec![receipts])
                });
                Flush { partition: records_a_flush as u32, receipts: receipts.collect(), ..Flush::default() }
            })
            .collect();
        measure(&format!("receipt applied, {records_a_flush} records of 300 a flush"), async || {
            let count = flushes.len() * records_a_flush * FAN_OUT;
            for flush in flushes {
                stores.ledger.apply(flush).await.unwrap();
            }
            count
        })
        .await;
    }
    let scope = ReceiptScope::User { user_id: name(7919), since_ms: NOW_MS - 3_600_000, until_ms: NOW_MS + 82_800_000 };
    measure("user's day read, of 1,200,000 receipts", async || {
        let (mut token, mut found) = (None::<Vec<u8>>, 0);
        loop {
            let page = stores.ledger.receipts(tenant, &scope, token.as_deref(), 1_000).await.unwrap().unwrap();
            found += page.items.len();
            match page.next {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        println!("  ({found} found)");
        1
    })
    .await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let directory = tempfile::tempdir().unwrap();
    let kv = Arc::new(FjallKv::open(directory.path(), FjallConfig::default()).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let syncing = std::thread::spawn({
        let (kv, stop) = (kv.clone(), stop.clone());
        move || {
            let (mut syncs, mut longest) = (0u32, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                Kv::sync(&*kv).unwrap();
                longest = longest.max(begin.elapsed());
                syncs += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("{syncs} syncs, the longest {longest:?}");
        }
    });
    let stores = Stores::open(kv.clone());
    let tenant = TenantId::trusted("acme");
    people(&stores, &tenant).await;
    audiences(&stores, &tenant).await;
    inbox(&stores, &tenant).await;
    ledger(&stores, &tenant).await;
    stop.store(true, Ordering::Relaxed);
    syncing.join().unwrap();
    println!("{} MiB on disk", kv.disk_bytes().unwrap() >> 20);
}
