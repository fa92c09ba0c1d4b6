//! What a stage's commit costs on Kafka, by records and by partitions touched.
//!
//! ```text
//! cargo run --release -p herald-distributed --example kafka_commit -- kafka://127.0.0.1:9092 [PID of the broker]
//! ```
//!
//! Each line is one loop of commits without a pause between them, in a log of its own.

mod cpu;

use std::time::{Duration, Instant};

use anyhow::Context;
use cpu::cpu_us;
use herald_core::{
    ports::log::{Commit, Committed, Log, Member, NewRecord, Position, Subscription, partition},
    record::Envelope,
    topic::{Group, Lane, Layout, Topic},
};
use herald_distributed::kafka::{KafkaConfig, KafkaLog};

const LAYOUT: Layout = Layout { shards: 16, requests: 2, receipts: 1 };
const MEASURED: Duration = Duration::from_secs(4);
const BODY_BYTES: usize = 200;
const ALONE: Member = Member { ordinal: 0, count: 1 };

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().context("the URL of a cluster is missing, such as kafka://127.0.0.1:9092")?;
    let broker = arguments.next().map(|pid| pid.parse::<u32>()).transpose().context("not the PID of a broker")?;
    let prefix = format!("{}/measure-{}", url.trim_end_matches('/'), uuid::Uuid::now_v7().simple());
    let config = KafkaConfig { replication_factor: 1, min_insync_replicas: 1, ..KafkaConfig::default() };
    let log = KafkaLog::open(config.at(&prefix)?, "local", Some(LAYOUT)).await?;
    let mut stage = log.subscribe(Group::Orchestrator, ALONE).await?;
    while stage.poll(1, Duration::from_secs(1)).await?.assigned.is_empty() {}

    println!("records partitions commits/s  p50 ms  p99 ms  client ms/commit  broker ms/commit");
    for (records, partitions) in
        [(0, 0), (1, 1), (16, 1), (16, 4), (16, 16), (256, 1), (256, 16), (1_000, 4), (1_000, 16)]
    {
        measure(&mut *stage, records, partitions, broker).await?;
    }
    append(&log, broker).await
}

async fn measure(
    stage: &mut dyn Subscription,
    records: u32,
    partitions: u32,
    broker: Option<u32>,
) -> anyhow::Result<()> {
    let at = partition(Topic::Requests(Lane::Bulk), 0);
    let outputs: Vec<NewRecord> = (0..records).map(|i| record(i % partitions.max(1))).collect();
    let (mut times, begun) = (Vec::new(), Instant::now());
    let (client_before, broker_before) = (cpu_us(std::process::id()), broker.map_or(0.0, cpu_us));
    while begun.elapsed() < MEASURED {
        let commit = Commit { positions: vec![(at, Position::default())], outputs: outputs.clone() };
        let asked = Instant::now();
        anyhow::ensure!(matches!(stage.commit(commit).await?, Committed::Done(_)), "the stage was fenced");
        times.push(asked.elapsed());
    }
    let commits = times.len() as f64;
    let client = (cpu_us(std::process::id()) - client_before) / 1e3 / commits;
    let broker = (broker.map_or(0.0, cpu_us) - broker_before) / 1e3 / commits;
    let rate = commits / begun.elapsed().as_secs_f64();
    let (p50, p99) = quantiles(times);
    println!("{records:7} {partitions:10} {rate:9.0} {p50:7.1} {p99:7.1} {client:17.2} {broker:17.2}");
    Ok(())
}

/// Appends one after the other: what an admission waits for.
async fn append(log: &KafkaLog, broker: Option<u32>) -> anyhow::Result<()> {
    let (mut times, begun, before) = (Vec::new(), Instant::now(), broker.map_or(0.0, cpu_us));
    while begun.elapsed() < MEASURED {
        let asked = Instant::now();
        log.append(vec![record(0)]).await?;
        times.push(asked.elapsed());
    }
    let broker = (broker.map_or(0.0, cpu_us) - before) / 1e3 / times.len() as f64;
    let (p50, p99) = quantiles(times);
    println!("an append, one at a time: p50 {p50:.1} ms, p99 {p99:.1} ms, broker {broker:.2} ms");
    Ok(())
}

fn record(shard: u32) -> NewRecord {
    NewRecord {
        at: partition(Topic::Deliveries(Lane::Bulk), shard),
        key: Default::default(),
        timestamp_ms: 1_700_000_000_000,
        envelope: Envelope { region: "local".to_owned(), ..Envelope::default() },
        body: vec![7; BODY_BYTES].into(),
    }
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    (at(0.5), at(0.99))
}
