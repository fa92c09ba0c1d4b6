//! A closed loop: sends as fast as the process works, but never lets more instances be under way than its windows hold.

use std::time::Duration;

use anyhow::Context;
use herald_proto::v1::{NotifyBatchRequest, NotifyResult};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{process::Herald, world::World};

/// Notifications of one call.
const BATCH: u64 = 100;

/// Calls under way at once.
const CALLS: usize = 8;

/// How often the counters are read; a reading costs the process some 100 us.
const POLL: Duration = Duration::from_millis(50);

/// How long nothing may end before the run fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Notifications accepted.
    pub notifications: u64,
    /// Instances that they make.
    pub instances: u64,
}

/// What tells that an instance has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The worker's counter: without books.
    Worker,
    /// The ledger has booked it.
    Booked,
}

impl End {
    fn counter(self) -> &'static str {
        match self {
            Self::Worker => "herald_worker_ended_total",
            Self::Booked => "herald_instances_ended_total",
        }
    }
}

/// Sends `count` more notifications in batches; returns the sum of all that were sent since the start.
pub async fn send(
    herald: &Herald,
    world: &World,
    end: End,
    sent: Sent,
    count: u64,
    window: u64,
) -> anyhow::Result<Sent> {
    let (mut sent, last) = (sent, sent.notifications + count);
    let mut calls = JoinSet::new();
    let mut under_way = sent.instances;
    while sent.notifications < last {
        if sent.instances > under_way + window {
            under_way = ended(herald, end).await?;
            if sent.instances > under_way + window {
                sleep(POLL).await;
            }
            continue;
        }
        let batch = BATCH.min(last - sent.notifications);
        let (turn, mut notifications) = (sent.notifications / BATCH, Vec::new());
        let mut api = world.tenants[turn as usize % world.tenants.len()].api.notifications();
        for number in sent.notifications..sent.notifications + batch {
            let (_, request, fanout) = world.notification(turn, number, format!("News {number}"));
            notifications.push(request);
            sent.instances += fanout;
        }
        sent.notifications += batch;
        if calls.len() >= CALLS {
            check(calls.join_next().await.context("no call")??)?;
        }
        calls.spawn(async move { api.notify_batch(NotifyBatchRequest { notifications }).await });
    }
    while let Some(answer) = calls.join_next().await {
        check(answer?)?;
    }
    Ok(sent)
}

fn check(answer: Result<tonic::Response<herald_proto::v1::NotifyBatchResponse>, tonic::Status>) -> anyhow::Result<()> {
    let results: Vec<NotifyResult> = answer.context("a batch was refused")?.into_inner().results;
    match results.into_iter().find_map(|result| result.error) {
        None => Ok(()),
        Some(problem) => anyhow::bail!("a notification was refused: {}: {}", problem.code, problem.detail),
    }
}

/// Waits until everything that was sent has ended.
pub async fn drain(herald: &Herald, end: End, sent: Sent) -> anyhow::Result<()> {
    let (mut before, mut moved) = (0, Instant::now());
    loop {
        let now = ended(herald, end).await?;
        anyhow::ensure!(now <= sent.instances, "{now} instances ended of {} sent", sent.instances);
        if now == sent.instances {
            return Ok(());
        }
        if now > before {
            (before, moved) = (now, Instant::now());
        }
        anyhow::ensure!(moved.elapsed() < PATIENCE, "only {now} instances ended of {} sent", sent.instances);
        sleep(POLL).await;
    }
}

async fn ended(herald: &Herald, end: End) -> anyhow::Result<u64> {
    herald.count(end.counter()).await
}
