//! The story that the demo tells, by gRPC as any client would.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::Context;
use herald_control_plane::bootstrap::DEV_KEY;
use herald_core::{
    ids::{NotificationId, channel_name},
    latency::{LATENCY_BOUNDS_MS, LatencySnapshot},
    ports::ledger::Ledger,
};
use herald_ledger::{
    proof::{Proof, prove},
    stats::CHANNELS,
};
use herald_proto::v1::{
    Audience, ChannelPreference, Edge, EmailTemplate, Endpoint, FollowRequest, InAppTemplate, ListInboxRequest,
    NotifyBatchRequest, NotifyRequest, PutPreferencesRequest, PutTemplateRequest, PutUserRequest, PutUsersRequest,
    TemplateChannels, inbox_client::InboxClient, notifications_client::NotificationsClient,
    templates_client::TemplatesClient, users_client::UsersClient,
};
use indicatif::{ProgressBar, ProgressStyle};
use pbjson_types::{Struct, Value, value::Kind};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::Channel,
};

use super::{Report, graph::Graph};
use crate::node::Node;

const BATCH: usize = 500;

/// How long the last instance may take.
const SETTLE: Duration = Duration::from_secs(600);

/// How often the books are read where other processes keep them.
const READ_BOOKS_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Api = InterceptedService<Channel, Bearer>;

/// Tells the story and checks its end. Notifications go to `gateways` too, which serve what the node serves.
pub async fn run(node: &Node, gateways: &[String], graph: &Graph) -> anyhow::Result<Report> {
    let mut apis = Vec::new();
    for url in [&format!("http://{}", node.address)].into_iter().chain(gateways) {
        let channel = Channel::from_shared(url.clone())?.connect().await;
        let channel = channel.with_context(|| format!("the gateway {url} does not answer"))?;
        apis.push(InterceptedService::new(channel, Bearer(format!("Bearer {DEV_KEY}").parse()?)));
    }
    let api = apis[0].clone();
    set_up(api.clone(), graph).await?;
    let (began, cpu) = (Instant::now(), cpu_time());
    let ids = comment(&apis, graph).await?;
    let proof = settle(node, &ids, graph).await?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_time() - cpu);
    let mut report = Report {
        users: graph.followers.len() as u64,
        edges: graph.edges(),
        notifications: ids.len() as u64,
        recipients: proof.recipients,
        accepted: proof.accepted,
        suppressed: proof.suppressed.clone(),
        failed: proof.failed,
        dead: proof.dead,
        seconds,
        peak_memory_mib: peak_memory_mib(),
        ..Report::default()
    };
    report.delivered = proof.delivered_by_channel.clone();
    report.delivered.retain(|_, count| *count > 0);
    for channel in CHANNELS {
        let latency = node.counters.ledger.latency(channel);
        if latency.buckets.iter().any(|count| *count > 0) {
            report.latency_ms.insert(channel_name(channel), percentiles(&latency));
        }
    }
    report.cpu_us_per_delivery = cpu.as_secs_f64() * 1e6 / report.delivered_total().max(1) as f64;
    report.inbox_items = count_inboxes(api, graph).await?;
    if let Some((store, _)) = &node.mailbox {
        let counts = store.counts();
        (report.mails, report.duplicate_mails) = (Some(counts.distinct), Some(counts.duplicates));
    }
    report.contradictions = contradictions(&report, &proof, graph);
    Ok(report)
}

async fn set_up(api: Api, graph: &Graph) -> anyhow::Result<()> {
    let template = PutTemplateRequest {
        template_id: "comment".into(),
        channels: Some(TemplateChannels {
            in_app: Some(InAppTemplate {
                title: Some("{{actor.attributes.name}} commented".into()),
                body: Some("{{data.text}}".into()),
            }),
            email: Some(EmailTemplate {
                subject: Some("{{actor.attributes.name}} commented".into()),
                text: Some("Hi {{user.attributes.name}},\n\n{{actor.attributes.name}} wrote: {{data.text}}\n".into()),
                html: None,
            }),
            ..Default::default()
        }),
        category: Some("social".into()),
        ..Default::default()
    };
    TemplatesClient::new(api.clone()).put_template(template).await.context("the template was refused")?;

    let mut users = UsersClient::new(api);
    let people: Vec<u32> = graph.followers.keys().copied().collect();
    let bar = progress("users", people.len() as u64);
    for some in people.chunks(BATCH) {
        let request = PutUsersRequest { users: some.iter().map(|user| person(*user)).collect() };
        let results = users.put_users(request).await?.into_inner().results;
        anyhow::ensure!(results.iter().all(|result| result.error.is_none()), "a user was refused");
        bar.inc(some.len() as u64);
    }
    for user in people.iter().filter(|user| **user % 10 == 0) {
        let no_mail = ChannelPreference { enabled: Some(false), ..Default::default() };
        let channels = [("email".to_owned(), no_mail)].into();
        let request = PutPreferencesRequest { user_id: name_of(*user), channels, ..Default::default() };
        users.put_preferences(request).await?;
    }
    bar.finish_and_clear();
    let bar = progress("edges", graph.edges());
    let mut edges = Vec::with_capacity(10_000);
    for (followee, followers) in &graph.followers {
        for follower in followers {
            edges.push(Edge { follower: name_of(*follower), followee: name_of(*followee) });
            if edges.len() == 10_000 {
                users.follow(FollowRequest { edges: std::mem::take(&mut edges) }).await?;
                bar.inc(10_000);
            }
        }
    }
    if !edges.is_empty() {
        users.follow(FollowRequest { edges }).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn name_of(user: u32) -> String {
    format!("user-{user}")
}

fn person(user: u32) -> PutUserRequest {
    PutUserRequest {
        user_id: name_of(user),
        attributes: Some(text_struct("name", &format!("User {user}"))),
        endpoints: vec![Endpoint {
            channel: "email".into(),
            address: format!("user-{user}@example.org"),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn text_struct(name: &str, text: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: [(name.to_owned(), value)].into() }
}

/// Every user comments once; the gateways take turns.
async fn comment(apis: &[Api], graph: &Graph) -> anyhow::Result<Vec<NotificationId>> {
    let gateways = apis.iter().cloned().map(NotificationsClient::new).cycle();
    let people: Vec<u32> = graph.followers.keys().copied().collect();
    let bar = progress("comments", people.len() as u64);
    let mut ids = Vec::with_capacity(people.len());
    for (some, mut notifications) in people.chunks(100).zip(gateways) {
        let batch = some
            .iter()
            .map(|user| NotifyRequest {
                template_id: "comment".into(),
                audience: Some(Audience { followers_of: Some(name_of(*user)), ..Default::default() }),
                actor_id: Some(name_of(*user)),
                data: Some(text_struct("text", &format!("This is the comment of user {user}."))),
                ..Default::default()
            })
            .collect();
        for result in
            notifications.notify_batch(NotifyBatchRequest { notifications: batch }).await?.into_inner().results
        {
            match (result.request_id, result.error) {
                (Some(id), None) => ids.push(id.parse()?),
                (_, error) => anyhow::bail!("a notification was refused: {error:?}"),
            }
        }
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    Ok(ids)
}

/// Waits until everything accepted has ended, and proves the books.
async fn settle(node: &Node, ids: &[NotificationId], graph: &Graph) -> anyhow::Result<Proof> {
    let bar = progress("deliveries", graph.edges() * 2);
    let deadline = Instant::now() + SETTLE;
    let ledger: &dyn Ledger = node.backends.ledger.as_ref();
    loop {
        let ended: u64 = CHANNELS
            .iter()
            .flat_map(|channel| herald_ledger::stats::STATES.map(|state| node.counters.ledger.ended(*channel, state)))
            .sum();
        bar.set_position(ended);
        // The proof reads all books, so it is tried when the counters say that it may succeed.
        if !node.keeps_books {
            tokio::time::sleep(READ_BOOKS_EVERY).await;
        }
        if ended >= graph.edges() * 2 || !node.keeps_books || Instant::now() >= deadline {
            let proof = prove(ledger, ids).await?;
            if proof.holds() || Instant::now() >= deadline {
                bar.finish_and_clear();
                return Ok(proof);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn count_inboxes(api: Api, graph: &Graph) -> anyhow::Result<u64> {
    let mut inbox = InboxClient::new(api);
    let mut items = 0;
    for user in graph.followers.keys() {
        let request = ListInboxRequest { user_id: name_of(*user), page_size: Some(1), ..Default::default() };
        let counts = inbox.list_inbox(request).await?.into_inner().counts.unwrap_or_default();
        items += u64::from(counts.total);
    }
    Ok(items)
}

fn contradictions(report: &Report, proof: &Proof, graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    if !proof.holds() {
        found.push(format!(
            "{} notifications are missing, {} incomplete, {} channels unbalanced",
            proof.missing.len(),
            proof.incomplete.len(),
            proof.unbalanced.len()
        ));
    }
    let mut equal = |what: &str, is: u64, should: u64| {
        if is != should {
            found.push(format!("{what}: {is}, not {should}"));
        }
    };
    let delivered = |channel: &str| report.delivered.get(channel).copied().unwrap_or(0);
    equal("recipients expanded", report.recipients, graph.edges());
    equal("instances accepted", report.accepted, graph.edges() * 2);
    let opted_out: u64 = graph.followers.values().flatten().filter(|user| **user % 10 == 0).count() as u64;
    equal("suppressed as opted_out", report.suppressed.get("opted_out").copied().unwrap_or(0), opted_out);
    equal("items in the inboxes", report.inbox_items, delivered("in_app"));
    if let Some(mails) = report.mails {
        equal("mails in the mailbox", mails, delivered("email"));
    }
    found
}

/// Upper bounds of the buckets in which the percentiles lie.
fn percentiles(latency: &LatencySnapshot) -> [u64; 3] {
    let total: u64 = latency.buckets.iter().sum();
    [50, 95, 99].map(|percent| {
        let rank = (total * percent).div_ceil(100);
        let mut below = 0;
        for (count, bound) in latency.buckets.iter().zip(LATENCY_BOUNDS_MS) {
            below += count;
            if below >= rank {
                return bound;
            }
        }
        u64::MAX
    })
}

fn progress(what: &'static str, total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("{what}: {total}");
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:>12} {bar:40} {pos}/{len} {elapsed}");
    let bar = ProgressBar::new(total).with_message(what);
    // The template is a constant; a broken one would show the default bar.
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The process's high-water mark, from the kernel; 0 where it does not tell.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) / 1_024
}
