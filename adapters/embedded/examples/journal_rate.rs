//! What a record costs the embedded log: appended by a stage's commit, polled and committed by the next, with syncs.
//!
//! ```text
//! cargo run --release -p herald-embedded --example journal_rate -- <directory>
//! ```
//!
//! Prints processor time of the whole process (stages and flusher) and wall time per record.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use herald_core::{
    clock::Clock,
    ports::log::{Commit, Identity, Log, Mark, Member, NewRecord, Position, partition},
    record::{Envelope, SectionSummary},
    topic::{Group, Lane, Layout, Topic},
};
use herald_embedded::{
    SyncFirst,
    disk::RealDisk,
    log::{EmbeddedLog, LogOptions},
};
use rustix::time::{ClockId, clock_gettime};

const ALONE: Member = Member { ordinal: 0, count: 1 };
/// The stages run side by side: the second is never further behind than this.
const MAX_LAG_RECORDS: usize = 2_048;
const IDLE: Duration = Duration::from_millis(100);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct NoStores;

impl SyncFirst for NoStores {
    fn sync(&self) -> io::Result<u64> {
        Ok(0)
    }
}

struct NoTime;

impl Clock for NoTime {
    fn now_ms(&self) -> u64 {
        0
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn record(shard: u32, body: &Bytes, sections: usize) -> NewRecord {
    let section = SectionSummary {
        tenant: "tenant-a".to_owned(),
        notification_id: Bytes::from_static(&[7; 16]),
        channel: 3,
        count: 64,
        hash_sum: u64::MAX / 3,
    };
    let envelope = Envelope {
        schema: 3,
        region: "eu-1".to_owned(),
        tenant: "tenant-a".to_owned(),
        sections: vec![section; sections],
        ..Envelope::default()
    };
    let at = partition(Topic::Deliveries(Lane::Bulk), shard);
    NewRecord { at, key: Bytes::new(), timestamp_ms: 0, envelope, body: body.clone() }
}

async fn measure(name: &str, body_bytes: usize, sections: usize, batch: usize, records: usize) -> anyhow::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let directory = tempfile::tempdir_in(directory)?;
    let layout = Layout { shards: 16, requests: 8, receipts: 4 };
    let identity = Identity { region: "eu-1".to_owned(), epoch: 1, layout };
    let disk = Arc::new(RealDisk::open(directory.path())?);
    let log = EmbeddedLog::open(disk, identity, LogOptions::default(), Arc::new(NoStores), Arc::new(NoTime))?;
    let flusher = log.spawn_flusher_thread()?;
    let body = Bytes::from(vec![0x5A; body_bytes]);
    let (began, spent) = (Instant::now(), processor_time());

    let (consumed, mut lag) = tokio::sync::watch::channel(0);
    let source = log.clone();
    let writing = tokio::spawn(async move {
        let mut orchestrator = source.subscribe(Group::Orchestrator, ALONE).await?;
        let mut written = 0;
        while written < records {
            lag.wait_for(|consumed| written < consumed + MAX_LAG_RECORDS).await?;
            let outputs = (0..batch).map(|i| record((i % 16) as u32, &body, sections)).collect();
            orchestrator.commit(Commit { positions: Vec::new(), outputs }).await?;
            written += batch;
        }
        anyhow::Ok(())
    });
    let sink = log.clone();
    let reading = tokio::spawn(async move {
        let mut worker = sink.subscribe(Group::Worker, ALONE).await?;
        let (mut read, mut last) = (0, Mark::default());
        while read < records {
            let polled = worker.poll(256, IDLE).await?;
            read += polled.records.len();
            last = polled.mark;
            let mut positions: Vec<_> = polled
                .records
                .iter()
                .map(|r| (r.at, Position { offset: r.offset + 1, ..Position::default() }))
                .collect();
            positions.reverse();
            positions.sort_by_key(|(at, _)| *at);
            positions.dedup_by_key(|(at, _)| *at);
            worker.commit(Commit { positions, outputs: Vec::new() }).await?;
            consumed.send_replace(read);
        }
        sink.durable(last).await?;
        anyhow::Ok(())
    });
    writing.await??;
    reading.await??;
    let (wall, spent) = (began.elapsed(), processor_time() - spent);
    log.close()?;
    flusher.join();
    let (all, live) = log.usage_bytes();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / records as f64;
    println!(
        "{name}: {:.2} us of processor and {:.2} us of time per record, {:.0} records/s; {} MiB on disk, {live} bytes live",
        each(spent),
        each(wall),
        records as f64 / wall.as_secs_f64(),
        all >> 20,
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        measure("1 kB, one a commit     ", 1_000, 1, 1, 200_000).await?;
        measure("1 kB, 64 a commit      ", 1_000, 1, 64, 640_000).await?;
        measure("8 kB, 16 a commit      ", 8_000, 2, 16, 200_000).await
    })
}
