//! An open loop: calls are made when they are due whether or not earlier ones were answered, and every time counts from
//! when the call was due, so nothing that the process holds up is left out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use herald_proto::v1::ListReceiptsRequest;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep_until};

use crate::{
    Common,
    process::Herald,
    proof::prove,
    report::{Refused, Report, times_us},
    sender::{End, Sent, drain, send},
    sink::{Sink, due_text},
    world::{Fanout, Plan, World},
};

/// The generator's lag at the 99th percentile beyond which a run says nothing about Herald.
pub const MAX_LAG: Duration = Duration::from_millis(50);

/// Unanswered calls at once; beyond it the process cannot keep up, and the run is refused.
pub const MAX_CALLS: usize = 20_000;

/// Requests whose receipts are read.
const SAMPLED: usize = 500;

/// Notifications that warm the caches up.
const WARM_UP: u64 = 5_000;

/// What is sent, and how fast.
#[derive(Args, Clone)]
pub struct Load {
    /// Notifications a second.
    #[arg(long)]
    rate: f64,
    /// How many receive one notification: a number, or lognormal (median 20, p95 300).
    #[arg(long, default_value = "lognormal")]
    fanout: Fanout,
    /// How long.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Users of each tenant, and the most that receive one notification.
    #[arg(long, default_value_t = 400)]
    users: usize,
}

/// Runs the loop once.
pub async fn run(common: &Common, load: &Load, report: &mut Report) -> anyhow::Result<()> {
    anyhow::ensure!(load.rate > 0.0, "a rate must be greater than 0");
    let began = Instant::now();
    let sink = Sink::start(began).await?;
    let email = format!("email.url=smtp://{}?tls=off", sink.address);
    let herald = Herald::start(&common.binary, &[&email]).await?;
    let (tenants, users, fanout, seed) = (common.tenants, load.users, load.fanout, common.seed);
    let plan = Plan { tenants, users, fanout, channel: "email", seed };
    let world = Arc::new(World::create(&herald, plan).await?);
    let warm = send(&herald, &world, End::Booked, Sent::default(), WARM_UP, common.window).await?;
    drain(&herald, End::Booked, warm).await?;

    eprintln!("pid {}: {} notifications a second for {} s", herald.pid(), load.rate, load.seconds);
    let cpu = herald.cpu()?;
    let (generated, sent) = generate(&world, load, seed, began, warm).await?;
    drain(&herald, End::Booked, sent).await?;
    let cpu = herald.cpu()?.total - cpu.total;
    prove(&world, sent).await?;
    anyhow::ensure!(sink.mails() == sent.instances, "{} mails came of {} sent", sink.mails(), sent.instances);

    let instances = sent.instances - warm.instances;
    let name = format!("{} at {}/s", load.fanout, load.rate);
    add_percentiles(report, &format!("{name}: due to mail server"), &sink.latency_us(0)?);
    add_percentiles(report, &format!("{name}: accepted to outcome"), &receipts(&generated.requests).await?);
    add_percentiles(report, &format!("{name}: due to 202"), &generated.answered_us);
    add_percentiles(report, &format!("{name}: lag of the generator"), &generated.lag_us);
    report.add(format!("{name}: instances"), "instances/s", instances as f64 / load.seconds as f64);
    report.add(format!("{name}: cores used"), "cores", cpu.as_secs_f64() / load.seconds as f64);
    herald.stop().await
}

/// Adds the usual percentiles of times.
pub fn add_percentiles(report: &mut Report, name: &str, histogram_us: &Histogram<u64>) {
    for (quantile, label) in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99"), (1.0, "max")] {
        report.add(format!("{name}, {label}"), "ms", histogram_us.value_at_quantile(quantile) as f64 / 1e3);
    }
}

/// What the generator saw.
struct Generated {
    lag_us: Histogram<u64>,
    answered_us: Histogram<u64>,
    /// Some requests with the tenants that sent them.
    requests: Vec<(crate::api::Api, String)>,
}

/// Calls at intended times with exponential gaps.
async fn generate(
    world: &Arc<World>,
    load: &Load,
    seed: u64,
    began: Instant,
    mut sent: Sent,
) -> anyhow::Result<(Generated, Sent)> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut lag_us, mut answered_us) = (times_us()?, times_us()?);
    let mut requests = Vec::new();
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut calls = JoinSet::new();
    let (start, mut due) = (Instant::now(), 0.0);
    let sample_every = (load.rate * load.seconds as f64 / SAMPLED as f64).max(1.0) as u64;
    loop {
        due -= (1.0 - random.random::<f64>()).ln() / load.rate;
        if due >= load.seconds as f64 {
            break;
        }
        let intended = start + Duration::from_secs_f64(due);
        sleep_until(intended.into()).await;
        lag_us.saturating_record(intended.elapsed().as_micros() as u64);
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            return Err(Refused(format!("{MAX_CALLS} calls are unanswered at {due:.1} s")).into());
        };
        let number = sent.notifications;
        let text = due_text(0, intended.duration_since(began).as_micros() as u64);
        let (tenant, request, fanout) = world.notification(number, number, text);
        sent.notifications += 1;
        sent.instances += fanout;
        let api = tenant.api.clone();
        calls.spawn(async move {
            let answer = api.notifications().notify(request).await;
            drop(slot);
            answer.map(|answer| (number, api, answer.into_inner().request_id, intended.elapsed()))
        });
    }
    while let Some(answer) = calls.join_next().await {
        let (number, api, request_id, elapsed) = answer?.context("a call failed")?;
        answered_us.saturating_record(elapsed.as_micros() as u64);
        if number % sample_every == 0 {
            requests.push((api, request_id));
        }
    }
    let lag = Duration::from_micros(lag_us.value_at_quantile(0.99));
    if lag > MAX_LAG {
        return Err(Refused(format!("the generator lagged {lag:?} behind its schedule at the 99th percentile")).into());
    }
    Ok((Generated { lag_us, answered_us, requests }, sent))
}

/// What Herald says of the sampled requests itself, in microseconds.
async fn receipts(requests: &[(crate::api::Api, String)]) -> anyhow::Result<Histogram<u64>> {
    let mut latency_us = times_us()?;
    for (api, request_id) in requests {
        let request =
            ListReceiptsRequest { request_id: Some(request_id.clone()), page_size: Some(1_000), ..Default::default() };
        for receipt in api.notifications().list_receipts(request).await?.into_inner().receipts {
            latency_us.saturating_record(u64::from(receipt.latency_ms) * 1_000);
        }
    }
    Ok(latency_us)
}
