//! Memory: one notification to everyone, however many that are.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use herald_proto::v1::{
    Audience, Endpoint, GetStatusRequest, InAppTemplate, NotifyRequest, PutTemplateRequest, PutUserRequest,
    PutUsersRequest, TemplateChannels,
};
use tokio::time::sleep;

use crate::{
    Common,
    api::{Api, DEV_KEY, connect},
    process::Herald,
    report::Report,
};

/// How long the notification may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Users of one call.
const USERS_A_CALL: u64 = 1_000;

/// What is sent.
#[derive(Args, Clone)]
pub struct Load {
    /// Registered users, who are all notified.
    #[arg(long, default_value_t = 1_000_000)]
    recipients: u64,
}

/// Registers people, restarts the high-water mark, notifies everyone in-app, and reports the peak.
pub async fn run(common: &Common, load: &Load, report: &mut Report) -> anyhow::Result<()> {
    let herald = Herald::start(&common.binary, &["email.url=null:"]).await?;
    let api = Api::new(connect(herald.address).await?, DEV_KEY)?;
    put_template(&api).await?;
    register(&api, load.recipients).await?;
    // Writing 5 sets the high-water mark to the present (proc(5)).
    std::fs::write(format!("/proc/{}/clear_refs", herald.pid()), "5").context("the high-water mark stays")?;
    let before = memory_mib(&herald, "VmRSS:")?;
    let began = Instant::now();
    let request = NotifyRequest {
        template_id: "note".into(),
        audience: Some(Audience { everyone: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let request_id = api.notifications().notify(request).await?.into_inner().request_id;
    loop {
        let request = GetStatusRequest { request_id: request_id.clone() };
        let status = api.notifications().get_status(request).await?.into_inner();
        if status.state == "complete" && status.books_balanced {
            let delivered = u64::from(status.instances.unwrap_or_default().delivered);
            anyhow::ensure!(delivered == load.recipients, "{delivered} of {} were delivered", load.recipients);
            break;
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "the notification does not end: {status:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let recipients = load.recipients;
    report.add(format!("{recipients} recipients, resident before"), "MiB", before);
    report.add(format!("{recipients} recipients, peak"), "MiB", memory_mib(&herald, "VmHWM:")?);
    report.add(format!("{recipients} recipients, time"), "s", began.elapsed().as_secs_f64());
    herald.stop().await
}

async fn put_template(api: &Api) -> anyhow::Result<()> {
    let in_app = InAppTemplate { title: Some("News".into()), body: Some("For everyone.".into()) };
    let channels = TemplateChannels { in_app: Some(in_app), ..Default::default() };
    let template = PutTemplateRequest { template_id: "note".into(), channels: Some(channels), ..Default::default() };
    api.templates().put_template(template).await?;
    Ok(())
}

/// Registers `user-0` and so on, each with an address for mail.
pub async fn register(api: &Api, recipients: u64) -> anyhow::Result<()> {
    for first in (0..recipients).step_by(USERS_A_CALL as usize) {
        let person = |number: u64| PutUserRequest {
            user_id: format!("user-{number}"),
            endpoints: vec![Endpoint {
                channel: "email".into(),
                address: format!("user-{number}@example.org"),
                ..Default::default()
            }],
            ..Default::default()
        };
        let users = (first..(first + USERS_A_CALL).min(recipients)).map(person).collect();
        let results = api.users().put_users(PutUsersRequest { users }).await?.into_inner().results;
        anyhow::ensure!(results.iter().all(|result| result.error.is_none()), "a user was refused");
    }
    Ok(())
}

/// A line of the process's status, in MiB.
fn memory_mib(herald: &Herald, name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", herald.pid())).context("herald has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map(|kib| kib / 1_024.0).with_context(|| format!("/proc/PID/status has no {name}"))
}
