//! SIGKILL at random moments: what was accepted arrives, in the inbox exactly once, in the mail within the in-doubt
//! window.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use herald_channels::email::mailbox::{MailStore, Mailbox, StoreLimits};
use tokio_util::sync::CancellationToken;

use crate::support::{Chance, Setup, notification, seed, user};

const NOTIFICATIONS: u64 = 20_000;
const KILLS: u64 = 5;
const PEOPLE: u64 = 200;
const BATCH: u64 = 50;

/// The default of `worker.in_doubt_instances`.
const IN_DOUBT: u64 = 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_accepted_arrives_although_the_process_is_killed() {
    let chance = Arc::new(Chance::new(seed()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&directory.path().join("data"));
    setup.smtp = Some(format!("smtp://{}?tls=off", listener.local_addr().unwrap()));
    let mails = Arc::new(MailStore::new(StoreLimits { message_ids: 1_000_000, ..StoreLimits::default() }));
    let stop = CancellationToken::new();
    tokio::spawn(Mailbox::serve(listener, mails.clone(), stop.clone()));

    let process = setup.start().await;
    process.client().await.set_up(PEOPLE).await;
    let sent = Arc::new(AtomicU64::new(0));
    let killer = tokio::spawn(kill_at_random(process, setup.clone(), sent.clone(), chance.clone()));
    let accepted = send_all(&setup, &sent, &chance).await;
    let process = killer.await.unwrap();

    let mut client = process.client().await;
    let (mut wanted, mut instances) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (request_id, users) in &accepted {
        let status = client.settled(request_id).await;
        let counts = status.instances.unwrap();
        assert_eq!(u64::from(counts.delivered), users.len() as u64 * 2, "{request_id}: {counts:?}");
        instances += users.len() as u64;
        for user in users {
            wanted.entry(user.clone()).or_default().push(request_id.clone());
        }
    }
    for number in 0..PEOPLE {
        let mut has = client.inbox_of(&user(number)).await;
        let mut should = wanted.remove(&user(number)).unwrap_or_default();
        has.sort();
        should.sort();
        assert_eq!(has, should, "the inbox of {}", user(number));
    }
    let counts = mails.counts();
    println!("{instances} mails, {} came more than once, {KILLS} kills", counts.duplicates);
    assert_eq!(counts.distinct, instances);
    assert!(counts.duplicates <= IN_DOUBT * KILLS, "{} duplicates", counts.duplicates);
    stop.cancel();
}

/// Kills the process at random shares of the way and starts it again.
async fn kill_at_random(
    mut process: crate::support::Process,
    setup: Setup,
    sent: Arc<AtomicU64>,
    chance: Arc<Chance>,
) -> crate::support::Process {
    for kill in 0..KILLS {
        let share = NOTIFICATIONS / (KILLS + 1);
        let at = share * kill + chance.below(share);
        while sent.load(Relaxed) < at {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(chance.below(20))).await;
        process.kill();
        process = setup.start().await;
    }
    process
}

/// Sends everything; what got no answer is repeated under its key, as any client would. Returns ids and users.
async fn send_all(setup: &Setup, sent: &AtomicU64, chance: &Chance) -> Vec<(String, Vec<String>)> {
    let mut accepted = Vec::new();
    let mut client = setup.client().await;
    for first in (0..NOTIFICATIONS).step_by(BATCH as usize) {
        let batch: Vec<(String, Vec<String>)> = (first..(first + BATCH).min(NOTIFICATIONS))
            .map(|number| {
                let begin = chance.below(PEOPLE);
                let users = (0..1 + chance.below(3)).map(|i| user((begin + i) % PEOPLE)).collect();
                (format!("call-{number}"), users)
            })
            .collect();
        let mut open: Vec<(String, Vec<String>)> = batch;
        while !open.is_empty() {
            let requests = open.iter().map(|(key, users)| notification(key, users.clone())).collect();
            let Ok(results) = client.notify(requests).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut again = Vec::new();
            for (one, result) in open.into_iter().zip(results) {
                match (result.request_id, result.error) {
                    (Some(id), None) => accepted.push((id, one.1)),
                    // A call under the same key that was cut off counts as running for a while.
                    (_, Some(problem)) if problem.status == 409 || problem.status == 503 => again.push(one),
                    (_, problem) => panic!("{}: {problem:?}", one.0),
                }
            }
            open = again;
            if !open.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        sent.store(first + BATCH, Relaxed);
    }
    accepted
}
