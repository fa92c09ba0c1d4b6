//! Notifications to a few people each, sent by a client that repeats what got no answer, and the proof that all of them
//! arrived.

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

use crate::support::{Chance, Client, notification, user};

/// People who are written to.
pub const PEOPLE: u64 = 200;
const BATCH: u64 = 50;

/// A mail server that counts, for all that is sent.
pub struct Mails {
    pub store: Arc<MailStore>,
    /// Where it listens.
    pub url: String,
    stop: CancellationToken,
}

impl Mails {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}?tls=off", listener.local_addr().unwrap());
        let store = Arc::new(MailStore::new(StoreLimits { message_ids: 1_000_000, ..StoreLimits::default() }));
        let stop = CancellationToken::new();
        tokio::spawn(Mailbox::serve(listener, store.clone(), stop.clone()));
        Self { store, url, stop }
    }
}

impl Drop for Mails {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What was accepted: the ids, and to whom.
pub type Accepted = Vec<(String, Vec<String>)>;

/// What is sent, and how far it is.
pub struct Traffic {
    pub notifications: u64,
    pub sent: AtomicU64,
}

impl Traffic {
    pub fn of(notifications: u64) -> Arc<Self> {
        Arc::new(Self { notifications, sent: AtomicU64::new(0) })
    }

    /// Waits until so many were sent.
    pub async fn reaches(&self, sent: u64) {
        while self.sent.load(Relaxed) < sent {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends everything; what got no answer is repeated under its key, with the next client, as anybody would.
    pub async fn send(&self, clients: &[Client], chance: &Chance) -> Accepted {
        let mut accepted = Vec::new();
        let mut clients = clients.iter().cycle();
        let mut client = clients.next().unwrap().clone();
        for first in (0..self.notifications).step_by(BATCH as usize) {
            let mut open: Accepted = (first..(first + BATCH).min(self.notifications))
                .map(|number| {
                    let begin = chance.below(PEOPLE);
                    let users = (0..1 + chance.below(3)).map(|i| user((begin + i) % PEOPLE)).collect();
                    (format!("call-{number}"), users)
                })
                .collect();
            while !open.is_empty() {
                let requests = open.iter().map(|(key, users)| notification(key, users.clone())).collect();
                let Ok(results) = client.notify(requests).await else {
                    client = clients.next().unwrap().clone();
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
            self.sent.store(first + BATCH, Relaxed);
        }
        accepted
    }
}

/// Proves that what was accepted arrived: the books, each item exactly once, each mail, and at most `twice` mails more
/// than once.
pub async fn prove(client: &mut Client, accepted: &Accepted, mails: &Mails, twice: u64) {
    let (mut wanted, mut instances) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (request_id, users) in accepted {
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
    let counts = mails.store.counts();
    println!("{instances} mails, {} came more than once", counts.duplicates);
    assert_eq!(counts.distinct, instances);
    assert!(counts.duplicates <= twice, "{} duplicates", counts.duplicates);
}
