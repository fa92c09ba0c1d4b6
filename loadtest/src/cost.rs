//! CPU time of the process per delivered instance, in a closed loop.

use std::time::{Duration, Instant};

use clap::Args;
use tokio::time::sleep;

use crate::{
    Common,
    process::{Cpu, Herald},
    proof::prove,
    report::Report,
    sender::{End, Sent, drain, send},
    sink::Sink,
    sockets::Sockets,
    world::{Fanout, Plan, World},
};

/// How long what has ended may take to arrive here.
const ARRIVAL: Duration = Duration::from_secs(30);

/// Instances that fill the caches of people before the measurement.
const WARM_UP: u64 = 100_000;

/// What is sent.
#[derive(Args, Clone)]
pub struct Load {
    /// How many receive one notification: a number, or lognormal.
    #[arg(long, default_value = "20")]
    fanout: Fanout,
    /// Notifications; 7,000 to 100,000 by the fan-out unless set.
    #[arg(long)]
    notifications: Option<u64>,
    /// Users of each tenant; each is in the audience of several authors.
    #[arg(long, default_value_t = 400)]
    users: usize,
    /// Measures without the ledger only, such as under a profiler.
    #[arg(long)]
    no_books: bool,
    /// Measures with the ledger only.
    #[arg(long, conflicts_with = "no_books")]
    books: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A mail channel that sends nothing.
    Null,
    /// A mail server in this process.
    Mail,
    /// A WebSocket for each user.
    Live,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Mail => "mail",
            Self::Live => "live",
        }
    }
}

impl Load {
    /// The same for another number of users.
    pub fn with_users(&self, users: usize) -> Self {
        Self { users, ..self.clone() }
    }

    fn notifications(&self) -> u64 {
        let fanout = match self.fanout {
            Fanout::Fixed(fanout) => fanout as u64,
            Fanout::Lognormal => 20,
        };
        self.notifications.unwrap_or((1_000_000 / fanout).clamp(7_000, 100_000))
    }

    fn ends(&self) -> &'static [End] {
        match (self.no_books, self.books) {
            (true, _) => &[End::Worker],
            (_, true) => &[End::Booked],
            _ => &[End::Worker, End::Booked],
        }
    }
}

/// Where instances go.
enum Target {
    Nowhere,
    Mail(Sink),
    Sockets(Sockets),
}

/// Measures one round, with and without the ledger.
pub async fn measure(common: &Common, load: &Load, kind: Kind, report: &mut Report) -> anyhow::Result<()> {
    if let Fanout::Fixed(fanout) = load.fanout {
        anyhow::ensure!(fanout <= load.users, "a fan-out of {fanout} needs as many users; there are {}", load.users);
    }
    let (mut costs, kind_name) = (Vec::new(), kind.name());
    for end in load.ends() {
        let name = match end {
            End::Worker => format!("{kind_name}, {}: without the ledger", load.fanout),
            End::Booked => format!("{kind_name}, {}: everything", load.fanout),
        };
        let run = one(common, load, kind, *end).await?;
        let cost_us = run.cpu.total.as_secs_f64() * 1e6 / run.instances as f64;
        report.add(&name, "us/instance", cost_us);
        report.add(format!("{name}, kernel"), "us/instance", run.cpu.kernel.as_secs_f64() * 1e6 / run.instances as f64);
        for (part, cpu) in &run.parts {
            report.add(format!("{name}, {part}"), "us/instance", cpu.as_secs_f64() * 1e6 / run.instances as f64);
        }
        report.add(format!("{name}, rate"), "instances/s", run.instances as f64 / run.elapsed.as_secs_f64());
        costs.push(cost_us);
    }
    if let [without, with] = costs[..] {
        report.add(format!("{kind_name}, {}: the ledger (difference)", load.fanout), "us/instance", with - without);
    }
    Ok(())
}

/// What one run took.
struct Run {
    cpu: Cpu,
    /// CPU time of each process and of each server.
    parts: Vec<(String, Duration)>,
    elapsed: Duration,
    instances: u64,
}

async fn one(common: &Common, load: &Load, kind: Kind, end: End) -> anyhow::Result<Run> {
    let sink = Sink::start(Instant::now()).await?;
    let email = match kind {
        Kind::Mail => format!("email.url=smtp://{}?tls=off", sink.address),
        Kind::Null | Kind::Live => "email.url=null:".to_owned(),
    };
    let ledger = if end == End::Worker { "members.ledger=0" } else { "members.ledger=1" };
    let herald = Herald::start(&common.binary, &[&email, ledger]).await?;
    let channel = if kind == Kind::Live { "in_app" } else { "email" };
    let (tenants, users, fanout, seed) = (common.tenants, load.users, load.fanout, common.seed);
    let begun = Instant::now();
    let world = World::create(&herald, Plan { tenants, users, fanout, channel, seed }).await?;
    eprintln!("set up in {:.1} s", begun.elapsed().as_secs_f64());
    let target = match kind {
        Kind::Null => Target::Nowhere,
        Kind::Mail => Target::Mail(sink),
        Kind::Live => Target::Sockets(Sockets::open(herald.address, &world, Instant::now()).await?),
    };

    let count = load.notifications();
    let warm_up = (count / 4).min(WARM_UP);
    let warm = send(&herald, &world, end, Sent::default(), warm_up, common.window).await?;
    settle(&herald, &target, end, warm).await?;

    eprintln!("pid {}: {count} notifications", herald.pid());
    let (began, cpu, of_parts) = (Instant::now(), herald.cpu()?, herald.cpu_of_parts()?);
    let sent = send(&herald, &world, end, warm, count, common.window).await?;
    settle(&herald, &target, end, sent).await?;
    let (elapsed, after, parts_after) = (began.elapsed(), herald.cpu()?, herald.cpu_of_parts()?);
    let parts = parts_after.into_iter().zip(of_parts);
    let parts = parts.map(|((name, after), (_, before))| (name, after.total - before.total)).collect();

    if end == End::Booked {
        prove(&world, sent).await?;
    }
    herald.stop().await?;
    let cpu = Cpu { total: after.total - cpu.total, kernel: after.kernel - cpu.kernel };
    Ok(Run { cpu, parts, elapsed, instances: sent.instances - warm.instances })
}

/// Waits until everything has ended, and has arrived exactly once.
async fn settle(herald: &Herald, target: &Target, end: End, sent: Sent) -> anyhow::Result<()> {
    drain(herald, end, sent).await?;
    match target {
        Target::Nowhere => Ok(()),
        Target::Mail(sink) => arrive(sent.instances, || sink.mails()).await,
        Target::Sockets(sockets) => arrive(sent.instances, || sockets.items()).await,
    }
}

/// Waits until so many have arrived, and no more.
pub async fn arrive(sent: u64, arrived: impl Fn() -> u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + ARRIVAL;
    loop {
        let arrived = arrived();
        if arrived == sent {
            return Ok(());
        }
        anyhow::ensure!(arrived < sent, "{arrived} arrived of {sent} sent");
        anyhow::ensure!(Instant::now() < deadline, "only {arrived} arrived of {sent} sent");
        sleep(Duration::from_millis(10)).await;
    }
}
