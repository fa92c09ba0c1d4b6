//! Fairness: what one tenant's spike does to another's messages, and what equal tenants get of a process that has too
//! much to do. The same runs with `fair = false` show what would happen without.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use herald_proto::v1::{NotifyBatchRequest, NotifyRequest};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    Common,
    latency::{MAX_CALLS, MAX_LAG, add_percentiles},
    process::Herald,
    proof::prove,
    report::{Refused, Report, times_us},
    sender::{End, Sent, drain},
    sink::{Sink, due_text},
    world::{Fanout, Plan, World},
};

/// Notifications of one call of those who send much.
const BATCH: u64 = 100;

/// What is sent, and how fast.
#[derive(Args, Clone)]
pub struct Load {
    /// Notifications a second of the small tenant, one a call.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How many times as much the other one sends.
    #[arg(long, default_value_t = 100.0)]
    times: f64,
    /// How many receive one notification.
    #[arg(long, default_value = "20")]
    fanout: Fanout,
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Tenants that send the same, together as much as the large one.
    #[arg(long, default_value_t = 8)]
    equals: usize,
}

/// One tenant's arrivals.
#[derive(Clone, Copy)]
pub struct Arrivals {
    /// Its number.
    pub tenant: usize,
    /// How many come.
    pub notifications_per_s: f64,
    /// Of one call.
    pub batch: u64,
    /// `email` or `in_app`.
    pub channel: &'static str,
}

/// Measures once with fairness and once without.
pub async fn run(common: &Common, load: &Load, report: &mut Report) -> anyhow::Result<()> {
    let small = Arrivals { tenant: 0, notifications_per_s: load.rate, batch: 1, channel: "email" };
    let large = Arrivals { tenant: 1, notifications_per_s: load.rate * load.times, batch: BATCH, ..small };
    let per_equal = large.notifications_per_s / load.equals.max(1) as f64;
    let equals: Vec<Arrivals> =
        (0..load.equals).map(|tenant| Arrivals { tenant, notifications_per_s: per_equal, ..large }).collect();
    for (name, fair) in [("fair", "true"), ("unfair", "false")] {
        let settings = [format!("worker.fair={fair}"), format!("orchestrator.fair={fair}")];
        let alone = Loop::run(common, load, &settings, &[small]).await?;
        let beside = Loop::run(common, load, &settings, &[small, large]).await?;
        let equal = Loop::run(common, load, &settings, &equals).await?;
        add_percentiles(report, &format!("{name}: small tenant alone"), &alone.latencies_us[0]);
        add_percentiles(report, &format!("{name}: small beside {} times as much", load.times), &beside.latencies_us[0]);
        let p99 = |run: &Loop| run.latencies_us[0].value_at_quantile(0.99) as f64;
        report.add(
            format!("{name}: small tenant's p99, beside to alone"),
            "times",
            p99(&beside) / p99(&alone).max(1.0),
        );
        report.add(format!("{name}: Jain's index of {} equals", load.equals), "", jain(&equal.arrived));
        report.add(format!("{name}: mails while equals were sending"), "mails/s", rate_of(&equal, load));
    }
    Ok(())
}

fn rate_of(run: &Loop, load: &Load) -> f64 {
    run.arrived.iter().sum::<u64>() as f64 / load.seconds as f64
}

/// R. Jain, D. Chiu and W. Hawe, "A Quantitative Measure of Fairness", 1984: 1 where all have the same, 1/n where one has
/// everything.
fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// What one run gave, by the order of its arrivals.
struct Loop {
    latencies_us: Vec<Histogram<u64>>,
    /// Mails that came while there were arrivals.
    arrived: Vec<u64>,
}

impl Loop {
    /// Runs an open loop in a fresh process; everything that was accepted is proven to have arrived.
    async fn run(common: &Common, load: &Load, settings: &[String], all: &[Arrivals]) -> anyhow::Result<Self> {
        let began = Instant::now();
        let sink = Sink::start(began).await?;
        let email = format!("email.url=smtp://{}?tls=off", sink.address);
        let settings: Vec<&str> = settings.iter().map(String::as_str).chain([email.as_str()]).collect();
        let herald = Herald::start(&common.binary, &settings).await?;
        let tenants = load.equals.max(2);
        let plan = Plan { tenants, users: 400, fanout: load.fanout, channel: "email", seed: common.seed };
        let world = Arc::new(World::create(&herald, plan).await?);

        eprintln!("pid {}: {} tenants send for {} s", herald.pid(), all.len(), load.seconds);
        let mut generators = JoinSet::new();
        for arrivals in all.iter().copied() {
            let world = world.clone();
            let (seconds, seed) = (load.seconds as f64, common.seed + arrivals.tenant as u64);
            generators.spawn(async move { generate(&world, arrivals, seconds, seed, began).await });
        }
        sleep(Duration::from_secs(load.seconds)).await;
        let arrived = all.iter().map(|one| Ok(sink.latency_us(one.tenant)?.len())).collect::<anyhow::Result<_>>()?;
        let mut sent = Sent::default();
        while let Some(one) = generators.join_next().await {
            let one = one??;
            sent.notifications += one.notifications;
            sent.instances += one.instances;
        }
        drain(&herald, End::Booked, sent).await?;
        prove(&world, sent).await?;
        anyhow::ensure!(sink.mails() == sent.instances, "{} mails came of {} sent", sink.mails(), sent.instances);
        herald.stop().await?;
        let latencies_us = all.iter().map(|one| sink.latency_us(one.tenant)).collect::<anyhow::Result<_>>()?;
        Ok(Self { latencies_us, arrived })
    }
}

/// One tenant's calls at intended times with exponential gaps.
pub async fn generate(
    world: &World,
    arrivals: Arrivals,
    seconds: f64,
    seed: u64,
    began: Instant,
) -> anyhow::Result<Sent> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut lag_us, mut sent) = (times_us()?, Sent::default());
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut calls = JoinSet::new();
    let (start, mut due) = (Instant::now(), 0.0);
    let calls_per_s = arrivals.notifications_per_s / arrivals.batch as f64;
    loop {
        due -= (1.0 - random.random::<f64>()).ln() / calls_per_s;
        if due >= seconds {
            break;
        }
        let intended = start + Duration::from_secs_f64(due);
        sleep_until(intended.into()).await;
        lag_us.saturating_record(intended.elapsed().as_micros() as u64);
        let slot = slots.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Refused(format!("{MAX_CALLS} calls are unanswered at {due:.1} s")))?;
        let due_us = intended.duration_since(began).as_micros() as u64;
        let mut notifications = Vec::new();
        for number in sent.notifications..sent.notifications + arrivals.batch {
            let text = due_text(arrivals.tenant, due_us);
            let (_, request, fanout) = world.notification(arrivals.tenant as u64, number, text);
            notifications.push(NotifyRequest { channels: vec![arrivals.channel.into()], ..request });
            sent.instances += fanout;
        }
        sent.notifications += arrivals.batch;
        let mut api = world.tenants[arrivals.tenant].api.notifications();
        calls.spawn(async move {
            let answer = api.notify_batch(NotifyBatchRequest { notifications }).await;
            drop(slot);
            answer
        });
    }
    while let Some(answer) = calls.join_next().await {
        let results = answer?.context("a call failed")?.into_inner().results;
        anyhow::ensure!(results.iter().all(|result| result.error.is_none()), "a notification was refused");
    }
    let lag = Duration::from_micros(lag_us.value_at_quantile(0.99));
    if lag > MAX_LAG {
        return Err(Refused(format!("the generator lagged {lag:?} behind its schedule at the 99th percentile")).into());
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equals_and_the_share_of_one_who_has_all() {
        assert!((jain(&[5, 5, 5, 5]) - 1.0).abs() < 1e-9);
        assert!((jain(&[8, 0, 0, 0]) - 0.25).abs() < 1e-9);
        assert!(jain(&[6, 2]) < 0.95);
    }
}
