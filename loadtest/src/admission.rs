//! CPU time of the process per accepted event.
//!
//! The events are for the followers of somebody whom nobody follows, no books are kept, and `members.orchestrator=0` is
//! set: where the process heeds it nothing reads the events, else the figures include an expansion that finds nobody.

use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use herald_proto::v1::{Audience, NotifyBatchRequest, NotifyRequest};

use crate::{
    Common,
    process::Herald,
    report::Report,
    world::{Fanout, Plan, Tenant, World, text_struct},
};

/// Text in each event, so that it has about 1 kB.
const TEXT_BYTES: usize = 850;

/// Unary calls under way at once, and notifications of a batch.
const CALLS: usize = 256;
const BATCH: u64 = 100;

/// Batches and streams under way at once.
const WIDE_CALLS: usize = 8;

#[derive(Clone, Copy)]
enum Call {
    Unary,
    Batch,
    Stream,
}

/// Measures the three kinds of call one after the other.
pub async fn run(common: &Common, events: u64, report: &mut Report) -> anyhow::Result<()> {
    let settings = ["email.url=null:", "members.ledger=0", "members.orchestrator=0"];
    let herald = Herald::start(&common.binary, &settings).await?;
    let plan =
        Plan { tenants: common.tenants, users: 1, fanout: Fanout::Fixed(1), channel: "email", seed: common.seed };
    let world = World::create(&herald, plan).await?;
    let mut next = 0;
    let mut expanded = false;
    for (call, name) in [(Call::Unary, "unary"), (Call::Batch, "batch of 100"), (Call::Stream, "stream")] {
        next = accept(&world, call, next, events / 10).await?;
        eprintln!("pid {}: {events} events, {name}", herald.pid());
        let (began, before) = (Instant::now(), herald.cpu()?);
        next = accept(&world, call, next, events).await?;
        expanded |= drained(&herald, next).await?;
        let (elapsed, after) = (began.elapsed().as_secs_f64(), herald.cpu()?);
        let name = if expanded { format!("{name}, with an empty expansion") } else { name.to_owned() };
        let per_event = |time: std::time::Duration| time.as_secs_f64() * 1e6 / events as f64;
        report.add(format!("accepted event, {name}"), "us/event", per_event(after.total - before.total));
        report.add(format!("accepted event, {name}, kernel"), "us/event", per_event(after.kernel - before.kernel));
        report.add(format!("accepted event, {name}, rate"), "events/s", events as f64 / elapsed);
    }
    herald.stop().await
}

/// Waits until the orchestrator, if there is one, has read all events; returns whether there is one.
async fn drained(herald: &Herald, events: u64) -> anyhow::Result<bool> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let pages = herald.count("herald_expansion_pages_total").await?;
        if pages == 0 || pages >= events {
            return Ok(pages > 0);
        }
        anyhow::ensure!(Instant::now() < deadline, "only {pages} of {events} events were expanded");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Has `count` more events accepted, from number `first` on; returns the next number.
async fn accept(world: &World, call: Call, first: u64, count: u64) -> anyhow::Result<u64> {
    let numbers = first..first + count;
    let tenant = |turn: u64| &world.tenants[turn as usize % world.tenants.len()];
    match call {
        Call::Unary => {
            let calls = stream::iter(numbers).map(|number| unary(tenant(number), number));
            calls.buffer_unordered(CALLS).try_for_each(|()| async { Ok(()) }).await?;
        }
        Call::Batch => {
            let calls = stream::iter(numbers.step_by(BATCH as usize))
                .map(|number| batch(tenant(number / BATCH), number, BATCH.min(first + count - number)));
            calls.buffer_unordered(WIDE_CALLS).try_for_each(|()| async { Ok(()) }).await?;
        }
        Call::Stream => {
            let each = count.div_ceil(WIDE_CALLS as u64);
            let calls = stream::iter(numbers.step_by(each as usize))
                .map(|number| streamed(tenant(number / each), number, each.min(first + count - number)));
            calls.buffer_unordered(WIDE_CALLS).try_for_each(|()| async { Ok(()) }).await?;
        }
    }
    Ok(first + count)
}

fn event(number: u64) -> NotifyRequest {
    NotifyRequest {
        template_id: "news".into(),
        audience: Some(Audience { followers_of: Some("user-0".into()), ..Default::default() }),
        actor_id: Some("author-0".into()),
        dedupe_key: Some(format!("event-{number}")),
        data: Some(text_struct("text", "x".repeat(TEXT_BYTES))),
        ..Default::default()
    }
}

async fn unary(tenant: &Tenant, number: u64) -> anyhow::Result<()> {
    tenant.api.notifications().notify(event(number)).await.context("an event was refused")?;
    Ok(())
}

async fn batch(tenant: &Tenant, first: u64, count: u64) -> anyhow::Result<()> {
    let notifications = (first..first + count).map(event).collect();
    let answer = tenant.api.notifications().notify_batch(NotifyBatchRequest { notifications }).await?.into_inner();
    let refused = answer.results.into_iter().find_map(|result| result.error);
    anyhow::ensure!(refused.is_none(), "an event was refused: {refused:?}");
    Ok(())
}

async fn streamed(tenant: &Tenant, first: u64, count: u64) -> anyhow::Result<()> {
    let events = stream::iter((first..first + count).map(event));
    let mut results = tenant.api.notifications().notify_stream(events).await?.into_inner();
    let mut answered = 0;
    while let Some(result) = results.message().await? {
        anyhow::ensure!(result.error.is_none(), "an event was refused: {:?}", result.error);
        answered += 1;
    }
    anyhow::ensure!(answered == count, "{answered} of {count} events of a stream were answered");
    Ok(())
}
