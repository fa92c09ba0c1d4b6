//! Whoever takes calls and steers is gone: what was accepted goes all the way without it.

use std::time::{Duration, Instant};

use herald_core::{ports::log::Log, topic::Group};

use super::{SERVERS, installation::Installation};
use crate::{
    kill::IN_DOUBT,
    support::{Chance, PATIENCE, seed},
    traffic::{Mails, PEOPLE, Traffic, prove},
};

const NOTIFICATIONS: u64 = 500;

/// In the order in which a notification passes them.
const ON_THE_WAY: [Group; 5] =
    [Group::Orchestrator, Group::Worker, Group::Router, Group::LedgerRequests, Group::LedgerReceipts];

/// Gateway and control plane are killed before anything was sent. The others go on, and one that comes meanwhile knows from
/// the log alone what it needs.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_arrives_and_is_booked_without_gateway_and_control_plane() {
    let _shared = SERVERS.read().await;
    let (installation, mails) = (Installation::new(), Mails::start().await);
    let mail = format!("email.url={}", mails.url);
    let mut each = installation.start_each_role(1, &[&mail]).await;
    let mut client = each.front.client();
    client.set_up(PEOPLE).await;
    let worker = each.workers.pop().unwrap();
    // It sends nothing until the front has gone.
    worker.signal("STOP");
    let accepted = Traffic::of(NOTIFICATIONS).send(&[client.clone()], &Chance::new(seed())).await;
    each.front.signal("KILL");
    while each.front.readyz().await.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(mails.store.counts().received, 0);
    worker.signal("CONT");
    until(async || mails.store.counts().received > 0).await;
    worker.kill();
    let _replaces_it = installation.start_role("worker-1", &[&mail]).await;

    let instances: usize = accepted.iter().map(|(_, users)| users.len()).sum();
    until(async || mails.store.counts().distinct == instances as u64).await;
    let log = installation.log().await;
    until(async || is_done(&log).await).await;
    assert!(each.front.readyz().await.is_none(), "somebody has started it");

    let front = installation.start_role("front-0", &[&mail]).await;
    let mut client = front.client();
    // All of it was booked before: nothing is to be waited for.
    for (id, users) in &accepted {
        let status = client.status(id).await.unwrap();
        let counts = status.instances.as_ref().unwrap();
        let is_booked = status.state == "complete" && status.books_balanced;
        assert!(is_booked && u64::from(counts.delivered) == 2 * users.len() as u64, "{status:?}");
    }
    prove(&mut client, &accepted, &mails, IN_DOUBT).await;
}

/// Whether everybody on the way has finished what there is.
async fn is_done(log: &dyn Log) -> bool {
    for group in ON_THE_WAY {
        let progress = log.progress(group).await.unwrap();
        if progress.iter().any(|progress| progress.committed < progress.end) {
            return false;
        }
    }
    true
}

async fn until(so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "it does not come so far");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
