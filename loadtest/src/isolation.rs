//! What a bad provider costs those who do not need it: one tenant's in-app messages, while another one's mails go to a mail
//! server that is well, hangs, closes its connections, or refuses three mails of ten. In the end the mail server is well
//! again, and everything that was accepted is proven to have arrived.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Common,
    cost::arrive,
    fairness::{Arrivals, generate},
    latency::add_percentiles,
    process::Herald,
    proof::prove,
    report::Report,
    sender::{End, Sent, drain},
    sink::{Mood, Sink},
    sockets::Sockets,
    world::{Fanout, Plan, World},
};

/// Users of each tenant; every one has a socket.
const USERS: usize = 100;

/// So that a run ends soon after the mail server is well again.
const RETRY_CAP: &str = "worker.retry_cap_ms=5000";

/// So that nobody is given up who is refused three times in ten.
const ATTEMPTS: &str = "worker.max_attempts=20";

/// What is sent, and how fast.
#[derive(Args, Clone)]
pub struct Load {
    /// In-app notifications a second of the one tenant.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Mail notifications a second of the other one.
    #[arg(long, default_value_t = 200.0)]
    mail_rate: f64,
    /// How many receive one notification.
    #[arg(long, default_value = "20")]
    fanout: Fanout,
    /// How long.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Measures once without mails, and once beside each mood of the mail server.
pub async fn run(common: &Common, load: &Load, report: &mut Report) -> anyhow::Result<()> {
    if let Fanout::Fixed(fanout) = load.fanout {
        anyhow::ensure!(fanout <= USERS, "a fan-out of {fanout} needs as many users; there are {USERS}");
    }
    let mut healthy_p99 = None;
    for (name, mood) in [
        ("without mails", None),
        ("mail server well", Some(Mood::Takes)),
        ("mail server hangs", Some(Mood::Hangs)),
        ("mail server refuses", Some(Mood::Refuses)),
        ("mail server throttles", Some(Mood::Throttles)),
    ] {
        let run = Run::once(common, load, mood).await?;
        add_percentiles(report, &format!("in-app, {name}"), &run.latency_us);
        let p99 = run.latency_us.value_at_quantile(0.99) as f64;
        match (mood, healthy_p99) {
            (Some(Mood::Takes), _) => healthy_p99 = Some(p99),
            (Some(_), Some(healthy)) => report.add(format!("in-app p99, {name} to well"), "times", p99 / healthy),
            _ => {}
        }
        if mood.is_some() {
            report.add(format!("attempts of a mail, {name}"), "times", run.attempts as f64 / run.mails.max(1) as f64);
        }
    }
    Ok(())
}

/// What one run gave.
struct Run {
    latency_us: Histogram<u64>,
    /// Mails that were to be sent, and those that the mail server has seen.
    mails: u64,
    attempts: u64,
}

impl Run {
    async fn once(common: &Common, load: &Load, mood: Option<Mood>) -> anyhow::Result<Self> {
        let began = Instant::now();
        let sink = Sink::start(began).await?;
        let email = format!("email.url=smtp://{}?tls=off", sink.address);
        let herald = Herald::start(&common.binary, &[&email, RETRY_CAP, ATTEMPTS]).await?;
        let plan = Plan { tenants: 2, users: USERS, fanout: load.fanout, channel: "in_app", seed: common.seed };
        let world = Arc::new(World::create(&herald, plan).await?);
        let sockets = Sockets::open(herald.address, &world, began).await?;
        sink.is_now(mood.unwrap_or(Mood::Takes));

        eprintln!("pid {}: {mood:?} for {} s", herald.pid(), load.seconds);
        let in_app = Arrivals { tenant: 0, notifications_per_s: load.rate, batch: 1, channel: "in_app" };
        let mail = Arrivals { tenant: 1, notifications_per_s: load.mail_rate, batch: 10, channel: "email" };
        let (seconds, seed) = (load.seconds as f64, common.seed);
        let mut generators = JoinSet::new();
        for arrivals in [Some(in_app), mood.map(|_| mail)].into_iter().flatten() {
            let world = world.clone();
            generators.spawn(async move { (arrivals, generate(&world, arrivals, seconds, seed, began).await) });
        }
        let (mut all, mut mails) = (Sent::default(), 0);
        while let Some(generated) = generators.join_next().await {
            let (arrivals, sent) = generated?;
            let sent = sent?;
            mails += if arrivals.channel == "email" { sent.instances } else { 0 };
            all.notifications += sent.notifications;
            all.instances += sent.instances;
        }
        // What is on its way to a socket belongs to the bad times too.
        sleep(Duration::from_secs(1)).await;
        sink.is_now(Mood::Takes);
        drain(&herald, End::Booked, all).await?;
        prove(&world, all).await?;
        arrive(all.instances - mails, || sockets.items()).await?;
        herald.stop().await?;
        Ok(Self { latency_us: sockets.latencies().of(0)?, mails, attempts: sink.attempts() })
    }
}
