//! What the CQL stores cost: latency, and CPU of the client and of the server.
//!
//! ```text
//! cargo run --profile dist -p herald-distributed --example cql_rate -- cql://127.0.0.1:9042/herald_rate [PID OF THE SERVER]
//! ```
//!
//! It makes the keyspace with one replica if it is not there, and leaves its rows in it.

mod cpu;

use std::{future::Future, time::Instant};

use anyhow::Context;
use cpu::cpu_us;
use futures::{StreamExt, TryStreamExt, stream};
use herald_core::{
    books::Totals,
    ids::{NotificationId, TenantId},
    packed::pack,
    people::User,
    ports::{
        admissions::{Admission, Admissions},
        directory::{AudienceKey, Directory, Membership, PersonChange},
        inbox::{Inbox, MarkAs, Which},
        ledger::{AdmittedRow, Flush, Ledger, ReceiptScope},
    },
    record::{Channel, InboxBatch, InboxSection, Receipts, State},
};
use herald_distributed::cql::{CqlConfig, CqlStores, migrate};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().context("usage: cql_rate cql://host:port/keyspace [pid of the server]")?.parse()?;
    let server = arguments.next().map(|pid| pid.parse()).transpose()?;
    let one_replica = "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned();
    let config = CqlConfig { replication: one_replica, ..CqlConfig::default() };
    migrate(&url, &config).await?;
    let bench = Bench { stores: CqlStores::open(&url, &config).await?, server, run: std::process::id() };
    println!(
        "{:44} {:>9} {:>9} {:>9} {:>11} {:>11}",
        "operation", "a second", "p50 ms", "p99 ms", "client us", "server us"
    );
    bench.ledger().await?;
    bench.people().await?;
    bench.inbox().await?;
    bench.admissions().await
}

struct Bench {
    stores: CqlStores,
    server: Option<u32>,
    /// Keeps the rows of runs apart.
    run: u32,
}

impl Bench {
    fn tenant(&self) -> TenantId {
        TenantId::trusted(&format!("rate-{}", self.run))
    }

    fn id(&self, number: u64) -> NotificationId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.run.to_be_bytes());
        id[8..].copy_from_slice(&number.to_be_bytes());
        NotificationId(id)
    }

    /// Runs calls, so many at once, each of which does `each` operations, and prints what an operation costs.
    async fn measure<F>(
        &self,
        what: &str,
        each: u64,
        at_once: usize,
        calls: impl Iterator<Item = F>,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (client, server) = (cpu_us(std::process::id()), self.server.map(cpu_us));
        let begin = Instant::now();
        let timed = calls.map(|call| async {
            let begin = Instant::now();
            call.await.map(|()| begin.elapsed().as_secs_f64() * 1_000.0)
        });
        let mut times: Vec<f64> = stream::iter(timed).buffer_unordered(at_once).try_collect().await?;
        let elapsed = begin.elapsed().as_secs_f64();
        times.sort_unstable_by(f64::total_cmp);
        let operations = (times.len() as u64 * each) as f64;
        let at = |part: f64| times.get(((times.len() - 1) as f64 * part) as usize).copied().unwrap_or(0.0);
        let client = (cpu_us(std::process::id()) - client) / operations;
        let server = self.server.zip(server).map_or(f64::NAN, |(pid, before)| (cpu_us(pid) - before) / operations);
        println!(
            "{what:44} {:>9.0} {:>9.2} {:>9.2} {client:>11.2} {server:>11.2}",
            operations / elapsed,
            at(0.5),
            at(0.99)
        );
        Ok(())
    }

    /// Flushes of 5,000 receipts: of notifications of 20 users each in one record, by notifications of 5,000, and totals.
    async fn ledger(&self) -> anyhow::Result<()> {
        let tenant = self.tenant();
        let users =
            |from: u64, count: u64| -> Vec<String> { (from..from + count).map(|n| format!("user-{n}")).collect() };
        let receipts = |id: NotificationId, from: u64, count: u64| Receipts {
            notification_id: id.0.to_vec().into(),
            tenant: tenant.as_str().into(),
            channel: Channel::Email as i32,
            state: State::Delivered as i32,
            attempts: 1,
            provider: "smtp".into(),
            count: count as u32,
            users: pack(users(from, count).iter().map(String::as_str)),
            accepted_ms: 1_800_000_000_000,
            ended_ms: 1_800_000_001_000,
            ..Receipts::default()
        };
        let (receipts, tenant) = (&receipts, &tenant);
        for (what, fanout) in
            [("receipts and totals, 20 a notification", 20), ("receipts and totals, 5,000 a notification", 5_000)]
        {
            let calls = (0..40u64).map(|flush| async move {
                let records = (0..5_000 / fanout).map(|n| {
                    let (offset, number) = (flush * 5_000 + n, flush * 5_000 + n + fanout * 1_000_000);
                    (offset, vec![receipts(self.id(number), n * fanout, fanout)])
                });
                let records: Vec<_> = records.collect();
                let totals = records.iter().map(|(offset, receipts)| {
                    let mut totals = Totals::new(tenant.clone());
                    receipts.iter().for_each(|receipts| totals.book_receipts(receipts));
                    totals.applied = offset + 1;
                    let id =
                        NotificationId::from_slice(&receipts[0].notification_id).unwrap_or(NotificationId([0; 16]));
                    (id, totals)
                });
                let totals = totals.collect();
                let flush = Flush { partition: 1, totals, receipts: records, ..Flush::default() };
                Ok(self.stores.ledger.apply(flush).await?)
            });
            self.measure(what, 5_000, 1, calls).await?;
        }
        let admitted = (0..20u64).map(|poll| async move {
            let row = |n| AdmittedRow {
                id: self.id(poll * 500 + n),
                tenant: tenant.clone(),
                template_id: "welcome".into(),
                template_version: 1,
                accepted_ms: 1_800_000_000_000 + n,
                send_at_ms: 0,
                expires_ms: 1_800_086_400_000,
                dedupe_key: format!("d-{poll}-{n}"),
            };
            Ok(self.stores.ledger.apply(Flush { admitted: (0..500).map(row).collect(), ..Flush::default() }).await?)
        });
        self.measure("requests admitted, with a dedupe key", 500, 1, admitted).await?;
        let status =
            (0..5_000).map(|n| async move { Ok(self.stores.ledger.request(tenant, &self.id(n)).await.map(drop)?) });
        self.measure("status of a request", 1, 16, status).await?;
        let scope =
            ReceiptScope::User { user_id: "user-77".into(), since_ms: 1_800_000_000_000, until_ms: 1_800_003_600_000 };
        let scope = &scope;
        let log =
            (0..50).map(|_| async move { Ok(self.stores.ledger.receipts(tenant, scope, None, 50).await.map(drop)?) });
        self.measure("a user's receipts of an hour, 50", 1, 1, log).await
    }

    async fn people(&self) -> anyhow::Result<()> {
        let (tenant, directory) = (&self.tenant(), &self.stores.directory);
        let registered = (0..20u64).map(|call| async move {
            let profile = |n| PersonChange::Profile {
                user: User { user_id: format!("user-{n}"), locale: Some("de".into()), ..User::default() },
                expect: None,
            };
            Ok(directory.change(tenant, (call * 100..call * 100 + 100).map(profile).collect(), 1).await.map(drop)?)
        });
        self.measure("users registered (conditional)", 100, 1, registered).await?;
        let people = (0..100u64).map(|call| async move {
            let ids: Vec<String> = (0..256).map(|n| format!("user-{}", (call * 17 + n * 7) % 2_000)).collect();
            Ok(directory.people(tenant, &ids).await.map(drop)?)
        });
        self.measure("people read, 256 a call", 256, 4, people).await?;
        let topic = AudienceKey::Topic("t".into());
        let topic = &topic;
        let added = (0..10u64).map(|call| async move {
            let member = |n| Membership { audience: topic.clone(), user: format!("member-{}", call * 2_000 + n) };
            Ok(directory.set_members(tenant, (0..2_000).map(member).collect(), true).await.map(drop)?)
        });
        self.measure("members added to a topic, 2,000 a call", 2_000, 1, added).await?;
        let read = (0..10).map(|_| async move {
            let mut after = None;
            loop {
                let page = directory.audience(tenant, topic, after, 4_096).await?;
                match page.next {
                    Some(next) => after = Some(next),
                    None => return Ok(()),
                }
            }
        });
        self.measure("members read, 4,096 a page", 20_000, 1, read).await
    }

    async fn inbox(&self) -> anyhow::Result<()> {
        let (tenant, inbox) = (&self.tenant(), &self.stores.inbox);
        let put = (0..50u64).map(|call| async move {
            let users: Vec<String> = (0..256).map(|n| format!("user-{n}")).collect();
            let section = InboxSection {
                notification_id: self.id(call).0.to_vec().into(),
                tenant: tenant.as_str().into(),
                users: pack(users.iter().map(String::as_str)),
                count: 256,
                titles: vec!["New comment".into()],
                bodies: vec!["Somebody wrote something that is as long as comments are".into()],
                accepted_ms: 1_800_000_000_000,
                ..InboxSection::default()
            };
            Ok(inbox.put(1, 1, vec![(call, InboxBatch { sections: vec![section] })]).await?)
        });
        self.measure("inbox items put, 256 users a record", 256, 1, put).await?;
        let list = (0..1_000u64).map(|n| async move {
            let user = format!("user-{}", n % 256);
            let filter = herald_core::ports::inbox::StateFilter::Active;
            inbox.list(tenant, &user, filter, None, 50).await?;
            Ok(inbox.counts(tenant, &user).await.map(drop)?)
        });
        self.measure("50 inbox items and the counts", 1, 8, list).await?;
        let mark = (0..256u64).map(|n| async move {
            let user = format!("user-{n}");
            Ok(inbox.mark(tenant, &user, Which::All, MarkAs::Read, 1).await.map(drop)?)
        });
        self.measure("50 inbox items marked (conditional)", 1, 8, mark).await
    }

    async fn admissions(&self) -> anyhow::Result<()> {
        let (tenant, admissions) = (&self.tenant(), &self.stores.admissions);
        let begun = (0..2_000u64).map(|n| async move {
            let key = format!("key-{n}");
            let id = NotificationId::of_idempotency_key(tenant, &key, 1_800_000_000_000);
            let admission = Admission {
                id,
                body_hash: [1; 16],
                first_use_ms: 1_800_000_000_000,
                running_since_ms: 1_800_000_000_000,
                answered: false,
                first_place: None,
            };
            admissions.begin(tenant, &key, admission).await?;
            Ok(admissions.answered(tenant, &key, &id).await?)
        });
        self.measure("idempotency keys begun and answered", 1, 16, begun).await
    }
}
